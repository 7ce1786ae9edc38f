// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/extent.hpp>
#include <laconic/speech/tokens.hpp>
#include <laconic/speech/words.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Holds the text of tokens that come one after the other (see Vocabulary::decode).
struct DecodedText {
  std::string text{};      ///< the text so far, which later tokens continue
  bool ends_word = false;  ///< whether the next token begins a word
};

/// Lists the output classes of a CTC model. Index 0 is the blank, "<blank>"; the tokens follow in byte order, so that
/// the same texts give the same vocabulary in any order. Texts are words with one space between them: other white space
/// counts as a space.
class Vocabulary {
 public:
  static constexpr std::string_view blank_token = "<blank>";  ///< name of the blank
  /// Name of the blank in vocabularies of Hugging Face's CTC models, whose characters include tokens such as "<unk>".
  static constexpr std::string_view hugging_face_blank = "<pad>";

  /// Makes a vocabulary of the blank only.
  Vocabulary() : Vocabulary(Tokens::characters, std::string(blank_token)) {}

  /// Returns the vocabulary of all characters of `texts`, a range of strings. Throws `Error` for a text that has '|',
  /// which is the space in vocab.json, or is not UTF-8.
  template <class Texts>
  static Vocabulary characters(const Texts& texts) {
    std::set<std::string, std::less<>> tokens;
    for (const auto& one : texts) {
      const std::string joined = detail::join_words(one);
      for (const std::string_view c : detail::split_characters(joined)) {
        require(c != "|", "vocabulary: '|' stands for the space and may not occur in a text: \"", joined, '"');
        tokens.emplace(c);
      }
    }
    return Vocabulary(Tokens::characters, tokens);
  }

  /// Returns the vocabulary of all words of `texts`, a range of strings.
  template <class Texts>
  static Vocabulary words(const Texts& texts) {
    std::set<std::string, std::less<>> tokens;
    for (const auto& one : texts)
      for (const std::string_view word : detail::split_words(one)) tokens.emplace(word);
    return Vocabulary(Tokens::words, tokens);
  }

  /// Returns the vocabulary of all characters or words of `texts`, as `kind` says.
  template <class Texts>
  static Vocabulary of(Tokens kind, const Texts& texts) {
    return kind == Tokens::words ? words(texts) : characters(texts);
  }

  /// Returns what the tokens are.
  Tokens kind() const { return kind_; }
  /// Returns the number of classes, with the blank.
  Index size() const { return static_cast<Index>(tokens_.size()); }
  /// Returns the token of class i. Throws `Error` if there is none.
  const std::string& token(Index i) const {
    require(i >= 0 && i < size(), "vocabulary: token ", i, " given, 0 to ", size() - 1, " expected");
    return tokens_[static_cast<std::size_t>(i)];
  }

  /// Returns a text as the tokens write it: words with one space between them, and A to Z in upper case if no token has
  /// lower case letters, in lower case if none has upper case letters. What the tokens cannot write stays as it is.
  std::string written(std::string_view text) const {
    std::string out = detail::join_words(text);
    for (char& c : out)
      if (capitals_ && !small_letters_ && is_small(c))
        c = static_cast<char>(c - 'a' + 'A');
      else if (small_letters_ && !capitals_ && is_capital(c))
        c = static_cast<char>(c - 'A' + 'a');
    return out;
  }

  /// Returns the indices of the tokens of a text, as `written`; never the blank. Throws `Error` for an unknown token.
  std::vector<int> encode(std::string_view text) const {
    const std::string joined = written(text);
    std::vector<int> out;
    for (const std::string_view token :
         kind_ == Tokens::words ? detail::split_words(joined) : detail::split_characters(joined)) {
      const auto found = index_.find(std::string(token));
      require(found != index_.end() && found->second != 0, "vocabulary: unknown token \"", token, "\" in \"", joined,
              "\"; known ", to_name(kind_), ": ", known());
      out.push_back(found->second);
    }
    return out;
  }

  /// Returns the text of token indices; blanks are skipped. `decode(encode(text))` is the text with single spaces.
  /// Throws `Error` for an index that has no token.
  std::string decode(std::span<const int> indices) const {
    DecodedText out;
    decode(indices, out);
    return std::move(out.text);
  }
  /// Appends token indices to a text that earlier ones have begun. Texts of any parts are those of the whole. Throws
  /// `Error` for an index that has no token.
  void decode(std::span<const int> indices, DecodedText& to) const {
    for (const int i : indices) {
      const std::string& one = token(i);
      if (i == 0) continue;
      to.ends_word |= kind_ == Tokens::words;
      detail::append_words(to.text, to.ends_word, one);  // the output of a model may have two spaces in a row
    }
  }

