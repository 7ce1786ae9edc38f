// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/context.hpp>
#include <laconic/core/parallel.hpp>
#include <laconic/decode/greedy_ctc.hpp>
#include <laconic/recognition/dataset.hpp>
#include <laconic/recognition/evaluation.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <optional>
#include <type_traits>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

namespace detail {

/// Transcribes one batch of a dataset and writes its texts, errors and losses to their places in `out`. Returns the
/// seconds of model and decoding.
template <class Model, class Context>
double evaluate_batch(const Model& model, Context& context, const Dataset& data, const std::vector<Index>& indices,
                      const Vocabulary& vocabulary, Evaluation& out) {
  const SpeechBatch batch = make_batch(data, indices, nullptr, Seed());
  const auto start = std::chrono::steady_clock::now();
  const auto logits = model(context, batch.features, batch.sequences);
  const auto tokens = greedy_ctc(context, logits.rows, logits.sequences);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
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
  return seconds;
}

}  // namespace detail

/// Transcribes a dataset by greedy CTC decoding, in batches of at most `batch_frames` feature frames on all threads
/// together (a longer utterance is a batch of its own), and counts word errors. Returns texts, errors and losses by
/// example; they do not depend on the batches. With several threads, each takes batches of its own through the whole
/// model, in a context of its own, if there are enough of them; otherwise the threads share the kernels of one batch.
/// Allocates.
template <class Model, class Context>
Evaluation evaluate(const Model& model, Context& context, const Dataset& data, const Vocabulary& vocabulary,
                    Index batch_frames = 8000) {
  Evaluation out;
  out.hypotheses.resize(data.examples.size());
  out.errors.resize(data.examples.size());
  out.losses.resize(data.examples.size(), -1);
  out.audio_seconds = data.seconds();
  if constexpr (Context::computes_on_host && std::is_constructible_v<Context, int>) {
    const auto threads = static_cast<Index>(context.threads());
    const Index fewest_frames = batch_frames / 8;  // of a batch, as far as threads allow: fewer are little work
    Index all = 0;
    for (const Example& e : data.examples) all += e.frames();
    const Index frames = std::min(batch_frames / threads, std::max(fewest_frames, all / (4 * threads)));
    const auto batches = threads > 1 ? length_buckets(data, std::max<Index>(1, frames), std::nullopt)
                                     : std::vector<std::vector<Index>>();
    if (static_cast<Index>(batches.size()) >= 2 * threads) {
      std::vector<std::unique_ptr<Context>> contexts(static_cast<std::size_t>(threads));
      std::vector<double> seconds(contexts.size());
      kernels::parallel_or_throw(
          context.threads(), static_cast<Index>(batches.size()), [&](std::size_t batch, std::size_t thread) {
            auto& own = contexts[thread];
            if (!own) own = std::make_unique<Context>(1);
            seconds[thread] += detail::evaluate_batch(model, *own, data, batches[batch], vocabulary, out);
          });
      out.compute_seconds = *std::max_element(seconds.begin(), seconds.end());
      return out;
    }
  }
  for (const auto& indices : length_buckets(data, batch_frames, std::nullopt))
    out.compute_seconds += detail::evaluate_batch(model, context, data, indices, vocabulary, out);
  return out;
}

}  // namespace LACONIC_ABI
}  // namespace laconic
