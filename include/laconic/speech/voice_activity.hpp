// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/error.hpp>
#include <laconic/core/extent.hpp>
#include <laconic/speech/band_activity.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Says what a stretch of speech is, in seconds.
struct VoiceActivityConfig {
  double padding = 0.25,  ///< given before the first sound and after the last one; weak sounds of speech are in it
      min_speech = 0.1,   ///< sound that begins a stretch; shorter ones, such as clicks, are silence
      min_silence = 0.5;  ///< silence that ends a stretch
};

/// Finds the stretches of speech in samples while they come, and gives only these. A step of 10 ms is sound if its
/// octaves stand out from their background in what came before (200 to 6400 Hz, as far as the rate has them), which for
/// the first half second is taken to be at -65 dB in each. Noise that grows is sound for 20 s. Any sound counts: music
/// is speech here. Memory is fixed.
class VoiceActivity {
 public:
  /// Begins at sample 0. `sample_rate` is in Hz. Throws `Error` for a rate below 500 Hz, and unless 0 < min_speech <=
  /// 10, 0 < min_silence <= 10 and 0 <= padding <= min_silence. Allocates; nothing else does.
  explicit VoiceActivity(int sample_rate, const VoiceActivityConfig& config = {})
      : activity_(sample_rate), min_speech_(std::max<Index>(1, std::lround(100 * config.min_speech))) {
    require(sample_rate >= 500, "voice activity: a sample rate of ", sample_rate,
            " Hz given, at least 500 Hz expected");
    require(config.min_speech > 0 && config.min_speech <= 10, "voice activity: min_speech of ", config.min_speech,
            " s given, more than 0 and at most 10 s expected");
    require(config.min_silence > 0 && config.min_silence <= 10, "voice activity: min_silence of ", config.min_silence,
            " s given, more than 0 and at most 10 s expected");
    require(config.padding >= 0 && config.padding <= config.min_silence, "voice activity: padding of ", config.padding,
            " s given, 0 to min_silence (", config.min_silence, " s) expected");
    const auto samples = [&](double seconds) { return static_cast<Index>(std::lround(seconds * sample_rate)); };
    padding_ = samples(config.padding);
    min_silence_ = samples(config.min_silence);
    kept_.resize(static_cast<std::size_t>(padding_ + samples(2 * config.min_speech + config.min_silence + 0.1)));
  }

  /// Takes samples in [-1, 1] and calls `take(Index begin, std::span<const float> samples, bool ends)` for each part of
  /// speech that is known by now: `begin` is the number of samples before it. The parts of a stretch follow one another
  /// without a gap; `ends` says that the stretch ends after the part, which may be empty then.
  template <class Take>
  void push(std::span<const float> samples, Take&& take) {
    for (const float x : samples) {
      kept_[static_cast<std::size_t>(count_ % capacity())] = x;
      ++count_;
      if (activity_.push(x)) take_step(activity_.sounds(), take);
    }
  }
  /// Ends the samples; a stretch that is open ends with them, or with its padding. The object is used up.
  template <class Take>
  void finish(Take&& take) {
    if (!speaks_) return;
    give(std::min(count_, last_sound_ + padding_), take);
    end_stretch(take);
  }

  /// Says whether a stretch is open.
  bool speaks() const { return speaks_; }
  /// Returns the number of samples taken.
  Index samples() const { return count_; }
  /// Returns the number of samples that were given as speech.
  Index speech() const { return speech_; }

 private:
  Index capacity() const { return static_cast<Index>(kept_.size()); }
  /// Decides what follows from a step that has ended.
  template <class Take>
  void take_step(bool sounds, Take& take) {
    if (!speaks_) {
      if (sound_ == 0) onset_ = count_before_step_;
      sound_ = sounds ? sound_ + 1 : std::max<Index>(0, sound_ - 1);
      if (sound_ >= min_speech_) {
        speaks_ = true;
        given_ = std::max({onset_ - padding_, given_, count_ - capacity()});
        last_sound_ = count_;
      }
    } else if (sounds && sounded_) {  // a single step may be noise
      last_sound_ = count_;
    }
    sounded_ = sounds;
    count_before_step_ = count_;
    if (!speaks_) return;
    give(std::min(count_, last_sound_ + padding_), take);
    if (count_ - last_sound_ >= min_silence_) end_stretch(take);
  }
  /// Gives the samples up to `end` that were not given yet.
  template <class Take>
  void give(Index end, Take& take) {
    while (given_ < end) {
      const Index at = given_ % capacity(), size = std::min(end - given_, capacity() - at), begin = given_;
      given_ += size;
      speech_ += size;
      take(begin, std::span<const float>(kept_).subspan(static_cast<std::size_t>(at), static_cast<std::size_t>(size)),
           false);
    }
  }
  template <class Take>
  void end_stretch(Take& take) {
    speaks_ = sounded_ = false;
    sound_ = 0;
    take(given_, std::span<const float>(), true);
  }

  detail::BandActivity activity_;
  std::vector<float> kept_;  // the last samples, sample i at i % capacity()
  Index padding_ = 0, min_silence_ = 0, min_speech_;
  Index count_ = 0, count_before_step_ = 0, given_ = 0, speech_ = 0;
  Index sound_ = 0,     // steps of sound of late
      onset_ = 0,       // sample at which they began
      last_sound_ = 0;  // sample after the last sound of the stretch
  bool speaks_ = false, sounded_ = false;
};

}  // namespace LACONIC_ABI
}  // namespace laconic
