// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/context.hpp>
#include <laconic/decode/greedy_ctc.hpp>
#include <laconic/recognition/dataset.hpp>
#include <laconic/recognition/evaluation.hpp>

#include <chrono>
#include <cmath>
#include <optional>

namespace laconic {
inline namespace LACONIC_ABI {

/// Transcribes a dataset by greedy CTC decoding, in batches of `batch_frames` feature frames, and counts word errors.
/// Returns texts, errors and losses by example. Allocates.
template <class Model, class Context>
Evaluation evaluate(const Model& model, Context& context, const Dataset& data, const Vocabulary& vocabulary,
                    Index batch_frames = 8000) {
  Evaluation out;
  out.hypotheses.resize(data.examples.size());
  out.errors.resize(data.examples.size());
  out.losses.resize(data.examples.size(), -1);
  out.audio_seconds = data.seconds();
  for (const auto& indices : length_buckets(data, batch_frames, std::nullopt)) {
    const SpeechBatch batch = make_batch(data, indices, nullptr, Seed());
    const auto start = std::chrono::steady_clock::now();
    const auto logits = model(context, batch.features, batch.sequences);
    const auto tokens = greedy_ctc(context, logits.rows, logits.sequences);
    out.compute_seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (!batch.labels.tokens.empty()) {
      const auto losses = context.output(context.ctc(logits.rows, logits.sequences, batch.labels, 0));
      for (std::size_t n = 0; n < indices.size(); ++n) {
        const auto i = static_cast<std::size_t>(indices[n]);
        const double one = static_cast<double>(losses(static_cast<Index>(n), 0));
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
