// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/decode/arpa.hpp>
#include <laconic/decode/sorted_words.hpp>
#include <laconic/io/file.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <numbers>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Scores words by a language model of n-grams with back-off (Katz 1987, equation 18). A word w after the words h has
/// the probability that the file gives for the n-gram (h, w), if it has it, and otherwise the back-off weight of h
/// times the probability of w after h without its first word. Scores are those of KenLM: sentences begin with <s> and
/// end with
/// </s>, and words that the model does not know have the probability of <unk>, or 1e-100 if the file has no <unk>.
/// Upper and lower case are told apart as in the file.
///
/// ARPA files hold logarithms to base 10, and this class returns natural ones. n-grams are a trie in arrays: 24 bytes
/// for each, 12 for those of the highest order. Scoring is const, allocates nothing, and may be called by many threads.
///
///     const NgramModel model = NgramModel::read("3gram.arpa");
///     NgramModel::State state = model.begin();
///     double log_prob = 0;
///     for (const std::string_view word : words) {
///       const auto [score, next] = model.score(state, model.word(word));
///       log_prob += score;
///       state = next;
///     }
///     log_prob += model.score(state, model.end_word()).log_prob;
class NgramModel {
 public:
  using State = std::uint32_t;  ///< the longest n-gram of the file that ends the words so far
  using Word = std::uint32_t;   ///< the number of a word of the file, in byte order
  static constexpr State no_context = std::numeric_limits<State>::max();  ///< before any word, not even <s>

  /// Holds what `score` returns.
  struct Score {
    double log_prob;  ///< natural logarithm of the word's probability
    State state;      ///< the state after the word
  };

