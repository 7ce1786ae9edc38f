// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/speech/words.hpp>

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>

// Letters, their cases and their composition, by utf8proc.

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

/// Returns the first code point of a text, -1 if there is none in UTF-8.
inline utf8proc_int32_t code_point(std::string_view text) {
  utf8proc_int32_t out = -1;
  utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text.data()), static_cast<utf8proc_ssize_t>(text.size()),
                   &out);
  return out;
}
/// Says whether a text is valid UTF-8.
inline bool is_utf8(std::string_view text) {
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t size = character_size(text, i);
    if (size == 0 || code_point(text.substr(i, size)) < 0) return false;
    i += size;
  }
  return true;
}
/// Appends a code point in UTF-8.
inline void append_code_point(std::string& out, utf8proc_int32_t code) {
  utf8proc_uint8_t bytes[4];
  const auto size = utf8proc_encode_char(code, bytes);
  out.append(reinterpret_cast<const char*>(bytes), static_cast<std::size_t>(size));
}

/// Says whether all bytes of a text are ASCII.
inline bool is_ascii(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}
/// Says whether a character has a counterpart in small letters: "A", "É".
inline bool is_capital(std::string_view character) {
  const auto code = code_point(character);
  return code >= 0 && utf8proc_tolower(code) != code;
}
/// Says whether a character has a counterpart in capitals: "a", "é". A sharp s is in texts of either case.
inline bool is_small(std::string_view character) {
  const auto code = code_point(character);
  return code >= 0 && code != 0xDF && utf8proc_toupper(code) != code;
}
/// Says whether a character is punctuation or a symbol (categories P and S).
inline bool is_punctuation(std::string_view character) {
  const auto kind = utf8proc_category(std::max(0, code_point(character)));
  return kind >= UTF8PROC_CATEGORY_PC && kind <= UTF8PROC_CATEGORY_SO;
}
/// Says whether a text has a control character (category Cc), which a terminal would obey.
inline bool has_control(std::string_view text) {
  const auto characters = split_characters(text);
  return std::any_of(characters.begin(), characters.end(), [](std::string_view one) {
    const auto code = code_point(one);
    return code >= 0 && utf8proc_category(code) == UTF8PROC_CATEGORY_CC;
  });
}

/// Returns a text as utf8proc maps it. Throws `Error` for bytes that are not UTF-8.
inline std::string mapped(std::string_view text, int options) {
  utf8proc_uint8_t* bytes = nullptr;
  const auto size =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()), static_cast<utf8proc_ssize_t>(text.size()),
                   &bytes, static_cast<utf8proc_option_t>(options | UTF8PROC_STABLE));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owned(bytes, &std::free);
  if (size < 0) split_characters(text);  // says which byte
  require(size >= 0, "text: ", utf8proc_errmsg(size));
  return {reinterpret_cast<const char*>(bytes), static_cast<std::size_t>(size)};
}
/// Returns a text in Normalization Form C: a letter and its accents are one code point where Unicode has one. Throws
/// `Error` for bytes that are not UTF-8.
inline std::string composed(std::string_view text) {
  return is_ascii(text) ? std::string(text) : mapped(text, UTF8PROC_COMPOSE);
}
/// Returns a text in Normalization Form D: a letter and its accents are code points of their own. Throws `Error` for
/// bytes that are not UTF-8.
inline std::string decomposed(std::string_view text) { return mapped(text, UTF8PROC_DECOMPOSE); }

/// Returns the words of a text in Normalization Form C, with one space between them. All white space of Unicode
/// separates words. Throws `Error` for bytes that are not UTF-8.
inline std::string composed_words(std::string_view text) {
  if (is_ascii(text)) return join_words(text);
  const std::string whole = composed(text);
  std::string spaced;
  for (const std::string_view one : split_characters(whole)) {
    const auto kind = utf8proc_category(std::max(0, code_point(one)));
    const bool separates = kind == UTF8PROC_CATEGORY_ZS || kind == UTF8PROC_CATEGORY_ZL ||
                           kind == UTF8PROC_CATEGORY_ZP || code_point(one) == 0x85;
    spaced += separates ? std::string_view(" ") : one;
  }
  return join_words(spaced);
}

/// Returns a text in small letters, but for the characters for which `keeps(character)` is true. A capital sigma that
/// ends a word becomes a final one.
template <class Keeps>
std::string in_small_letters(std::string_view text, Keeps&& keeps) {
  std::string out;
  const auto characters = split_characters(text);
  const auto is_letter = [&](std::size_t i) {
    if (i >= characters.size()) return false;
    const auto kind = utf8proc_category(std::max(0, code_point(characters[i])));
    return kind >= UTF8PROC_CATEGORY_LU && kind <= UTF8PROC_CATEGORY_LO;
  };
  for (std::size_t i = 0; i < characters.size(); ++i) {
    const auto code = code_point(characters[i]);
    if (code < 0 || keeps(characters[i]))
      out += characters[i];
    else if (code == 0x3A3 && i > 0 && is_letter(i - 1) && !is_letter(i + 1))
      out += "\u03c2";
    else
      append_code_point(out, utf8proc_tolower(code));
  }
  return out;
}
/// Returns a text in capitals, but for the characters for which `keeps(character)` is true. A letter whose capital is
/// several letters becomes these, as in Python: a sharp s becomes "SS".
template <class Keeps>
std::string in_capitals(std::string_view text, Keeps&& keeps) {
  std::string out;
  for (const std::string_view one : split_characters(text)) {
    if (code_point(one) < 0 || keeps(one)) {
      out += one;
      continue;
    }
    // utf8proc knows capitals of one letter only, but all folded forms, and the capitals of these are the full ones.
    const std::string folded = mapped(one, UTF8PROC_COMPOSE | UTF8PROC_CASEFOLD);
    for (const std::string_view c : split_characters(folded)) append_code_point(out, utf8proc_toupper(code_point(c)));
  }
  return composed(out);
}

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
