// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/decode/ctc_tokens.hpp>
#include <laconic/speech/vocabulary.hpp>
#include <laconic/speech/word.hpp>

#include <algorithm>
#include <array>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Joins tokens of CTC to words with times and confidence, while they come: a word begins with its first token and ends
/// with its last. Its confidence is the mean of its tokens'. The texts are the words of `Vocabulary::decode`.
class CtcWords {
 public:
  /// Borrows the vocabulary. Allocates.
  CtcWords(const Vocabulary& vocabulary, FrameTimes times) : vocabulary_(&vocabulary), times_(times) {}

  /// Takes further tokens and appends the words that are complete: each whose successor has begun. Throws `Error` for a
  /// token that the vocabulary lacks. Allocates.
  void operator()(std::span<const CtcToken> tokens, std::vector<Word>& words) {
    for (const CtcToken& one : tokens) {
      const std::size_t before = part_.text.size();
      vocabulary_->decode(std::array{one.token}, part_);
      if (part_.text.size() == before) continue;      // a space, or a token that is not written
      if (before > 0 && part_.text[before] == ' ') {  // a word begins
        std::string next = part_.text.substr(before + 1);
        part_.text.resize(before);
        take_word(words);
        part_.text = std::move(next);
      }
      if (count_ == 0) begin_ = one.begin;
      end_ = one.end;
      confidence_ += one.confidence;
      ++count_;
    }
  }
  /// Appends the last word, if there is one.
  void finish(std::vector<Word>& words) {
    if (!part_.text.empty()) take_word(words);
    part_ = {};
  }

  /// Returns the begin of the word that is not complete yet, in seconds.
  std::optional<double> begun() const { return count_ > 0 ? std::optional(times_(begin_)) : std::nullopt; }

 private:
  /// Appends the text so far as a word.
  void take_word(std::vector<Word>& words) {
    for (const std::string_view one : detail::split_words(part_.text))  // one, but for tokens with a space in them
      words.push_back({std::string(one), times_(begin_), times_(end_), confidence_ / static_cast<double>(count_)});
    part_.text.clear();
    confidence_ = 0;
    count_ = 0;
  }

  const Vocabulary* vocabulary_;
  FrameTimes times_;
  DecodedText part_;  // the word that has begun
  Index begin_ = 0, end_ = 0, count_ = 0;
  double confidence_ = 0;  // sum over the word's tokens
};

}  // namespace LACONIC_ABI
}  // namespace laconic
