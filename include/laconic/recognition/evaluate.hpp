// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cpu.hpp>
#include <laconic/decode/greedy_ctc.hpp>
#include <laconic/recognition/dataset.hpp>
#include <laconic/speech/wer.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <iterator>
#include <numeric>

namespace laconic {
inline namespace LACONIC_ABI {

/// What a model wrote for a dataset, and how wrong it was.
struct Evaluation {
  std::vector<std::string> hypotheses;  ///< by example
  std::vector<WordErrors> errors;       ///< by example
  std::vector<double> losses;           ///< CTC loss by example, -1 without labels or where they do not fit its frames
  double audio_seconds = 0, compute_seconds = 0;  ///< the latter of model and decoding, without what counts errors

  WordErrors total_errors() const { return total(errors); }
  double wer() const { return total_errors().rate(); }
  /// 95% interval of the WER by resampling utterances.
  Interval interval() const { return bootstrap_interval(errors); }

  /// Of the examples that have one.
  std::vector<double> known_losses() const {
    std::vector<double> out;
    std::copy_if(losses.begin(), losses.end(), std::back_inserter(out), [](double one) { return !(one < 0); });
    return out;
  }
  /// Their mean; 0 without any.
  double loss() const {
    const std::vector<double> known = known_losses();
    return std::accumulate(known.begin(), known.end(), 0.0) /
           static_cast<double>(std::max<std::size_t>(1, known.size()));
  }

  /// Adds what was found for further examples.
  Evaluation& operator+=(const Evaluation& more) {
    hypotheses.insert(hypotheses.end(), more.hypotheses.begin(), more.hypotheses.end());
    errors.insert(errors.end(), more.errors.begin(), more.errors.end());
    losses.insert(losses.end(), more.losses.begin(), more.losses.end());
    audio_seconds += more.audio_seconds;
    compute_seconds += more.compute_seconds;
    return *this;
  }

  static constexpr void fields(auto& self, auto&& visit) {
    visit("hypotheses", self.hypotheses);
    visit("errors", self.errors);
    visit("losses", self.losses);
    visit("audio_seconds", self.audio_seconds);
    visit("compute_seconds", self.compute_seconds);
  }
};

/// Transcribes a dataset by greedy CTC decoding, in batches of `batch_frames` feature frames, and counts word errors.
template <class Model, class T>
Evaluation evaluate(const Model& model, Cpu<T>& cpu, const Dataset& data, const Vocabulary& vocabulary,
                    Index batch_frames = 8000) {
  Evaluation out;
  out.hypotheses.resize(data.examples.size());
  out.errors.resize(data.examples.size());
  out.losses.resize(data.examples.size(), -1);
  out.audio_seconds = data.seconds();
  for (const auto& indices : length_buckets(data, batch_frames, std::nullopt)) {
    const SpeechBatch batch = make_batch(data, indices, nullptr, Seed());
    const auto start = std::chrono::steady_clock::now();
    const auto logits = model(cpu, batch.features, batch.sequences);
    const auto tokens = greedy_ctc(logits.rows.view(), logits.sequences);
    out.compute_seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (!batch.labels.tokens.empty()) {
      const auto loss = cpu.ctc(logits.rows, logits.sequences, batch.labels, 0);
      for (std::size_t n = 0; n < indices.size(); ++n) {
        const auto i = static_cast<std::size_t>(indices[n]);
        const double one = static_cast<double>(loss.row(static_cast<Index>(n))[0]);
        if (!data.examples[i].labels.empty() && !std::isinf(one)) out.losses[i] = one;
      }
    }
    for (std::size_t n = 0; n < indices.size(); ++n) {
      const auto i = static_cast<std::size_t>(indices[n]);
      out.hypotheses[i] = vocabulary.decode(tokens[n]);
      out.errors[i] = word_errors(vocabulary.written(data.examples[i].text), out.hypotheses[i]);
    }
  }
  return out;
}

}  // namespace LACONIC_ABI
}  // namespace laconic
