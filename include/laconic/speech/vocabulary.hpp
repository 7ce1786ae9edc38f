// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/extent.hpp>
#include <laconic/speech/tokenizer_config.hpp>
#include <laconic/speech/tokens.hpp>
#include <laconic/speech/unicode.hpp>
#include <laconic/speech/wer.hpp>
#include <laconic/speech/words.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
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

/// Lists the output classes of a CTC model. In a vocabulary that laconic makes, class 0 is the blank, "<blank>", and
/// the tokens follow in byte order, so that the same texts give the same vocabulary in any order. In a vocabulary of
/// Hugging Face the blank may be any class, tokens may have several characters, some are no text ("<unk>"), and a class
/// may have no token. Texts are words with one space between them, in Normalization Form C: other white space counts as
/// a space.
class Vocabulary {
 public:
  static constexpr std::string_view blank_token = "<blank>";  ///< the blank's name in laconic's own vocabularies

  /// Makes a vocabulary of the blank only.
  Vocabulary() : Vocabulary(Tokens::characters, std::set<std::string, std::less<>>()) {}

  /// Returns the vocabulary of all characters of `texts`, a range of strings. Throws `Error` for a text that has '|',
  /// which is the space in vocab.json, or is not UTF-8.
  template <class Texts>
  static Vocabulary characters(const Texts& texts) {
    std::set<std::string, std::less<>> tokens;
    for (const auto& one : texts) {
      const std::string joined = detail::composed_words(one);
      for (const std::string_view c : detail::split_characters(joined)) {
        require(c != "|", "vocabulary: '|' stands for the space and may not occur in a text: \"", joined, '"');
        tokens.emplace(c);
      }
    }
    return Vocabulary(Tokens::characters, tokens);
  }

  /// Returns the vocabulary of all words of `texts`, a range of strings. Throws `Error` for a text that is not UTF-8.
  template <class Texts>
  static Vocabulary words(const Texts& texts) {
    std::set<std::string, std::less<>> tokens;
    for (const auto& one : texts) {
      const std::string joined = detail::composed_words(one);
      for (const std::string_view word : detail::split_words(joined)) tokens.emplace(word);
    }
    return Vocabulary(Tokens::words, tokens);
  }

  /// Returns the vocabulary of all characters or words of `texts`, as `kind` says.
  template <class Texts>
  static Vocabulary of(Tokens kind, const Texts& texts) {
    return kind == Tokens::words ? words(texts) : characters(texts);
  }

  /// Says whether laconic made the vocabulary, which then has the form that the class comment describes.
  bool is_own() const { return own_; }
  /// Returns what the tokens are.
  Tokens kind() const { return kind_; }
  /// Returns the number of classes, with the blank.
  Index size() const { return static_cast<Index>(tokens_.size()); }
  /// Returns the class of the CTC blank.
  int blank() const { return blank_; }
  /// Returns the token of class i, empty if it has none. Throws `Error` if there is no such class.
  const std::string& token(Index i) const {
    require(i >= 0 && i < size(), "vocabulary: token ", i, " given, 0 to ", size() - 1, " expected");
    return tokens_[static_cast<std::size_t>(i)];
  }
  /// Says whether class i is no part of a text: the blank, a token such as "<unk>" or "[UNK]" of Hugging Face, or a
  /// class without a token. `encode` never returns it. Throws `Error` if there is no such class.
  bool is_special(Index i) const { return token(i).empty() || is_special(tokens_[static_cast<std::size_t>(i)]); }
  /// Returns the label of each class for `greedy_ctc`: classes without a token are one, the unknown token. Empty if
  /// each class has a token, and is its own label.
  std::span<const int> labels() const { return labels_; }
  /// Returns the names of the special tokens, and how text is spelled.
  const TokenizerConfig& tokenizer() const { return tokenizer_; }

  /// Returns a text as transcripts write it: in Normalization Form C, words with one space between them, in capitals if
  /// no token has small letters, in small letters if none has capitals or the tokenizer says so. What the tokens cannot
  /// write stays as it is. In a text that is not UTF-8 only the letters A to Z have cases.
  std::string written(std::string_view text) const {
    const Case letters = tokenizer_.do_lower_case ? Case::small : case_;
    if (detail::is_utf8(text)) return in_case(detail::composed_words(text), letters);
    std::string out = detail::join_words(text);
    for (char& c : out)
      if (detail::is_ascii({&c, 1})) c = in_case({&c, 1}, letters)[0];
    return out;
  }

