// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/error.hpp>

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

namespace detail {

/// Lists what stands between words.
inline constexpr std::string_view white_space = " \t\r\n\v\f";

/// Returns the words of a text, split at any white space. The views point into `text`.
inline std::vector<std::string_view> split_words(std::string_view text) {
  std::vector<std::string_view> words;
  for (std::size_t begin = text.find_first_not_of(white_space); begin != std::string_view::npos;) {
    const std::size_t end = std::min(text.find_first_of(white_space, begin), text.size());
    words.push_back(text.substr(begin, end - begin));
    begin = text.find_first_not_of(white_space, end);
  }
  return words;
}

/// Appends a part of a text, with one space between words. `ends_word` says whether the text before ended a word, and
/// afterwards whether this part does.
inline void append_words(std::string& out, bool& ends_word, std::string_view part) {
  for (const char c : part) {
    if (white_space.find(c) != std::string_view::npos) {
      ends_word = true;
      continue;
    }
    if (std::exchange(ends_word, false) && !out.empty()) out += ' ';
    out += c;
  }
}
/// Returns the words of a text with one space between them.
inline std::string join_words(std::string_view text) {
  std::string out;
  bool ends_word = false;
  append_words(out, ends_word, text);
  return out;
}

/// Returns the bytes of the UTF-8 code point that begins at byte i of a text, 0 if none does.
inline std::size_t character_size(std::string_view text, std::size_t i) {
  const auto lead = static_cast<unsigned char>(text[i]);
  const std::size_t length = lead < 0x80   ? 1
                             : lead < 0xC2 ? 0
                             : lead < 0xE0 ? 2
                             : lead < 0xF0 ? 3
                             : lead < 0xF5 ? 4
                                           : 0;
  bool valid = length > 0 && i + length <= text.size();
  for (std::size_t k = 1; valid && k < length; ++k) valid = (static_cast<unsigned char>(text[i + k]) & 0xC0) == 0x80;
  return valid ? length : 0;
}
/// Returns the UTF-8 code points of a text. The views point into `text`. Throws `Error` for bytes that are not UTF-8.
inline std::vector<std::string_view> split_characters(std::string_view text) {
  std::vector<std::string_view> characters;
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t length = character_size(text, i);
    require(length > 0, "text: byte ", i, " is not UTF-8");
    characters.push_back(text.substr(i, length));
    i += length;
  }
  return characters;
}

}  // namespace detail

}  // namespace LACONIC_ABI
}  // namespace laconic
