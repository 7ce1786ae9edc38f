// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cpu/kernels/ctc.hpp>
#include <laconic/core/error.hpp>
#include <laconic/core/matrix.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <utility>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Scores hypotheses of a beam search by what a CTC head says of the same utterance: a hypothesis has (1 - weight)
/// times the decoder's log probability plus weight times log of the probability that the text begins with it, summed
/// over all alignments (Watanabe et al. 2017, section III.C; its algorithm 2). The blank is the token that begins and
/// ends a sequence of the decoder.
///
///     const auto best = beam_search(decoder, std::array{0}, config, n, CtcPrefixScorer(log_probs, 0.3));
class CtcPrefixScorer {
 public:
  /// Holds log probabilities of a hypothesis.
  struct State {
    std::vector<double> blank,  ///< that frames 0 to t hold just the hypothesis and end in a blank
        all;                    ///< that frames 0 to t hold just the hypothesis
    int last = -1;              ///< the last token
    double score = 0;           ///< that the text begins with the hypothesis
  };

  /// Scores by log probabilities (frames, vocab_size) of one utterance, which are copied. weight from 0 to 1.
  /// Allocates. Throws Error for a number out of range, for an utterance without frames, and for values that are no log
  /// probabilities.
  template <class T>
  CtcPrefixScorer(const Matrix<T>& log_probs, double weight, int blank = 0)
      : frames_(log_probs.rows()), vocab_(log_probs.cols()), blank_(blank), weight_(weight) {
    require(weight >= 0 && weight <= 1, "CTC prefix scorer: weight ", weight, " given, 0 to 1 expected");
    require(frames_ > 0, "CTC prefix scorer: no frames given, at least one expected");
    require(blank >= 0 && blank < vocab_, "CTC prefix scorer: blank ", blank, " given, 0 to ", vocab_ - 1, " expected");
    log_probs_.assign(log_probs.data(), log_probs.data() + log_probs.size());
    require(std::none_of(log_probs_.begin(), log_probs_.end(), [](double x) { return std::isnan(x) || x > 1e-3; }),
            "CTC prefix scorer: values that are NaN or above 0 given, log probabilities expected");
  }

  /// Returns the state of the empty hypothesis. Allocates.
  State start() const {
    State out;
    double sum = 0;
    for (Index t = 0; t < frames_; ++t) out.blank.push_back(sum += at(t, blank_));
    out.all = out.blank;
    return out;
  }
  /// Turns the decoder's log probabilities of the tokens that may follow into increments of the joint score. Throws
  /// Error where the decoder knows another number of tokens than the CTC head.
  template <class T>
  void add(const State& state, std::span<T> log_probs) const {
    require(static_cast<Index>(log_probs.size()) == vocab_, "CTC prefix scorer: a decoder of ", log_probs.size(),
            " tokens given, ", vocab_, " expected, as the CTC head has");
    for (Index token = 0; token < vocab_; ++token) {
      T& value = log_probs[static_cast<std::size_t>(token)];
      const double longer = prefix(state, static_cast<int>(token));
      double joint = weight_ < 1 ? (1 - weight_) * static_cast<double>(value) : 0;
      if (weight_ > 0) joint += longer == nothing ? nothing : weight_ * (longer - state.score);
      value = static_cast<T>(joint);
    }
  }
  /// Returns the state of a hypothesis with one more token, which does not end it. Allocates. Throws Error for the
  /// blank: the search must end a hypothesis with it (BeamConfig::end_token).
  State extend(const State& state, int token) const {
    require(token != blank_, "CTC prefix scorer: token ", token,
            " goes on with a hypothesis, but it is the blank; it must be the search's end_token");
    State out;
    out.last = token;
    out.score = prefix(state, token);
    double in_token = nothing, in_blank = nothing;
    for (Index t = 0; t < frames_; ++t) {
      const double before = in_token;
      in_token = kernels::log_add(in_token, reaching(state, token, t)) + at(t, token);
      in_blank = kernels::log_add(in_blank, before) + at(t, blank_);
      out.blank.push_back(in_blank);
      out.all.push_back(kernels::log_add(in_token, in_blank));
    }
    return out;
  }
  /// Returns the log probability of all texts that begin with the hypothesis and this token; for the blank, of the
  /// hypothesis itself as the whole text.
  double prefix(const State& state, int token) const {
    if (token == blank_) return state.all.back();
    double sum = nothing;
    for (Index t = 0; t < frames_; ++t) sum = kernels::log_add(sum, reaching(state, token, t) + at(t, token));
    return sum;
  }

 private:
  static constexpr double nothing = -std::numeric_limits<double>::infinity();

  double at(Index frame, int token) const { return log_probs_[static_cast<std::size_t>(frame * vocab_ + token)]; }
  /// Returns the log probability that the frames before t hold just the hypothesis, and a new token may begin at t: the
  /// same token again needs a blank between.
  double reaching(const State& state, int token, Index t) const {
    if (t == 0) return state.last < 0 ? 0 : nothing;
    const auto before = static_cast<std::size_t>(t - 1);
    return token == state.last ? state.blank[before] : state.all[before];
  }

  Index frames_, vocab_;
  int blank_;
  double weight_;
  std::vector<double> log_probs_;
};

}  // namespace LACONIC_ABI
}  // namespace laconic
