// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/decode/ctc_words.hpp>
#include <laconic/speech/speech_level.hpp>

#include <algorithm>
#include <optional>
#include <span>
#include <utility>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Corrects the times of words by the level of sound. CTC says where a word's tokens peak, which may be anywhere in the
/// word, or after it in a model that hears in chunks. A word ends where silence of 30 ms or more begins after its last
/// token, and the next begins where that silence ends; words without silence between them meet at the quietest step.
class WordTimes {
 public:
  /// Begins an utterance. `sample_rate` is that of the samples, in Hz.
  explicit WordTimes(int sample_rate) : level_(sample_rate) {}

  /// Takes the samples that follow, in [-1, 1], before the words in them. Allocates.
  void hear(std::span<const float> samples) { level_.push(samples); }
  /// Corrects a word whose times are those of its tokens; `next` is the begin of the first token of the word after it,
  /// if there is one. Words come in order.
  void correct(Word& word, std::optional<double> next) {
    const Index peak = SpeechLevel::step_at(*word.end);
    const Index until = next ? std::max(peak, SpeechLevel::step_at(*next)) : level_.steps();
    word.begin = begin_ ? *begin_ : seconds(begin_of(SpeechLevel::step_at(*word.begin), 0));
    const auto [end, begin] = between(SpeechLevel::step_at(*word.begin), peak, until, next.has_value());
    word.end = std::max(*word.begin + SpeechLevel::step, seconds(end));
    begin_ = std::max(*word.end, seconds(begin));
    level_.forget_before(*word.end);
  }

 private:
  static constexpr Index shortest_silence = 3, shortest_speech = 5;  // steps of 10 ms

  static double seconds(Index i) { return static_cast<double>(i) * SpeechLevel::step; }
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
  /// at `begin`, the other, if there is one, has its first token at step `next`.
  std::pair<Index, Index> between(Index begin, Index peak, Index next, bool has_next) const {
    Index end = peak;
    if (level_.is_silent(end))
      while (end > begin + 1 && level_.is_silent(end - 1)) --end;
    if (end == begin + 1) end = peak;  // all is silent: nothing to go by
    while (end < next && !silence_at(end)) ++end;
    if (end < next) return {end, begin_of(next, end)};
    Index quiet = peak;  // no silence between the words
    for (Index i = peak; i < next; ++i)
      if (level_.level(i) < level_.level(quiet)) quiet = i;
    return has_next ? std::pair{quiet, quiet} : std::pair{end, end};
  }

  SpeechLevel level_;
  std::optional<double> begin_;  // of the next word
};

/// Finds the words of an utterance greedily, with times and confidence, while its samples and logits come.
class WordDecoder {
 public:
  /// Borrows the vocabulary. `sample_rate` is that of the samples, in Hz. Allocates.
  WordDecoder(const Vocabulary& vocabulary, FrameTimes times, int sample_rate, int blank = 0,
              ConfidenceMeasure measure = ConfidenceMeasure::max_probability)
      : tokens_(blank, measure), words_(vocabulary, times), times_(sample_rate) {}

  /// Takes the samples that follow, in [-1, 1], before the logits of their frames. Allocates.
  void hear(std::span<const float> samples) { times_.hear(samples); }
  /// Takes the logits (frames, classes) that follow, and appends the words that are final: each whose successor has
  /// begun. Throws `Error` for a frame that holds NaN. Allocates.
  void operator()(MatrixView<const float> logits, std::vector<Word>& words) {
    found_.clear();
    tokens_(logits, found_);
    take_tokens(words);
  }
  /// Ends the utterance and appends the last word.
  void finish(std::vector<Word>& words) {
    found_.clear();
    tokens_.finish(found_);
    take_tokens(words);
    words_.finish(raw_);
    take_words(words);
  }
  /// Returns the decoder of tokens, for its counts of frames.
  const CtcTokens& tokens() const { return tokens_; }

 private:
  /// Appends the words that the tokens complete.
  void take_tokens(std::vector<Word>& words) {
    for (const CtcToken& one : found_) {  // one by one, so that a word is taken when its successor begins
      words_(std::span(&one, 1), raw_);
      take_words(words);
    }
  }
  void take_words(std::vector<Word>& words) {
    for (Word& one : raw_) {
      times_.correct(one, words_.begun());
      words.push_back(std::move(one));
    }
    raw_.clear();
  }

  CtcTokens tokens_;
  CtcWords words_;
  WordTimes times_;
  std::vector<CtcToken> found_;
  std::vector<Word> raw_;  // complete, with the times of their tokens
};

}  // namespace LACONIC_ABI
}  // namespace laconic