  /// Returns a text without the punctuation and symbols that no token has: a space in their place, but nothing for
  /// apostrophes within words, and a plain apostrophe for a typographic one. A text that is not UTF-8 stays as it is.
  std::string without_punctuation(std::string_view text) const {
    if (!detail::is_utf8(text)) return std::string(text);
    const auto is_known = [&](std::string_view c) { return spelled_.contains(std::string(c)); };
    const std::string words = detail::composed_words(text);
    std::string out;
    for (std::string_view c : detail::split_characters(words)) {
      if (c == "\u2019" && !is_known(c)) c = "'";
      if (!detail::is_punctuation(c) || is_known(c))
        out += c;
      else if (c != "'")
        out += ' ';
    }
    return detail::join_words(out);
  }

  /// Returns the indices of the tokens of a text, as `written`; of several tokens that fit, the longest. Special tokens
  /// are never among them. Throws `Error` for an unknown token.
  std::vector<int> encode(std::string_view text) const {
    const std::string spelled = in_case(detail::composed_words(text), case_);
    std::vector<int> out;
    spell(spelled, out, [&](std::string_view token) {
      throw Error(laconic::text("vocabulary: unknown token \"", token, "\" in \"", spelled, "\"; known ",
                                to_name(kind_), ": ", known()));
    });
    return out;
  }
  /// Returns the characters or words of a text, as `written`, that `encode` does not know, each once. Throws `Error`
  /// for a text that is not UTF-8.
  std::set<std::string, std::less<>> unknown(std::string_view text) const {
    std::set<std::string, std::less<>> out;
    std::vector<int> ignored;
    spell(in_case(detail::composed_words(text), case_), ignored, [&](std::string_view token) { out.emplace(token); });
    return out;
  }

  /// Returns the text of token indices; blanks are skipped. `decode(encode(text))` is the text with single spaces.
  /// Special tokens are written ("<unk>"), as transformers' `batch_decode` and its pipeline of speech recognition do by
  /// default, and a class without a token is the unknown token. Throws `Error` for an index that is no class.
  std::string decode(std::span<const int> indices) const {
    DecodedText out;
    decode(indices, out);
    return std::move(out.text);
  }
  /// Appends token indices to a text that earlier ones have begun. Texts of any parts are those of the whole. Throws
  /// `Error` for an index that is no class.
  void decode(std::span<const int> indices, DecodedText& to) const {
    for (const int i : indices) {
      token(i);  // is there one
      const std::string& one = texts_[static_cast<std::size_t>(i)];
      if (one.empty()) continue;
      to.ends_word |= kind_ == Tokens::words;
      detail::append_words(to.text, to.ends_word, one);  // the output of a model may have two spaces in a row
    }
  }

  /// Returns the word errors of a transcript: both texts are compared in Normalization Form C, the reference as
  /// `written`.
  WordErrors errors(std::string_view reference, std::string_view transcript) const {
    return word_errors(written(reference),
                       detail::is_utf8(transcript) ? detail::composed(transcript) : std::string(transcript));
  }

  /// Returns an object of token to index, as Hugging Face writes vocab.json: the word delimiter, "|", is the space
  /// among characters. The kind of tokens is not in it; it belongs in config.json. Special tokens belong in
  /// tokenizer_config.json.
  nlohmann::json to_json() const {
    nlohmann::json out = nlohmann::json::object();
    for (std::size_t i = 0; i < tokens_.size(); ++i)
      if (!tokens_[i].empty()) out[in_file(i)] = i;
    return out;
  }

