// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/matrix.hpp>
#include <laconic/decode/ctc_words.hpp>
#include <laconic/speech/speech_level.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <deque>
#include <optional>
#include <span>
#include <utility>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Corrects the times of words by the level of sound. CTC says where a word's tokens peak, which may be anywhere in the
/// word, or after it in a model that hears in chunks. Between two words lies a silence of 30 ms or more. Of several,
/// the longest one counts most, up to 120 ms: beyond that it may as well be the closure before a plosive within a word
/// as a pause. Then the logits decide: frames in which the one word's last token is likelier than the other's first one
/// belong before the silence, the others after it. Without a silence, words meet at a quiet step that divides these
/// frames. Before the first word and after the last one, a silence of 200 ms ends the speech. No word begins more than
/// half a second after its first token (a model that sees ahead may know it before), and none reaches further than a
/// second from its tokens.
class WordTimes {
 public:
  /// Begins an utterance. `blank` is the class of the blank, `sample_rate` is that of the samples, in Hz.
  WordTimes(int blank, FrameTimes times, int sample_rate) : blank_(blank), times_(times), level_(sample_rate) {}

  /// Takes the samples that follow, in [-1, 1], before the words in them. Allocates.
  void hear(std::span<const float> samples) { level_.push(samples); }
  /// Takes the logits (frames, classes) that follow, before the words in them. Keeps those that no word has gone by, 16
  /// MiB at most apart from the last ones. Allocates.
  void take(MatrixView<const float> logits) {
    while (!logits_.empty() && logits_.size() + static_cast<std::size_t>(logits.size()) > most_logits) forget_frame();
    classes_ = logits.cols();
    for (Index t = 0; t < logits.rows(); ++t)
      logits_.insert(logits_.end(), logits.row(t).data(), logits.row(t).data() + classes_);
  }
  /// Corrects a word whose times are those of its tokens; `next` is the begin of the first token of the word after it,
  /// if there is one. Words come in order.
  void correct(Word& word, std::optional<double> next) {
    const Index first = SpeechLevel::step_at(*word.begin), last = SpeechLevel::step_at(*word.end);
    if (!begin_) {
      const Index least = std::max(least_, first - reach);
      begin_ = std::clamp(first_begin(first), least, std::max(least, first + early));
    }
    const Index next_first = next ? std::max(last, SpeechLevel::step_at(*next)) : std::max(level_.steps(), last);
    const Range pause = next ? between(*word.end, *next) : last_pause(last);
    const Index end =
        std::clamp(pause.begin, *begin_ + 1, std::max(*begin_ + 1, std::min(last + reach, next_first + early)));
    word.begin = seconds(*begin_);
    word.end = seconds(end);
    least_ = end;
    begin_ = std::clamp(std::max(pause.end, next_first - reach), end, std::max(end, next_first + early));
    level_.forget_before(*word.end - 1);
    while (next && !logits_.empty() && first_frame_ < frame_at(*next)) forget_frame();
  }
  /// Ends the utterance: how long it is silent before the next word is heard only later.
  void end_utterance() { begin_.reset(); }

