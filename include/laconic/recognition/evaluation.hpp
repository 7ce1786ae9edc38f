// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/extent.hpp>
#include <laconic/core/matrix.hpp>
#include <laconic/speech/wer.hpp>

#include <algorithm>
#include <functional>
#include <iterator>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Decodes the logits of one utterance while they come.
class LogitsDecoder {
 public:
  virtual ~LogitsDecoder() = default;
  /// Takes the logits (frames, tokens) that follow.
  virtual void push(MatrixView<const float> logits) = 0;
  /// Ends the utterance and returns its text.
  virtual std::string finish() = 0;
};
/// Makes a decoder for one utterance. Several threads may call it at once.
using MakeLogitsDecoder = std::function<std::unique_ptr<LogitsDecoder>()>;

/// Holds the transcripts that a model wrote for a dataset, and their errors.
struct Evaluation {
  std::vector<std::string> hypotheses;  ///< by example
  std::vector<WordErrors> errors;       ///< by example
  std::vector<double> losses;           ///< CTC loss by example; -1 without labels or if they do not fit the frames
  double audio_seconds = 0,             ///< duration of the audio
      compute_seconds = 0;              ///< time of model and decoding, without counting errors

  /// Returns the errors of all examples.
  WordErrors total_errors() const { return total(errors); }
  /// Returns the word error rate of the dataset, a fraction.
  double wer() const { return total_errors().rate(); }
  /// Returns the 95% interval of the WER by resampling utterances.
  Interval interval() const { return bootstrap_interval(errors); }

  /// Returns the losses of the examples that have one. Allocates.
  std::vector<double> known_losses() const {
    std::vector<double> out;
    std::copy_if(losses.begin(), losses.end(), std::back_inserter(out), [](double one) { return !(one < 0); });
    return out;
  }
  /// Returns the mean loss of the examples that have one, 0 without any.
  double loss() const {
    const std::vector<double> known = known_losses();
    return std::accumulate(known.begin(), known.end(), 0.0) /
           static_cast<double>(std::max<std::size_t>(1, known.size()));
  }

  /// Appends the results of further examples.
  Evaluation& operator+=(const Evaluation& more) {
    hypotheses.insert(hypotheses.end(), more.hypotheses.begin(), more.hypotheses.end());
    errors.insert(errors.end(), more.errors.begin(), more.errors.end());
    losses.insert(losses.end(), more.losses.begin(), more.losses.end());
    audio_seconds += more.audio_seconds;
    compute_seconds += more.compute_seconds;
    return *this;
  }

  /// Lists the members for JSON.
  static constexpr void fields(auto& self, auto&& visit) {
    visit("hypotheses", self.hypotheses);
    visit("errors", self.errors);
    visit("losses", self.losses);
    visit("audio_seconds", self.audio_seconds);
    visit("compute_seconds", self.compute_seconds);
  }
};

/// Holds the results of a model that transcribed many utterances at once, in blocks.
struct StreamedEvaluation : Evaluation {
  Index streams = 0;                 ///< number of utterances at once
  Index chunk = 0,                   ///< attention chunk in encoder frames
      left_context = 0;              ///< left context in encoder frames; -1: unlimited
  Index attention_bytes = 0,         ///< attention state of one stream
      convolution_bytes = 0,         ///< convolution state of one stream
      feature_bytes = 0;             ///< buffered features of one stream
  std::vector<double> push_seconds;  ///< duration of every push that made frames final, sorted

  /// Returns the given quantile (0 to 1) of push latency, in seconds; 0 without any push.
  double push_quantile(double part) const {
    if (push_seconds.empty()) return 0;
    return push_seconds[std::min(push_seconds.size() - 1,
                                 static_cast<std::size_t>(part * static_cast<double>(push_seconds.size())))];
  }

  /// Appends the results of further examples by streams of the same kind.
  StreamedEvaluation& operator+=(const StreamedEvaluation& more) {
    if (streams == 0) return *this = more;
    Evaluation::operator+=(more);
    push_seconds.insert(push_seconds.end(), more.push_seconds.begin(), more.push_seconds.end());
    std::sort(push_seconds.begin(), push_seconds.end());
    return *this;
  }

  /// Lists the members for JSON.
  static constexpr void fields(auto& self, auto&& visit) {
    Evaluation::fields(self, visit);
    visit("streams", self.streams);
    visit("chunk", self.chunk);
    visit("left_context", self.left_context);
    visit("attention_bytes", self.attention_bytes);
    visit("convolution_bytes", self.convolution_bytes);
    visit("feature_bytes", self.feature_bytes);
    visit("push_seconds", self.push_seconds);
  }
};

}  // namespace LACONIC_ABI
}  // namespace laconic
