// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/decode/word_decoder.hpp>
#include <laconic/recognition/beam_decoding.hpp>
#include <laconic/recognition/recognizer.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

/// Finds the words of an utterance by beam search, with times, while its samples and logits come.
class BeamDecoder {
 public:
  /// Begins an utterance. `sample_rate` is that of the samples, in Hz. Allocates.
  BeamDecoder(const Vocabulary& vocabulary, FrameTimes frames, int sample_rate, const BeamDecoding& how)
      : search_(CtcClasses::of(vocabulary), how.config, how.model, how.hotwords),
        frames_(frames),
        times_(vocabulary.blank(), frames, sample_rate),
        alternatives_(how.alternatives) {}

  /// Takes the samples that follow, in [-1, 1], before the logits of their frames. Allocates.
  void hear(std::span<const float> samples) { times_.hear(samples); }
  /// Takes the logits (frames, tokens) that follow. Allocates.
  void operator()(MatrixView<const float> logits) {
    times_.take(logits);
    search_.push(logits);
  }
  /// Appends the words on which all beams agree, as far as another one follows each.
  void take_stable(std::vector<Word>& words) {
    const auto stable = search_.stable();
    if (!stable.empty()) take(stable, stable.size() - 1, words);
  }
  /// Ends the utterance, appends the words that are left and returns the best texts. Confidences of the words that are
  /// left are their shares in the likelihood of `nbest` texts (Wessel et al. 2001, section III, for lists).
  std::vector<Alternative> finish(std::vector<Word>& words) {
    const std::vector<CtcHypothesis> found = search_.finish(std::max(alternatives_, nbest));
    const std::size_t begin = words.size();
    const auto& best = found.front().words;
    take(best, best.size(), words);
    const std::vector<double> confidences = shares(found);
    for (std::size_t i = begin; i < words.size(); ++i) words[i].confidence = confidences[i];
    std::vector<Alternative> out;
    for (const CtcHypothesis& one : found)
      if (static_cast<Index>(out.size()) < alternatives_) out.push_back({one.text, one.score, one.log_prob});
    return out;
  }

 private:
  static constexpr Index nbest = 20;

  /// Appends the first `count` words but those that are taken.
  void take(std::span<const CtcWord> found, std::size_t count, std::vector<Word>& words) {
    for (; taken_ < count; ++taken_) {
      const CtcWord& one = found[taken_];
      Word word{one.text, frames_(one.begin), frames_(one.end), {}};
      times_.correct(word, taken_ + 1 < found.size() ? std::optional(frames_(found[taken_ + 1].begin)) : std::nullopt);
      words.push_back(std::move(word));
    }
  }
  /// Returns for each word of the best text the share of the texts that have it at about the same time.
  static std::vector<double> shares(const std::vector<CtcHypothesis>& texts) {
    const std::vector<CtcWord>& best = texts.front().words;
    std::vector<double> out(best.size());
    double all = 0;
    for (const CtcHypothesis& one : texts) {
      const double weight = std::exp(one.score - texts.front().score);
      all += weight;
      std::size_t from = 0;
      for (std::size_t i = 0; i < best.size(); ++i) {
        while (from < one.words.size() && one.words[from].end <= best[i].begin) ++from;
        for (std::size_t k = from; k < one.words.size() && one.words[k].begin < best[i].end; ++k)
          if (one.words[k].text == best[i].text) {
            out[i] += weight;
            break;
          }
      }
    }
    for (double& one : out) one /= all;
    return out;
  }

  CtcBeamSearch search_;
  FrameTimes frames_;
  WordTimes times_;
  Index alternatives_;
  std::size_t taken_ = 0;
};

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
