// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/extent.hpp>
#include <laconic/recognition/recognizer.hpp>
#include <laconic/speech/voice_activity.hpp>
#include <laconic/speech/word.hpp>

#include <cstddef>
#include <deque>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Holds a stretch of speech that has ended.
struct SpeechStretch {
  std::string text;   ///< the text of what was said
  double begin, end;  ///< in seconds from the beginning of all samples
};

/// Hears samples as they come. With a voice activity gate it hears only the stretches of speech, each in a stream of
/// its own: silence costs no pass through the model, and a stretch does not depend on those before it.
///
///     Listener listener([&] { return recognizer.stream(); }, 16000, VoiceActivityConfig());
///     listener.push(samples);
///     while (listener.is_endpoint()) std::cout << listener.next_utterance() << '\n';
///     listener.finish();
///     std::cout << listener.next_utterance() << '\n';
class Listener {
 public:
  /// `open` makes a stream, here and for each further stretch, while the stream before is still there. `sample_rate` is
  /// the model's, in Hz. With a gate, `ended` is called after each stretch; this object has its text and words then.
  /// Throws `Error` as `VoiceActivity` does, and what `open` throws.
  Listener(std::function<SpeechStream()> open, int sample_rate, const std::optional<VoiceActivityConfig>& gate = {},
           std::function<void(const SpeechStretch&)> ended = {})
      : open_(std::move(open)), rate_(sample_rate), ended_(std::move(ended)), stream_(open_()) {
    if (gate) gate_.emplace(sample_rate, *gate);
  }

  /// Takes the samples that follow, in [-1, 1], and returns the number of encoder frames that became final. Allocates,
  /// as streams do. A listener whose `push` or `finish` threw is over.
  Index push(std::span<const float> samples) {
    if (!gate_) return take(samples, false);
    Index frames = 0;
    gate_->push(samples, [&](Index at, std::span<const float> part, bool ends) { frames += hear(at, part, ends); });
    return frames;
  }
  /// Ends the samples, and a stretch that is open. Returns the number of encoder frames that were left.
  Index finish() {
    if (!gate_) return take({}, true);
    Index frames = 0;
    gate_->finish([&](Index at, std::span<const float> part, bool ends) { frames += hear(at, part, ends); });
    return frames;
  }

  /// Returns the text of all final frames. Later texts begin with the earlier ones.
  const std::string& text() const { return gate_ ? text_ : stream_.text(); }
  /// Returns the words of the text that are final, with times from the beginning of all samples.
  const std::vector<Word>& words() const { return gate_ ? words_ : stream_.words(); }
  /// Says whether the utterance that began last has ended: by the rules, or with a gate by the end of a stretch.
  bool is_endpoint(const EndpointRules& rules = {}) const {
    if (!gate_) return stream_.is_endpoint(rules);
    return !ends_.empty() || (is_open_ && stream_.is_endpoint(rules));
  }
  /// Begins another utterance, and returns the text of the one that ended first, or else ends here.
  std::string next_utterance() {
    if (!gate_) return stream_.next_utterance();
    std::size_t end = 0;
    if (ends_.empty()) {
      if (is_open_) stream_.next_utterance();
      take_text();  // a beam search decides the last words only now
      end = text_.size();
    } else {
      end = ends_.front();
      ends_.pop_front();
    }
    while (said_ < end && text_[said_] == ' ') ++said_;
    const std::size_t begin = std::exchange(said_, end);
    return text_.substr(begin, end - begin);
  }
  /// Returns the streams that hear the last stretch, for their sizes.
  const FeatureStreams& streams() const { return stream_.streams(); }
  /// Returns the seconds that the gate did not let pass so far; 0 without a gate. Sound that has just begun, and the
  /// padding before it, are among them until the gate opens.
  double silence() const { return gate_ ? static_cast<double>(gate_->samples() - gate_->speech()) / rate_ : 0.0; }

 private:
  /// Hears a part of a stretch.
  Index hear(Index at, std::span<const float> part, bool ends) {
    const double seconds = static_cast<double>(at) / rate_;
    if (!is_open_) {
      if (is_used_) stream_ = open_();
      shown_ = taken_ = 0;
      begin_ = seconds;
      is_open_ = is_used_ = true;
    }
    const Index frames = take(part, ends);
    if (!ends) return frames;
    is_open_ = false;
    if (said_ < text_.size() && (ends_.empty() || ends_.back() < text_.size())) ends_.push_back(text_.size());
    if (ended_) ended_({stream_.text(), begin_, seconds});
    return frames;
  }
  Index take(std::span<const float> samples, bool ends) {
    Index frames = samples.empty() && ends ? 0 : stream_.push(samples);
    if (ends) frames += stream_.finish();
    if (gate_) take_text();
    return frames;
  }
  /// Takes what the stream has found since.
  void take_text() {
    const std::string_view said = stream_.text();  // only grows
    if (shown_ == 0 && !text_.empty() && !said.empty()) text_ += ' ';
    text_ += said.substr(shown_);
    shown_ = said.size();
    append_words(words_, std::span(stream_.words()).subspan(taken_), begin_);
    taken_ = stream_.words().size();
  }

  std::function<SpeechStream()> open_;
  int rate_;
  std::function<void(const SpeechStretch&)> ended_;
  SpeechStream stream_;
  std::optional<VoiceActivity> gate_;
  bool is_open_ = false, is_used_ = false;  // a stretch; the stream, by a stretch before
  std::string text_;                        // of all stretches, as are the words
  std::vector<Word> words_;
  std::size_t shown_ = 0, taken_ = 0,  // bytes of the stream's text, and its words
      said_ = 0;                       // bytes of the text that `next_utterance` has returned
  std::deque<std::size_t> ends_;       // of stretches that have ended since, in bytes of the text
  double begin_ = 0;                   // of the stretch
};

}  // namespace LACONIC_ABI
}  // namespace laconic