  /// Returns the vocabulary that `to_json` wrote, or one of Hugging Face. `where` begins the texts of errors (the name
  /// of a file).
  ///
  /// A vocabulary with a tokenizer is one of Hugging Face, and its blank is `tokenizer.pad_token`. One of characters in
  /// which class 0 is "<pad>" is so, too. Tokens beyond the `classes` of the model are then left out, and classes
  /// may be without a token; `classes` = 0 means as many as the indices say. Any other vocabulary is one that laconic
  /// made: its indices must be 0 .. n-1, each once, the blank 0, and each token one character or one word. Throws
  /// `Error` for anything else, and for control characters in a token.
  static Vocabulary from_json(Tokens kind, const nlohmann::json& json, const std::string& where = "vocab.json",
                              const TokenizerConfig* tokenizer = nullptr, Index classes = 0) {
    require(json.is_object(), where, ": an object of token to index expected, ", json.type_name(), " given");
    const bool own =
        tokenizer == nullptr && !(kind == Tokens::characters && json.contains("<pad>") && json["<pad>"] == 0);
    Vocabulary out(kind, tokenizer != nullptr ? *tokenizer : own ? TokenizerConfig::plain() : TokenizerConfig(), own);
    std::vector<std::string> tokens(own ? json.size() : static_cast<std::size_t>(classes));
    for (const auto& [name, value] : json.items()) {
      require(value.is_number_integer(), where, ": token \"", name, "\" has ", value.type_name(),
              ", an integer index expected");
      const auto i = value.get<std::int64_t>();
      if (own)
        require(i >= 0 && i < static_cast<std::int64_t>(tokens.size()), where, ": token \"", name, "\" has index ", i,
                ", 0 to ", static_cast<std::int64_t>(tokens.size()) - 1, " expected for ", tokens.size(), " tokens");
      require(i >= 0 && i < max_index, where, ": token \"", name, "\" has index ", i, ", 0 to ", max_index - 1,
              " expected");
      const auto slot = static_cast<std::size_t>(i);
      if (slot >= tokens.size() && classes > 0) continue;  // the model never says it
      if (slot >= tokens.size()) tokens.resize(slot + 1);
      require(tokens[slot].empty(), where, ": index ", i, " belongs to \"", tokens[slot], "\" and to \"", name, '"');
      require(!name.empty(), where, ": token \"\" is not one of ", to_name(kind));
      tokens[slot] = name;
    }
    if (own) {
      require(!tokens.empty() && tokens[0] == blank_token, where, ": index 0 is ",
              tokens.empty() ? "missing" : tokens[0], ", ", blank_token, " expected");
      for (const std::string& one : tokens)
        require(one == blank_token ||
                    (kind == Tokens::words ? detail::split_words(one).size() == 1 && detail::join_words(one) == one
                                           : detail::split_characters(one).size() == 1),
                where, ": token \"", one, "\" is not one of ", to_name(kind));
    }
    out.fill(std::move(tokens), where);
    return out;
  }

  /// Says whether two vocabularies have the same kind, origin, tokens and tokenizer.
  friend bool operator==(const Vocabulary& a, const Vocabulary& b) {
    return a.kind_ == b.kind_ && a.own_ == b.own_ && a.tokens_ == b.tokens_ && a.tokenizer_ == b.tokenizer_;
  }

 private:
  enum class Case { both, small, capital };  // the letters that tokens have; `both` if neither lacks
  static constexpr std::int64_t max_index = 1 << 24;

  /// Makes a vocabulary to be filled.
  Vocabulary(Tokens kind, TokenizerConfig tokenizer, bool own)
      : kind_(kind), own_(own), tokenizer_(std::move(tokenizer)) {}
  /// Makes a vocabulary of the blank and these tokens.
  Vocabulary(Tokens kind, const std::set<std::string, std::less<>>& tokens)
      : Vocabulary(kind, TokenizerConfig::plain(), true) {
    std::vector<std::string> all{std::string(blank_token)};
    for (const std::string& one : tokens)
      all.push_back(kind == Tokens::characters && one == " " ? tokenizer_.word_delimiter_token : one);
    fill(std::move(all), "vocabulary");
  }

  /// Takes the tokens of all classes, as a file has them.
  void fill(std::vector<std::string> tokens, const std::string& where) {
    const auto blank = std::find(tokens.begin(), tokens.end(), tokenizer_.pad_token);
    require(blank != tokens.end(), where, ": no token ", detail::in_quotes(tokenizer_.pad_token),
            ", which is the blank, in the ", tokens.size(), " classes of the model");
    blank_ = static_cast<int>(blank - tokens.begin());
    tokens_ = std::move(tokens);
    texts_.assign(tokens_.size(), {});
    const bool has_delimiter = kind_ == Tokens::characters && !tokenizer_.word_delimiter_token.empty();
    bool capitals = false;
    bool small = false;
    bool unnamed = false;
    int unknown = -1;
    for (std::size_t i = 0; i < tokens_.size(); ++i) {
      std::string& token = tokens_[i];
      require(!detail::has_control(token), where, ": token ", detail::in_quotes(token),
              " has a control character, text expected");
      if (token == tokenizer_.unk_token && unknown < 0 && !token.empty()) unknown = static_cast<int>(i);
      unnamed = unnamed || token.empty();
      if (has_delimiter && token == tokenizer_.word_delimiter_token) {
        delimiter_ = static_cast<int>(i);
        token = " ";
      }
      if (static_cast<int>(i) == blank_) continue;
      texts_[i] = text_of(i);
      if (token.empty() || is_special(token)) continue;
      const auto [found, is_new] = spelled_.emplace(detail::composed(token), static_cast<int>(i));
      require(is_new || tokens_[static_cast<std::size_t>(found->second)] != token || !is_own(), "vocabulary: token \"",
              token, "\" occurs twice or is the blank's name");
      longest_ = std::max(longest_, found->first.size());
      for (const std::string_view c : detail::split_characters(token)) {
        capitals = capitals || detail::is_capital(c);
        small = small || detail::is_small(c);
      }
    }
    require(!is_own() || std::count(tokens_.begin(), tokens_.end(), blank_token) == 1, "vocabulary: token \"",
            blank_token, "\" occurs twice or is the blank's name");
    case_ = capitals == small ? Case::both : small ? Case::small : Case::capital;
    for (std::size_t i = 0; unnamed && i < tokens_.size(); ++i) {
      if (tokens_[i].empty() && unknown < 0) unknown = static_cast<int>(i);
      labels_.push_back(tokens_[i].empty() ? unknown : static_cast<int>(i));
    }
  }
  /// Returns what is written for a class.
  std::string text_of(std::size_t i) const {
    if (kind_ == Tokens::words && !is_own() && tokens_[i] == tokenizer_.word_delimiter_token) return "";
    const std::string& named = tokens_[i].empty() ? tokenizer_.unk_token : tokens_[i];
    const std::string& out = static_cast<int>(i) == delimiter_ ? tokenizer_.replace_word_delimiter_char : named;
    return tokenizer_.do_lower_case ? in_case(out, Case::small) : out;
  }

