// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/decode/word_decoder.hpp>
#include <laconic/recognition/beam_decoding.hpp>
#include <laconic/recognition/recognizer.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

/// Finds the words of a recording by beam search, with times, while its samples and logits come. The recording may hold
/// several utterances, each of which is a search of its own.
class BeamDecoder {
 public:
  /// Begins a recording. `sample_rate` is that of the samples, in Hz. Allocates.
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
  /// Ends the recording, appends the words of its last utterance that are left and returns the utterance's best texts.
  /// Confidences of the words that are left are their shares in the likelihood of `nbest` texts (Wessel et al. 2001,
  /// section III, for lists).
  std::vector<Alternative> finish(std::vector<Word>& words) { return end_utterance(words, std::nullopt); }
  /// Ends an utterance in the same way, and begins the next one with the frame that follows.
  void next_utterance(std::vector<Word>& words) { end_utterance(words, frames_(begin_ + search_.frames())); }

  /// Returns the number of frames of the utterance so far.
  Index frames() const { return search_.frames(); }
  /// Returns the number of frames at the end of the utterance so far whose likeliest class is the blank.
  Index silent_frames() const { return search_.silent_frames(); }
  /// Says whether the best text of the utterance so far has words, which may not be stable.
  bool has_words() const { return search_.has_words(); }

 private:
  static constexpr Index nbest = 20;

  /// Ends an utterance; the frame after it begins at `next`, if there is one.
  std::vector<Alternative> end_utterance(std::vector<Word>& words, std::optional<double> next) {
    const Index frames = search_.frames();
    const std::vector<CtcHypothesis> found = search_.finish(std::max(alternatives_, nbest));
    const std::size_t before = words.size();
    const auto& best = found.front().words;
    take(best, best.size(), words, next);
    const std::vector<double> confidences = shares(found);
    const std::size_t first = words.size() - best.size();
    for (std::size_t i = before; i < words.size(); ++i) words[i].confidence = confidences[i - first];
    times_.end_utterance();
    taken_ = 0;
    begin_ += frames;
    std::vector<Alternative> out;
    for (const CtcHypothesis& one : found)
      if (static_cast<Index>(out.size()) < alternatives_) out.push_back({one.text, one.score, one.log_prob});
    return out;
  }

  /// Appends the first `count` words of the utterance but those that are taken. `next` is when speech goes on after the
  /// last one that was found, if it does.
  void take(std::span<const CtcWord> found, std::size_t count, std::vector<Word>& words,
            std::optional<double> next = std::nullopt) {
    for (; taken_ < count; ++taken_) {
      const CtcWord& one = found[taken_];
      Word word{one.text, frames_(begin_ + one.begin), frames_(begin_ + one.end), {}};
      times_.correct(word, taken_ + 1 < found.size() ? frames_(begin_ + found[taken_ + 1].begin) : next);
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
  std::size_t taken_ = 0;  // words of the utterance
  Index begin_ = 0;        // frame of the recording in which the utterance begins
};

/// Decodes one utterance to text by beam search.
class BeamTextDecoder final : public LogitsDecoder {
 public:
  BeamTextDecoder(CtcClasses classes, const BeamDecoding& how)
      : search_(std::move(classes), how.config, how.model, how.hotwords) {}

  void push(MatrixView<const float> logits) override { search_.push(logits); }
  std::string finish() override { return search_.finish().front().text; }

 private:
  CtcBeamSearch search_;
};

/// Returns what makes decoders by this beam search; nothing for greedy decoding.
inline MakeLogitsDecoder text_decoders(const Vocabulary& vocabulary, const std::shared_ptr<const BeamDecoding>& beam) {
  if (beam == nullptr) return {};
  return [classes = CtcClasses::of(vocabulary), beam] { return std::make_unique<BeamTextDecoder>(classes, *beam); };
}

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