 private:
  // In steps of 10 ms: silences, how far a word may reach from its tokens, and how far they may be ahead of it.
  static constexpr Index shortest = 3, closure = 12, ends_speech = 20, reach = 100, early = 50;
  // How far a silence may be from both peaks, and how far from them it counts, in steps. What a step on the wrong side
  // costs, in steps of silence: beyond a peak, or between them by the logits.
  static constexpr Index beyond = 12, around = 4;
  static constexpr double beyond_peak = 2, against_logits = 0.1;
  static constexpr double loud = 0.3;  // what a dB costs where words meet
  static constexpr std::size_t most_logits = 1 << 22;

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
    if (begin > least_)
      begin = std::max(least_, level_.without_weak_speech(silence_around(begin - 1, least_, begin)).end);
    return begin == least_ && level_.is_silent(std::min(peak, most)) ? peak : begin;  // all is silent: nothing to go by
  }
  /// Returns the silence after the last word, whose last token is at step `peak`.
  Range last_pause(Index peak) const {
    const Index least = begin_.value_or(0) + 1, steps = std::max(level_.steps(), peak);
    for (Index i = std::min(peak, steps); i < steps; ++i) {
      if (!level_.is_silent(i)) continue;
      const Range silence = silence_around(i, least, steps);
      if (silence.size() >= ends_speech || silence.end == steps) return level_.without_weak_speech(silence);
      i = silence.end;
    }
    return {steps, steps};
  }
  /// Returns the silence between two words, or the step where they meet. The tokens of the one end at `peak`, those of
  /// the other begin at `next`, in seconds.
  Range between(double peak, double next) const {
    const Index last = SpeechLevel::step_at(peak), first = std::max(last, SpeechLevel::step_at(next)),
                begin = begin_.value_or(0) + 1, least = std::max(begin, last - beyond),
                most = std::max(least, std::min(first + beyond, level_.steps()));
    // How well the words are divided at each step.
    std::vector<double> divides(static_cast<std::size_t>(most - least) + 1);
    const Sides sides = sides_of(frame_at(peak) - 1, frame_at(next));
    for (Index i = least; i < most; ++i) {
      const double before = i < last ? beyond_peak : i >= first ? -beyond_peak : against_logits * side(sides, i);
      divides[static_cast<std::size_t>(i - least) + 1] = divides[static_cast<std::size_t>(i - least)] + before;
    }
    std::optional<Range> pause;
    double best = 0;
    Index meet = least;
    const auto cost = [&](Index i) { return loud * level_.level(i) - divides[static_cast<std::size_t>(i - least)]; };
    for (Index i = least; i < most; ++i) {
      if (cost(i) < cost(meet)) meet = i;
      if (!level_.is_silent(i)) continue;
      const Range silence = silence_around(i, begin, level_.steps());
      const Index end = std::min(silence.end, most);
      const Index between_peaks = std::min(silence.end, first + around) - std::max(silence.begin, last - around);
      const double score = static_cast<double>(std::min(between_peaks, closure)) +
                           *std::max_element(divides.begin() + (i - least), divides.begin() + (end - least) + 1);
      const bool better = !pause || score > best || (score == best && silence.size() > pause->size());
      if (silence.size() >= shortest && better) {
        pause = silence;
        best = score;
      }
      i = std::max(i, end - 1);
    }
    return pause ? level_.without_weak_speech(*pause) : Range{meet, meet};
  }
  // Two tokens that neighbours end and begin with: their frames and classes.
  struct Sides {
    Index before_frame, after_frame, before, after;
  };
  Sides sides_of(Index before, Index after) const { return {before, after, token_at(before), token_at(after)}; }
  /// Returns 1 if the logits at a step say that it belongs to the word before, -1 if to the one after, 0 if nothing.
  double side(const Sides& sides, Index step) const {
    const Index frame = std::clamp(frame_of(step), sides.before_frame, std::max(sides.before_frame, sides.after_frame));
    if (!has_frame(frame) || sides.before < 0 || sides.after < 0) return 0;
    const float before = logit(frame, sides.before), after = logit(frame, sides.after);
    return before > after ? 1 : before < after ? -1 : 0;
  }
  /// Returns the likeliest class of a frame but for the blank; -1 if the frame is not kept.
  Index token_at(Index frame) const {
    if (!has_frame(frame)) return -1;
    Index best = -1;
    for (Index c = 0; c < classes_; ++c)
      if (c != blank_ && (best < 0 || logit(frame, c) > logit(frame, best))) best = c;
    return best;
  }
  Index frame_at(double seconds) const { return std::lround((seconds - times_.offset) / times_.shift); }
  /// Returns the frame in which the middle of a step lies.
  Index frame_of(Index step) const {
    return static_cast<Index>(std::floor((seconds(step) + SpeechLevel::step / 2 - times_.offset) / times_.shift));
  }
  bool has_frame(Index frame) const {
    return frame >= first_frame_ && (frame - first_frame_) * classes_ < static_cast<Index>(logits_.size());
  }
  float logit(Index frame, Index c) const {
    return logits_[static_cast<std::size_t>((frame - first_frame_) * classes_ + c)];
  }
  void forget_frame() {
    logits_.erase(logits_.begin(), logits_.begin() + classes_);
    ++first_frame_;
  }

  int blank_;
  FrameTimes times_;
  SpeechLevel level_;
  std::optional<Index> begin_;  // step in which the next word of the utterance begins
  Index least_ = 0;             // step before which no word can begin
  std::deque<float> logits_;    // (frames, classes_), from first_frame_ on
  Index first_frame_ = 0, classes_ = 0;
};

/// Finds the words of an utterance greedily, with times and confidence, while its samples and logits come.
class WordDecoder {
 public:
  /// Borrows the vocabulary. `sample_rate` is that of the samples, in Hz. Allocates.
  WordDecoder(const Vocabulary& vocabulary, FrameTimes times, int sample_rate,
              ConfidenceMeasure measure = ConfidenceMeasure::max_probability)
      : tokens_(vocabulary.blank(), measure, vocabulary.labels()),
        words_(vocabulary, times),
        times_(vocabulary.blank(), times, sample_rate) {}

  /// Takes the samples that follow, in [-1, 1], before the logits of their frames. Allocates.
  void hear(std::span<const float> samples) { times_.hear(samples); }
  /// Takes the logits (frames, classes) that follow, and appends the words that are final: each whose successor has
  /// begun; and to `begun`, unless it is null, the tokens that have begun. Throws `Error` for a frame that holds NaN.
  /// Allocates.
  void operator()(MatrixView<const float> logits, std::vector<Word>& words, std::vector<int>* begun = nullptr) {
    found_.clear();
    times_.take(logits);
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
