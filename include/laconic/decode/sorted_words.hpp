// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/error.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

namespace detail {

/// Holds words in byte order, each once, and finds those that begin alike. It serves as a trie whose nodes are ranges
/// of a sorted array, so that the words are all that it stores.
class SortedWords {
 public:
  /// Refers to the words that begin with the same `depth` bytes.
  struct Range {
    std::uint32_t begin = 0,  ///< the first word
        end = 0,              ///< the word after the last
        depth = 0;            ///< bytes that they share
    /// Says whether no word begins so.
    bool empty() const { return begin == end; }
  };

  /// Holds no words.
  SortedWords() = default;
  /// Holds these words, which it sorts; those that occur twice are held once.
  explicit SortedWords(std::vector<std::string> words) : words_(std::move(words)) {
    require(words_.size() < std::numeric_limits<std::uint32_t>::max(), "words: ", words_.size(),
            " words given, fewer than 4294967295 expected");
    std::sort(words_.begin(), words_.end());
    words_.erase(std::unique(words_.begin(), words_.end()), words_.end());
  }

  /// Returns the number of words.
  std::size_t size() const { return words_.size(); }
  /// Returns word i of the sorted ones.
  const std::string& operator[](std::size_t i) const { return words_[i]; }

  /// Returns all words: the range that has no bytes in common.
  Range all() const { return {0, static_cast<std::uint32_t>(words_.size()), 0}; }
  /// Returns the words of a range that go on with these bytes. Allocates nothing.
  Range narrow(Range range, std::string_view next) const {
    const auto at = [&](std::uint32_t i) { return words_.begin() + i; };
    for (const char c : next) {
      if (range.empty()) break;
      // The byte of a word at this depth, and -1 for the word that ends there, which is the first.
      const auto byte = [depth = range.depth](const std::string& word) {
        return word.size() > depth ? static_cast<int>(static_cast<unsigned char>(word[depth])) : -1;
      };
      const int wanted = static_cast<unsigned char>(c);
      const auto first = std::partition_point(at(range.begin), at(range.end),
                                              [&](const std::string& word) { return byte(word) < wanted; });
      const auto last =
          std::partition_point(first, at(range.end), [&](const std::string& word) { return byte(word) == wanted; });
      range.begin = static_cast<std::uint32_t>(first - words_.begin());
      range.end = static_cast<std::uint32_t>(last - words_.begin());
      ++range.depth;
    }
    return range;
  }
  /// Returns the word that ends where the range's bytes end, if there is one.
  std::optional<std::uint32_t> word(Range range) const {
    if (range.empty() || words_[range.begin].size() != range.depth) return {};
    return range.begin;
  }
  /// Returns the number of a word, if it is held.
  std::optional<std::uint32_t> find(std::string_view word) const {
    const auto found = std::lower_bound(words_.begin(), words_.end(), word);
    if (found == words_.end() || *found != word) return {};
    return static_cast<std::uint32_t>(found - words_.begin());
  }

 private:
  std::vector<std::string> words_;
};

}  // namespace detail

}  // namespace LACONIC_ABI
}  // namespace laconic
