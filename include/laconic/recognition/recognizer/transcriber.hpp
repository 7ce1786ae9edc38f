// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/decode/windowed_logits.hpp>
#include <laconic/decode/word_decoder.hpp>
#include <laconic/recognition/recognizer.hpp>
#include <laconic/recognition/recognizer/beam.hpp>
#include <laconic/speech/audio.hpp>
#include <laconic/speech/features.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

/// Computes the logits of a recording whose samples come block by block, in windows if it is long.
class RecordingLogits {
 public:
  /// Begins a recording. The recogniser and the workspace must outlive this object. Throws `Error` unless
  /// 0 < window_seconds <= 1e6.
  RecordingLogits(const Recognizer& recognizer, Workspace& workspace, double window_seconds)
      : extract_(recognizer.config().features),
        windows_([&recognizer, &workspace,
                  this](std::span<const float> samples) { return recognizer.logits(extract_(samples), workspace); },
                 sizes(recognizer, window_seconds), recognizer.vocabulary().blank()) {}
  RecordingLogits(const RecordingLogits&) = delete;
  RecordingLogits& operator=(const RecordingLogits&) = delete;

  /// Takes the samples that follow, at the model's rate, and gives logits that became final to `take`.
  void push(std::span<const float> samples, const WindowedLogits::Take& take) {
    count_ += static_cast<Index>(samples.size());
    windows_.push(samples, take);
  }
  /// Ends the recording, and gives the logits that are left to `take`.
  void finish(const WindowedLogits::Take& take) { windows_.finish(take); }
  /// Returns the seconds of all samples.
  double seconds() const { return static_cast<double>(count_) / extract_.config().fbank.sample_rate; }

 private:
  WindowedLogits::Sizes sizes(const Recognizer& recognizer, double seconds) const {
    require(seconds > 0 && seconds <= 1e6, "windows of ", seconds,
            " s given, more than 0 and at most 1000000 s expected");
    const Index frame = extract_.frame_shift() * recognizer.config().encoder.subsampling;
    const int rate = extract_.config().fbank.sample_rate;
    const FrameTimes times = recognizer.frame_times();
    const auto seen = static_cast<Index>(std::ceil((2 * times.offset + times.shift) * rate));  // by a frame
    const auto window = static_cast<Index>(seconds * rate);
    const Index overlap = std::max(window / 8, seen + 4 * frame);
    require(overlap <= window / 2, "windows of ", seconds, " s given, at least ",
            2 * static_cast<double>(overlap) / rate, " s expected: each frame of the model sees ",
            static_cast<double>(seen) / rate, " s");
    return {frame, window, overlap};
  }

  FeatureExtractor extract_;
  WindowedLogits windows_;
  Index count_ = 0;  // samples
};

/// Transcribes a recording whose samples come block by block; see Recognizer::transcribe.
class Transcriber {
 public:
  /// Begins a recording. The recogniser and the workspace must outlive this object.
  Transcriber(const Recognizer& recognizer, Workspace& workspace, const TranscriptionConfig& config)
      : take_logits_(config.logits),
        logits_(recognizer, workspace, config.window_seconds),
        words_(recognizer.vocabulary(), recognizer.frame_times(), recognizer.config().features.fbank.sample_rate,
               config.confidence) {
    if (config.beam != nullptr)
      beam_.emplace(recognizer.vocabulary(), recognizer.frame_times(), recognizer.config().features.fbank.sample_rate,
                    *config.beam);
  }

  /// Takes the samples that follow, at the model's rate.
  void push(std::span<const float> samples) {
    beam_ ? beam_->hear(samples) : words_.hear(samples);
    logits_.push(samples, [this](MatrixView<const float> rows) { take(rows); });
  }
  /// Ends the recording and returns what was said.
  Transcript finish() {
    logits_.finish([this](MatrixView<const float> rows) { take(rows); });
    if (beam_)
      out_.alternatives = beam_->finish(out_.words);
    else
      words_.finish(out_.words);
    for (const Word& one : out_.words) out_.text += (out_.text.empty() ? "" : " ") + one.text;
    out_.seconds = logits_.seconds();
    return std::move(out_);
  }

 private:
  void take(MatrixView<const float> rows) {
    if (take_logits_) take_logits_(rows);
    if (beam_) {
      (*beam_)(rows);
      // Words of a short recording wait for its end, when all is known of them; logits are not kept for longer.
      if (logits_.seconds() > 60) beam_->take_stable(out_.words);
    } else {
      words_(rows, out_.words);
    }
  }

  std::function<void(MatrixView<const float>)> take_logits_;
  RecordingLogits logits_;
  WordDecoder words_;
  std::optional<BeamDecoder> beam_;  // in place of words_
  Transcript out_;
};

/// Gives all samples of a reader to `take`, a second at a time. Throws `Error` unless it reads at the model's rate.
template <class Take>
void read_all(AudioReader& audio, const Recognizer& recognizer, Take&& take) {
  const int rate = recognizer.config().features.fbank.sample_rate;
  require(audio.sample_rate() == rate, "a reader at ", audio.sample_rate(), " Hz given, ", rate, " Hz expected");
  std::vector<float> block(static_cast<std::size_t>(rate));
  for (std::size_t count = block.size(); count == block.size();) {
    count = audio.read(block);
    take(std::span<const float>(block).first(count));
  }
}

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
