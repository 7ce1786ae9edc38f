// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/decode/ctc_words.hpp>
#include <laconic/speech/speech_level.hpp>

#include <algorithm>
#include <span>
#include <utility>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Finds the words of an utterance, with times and confidence, while its samples and logits come.
///
/// CTC says where a word's tokens peak, which may be anywhere in the word, or after it in a model that hears in chunks.
/// So the level of sound corrects the times: a word ends where silence of 30 ms or more begins after its last token and
/// begins where that silence ends; words without silence between them meet at the quietest step.
class WordDecoder {
 public:
  /// Borrows the vocabulary. `sample_rate` is that of the samples, in Hz. Allocates.
  WordDecoder(const Vocabulary& vocabulary, FrameTimes times, int sample_rate, int blank = 0,
              ConfidenceMeasure measure = ConfidenceMeasure::max_probability)
      : tokens_(blank, measure), words_(vocabulary, times), level_(sample_rate) {}

  /// Takes the samples that follow, in [-1, 1], before the logits of their frames. Allocates.
  void hear(std::span<const float> samples) { level_.push(samples); }
  /// Takes the logits (frames, classes) that follow, and appends the words that are final: each whose successor has
  /// begun. Throws `Error` for a frame that holds NaN. Allocates.
  void operator()(MatrixView<const float> logits, std::vector<Word>& words) {
    found_.clear();
    tokens_(logits, found_);
    for (const CtcToken& one : found_) {  // one by one, so that a word is taken when its successor begins
      words_(std::span(&one, 1), raw_);
      take(words);
    }
  }
  /// Ends the utterance and appends the last word.
  void finish(std::vector<Word>& words) {
    found_.clear();
    tokens_.finish(found_);
    for (const CtcToken& one : found_) {
      words_(std::span(&one, 1), raw_);
      take(words);
    }
    words_.finish(raw_);
    take(words);
  }
  /// Returns the decoder of tokens, for its counts of frames.
  const CtcTokens& tokens() const { return tokens_; }

 private:
  static constexpr Index shortest_silence = 3, shortest_speech = 5;  // steps of 10 ms

  /// Corrects the times of the words that are complete, and appends them.
  void take(std::vector<Word>& words) {
    for (Word& one : raw_) {
      const Index peak = SpeechLevel::step_at(*one.end);
      const Index next = words_.begun() ? std::max(peak, SpeechLevel::step_at(*words_.begun())) : level_.steps();
      one.begin =
          begin_.value_or(static_cast<double>(begin_of(SpeechLevel::step_at(*one.begin), 0)) * SpeechLevel::step);
      const auto [end, begin] = between(SpeechLevel::step_at(*one.begin), peak, next);
      one.end = std::max(*one.begin + SpeechLevel::step, static_cast<double>(end) * SpeechLevel::step);
      begin_ = std::max(*one.end, static_cast<double>(begin) * SpeechLevel::step);
      level_.forget_before(*one.end);
      words.push_back(std::move(one));
    }
    raw_.clear();
  }

  /// Says whether steps i, i + 1 ... are silent, so many.
  bool silence_at(Index i) const {
    for (Index k = 0; k < shortest_silence; ++k)
      if (!level_.is_silent(i + k)) return false;
    return true;
  }
  /// Returns the step in which a word begins whose first token is at step `peak`; the word before ends at `after`.
  Index begin_of(Index peak, Index after) const {
    Index i = peak;
    if (level_.is_silent(i)) {  // after the word's speech, or before it
      Index back = i;
      while (back > after && level_.is_silent(back - 1)) --back;
      Index from = back;
      while (from > after && !silence_at(from - shortest_silence)) --from;
      if (back > after && back - from >= shortest_speech) return from;
      while (i < level_.steps() && level_.is_silent(i)) ++i;
      return i < level_.steps() ? i : peak;
    }
    while (i > after && !(level_.is_silent(i - 1) && silence_at(i - shortest_silence))) --i;
    return i;
  }
  /// Returns the steps in which a word ends and the next begins. The one has its last token at step `peak` and begins
  /// at `begin`, the other has its first token at step `next`.
  std::pair<Index, Index> between(Index begin, Index peak, Index next) const {
    Index end = peak;
    if (level_.is_silent(end))
      while (end > begin + 1 && level_.is_silent(end - 1)) --end;
    if (end == begin + 1) end = peak;  // all is silent: nothing to go by
    while (end < next && !silence_at(end)) ++end;
    if (end < next) return {end, begin_of(next, end)};
    Index quiet = peak;  // no silence between the words
    for (Index i = peak; i < next; ++i)
      if (level_.level(i) < level_.level(quiet)) quiet = i;
    return words_.begun() ? std::pair{quiet, quiet} : std::pair{end, end};
  }

  CtcTokens tokens_;
  CtcWords words_;
  SpeechLevel level_;
  std::vector<CtcToken> found_;
  std::vector<Word> raw_;        // as CTC has them
  std::optional<double> begin_;  // of the next word
};

}  // namespace LACONIC_ABI
}  // namespace laconic
