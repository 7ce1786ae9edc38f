// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/extent.hpp>
#include <laconic/speech/tokens.hpp>

#include <array>
#include <string>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Lists the classes of a CTC head for a beam search.
struct CtcClasses {
  std::vector<std::string> tokens{};  ///< the text of each class; that of the blank does not matter
  Tokens kind = Tokens::characters;   ///< characters: " " stands between words; words: each token is one
  int blank = 0;                      ///< class of the blank

  /// Returns the classes of a `Vocabulary`, each with the text that it writes. Allocates.
  template <class Vocabulary>
  static CtcClasses of(const Vocabulary& vocabulary) {
    CtcClasses out{{}, vocabulary.kind(), vocabulary.blank()};
    for (int i = 0; i < static_cast<int>(vocabulary.size()); ++i) {
      const bool is_space = vocabulary.token(i) == " ";
      out.tokens.push_back(is_space ? " " : vocabulary.decode(std::array{i}));  // what decode writes
    }
    return out;
  }
};

/// Holds a word and the frames in which its tokens are, from `begin` to before `end`.
struct CtcWord {
  std::string text;  ///< the word
  Index begin = 0,   ///< frame of its first token
      end = 0;       ///< frame after its last token
  /// Says whether all members are equal.
  friend bool operator==(const CtcWord&, const CtcWord&) = default;
};

/// Holds one result of a beam search over CTC's frames.
struct CtcHypothesis {
  std::string text{};            ///< the words with one space between them
  double score = 0;              ///< log_prob + word_score, by which results are ordered
  double log_prob = 0;           ///< natural log of the probability of the text by the frames alone
  double word_score = 0;         ///< weighted score by the language model and hotwords
  std::vector<CtcWord> words{};  ///< the words with their frames
};

}  // namespace LACONIC_ABI
}  // namespace laconic