  /// Returns an object of token to index, as Hugging Face writes vocab.json: "|" is the space among characters. The
  /// kind of tokens is not in it; it belongs in config.json.
  nlohmann::json to_json() const {
    nlohmann::json out = nlohmann::json::object();
    for (std::size_t i = 0; i < tokens_.size(); ++i) out[in_file(tokens_[i])] = i;
    return out;
  }

  /// Returns the vocabulary that `to_json` wrote. Throws `Error` unless the indices are 0 .. n-1, each once, and 0 is
  /// the blank. `where` begins the texts of errors (the name of a file).
  static Vocabulary from_json(Tokens kind, const nlohmann::json& json, std::string_view where = "vocab.json") {
    require(json.is_object(), where, ": an object of token to index expected, ", json.type_name(), " given");
    std::vector<std::string> tokens(json.size());
    std::vector<bool> seen(json.size(), false);
    for (const auto& [name, value] : json.items()) {
      require(value.is_number_integer(), where, ": token \"", name, "\" has ", value.type_name(),
              ", an integer index expected");
      const auto i = value.get<std::int64_t>();
      require(i >= 0 && i < static_cast<std::int64_t>(tokens.size()), where, ": token \"", name, "\" has index ", i,
              ", 0 to ", static_cast<std::int64_t>(tokens.size()) - 1, " expected for ", tokens.size(), " tokens");
      const auto slot = static_cast<std::size_t>(i);
      require(!seen[slot], where, ": index ", i, " belongs to \"", tokens[slot], "\" and to \"", name, '"');
      seen[slot] = true;
      tokens[slot] = kind == Tokens::characters && name == "|" ? " " : name;
    }
    const bool foreign = kind == Tokens::characters && !tokens.empty() && tokens[0] == hugging_face_blank;
    require(foreign || (!tokens.empty() && tokens[0] == blank_token), where, ": index 0 is ",
            tokens.empty() ? "missing" : tokens[0], ", ", blank_token, " expected");
    Vocabulary out(kind, tokens[0]);
    for (std::size_t i = 1; i < tokens.size(); ++i) {
      const std::string& one = tokens[i];
      const bool whole = kind == Tokens::words
                             ? detail::split_words(one).size() == 1 && detail::join_words(one) == one
                             : detail::split_characters(one).size() == 1 || (foreign && is_special(one));
      require(whole, where, ": token \"", one, "\" is not one of ", to_name(kind));
      out.add(one);
    }
    return out;
  }

  /// Says whether two vocabularies have the same kind and tokens.
  friend bool operator==(const Vocabulary& a, const Vocabulary& b) {
    return a.kind_ == b.kind_ && a.tokens_ == b.tokens_;
  }

 private:
  /// Makes a vocabulary of the blank only.
  Vocabulary(Tokens kind, const std::string& blank) : kind_(kind) { add(blank); }
  /// Makes a vocabulary of the blank and these tokens.
  Vocabulary(Tokens kind, const std::set<std::string, std::less<>>& tokens)
      : Vocabulary(kind, std::string(blank_token)) {
    for (const std::string& one : tokens) add(one);
  }

  /// Adds a token. Throws `Error` if it is known already.
  void add(const std::string& token) {
    require(index_.emplace(token, static_cast<int>(tokens_.size())).second, "vocabulary: token \"", token,
            "\" occurs twice or is the blank's name");
    tokens_.push_back(token);
    if (tokens_.size() == 1 || is_special(token)) return;
    capitals_ = capitals_ || std::any_of(token.begin(), token.end(), is_capital);
    small_letters_ = small_letters_ || std::any_of(token.begin(), token.end(), is_small);
  }

  /// Says whether a character is A to Z.
  static bool is_capital(char c) { return c >= 'A' && c <= 'Z'; }
  /// Says whether a character is a to z.
  static bool is_small(char c) { return c >= 'a' && c <= 'z'; }
  /// Says whether a token is one such as "<unk>".
  static bool is_special(std::string_view token) {
    return token.size() > 2 && token.front() == '<' && token.back() == '>';
  }

  /// Returns a token as vocab.json spells it.
  std::string in_file(const std::string& token) const {
    return kind_ == Tokens::characters && token == " " ? "|" : token;
  }

  /// Returns the tokens for the text of an error; the first ones if there are many.
  std::string known() const {
    constexpr std::size_t shown = 40;
    std::string out;
    for (std::size_t i = 1; i < std::min(tokens_.size(), shown + 1); ++i)
      out += text(i > 1 ? " " : "", in_file(tokens_[i]));
    if (tokens_.size() > shown + 1) out += text(" ... (", size() - 1, " in all)");
    return out.empty() ? "none" : out;
  }

  Tokens kind_;
  bool capitals_ = false, small_letters_ = false;  // in any token that is not special
  std::vector<std::string> tokens_;
  std::unordered_map<std::string, int> index_;
};

}  // namespace LACONIC_ABI
}  // namespace laconic
