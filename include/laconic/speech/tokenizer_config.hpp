// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/io/json.hpp>

#include <nlohmann/json.hpp>

#include <string>
#include <string_view>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Says which tokens of a vocabulary are not text, and how text is spelled: what tokenizer_config.json holds next to
/// vocab.json, under the names of Hugging Face's `Wav2Vec2CTCTokenizer`. An empty name means that there is none.
struct TokenizerConfig {
  std::string pad_token = "<pad>",                ///< the CTC blank
      unk_token = "<unk>",                        ///< stands for classes without a token
      bos_token = "<s>",                          ///< begins a sequence; no text
      eos_token = "</s>",                         ///< ends a sequence; no text
      word_delimiter_token = "|",                 ///< stands between words
      replace_word_delimiter_char = " ";          ///< the text of the word delimiter
  std::vector<std::string> other_special_tokens;  ///< further tokens that are no text
  bool do_lower_case = false;  ///< whether transcripts are in small letters, whatever the tokens have

  /// Says whether two configurations are equal.
  friend bool operator==(const TokenizerConfig&, const TokenizerConfig&) = default;

  /// Returns the configuration of vocabularies that laconic makes: only the blank is no text.
  static TokenizerConfig plain() {
    TokenizerConfig out;
    out.pad_token = "<blank>";
    out.unk_token = out.bos_token = out.eos_token = "";
    return out;
  }

  /// Sets the members that an object of Hugging Face has; null takes a name away. Tokens may be objects with a
  /// `content`. Throws `Error`, naming `where`, for values of other types.
  void read(const nlohmann::json& json, const std::string& where) {
    require(json.is_object(), where, ": ", detail::shown(json), " given, an object expected");
    const auto set = [&](std::string_view key, std::string& to) {
      const auto found = json.find(key);
      if (found != json.end()) to = found->is_null() ? std::string() : token(*found, key, where);
    };
    set("pad_token", pad_token);
    set("unk_token", unk_token);
    set("bos_token", bos_token);
    set("eos_token", eos_token);
    set("word_delimiter_token", word_delimiter_token);
    set("replace_word_delimiter_char", replace_word_delimiter_char);
    for (const std::string_view key : {"additional_special_tokens", "extra_special_tokens"}) {
      const auto found = json.find(key);
      if (found == json.end() || !found->is_array()) continue;
      for (const auto& one : *found) other_special_tokens.push_back(token(one, key, where));
    }
    if (json.contains("do_lower_case") && !json["do_lower_case"].is_null())
      do_lower_case = json_member<bool>(json, "do_lower_case", where);
  }
  /// Returns the members as tokenizer_config.json has them.
  nlohmann::json to_json() const {
    const auto or_null = [](const std::string& name) { return name.empty() ? nlohmann::json() : nlohmann::json(name); };
    return {{"pad_token", or_null(pad_token)},
            {"unk_token", or_null(unk_token)},
            {"bos_token", or_null(bos_token)},
            {"eos_token", or_null(eos_token)},
            {"word_delimiter_token", or_null(word_delimiter_token)},
            {"replace_word_delimiter_char", replace_word_delimiter_char},
            {"additional_special_tokens", other_special_tokens},
            {"do_lower_case", do_lower_case}};
  }

  /// Returns the name of a token that is a string, or an object with a `content`. Throws `Error` for anything else.
  static std::string token(const nlohmann::json& json, std::string_view key, const std::string& where) {
    if (json.is_object()) return json_member<std::string>(json, "content", text(where, ": ", detail::in_quotes(key)));
    require(json.is_string(), where, ": ", detail::in_quotes(key), " is ", detail::shown(json), ", a token expected");
    return json.get<std::string>();
  }
};

}  // namespace LACONIC_ABI
}  // namespace laconic
