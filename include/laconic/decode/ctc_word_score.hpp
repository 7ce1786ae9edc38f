// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/extent.hpp>
#include <laconic/core/hash.hpp>
#include <laconic/decode/ngram.hpp>
#include <laconic/decode/sorted_words.hpp>
#include <laconic/speech/words.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <numbers>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Says how a beam search over CTC's frames runs. Names and values are those of pyctcdecode, which has no `max_lag`.
struct CtcBeamConfig {
  Index beam_width = 100;         ///< prefixes that are kept after each frame
  double beam_prune_logp = -10;   ///< a prefix whose score is further below the best is dropped
  double token_min_logp = -5;     ///< a class with less log probability is skipped, unless it is the likeliest one
  double alpha = 0.5;             ///< weight of the language model's natural log probability
  double beta = 1.5;              ///< added for each word, if there is a language model
  double unk_score_offset = -10;  ///< log10 probability added for a word that the model does not know
  bool lm_score_boundary = true;  ///< whether a text is scored from <s> to </s>, or as a part of a longer one
  double hotword_weight = 10;     ///< added for each hotword
  Index max_lag = 1000;           ///< a prefix that differs from the best in a word that ended earlier is dropped
  bool prune_history = false;     ///< drops prefixes that no word to come will tell from a better one: faster, and
                                  ///< `stable` gets further, but there are fewer results after the first

  /// Lists the members for JSON.
  static constexpr void fields(auto& self, auto&& visit) {
    visit("beam_width", self.beam_width);
    visit("beam_prune_logp", self.beam_prune_logp);
    visit("token_min_logp", self.token_min_logp);
    visit("alpha", self.alpha);
    visit("beta", self.beta);
    visit("unk_score_offset", self.unk_score_offset);
    visit("lm_score_boundary", self.lm_score_boundary);
    visit("hotword_weight", self.hotword_weight);
    visit("max_lag", self.max_lag);
    visit("prune_history", self.prune_history);
  }
};

namespace detail {

/// Scores the words of a prefix by a language model and hotwords, as pyctcdecode does: finished words once, and the
/// begin of a word by what it may become.
class CtcWordScorer {
 public:
  /// Holds what is known of a prefix.
  struct State {
    NgramModel::State lm = NgramModel::no_context;  ///< after the finished words
    double words = 0;                               ///< score of the finished words
    double partial = 0;                             ///< score of the word that is not finished, as it stands
    SortedWords::Range known{}, hot{};              ///< words of the model, and hotwords, that begin so
    std::uint32_t length = 0;                       ///< characters of the word that is not finished
  };

  /// Scores by a model, which may be null, and hotwords. A phrase is as many hotwords as it has words.
  CtcWordScorer(const CtcBeamConfig& config, std::shared_ptr<const NgramModel> model,
                const std::vector<std::string>& hotwords)
      : model_(std::move(model)),
        scale_(config.alpha),
        beta_(config.beta),
        unk_(config.unk_score_offset),
        boundary_(config.lm_score_boundary),
        hot_weight_(config.hotword_weight) {
    std::vector<std::string> words;
    for (const std::string& phrase : hotwords)
      for (const std::string_view word : split_words(phrase)) words.emplace_back(word);
    hot_ = SortedWords(std::move(words));
    for (std::size_t i = 0; i < hot_.size(); ++i)
      hot_lengths_.push_back(static_cast<std::uint32_t>(split_characters(hot_[i]).size()));
  }

  /// Says whether a token can begin a word of the model that is spoken. Without a model it can.
  bool may_begin(std::string_view token) const {
    if (!model_) return true;
    const SortedWords::Range range = model_->words().narrow(model_->words().all(), token);
    return !token.empty() && !range.empty() && model_->is_spoken(range.begin);
  }
  /// Returns the state of the empty prefix.
  State start() const {
    State out;
    if (model_ && boundary_) out.lm = model_->begin();
    begin_word(out);
    return out;
  }
  /// Returns the state after some characters that go on with a word, or begin one. Allocates nothing.
  State append(State state, std::string_view part, std::uint32_t characters) const {
    state.length += characters;
    if (model_) state.known = model_->words().narrow(state.known, part);
    state.hot = hot_.narrow(state.hot, part);
    state.partial = 0;
    if (!state.hot.empty()) {
      const auto shortest =
          *std::min_element(hot_lengths_.begin() + state.hot.begin, hot_lengths_.begin() + state.hot.end);
      state.partial = hot_weight_ * state.length / shortest;
    } else if (model_ && state.known.empty()) {
      state.partial = unk_ * std::max(1.0, state.length / expected_length);
    }
    return state;
  }
  /// Returns the state after the end of a word; without one, the same state. Allocates nothing.
  State end_word(State state) const {
    if (state.length == 0) return state;
    if (model_) {
      const auto found = model_->words().word(state.known);
      const bool spoken = found && model_->is_spoken(*found);
      const auto [log_prob, next] = model_->score(state.lm, spoken ? *found : model_->unknown());
      state.words += scale_ * (log_prob + (spoken ? 0 : unk_ * std::numbers::ln10)) + beta_;
      state.lm = next;
    }
    if (hot_.word(state.hot)) state.words += hot_weight_;
    begin_word(state);
    return state;
  }
  /// Returns a hash of what scores of words to come depend on: equal for prefixes that no word to come tells apart.
  std::uint64_t history(const State& state) const {
    Hash out;
    out.add(state.lm).add(state.length);
    if (!state.known.empty()) out.add(state.known.begin).add(state.known.end).add(state.known.depth);
    if (!state.hot.empty()) out.add(state.hot.begin).add(state.hot.end).add(state.hot.depth);
    return out.value();
  }
  /// Returns the score of the words of a text that ends here.
  double finish(const State& state) const {
    const State last = end_word(state);
    if (!model_ || !boundary_) return last.words;
    return last.words + scale_ * model_->score(last.lm, model_->end_word()).log_prob;
  }

 private:
  static constexpr double expected_length = 6;  // characters of a word; longer ones that are unknown cost more

  void begin_word(State& state) const {
    state.length = 0;
    state.partial = 0;
    state.hot = hot_.all();
    if (model_) state.known = model_->words().all();
  }

  std::shared_ptr<const NgramModel> model_;
  double scale_, beta_, unk_;
  bool boundary_;
  double hot_weight_;
  SortedWords hot_;
  std::vector<std::uint32_t> hot_lengths_;  // in characters
};

}  // namespace detail

}  // namespace LACONIC_ABI
}  // namespace laconic
