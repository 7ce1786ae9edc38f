// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/extent.hpp>
#include <laconic/io/json.hpp>
#include <laconic/speech/words.hpp>

#include <nlohmann/json.hpp>

#include <set>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Lists the characters of a text as tokens, in byte order: UTF-8 code points, white space and line ends included.
/// Unlike `Vocabulary` it has no blank, and a text is kept as it is: `decode(encode(text))` is the text.
class Characters {
 public:
  /// Makes a list without characters.
  Characters() = default;
  /// Returns the characters of a text. Throws `Error` for bytes that are not UTF-8.
  static Characters of(std::string_view text) {
    std::set<std::string_view> all;
    for (const std::string_view c : detail::split_characters(text)) all.insert(c);
    Characters out;
    for (const std::string_view c : all) out.add(std::string(c));
    return out;
  }
  /// Returns the characters that `to_json` wrote. Throws `Error`, naming `where`, for anything else.
  static Characters from_json(const nlohmann::json& json, const std::string& where) {
    require(json.is_object() && !json.empty(), where, ": an object of characters and their numbers expected");
    std::vector<std::string> tokens(json.size());
    for (const auto& [character, number] : json.items()) {
      require(number.is_number_integer() && number >= 0 && number < tokens.size(), where, ": ",
              detail::in_quotes(character), " has the number ", detail::shown(number), ", 0 to ", tokens.size() - 1,
              " expected");
      require(detail::split_characters(character).size() == 1, where, ": ", detail::in_quotes(character),
              " given, one character expected");
      std::string& token = tokens[number.get<std::size_t>()];
      require(token.empty(), where, ": ", detail::in_quotes(token), " and ", detail::in_quotes(character),
              " have the same number");
      token = character;
    }
    Characters out;
    for (std::string& token : tokens) out.add(std::move(token));
    return out;
  }
  /// Returns an object of character to number, as vocab.json has it.
  nlohmann::json to_json() const {
    nlohmann::json out = nlohmann::json::object();
    for (std::size_t i = 0; i < tokens_.size(); ++i) out[tokens_[i]] = i;
    return out;
  }

  /// Returns the number of characters.
  Index size() const { return static_cast<Index>(tokens_.size()); }
  /// Returns the tokens of a text. Throws `Error` for a character that is not in the list, and for bytes that are not
  /// UTF-8.
  std::vector<int> encode(std::string_view text) const {
    std::vector<int> out;
    for (const std::string_view c : detail::split_characters(text)) {
      const auto found = numbers_.find(std::string(c));
      require(found != numbers_.end(), "characters: ", detail::in_quotes(c), " given after ", out.size(),
              " characters, one of the model's ", size(), " expected");
      out.push_back(found->second);
    }
    return out;
  }
  /// Returns the text of tokens. Throws `Error` for a number that is no character's.
  std::string decode(std::span<const int> tokens) const {
    std::string out;
    for (const int token : tokens) {
      require(token >= 0 && token < size(), "characters: token ", token, " given, 0 to ", size() - 1, " expected");
      out += tokens_[static_cast<std::size_t>(token)];
    }
    return out;
  }

 private:
  void add(std::string token) {
    numbers_.emplace(token, static_cast<int>(tokens_.size()));
    tokens_.push_back(std::move(token));
  }

  std::vector<std::string> tokens_;
  std::unordered_map<std::string, int> numbers_;
};

}  // namespace LACONIC_ABI
}  // namespace laconic
