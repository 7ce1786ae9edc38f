// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/model/stream.hpp>
#include <laconic/recognition/evaluate.hpp>

#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Transcribes a dataset by streaming. Up to `config.capacity` utterances run at once, and every push brings
/// `block_frames` feature frames of each, until all are done. Decodes greedily, or by `make_decoder` if it is set, and
/// counts word errors. Losses, which need whole utterances, are -1. `settings` are those of contexts, as `Streams`
/// takes them. Throws `Error` for blocks of no frames. Allocates.
template <class Model, StreamingContext Context = Cpu<typename Model::Scalar>>
StreamedEvaluation evaluate_streamed(const Model& model, const Dataset& data, const Vocabulary& vocabulary,
                                     const StreamConfig& config, Index block_frames,
                                     const MakeLogitsDecoder& make_decoder = {},
                                     const std::optional<SettingsOf<Context>>& settings = {}) {
  require(block_frames > 0, "evaluate_streamed: blocks of ", block_frames, " frames given, at least 1 expected");
  using Clock = std::chrono::steady_clock;
  const auto since = [](Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  using T = typename Model::Scalar;
  Streams<Model, Context> streams(model, config, settings);
  StreamedEvaluation out;
  out.hypotheses.resize(data.examples.size());
  out.errors.resize(data.examples.size());
  out.losses.resize(data.examples.size(), -1);
  out.audio_seconds = data.seconds();
  out.streams = config.capacity;
  out.chunk = streams.mask().chunk;
  out.left_context = streams.mask().left_context;
  out.attention_bytes = streams.attention_bytes() / config.capacity;
  out.convolution_bytes = streams.convolution_bytes() / config.capacity;
  out.feature_bytes = streams.feature_bytes() / config.capacity;

  struct Live {
    std::size_t example;
    Index stream, given;
    GreedyCtc greedy;
    std::vector<int> tokens;
    std::unique_ptr<LogitsDecoder> decoder;  // decodes in place of `greedy`, if it is set
    Matrix<float> read;                      // its features, if the dataset does not keep them
  };
  const auto example = [&](const Live& l) -> const Example& { return data.examples[l.example]; };
  std::vector<Live> live;
  std::size_t next = 0;
  std::vector<Index> best;
  const auto decode = [&](std::vector<Live>& of, const auto& logits) {
    if (make_decoder) {
      const Matrix<float> rows = streams.context().output(logits.rows).template cast<float>();
      for (std::size_t n = 0; n < of.size(); ++n) {
        const auto at = static_cast<Index>(n);
        of[n].decoder->push(matrix_view(rows.data() + logits.sequences.begin(at) * rows.cols(),
                                        logits.sequences.length(at), rows.cols()));
      }
      return;
    }
    best.resize(static_cast<std::size_t>(logits.rows.rows()));
    if (!best.empty()) streams.context().argmax(logits.rows, best);
    for (std::size_t n = 0; n < of.size(); ++n)
      of[n].greedy(std::span<const Index>(best.data() + logits.sequences.begin(static_cast<Index>(n)),
                                          static_cast<std::size_t>(logits.sequences.length(static_cast<Index>(n)))),
                   of[n].tokens);
  };
  while (next < data.examples.size() || !live.empty()) {
    while (next < data.examples.size() && static_cast<Index>(live.size()) < config.capacity) {
      const bool kept = !data.examples[next].in_file;
      live.push_back({next,
                      streams.open(),
                      0,
                      GreedyCtc(vocabulary.blank(), vocabulary.labels()),
                      {},
                      make_decoder ? make_decoder() : nullptr,
                      kept ? Matrix<float>() : data.features(static_cast<Index>(next))});
      ++next;
    }
    std::vector<Index> ids, lengths;
    for (const Live& l : live) {
      ids.push_back(l.stream);
      lengths.push_back(std::min(block_frames, example(l).frames() - l.given));
    }
    const Sequences blocks(lengths);
    Matrix<T> features(blocks.rows(), model.config().num_mels);
    for (std::size_t n = 0; n < live.size(); ++n) {
      features.middleRows(blocks.begin(static_cast<Index>(n)), lengths[n]) =
          (example(live[n]).in_file ? live[n].read : example(live[n]).features)
              .middleRows(live[n].given, lengths[n])
              .template cast<T>();
      live[n].given += lengths[n];
    }
    auto start = Clock::now();
    const auto logits = streams.push(ids, features, blocks);
    decode(live, logits);
    const double took = since(start);
    if (logits.rows.rows() > 0) out.push_seconds.push_back(took);
    out.compute_seconds += took;

    std::vector<Live> going, done;
    for (Live& l : live) (l.given < example(l).frames() ? going : done).push_back(std::move(l));
    live = std::move(going);
    if (done.empty()) continue;
    ids.clear();
    for (const Live& l : done) ids.push_back(l.stream);
    start = Clock::now();
    decode(done, streams.finish(ids));
    for (const Live& l : done)
      out.hypotheses[l.example] = l.decoder ? l.decoder->finish() : vocabulary.decode(l.tokens);
    out.compute_seconds += since(start);
    for (const Live& l : done)
      out.errors[l.example] = vocabulary.errors(data.examples[l.example].text, out.hypotheses[l.example]);
  }
  std::sort(out.push_seconds.begin(), out.push_seconds.end());
  return out;
}

}  // namespace LACONIC_ABI
}  // namespace laconic