  /// Returns a text in capitals or in small letters. A letter that is a token already stays as it is.
  std::string in_case(std::string_view text, Case letters) const {
    const auto keeps = [&](std::string_view c) { return letters == case_ && spelled_.contains(std::string(c)); };
    if (letters == Case::small) return detail::in_small_letters(text, keeps);
    return letters == Case::capital ? detail::in_capitals(text, keeps) : std::string(text);
  }

  /// Appends the tokens of a text in the tokens' letters, and calls refuse(part) for each character or word without
  /// one. A letter with accents may be several tokens.
  template <class Refuse>
  void spell(std::string_view text, std::vector<int>& out, Refuse&& refuse) const {
    const auto find = [&](std::string_view part) {
      const auto found = spelled_.find(std::string(part));
      return found == spelled_.end() ? -1 : found->second;
    };
    if (kind_ == Tokens::words) {
      for (const std::string_view word : detail::split_words(text))
        if (const int one = find(word); one >= 0)
          out.push_back(one);
        else
          refuse(word);
      return;
    }
    for (std::size_t i = 0; i < text.size();) {
      std::size_t size = std::min(longest_, text.size() - i);
      int one = -1;
      while (size > 0 && (one = find(text.substr(i, size))) < 0) --size;
      if (one >= 0) {
        out.push_back(one);
        i += size;
        continue;
      }
      const std::string_view character = text.substr(i, detail::character_size(text, i));
      i += character.size();
      const std::string parts = detail::decomposed(character);
      const auto letters = detail::split_characters(parts);
      if (std::all_of(letters.begin(), letters.end(), [&](std::string_view c) { return find(c) >= 0; }))
        for (const std::string_view c : letters) out.push_back(find(c));
      else
        refuse(character);
    }
  }

  /// Says whether a token is no text.
  bool is_special(const std::string& token) const {
    const TokenizerConfig& t = tokenizer_;
    if (token == t.pad_token) return true;
    if (is_own() || token == " ") return false;
    const bool in_brackets = token.size() > 2 && ((token.front() == '<' && token.back() == '>') ||
                                                  (token.front() == '[' && token.back() == ']'));
    return in_brackets || token == t.unk_token || token == t.bos_token || token == t.eos_token ||
           std::find(t.other_special_tokens.begin(), t.other_special_tokens.end(), token) !=
               t.other_special_tokens.end();
  }

  /// Returns a token as vocab.json spells it.
  std::string in_file(std::size_t i) const {
    return static_cast<int>(i) == delimiter_ ? tokenizer_.word_delimiter_token : tokens_[i];
  }

  /// Returns the tokens for the text of an error; the first ones if there are many.
  std::string known() const {
    constexpr Index shown = 40;
    std::string out;
    Index count = 0;
    for (std::size_t i = 0; i < tokens_.size(); ++i) {
      if (static_cast<int>(i) == blank_ || tokens_[i].empty()) continue;
      if (++count <= shown) out += text(count > 1 ? " " : "", in_file(i));
    }
    if (count > shown) out += text(" ... (", count, " in all)");
    return out.empty() ? "none" : out;
  }

  Tokens kind_;
  bool own_;
  TokenizerConfig tokenizer_;
  int blank_ = 0, delimiter_ = -1;
  Case case_ = Case::both;                        // of tokens that are not special
  std::vector<std::string> tokens_;               // of each class; the word delimiter is " "
  std::vector<std::string> texts_;                // what is written for each class
  std::vector<int> labels_;                       // of each class; see labels()
  std::unordered_map<std::string, int> spelled_;  // tokens that are text, in Normalization Form C
  std::size_t longest_ = 0;                       // bytes of the longest of these
};

}  // namespace LACONIC_ABI
}  // namespace laconic
