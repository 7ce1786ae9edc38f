// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/context.hpp>
#include <laconic/core/parallel.hpp>
#include <laconic/decode/greedy_ctc.hpp>
#include <laconic/distributed/communicator.hpp>
#include <laconic/recognition/dataset.hpp>
#include <laconic/recognition/evaluation.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

namespace detail {

/// Transcribes one batch of a dataset and writes its texts, errors and losses to their places in `out`. Returns the
/// seconds of model and decoding.
template <class Model, class Context>
double evaluate_batch(const Model& model, Context& context, const Dataset& data, const std::vector<Index>& indices,
                      const Vocabulary& vocabulary, const MakeLogitsDecoder& make_decoder, Evaluation& out) {
  const SpeechBatch batch = make_batch(data, indices, nullptr, Seed());
  const auto start = std::chrono::steady_clock::now();
  const auto logits = model(context, batch.features, batch.sequences);
  std::vector<std::string> texts(indices.size());
  if (make_decoder) {
    const Matrix<float> rows = context.output(logits.rows).template cast<float>();
    int threads = 1;
    if constexpr (Context::computes_on_host && std::is_constructible_v<Context, int>) threads = context.threads();
    kernels::parallel_or_throw(threads, static_cast<Index>(indices.size()), [&](std::size_t n, std::size_t) {
      const auto at = static_cast<Index>(n);
      const auto decoder = make_decoder();
      decoder->push(matrix_view(rows.data() + logits.sequences.begin(at) * rows.cols(), logits.sequences.length(at),
                                rows.cols()));
      texts[n] = decoder->finish();
    });
  } else {
    const auto tokens = greedy_ctc(context, logits.rows, logits.sequences, vocabulary.blank(), vocabulary.labels());
    for (std::size_t n = 0; n < indices.size(); ++n) texts[n] = vocabulary.decode(tokens[n]);
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (!batch.labels.tokens.empty()) {
    const auto losses = context.output(context.ctc(logits.rows, logits.sequences, batch.labels, vocabulary.blank()));
    for (std::size_t n = 0; n < indices.size(); ++n) {
      const auto i = static_cast<std::size_t>(indices[n]);
      const double one = static_cast<double>(losses(static_cast<Index>(n), 0));
      if (!data.examples[i].labels.empty() && !std::isinf(one)) out.losses[i] = one;
    }
  }
  for (std::size_t n = 0; n < indices.size(); ++n) {
    const auto i = static_cast<std::size_t>(indices[n]);
    out.hypotheses[i] = std::move(texts[n]);
    out.errors[i] = vocabulary.errors(data.examples[i].text, out.hypotheses[i]);
  }
  return seconds;
}

/// Gives all processes the results of all, of which process b % size has those of batch b.
inline void share_evaluation(AnyCommunicator& communicator, const std::vector<std::vector<Index>>& batches,
                             Evaluation& out) {
  constexpr std::size_t numbers = 6;  // of an example: errors, reference words, bytes of the hypothesis, loss
  std::vector<double> all(out.errors.size() * numbers);
  std::vector<std::string> texts(static_cast<std::size_t>(communicator.size()));
  const auto owner_of = [&](std::size_t batch) { return batch % texts.size(); };
  for (std::size_t b = 0; b < batches.size(); ++b) {
    if (owner_of(b) != static_cast<std::size_t>(communicator.rank())) continue;
    for (const Index example : batches[b]) {
      const auto i = static_cast<std::size_t>(example);
      const WordErrors& e = out.errors[i];
      std::size_t n = i * numbers;
      for (const Index count : {e.substitutions, e.deletions, e.insertions, e.reference_words,
                                static_cast<Index>(out.hypotheses[i].size())})
        all[n++] = static_cast<double>(count);
      all[n] = out.losses[i];
      texts[owner_of(b)] += out.hypotheses[i];
    }
  }
  communicator.sum(std::span(all));
  for (std::size_t r = 0; r < texts.size(); ++r) broadcast_text(communicator, texts[r], static_cast<int>(r));
  std::vector<std::size_t> read(texts.size());
  for (std::size_t b = 0; b < batches.size(); ++b)
    for (const Index example : batches[b]) {
      const auto i = static_cast<std::size_t>(example);
      const auto number = [&](std::size_t n) { return static_cast<Index>(all[i * numbers + n]); };
      out.errors[i] = {number(0), number(1), number(2), number(3)};
      out.losses[i] = all[i * numbers + 5];
      std::size_t& begin = read[owner_of(b)];
      out.hypotheses[i] = texts[owner_of(b)].substr(begin, static_cast<std::size_t>(number(4)));
      begin += out.hypotheses[i].size();
    }
}

}  // namespace detail

/// Feature frames of a batch of `evaluate`, if nothing else is said.
inline constexpr Index evaluation_frames = 8000;

/// Transcribes a dataset by greedy CTC decoding, or by `make_decoder` if it is set, in batches of at most
/// `batch_frames` feature frames on all threads together (a longer utterance is a batch of its own), and counts word
/// errors. Returns texts, errors and losses by example; they do not depend on the batches. With several threads, each
/// takes batches of its own through the whole model, in a context of its own, if there are enough of them; otherwise
/// the threads share the kernels and the decoders of one batch. Several processes share the batches of the same
/// dataset, and each returns the results of all, but the seconds of its own. Allocates.
template <class Model, class Context>
Evaluation evaluate(const Model& model, Context& context, const Dataset& data, const Vocabulary& vocabulary,
                    Index batch_frames = evaluation_frames, AnyCommunicator communicator = {},
                    const MakeLogitsDecoder& make_decoder = {}) {
  Evaluation out;
  out.hypotheses.resize(data.examples.size());
  out.errors.resize(data.examples.size());
  out.losses.resize(data.examples.size(), -1);
  out.audio_seconds = data.seconds();
  const auto processes = static_cast<Index>(communicator.size());
  Index threads = 1;
  if constexpr (Context::computes_on_host && std::is_constructible_v<Context, int>) threads = context.threads();
  Index agreed = threads;  // all must make the same batches
  communicator.broadcast(std::as_writable_bytes(std::span(&agreed, 1)), 0);
  std::vector<std::vector<Index>> batches;
  if (agreed * processes > 1) {
    const Index fewest_frames = batch_frames / 8;  // of a batch, as far as threads allow: fewer are little work
    Index all = 0;
    for (const Example& e : data.examples) all += e.frames();
    const Index frames = std::min(batch_frames / agreed, std::max(fewest_frames, all / (4 * agreed * processes)));
    batches = length_buckets(data, std::max<Index>(1, frames), std::nullopt);
  }
  if (processes == 1 && static_cast<Index>(batches.size()) < 2 * threads) {
    threads = 1;  // too few to deal out
    batches = length_buckets(data, batch_frames, std::nullopt);
  }
  std::vector<const std::vector<Index>*> own;
  for (auto b = static_cast<std::size_t>(communicator.rank()); b < batches.size();
       b += static_cast<std::size_t>(processes))
    own.push_back(&batches[b]);
  if (threads == 1 || static_cast<Index>(own.size()) < 2 * threads) {
    for (const auto* indices : own)
      out.compute_seconds += detail::evaluate_batch(model, context, data, *indices, vocabulary, make_decoder, out);
  } else if constexpr (Context::computes_on_host && std::is_constructible_v<Context, int>) {
    std::vector<std::unique_ptr<Context>> contexts(static_cast<std::size_t>(threads));
    std::vector<double> seconds(contexts.size());
    kernels::parallel_or_throw(
        context.threads(), static_cast<Index>(own.size()), [&](std::size_t batch, std::size_t thread) {
          if (!contexts[thread]) contexts[thread] = std::make_unique<Context>(1);
          seconds[thread] +=
              detail::evaluate_batch(model, *contexts[thread], data, *own[batch], vocabulary, make_decoder, out);
        });
    out.compute_seconds = *std::max_element(seconds.begin(), seconds.end());
  }
  if (processes > 1) detail::share_evaluation(communicator, batches, out);
  return out;
}

}  // namespace LACONIC_ABI
}  // namespace laconic
