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
/// word, or after it in a model that hears in chunks. Between two words lies the longest silence of 30 ms or more that
/// is between their peaks; without one they meet at the quietest step. Before the first word and after the last one, a
/// silence of 200 ms ends the speech. No word begins more than half a second after its first token (a model that
/// sees ahead may know it before), and none reaches further than a second from its tokens.
class WordTimes {
 public:
  /// Begins an utterance. `sample_rate` is that of the samples, in Hz.
  explicit WordTimes(int sample_rate) : level_(sample_rate) {}

  /// Takes the samples that follow, in [-1, 1], before the words in them. Allocates.
  void hear(std::span<const float> samples) { level_.push(samples); }
  /// Corrects a word whose times are those of its tokens; `next` is the begin of the first token of the word after it,
  /// if there is one. Words come in order.
  void correct(Word& word, std::optional<double> next) {
    const Index first = SpeechLevel::step_at(*word.begin), last = SpeechLevel::step_at(*word.end);
    if (!begin_) {
      const Index least = std::max(least_, first - reach);
      begin_ = std::clamp(first_begin(first), least, std::max(least, first + early));
    }
    const Index next_first = next ? std::max(last, SpeechLevel::step_at(*next)) : std::max(level_.steps(), last);
    const Range pause = next ? between(last, next_first) : last_pause(last);
    const Index end = std::clamp(pause.begin, *begin_ + 1, std::max(*begin_ + 1, std::min(last + reach, next_first)));
    word.begin = seconds(*begin_);
    word.end = seconds(end);
    least_ = end;
    begin_ = std::clamp(std::max(pause.end, next_first - reach), end, std::max(end, next_first + early));
    level_.forget_before(*word.end - 1);
  }
  /// Ends the utterance: how long it is silent before the next word is heard only later.
  void end_utterance() { begin_.reset(); }

 private:
  // In steps of 10 ms: silences, how far a word may reach from its tokens, and how far they may be ahead of it.
  static constexpr Index shortest = 3, ends_speech = 20, reach = 100, early = 50;

  static double seconds(Index i) { return static_cast<double>(i) * SpeechLevel::step; }
  /// Returns the silence that contains step i, which is silent, as far as [least, most) goes.
  Range silence_around(Index i, Index least, Index most) const {
    Range out{i, i + 1};
    while (out.begin > least && level_.is_silent(out.begin - 1)) --out.begin;
    while (out.end < most && level_.is_silent(out.end)) ++out.end;
    return out;
  }
  /// Returns the step in which the first word of an utterance begins; its first token is at step `peak`.
  Index first_begin(Index peak) const {
    const Index most = std::min(peak + early, level_.steps());
    Index begin = least_;
    for (Index i = least_; i <= peak && i < most; ++i) {
      if (!level_.is_silent(i)) continue;
      const Range silence = silence_around(i, least_, most);
      if ((silence.begin == least_ || silence.size() >= ends_speech) && silence.end < most) begin = silence.end;
      i = silence.end;
    }
    return begin == least_ && level_.is_silent(std::min(peak, most)) ? peak : begin;  // all is silent: nothing to go by
  }
  /// Returns the silence after the last word, whose last token is at step `peak`.
  Range last_pause(Index peak) const {
    const Index least = begin_.value_or(0) + 1, steps = std::max(level_.steps(), peak);
    for (Index i = std::min(peak, steps); i < steps; ++i) {
      if (!level_.is_silent(i)) continue;
      const Range silence = silence_around(i, least, steps);
      if (silence.size() >= ends_speech || silence.end == steps) return silence;
      i = silence.end;
    }
    return {steps, steps};
  }
  /// Returns the silence between two words, or the step where they meet. The one has its last token at step `peak`, the
  /// other its first one at step `next`.
  Range between(Index peak, Index next) const {
    const Index least = begin_.value_or(0) + 1;
    std::optional<Range> longest;
    Index quiet = peak;
    for (Index i = peak; i <= next; ++i) {
      if (level_.level(i) < level_.level(quiet)) quiet = i;
      if (!level_.is_silent(i)) continue;
      const Range silence = silence_around(i, least, level_.steps());
      // A silence around the next word's peak comes after its speech, if there is another silence before.
      const bool after_next = silence.end > next && longest.has_value();
      if (silence.size() >= shortest && !after_next && (!longest || silence.size() > longest->size()))
        longest = silence;
      i = silence.end;
    }
    return longest.value_or(Range{quiet, quiet});
  }

  SpeechLevel level_;
  std::optional<Index> begin_;  // step in which the next word of the utterance begins
  Index least_ = 0;             // step before which no word can begin
};

/// Finds the words of an utterance greedily, with times and confidence, while its samples and logits come.
class WordDecoder {
 public:
  /// Borrows the vocabulary. `sample_rate` is that of the samples, in Hz. Allocates.
  WordDecoder(const Vocabulary& vocabulary, FrameTimes times, int sample_rate,
              ConfidenceMeasure measure = ConfidenceMeasure::max_probability)
      : tokens_(vocabulary.blank(), measure, vocabulary.labels()), words_(vocabulary, times), times_(sample_rate) {}

  /// Takes the samples that follow, in [-1, 1], before the logits of their frames. Allocates.
  void hear(std::span<const float> samples) { times_.hear(samples); }
  /// Takes the logits (frames, classes) that follow, and appends the words that are final: each whose successor has
  /// begun; and to `begun`, unless it is null, the tokens that have begun. Throws `Error` for a frame that holds NaN.
  /// Allocates.
  void operator()(MatrixView<const float> logits, std::vector<Word>& words, std::vector<int>* begun = nullptr) {
    found_.clear();
    tokens_(logits, found_, begun);
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
