// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/decode/token_decoder.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <optional>
#include <span>
#include <utility>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Says how a beam search runs.
struct BeamConfig {
  Index beams = 4;                 ///< hypotheses that are kept at each step
  Index max_new_tokens = 100;      ///< tokens after the prompt
  std::optional<int> end_token{};  ///< ends a hypothesis, and is its last token
  double length_penalty = 1;       ///< a score is log probability / tokens^length_penalty; 0: the log probability
};

/// Holds one result of a beam search.
struct Hypothesis {
  std::vector<int> tokens;  ///< the tokens after the prompt
  double score;             ///< log probability / tokens^length_penalty
};

/// Leaves the decoder's log probabilities as they are: see beam_search.
struct DecoderScore {
  /// There is nothing to keep.
  struct State {};
  /// Returns the state of the empty hypothesis.
  State start() const { return {}; }
  /// Changes nothing.
  template <class T>
  void add(const State&, std::span<T>) const {}
  /// Returns the state of a hypothesis with one more token.
  State extend(const State&, int) const { return {}; }
};

/// Continues a prompt by beam search and returns the hypotheses, best first, at most `beams`. The steps are those of
/// Hugging Face's `generate` with early_stopping = False. The decoder needs a slot for each beam; beams share what they
/// have in common by `fork`. `sequence` is the number that `begin` is told: for a SourceDecoder, that of the source.
/// A scorer, such as CtcPrefixScorer, changes the log probabilities of the tokens that follow a hypothesis. Allocates.
/// Throws Error for an empty prompt and for numbers that make no sense.
template <TokenPredictor Decoder, class Scorer = DecoderScore>
std::vector<Hypothesis> beam_search(Decoder& decoder, std::span<const int> prompt, const BeamConfig& config = {},
                                    Index sequence = 0, const Scorer& scorer = {}) {
  using T = typename Decoder::Context::Scalar;
  const Index vocab = decoder.vocab_size(), beams = config.beams;
  require(beams > 0 && beams <= decoder.slots(), "beam search: ", beams, " beams given, 1 to the decoder's ",
          decoder.slots(), " slots expected");
  require(config.max_new_tokens >= 0, "beam search: max_new_tokens ", config.max_new_tokens,
          " given, at least 0 expected");
  require(std::isfinite(config.length_penalty), "beam search: length_penalty ", config.length_penalty,
          " given, a finite number expected");
  require(!prompt.empty(), "beam search: an empty prompt given, at least one token expected");

  struct Beam {
    std::vector<int> tokens;
    double log_prob;
    Index slot;
    typename Scorer::State state;
  };
  struct Candidate {
    double log_prob;
    Index beam;
    int token;
  };
  std::vector<Beam> live;
  live.push_back({{}, 0.0, 0, scorer.start()});
  std::vector<Hypothesis> done;
  const auto score = [&](double log_prob, std::size_t length) {
    return log_prob / std::pow(static_cast<double>(std::max<std::size_t>(1, length)), config.length_penalty);
  };
  const auto better = [](const Hypothesis& a, const Hypothesis& b) { return a.score > b.score; };
  const auto finish = [&](std::vector<int> tokens, double log_prob) {
    const double s = score(log_prob, tokens.size());
    done.insert(std::upper_bound(done.begin(), done.end(), Hypothesis{{}, s}, better), {std::move(tokens), s});
    if (static_cast<Index>(done.size()) > beams) done.pop_back();
  };

  decoder.begin(0, sequence);
  auto& context = decoder.context();
  auto logits = decoder.append({prompt, Sequences{static_cast<Index>(prompt.size())}}, std::array{Index{0}});
  std::vector<T> values;
  std::vector<Candidate> candidates;
  std::vector<int> ids;
  std::vector<Index> slots;
  for (Index step = 0; step < config.max_new_tokens; ++step) {
    values.resize(live.size() * static_cast<std::size_t>(vocab));
    context.read(context.log_softmax(logits), std::span<T>(values));
    require(std::none_of(values.begin(), values.end(), [](T x) { return std::isnan(x); }),
            "beam search: logits that are NaN given, numbers expected");
    for (std::size_t b = 0; b < live.size(); ++b)
      scorer.add(live[b].state,
                 std::span(values).subspan(b * static_cast<std::size_t>(vocab), static_cast<std::size_t>(vocab)));
    candidates.clear();
    for (std::size_t b = 0; b < live.size(); ++b)
      for (Index v = 0; v < vocab; ++v)
        candidates.push_back(
            {live[b].log_prob +
                 static_cast<double>(values[b * static_cast<std::size_t>(vocab) + static_cast<std::size_t>(v)]),
             static_cast<Index>(b), static_cast<int>(v)});
    // Twice as many as beams: as many of them may end a hypothesis.
    const std::size_t wanted = std::min(candidates.size(), static_cast<std::size_t>(2 * beams));
    std::partial_sort(candidates.begin(), candidates.begin() + static_cast<std::ptrdiff_t>(wanted), candidates.end(),
                      [](const Candidate& a, const Candidate& b) {
                        if (a.log_prob != b.log_prob) return a.log_prob > b.log_prob;
                        return a.beam != b.beam ? a.beam < b.beam : a.token < b.token;
                      });
    std::vector<Beam> next;
    for (std::size_t i = 0; i < wanted && static_cast<Index>(next.size()) < beams; ++i) {
      const Candidate& c = candidates[i];
      std::vector<int> tokens = live[static_cast<std::size_t>(c.beam)].tokens;
      tokens.push_back(c.token);
      if (c.token == config.end_token) {
        if (static_cast<Index>(i) < beams) finish(std::move(tokens), c.log_prob);
      } else {
        next.push_back({std::move(tokens), c.log_prob, c.beam,
                        scorer.extend(live[static_cast<std::size_t>(c.beam)].state,
                                      c.token)});  // its parent's number until it has a slot
      }
    }
    if (next.empty()) return done;
    const bool full = static_cast<Index>(done.size()) == beams;
    if (full && done.back().score >= score(next.front().log_prob, next.front().tokens.size())) return done;

    // The first child of a beam goes on in its slot; others get a copy in a slot that no beam goes on in.
    std::vector<bool> used(static_cast<std::size_t>(beams), false), taken(live.size(), false);
    std::vector<std::size_t> copies;
    for (std::size_t i = 0; i < next.size(); ++i) {
      const auto parent = static_cast<std::size_t>(next[i].slot);
      next[i].slot = live[parent].slot;
      if (taken[parent]) {
        copies.push_back(i);
      } else {
        taken[parent] = true;
        used[static_cast<std::size_t>(next[i].slot)] = true;
      }
    }
    for (const std::size_t i : copies) {
      const auto free = static_cast<Index>(std::find(used.begin(), used.end(), false) - used.begin());
      decoder.fork(next[i].slot, free);
      used[static_cast<std::size_t>(free)] = true;
      next[i].slot = free;
    }
    live = std::move(next);
    if (step + 1 == config.max_new_tokens || decoder.room(live.front().slot) == 0) break;
    ids.clear();
    slots.clear();
    for (const Beam& beam : live) {
      ids.push_back(beam.tokens.back());
      slots.push_back(beam.slot);
    }
    const Sequences ones = Sequences::make(context.arena(), static_cast<Index>(live.size()), [](Index) { return 1; });
    logits = decoder.append({ids, ones}, slots);
  }
  for (Beam& beam : live) finish(std::move(beam.tokens), beam.log_prob);
  return done;
}

}  // namespace LACONIC_ABI
}  // namespace laconic