  /// Reads an ARPA file, which is mapped into memory. Throws `Error`, with the file and the line, for what is none; a
  /// binary file of KenLM is refused, too. Memory is in proportion to the n-grams that the file really has.
  static NgramModel read(const std::filesystem::path& path) {
    const MappedFile file(path);
    const std::span<const std::byte> bytes = file.bytes();
    detail::TextLines lines({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
    return NgramModel(path.string(), lines);
  }

  /// Reads the lines of an ARPA file: `next_line(line)` writes the next line (a `std::string_view`) and returns false
  /// after the last. `where` names the file in errors. Throws `Error` as `read` does. Allocates.
  template <class NextLine>
  NgramModel(std::string where, NextLine&& next_line) {
    detail::ArpaReader<std::remove_reference_t<NextLine>> reader(where, next_line);
    order_ = reader.order();
    const Numbers numbers = read_words(reader, where);
    for (std::size_t n = 2; n <= order_; ++n) read_longer(reader, where, n, numbers);
  }

  /// Returns the highest order of the n-grams: 3 for a model of trigrams.
  std::size_t order() const { return order_; }
  /// Returns the number of n-grams of all orders.
  std::size_t size() const { return nodes_.size() + leaves_.size(); }
  /// Returns the words in byte order; their indices are those of `word`.
  const detail::SortedWords& words() const { return words_; }

  /// Returns the state at the begin of a sentence, after <s>.
  State begin() const { return begin_; }
  /// Returns the word </s>, which ends a sentence.
  Word end_word() const { return end_; }
  /// Returns the word that stands for all that the model does not know.
  Word unknown() const { return unknown_; }
  /// Returns the number of a word; `unknown()` if the model does not know it.
  Word word(std::string_view spelling) const { return words_.find(spelling).value_or(unknown_); }
  /// Says whether a word is one that can be spoken: neither the unknown word nor <s> nor </s>.
  bool is_spoken(Word word) const { return word != unknown_ && word != begin_ && word != end_; }

  /// Returns the score of a word after a state, and the state after it. Allocates nothing. Throws `Error` for a number
  /// that is no word's.
  Score score(State state, Word word) const {
    require(word < words_.size(), "n-gram model: word ", word, " given, 0 to ", words_.size() - 1, " expected");
    double log10_prob = 0;
    while (state != no_context) {
      const Node& node = nodes_[state];
      if (state >= last_) {
        if (const Leaf* const found = find(leaves_, node, word))
          return {(log10_prob + static_cast<double>(found->log10_prob)) * std::numbers::ln10, found->suffix};
      } else if (const Node* const found = find(nodes_, node, word)) {
        return {(log10_prob + static_cast<double>(found->log10_prob)) * std::numbers::ln10,
                static_cast<State>(found - nodes_.data())};
      }
      log10_prob += static_cast<double>(node.log10_backoff);
      state = node.suffix;
    }
    return {(log10_prob + static_cast<double>(nodes_[word].log10_prob)) * std::numbers::ln10, word};
  }

 private:
  using Numbers = std::unordered_map<std::string_view, Word>;

  /// Holds an n-gram of the highest order. Children of a node are sorted by their words.
  struct Leaf {
    Word word;
    float log10_prob;
    State suffix;  // the longest n-gram of the file that ends this one
  };
  /// Holds an n-gram that others may continue. Those of order 1 come first, in the order of their words; the children
  /// of one of order n are nodes of order n + 1, or leaves.
  struct Node {
    Word word;
    float log10_prob, log10_backoff;
    State suffix;
    std::uint32_t begin = 0, end = 0;  // its children
  };
  /// Holds an n-gram that is not yet in its place.
  struct Loose {
    State context;
    Word word;
    float log10_prob, log10_backoff;
    std::size_t line;
  };

  template <class Child>
  static const Child* find(const std::vector<Child>& children, const Node& node, Word word) {
    const Child* const begin = children.data() + node.begin;
    const Child* const end = children.data() + node.end;
    const Child* const found =
        std::lower_bound(begin, end, word, [](const Child& child, Word w) { return child.word < w; });
    return found != end && found->word == word ? found : nullptr;
  }
  /// Returns the longest n-gram of the file that ends (context, word), where `context` is the state before.
  State longest(State context, Word word) const {
    for (; context != no_context; context = nodes_[context].suffix)
      if (const Node* const found = find(nodes_, nodes_[context], word))
        return static_cast<State>(found - nodes_.data());
    return word;
  }

  /// Reads the 1-grams and returns the numbers of all words.
  template <class Reader>
  Numbers read_words(Reader& reader, const std::string& where) {
    struct One {
      std::string word;
      float log10_prob, log10_backoff;
      std::size_t line;
    };
    std::vector<One> all;
    bool knows_unknown = false;
    reader.read_section([&](const detail::ArpaEntry& entry) {
      // KenLM takes both spellings.
      const bool unknown = entry.words[0] == "<unk>" || entry.words[0] == "<UNK>";
      knows_unknown = knows_unknown || unknown;
      all.push_back({unknown ? "<unk>" : std::string(entry.words[0]), entry.log10_prob, entry.log10_backoff,
                     reader.line_number()});
    });
    if (!knows_unknown) all.push_back({"<unk>", -100, 0, 0});
    require(all.size() < no_context, where, ": ", all.size(), " words given, fewer than ", no_context, " expected");
    std::sort(all.begin(), all.end(),
              [](const One& a, const One& b) { return std::tie(a.word, a.line) < std::tie(b.word, b.line); });
    std::vector<std::string> words;
    for (std::size_t i = 0; i < all.size(); ++i) {
      require(i == 0 || all[i].word != words.back(), where, ": line ", all[i].line, ": the word \"", all[i].word,
              "\" given, which line ", i == 0 ? 0 : all[i - 1].line, " has");
      nodes_.push_back({static_cast<Word>(i), all[i].log10_prob, all[i].log10_backoff, no_context});
      words.push_back(std::move(all[i].word));
    }
    words_ = detail::SortedWords(std::move(words));
    Numbers numbers;
    numbers.reserve(words_.size() + 1);
    for (std::size_t i = 0; i < words_.size(); ++i) numbers.emplace(words_[i], static_cast<Word>(i));
    unknown_ = numbers.at("<unk>");
    numbers.emplace("<UNK>", unknown_);
    const auto marker = [&](std::string_view name) {
      const auto found = numbers.find(name);
      require(found != numbers.end(), where, ": 1-grams without ", name, " given, <s> and </s> among them expected");
      return found->second;
    };
    begin_ = marker("<s>");
    end_ = marker("</s>");
    return numbers;
  }

  /// Reads the n-grams of order n > 1.
  template <class Reader>
  void read_longer(Reader& reader, const std::string& where, std::size_t n, const Numbers& numbers) {
    std::vector<Loose> all;
    reader.read_section([&](const detail::ArpaEntry& entry) {
      Loose one{no_context, 0, entry.log10_prob, entry.log10_backoff, reader.line_number()};
      for (std::size_t i = 0; i < n; ++i) {
        const auto found = numbers.find(entry.words[i]);
        if (found == numbers.end())
          reader.fail(text("words of the 1-grams in place of ", entry.words[i].substr(0, 40)));
        one.word = found->second;
        if (i + 1 == n) break;
        const Node* const next = i == 0 ? &nodes_[one.word] : find(nodes_, nodes_[one.context], one.word);
        if (next == nullptr)
          reader.fail(text("an n-gram whose first ", n - 1, " words are one of the ", n - 1, "-grams"));
        one.context = static_cast<State>(next - nodes_.data());
      }
      all.push_back(one);
    });
    std::sort(all.begin(), all.end(), [](const Loose& a, const Loose& b) {
      return std::tie(a.context, a.word, a.line) < std::tie(b.context, b.word, b.line);
    });
    for (std::size_t i = 1; i < all.size(); ++i)
      require(std::tie(all[i].context, all[i].word) != std::tie(all[i - 1].context, all[i - 1].word), where, ": line ",
              all[i].line, ": an n-gram given that line ", all[i - 1].line, " has");
    const bool highest = n == order_;
    const std::size_t first = highest ? 0 : nodes_.size();
    require(first + all.size() < no_context, where, ": ", first + all.size(), " n-grams given, fewer than ", no_context,
            " expected");
    if (n == order_) last_ = level_;
    highest ? leaves_.reserve(all.size()) : nodes_.reserve(first + all.size());
    const std::size_t next_level = nodes_.size();
    for (std::size_t i = 0; i < all.size(); ++i) {
      const Loose& one = all[i];
      Node& context = nodes_[one.context];
      if (context.begin == context.end) context.begin = static_cast<std::uint32_t>(first + i);
      context.end = static_cast<std::uint32_t>(first + i + 1);
      // Suffixes are shorter than this n-gram, so that they are in their places already.
      const State suffix = longest(context.suffix, one.word);
      if (highest)
        leaves_.push_back({one.word, one.log10_prob, suffix});
      else
        nodes_.push_back({one.word, one.log10_prob, one.log10_backoff, suffix});
    }
    level_ = next_level;
  }

  std::size_t order_ = 0, level_ = 0;                           // level_: the first node of the order read last
  std::size_t last_ = std::numeric_limits<std::size_t>::max();  // the first node whose children are leaves
  detail::SortedWords words_;
  std::vector<Node> nodes_;
  std::vector<Leaf> leaves_;
  Word unknown_ = 0, begin_ = 0, end_ = 0;
};

}  // namespace LACONIC_ABI
}  // namespace laconic
