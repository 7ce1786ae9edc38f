// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include "terminal.hpp"

#include <cstddef>
#include <cstdio>

namespace {

/// Returns the length in bytes of the UTF-8 character that a text begins with; 0 if it begins with none.
std::size_t utf8_length(std::string_view text) {
  const auto byte = [&](std::size_t at) { return static_cast<unsigned char>(at < text.size() ? text[at] : 0); };
  const unsigned char first = byte(0);
  const std::size_t length = first < 0x80    ? 1
                             : first < 0xC2  ? 0
                             : first < 0xE0  ? 2
                             : first < 0xF0  ? 3
                             : first <= 0xF4 ? 4
                                             : 0;
  for (std::size_t i = 1; i < length; ++i)
    if ((byte(i) & 0xC0) != 0x80) return 0;
  return length;
}

std::string cleaned(std::string_view text, bool keeps_lines) {
  std::string out;
  while (!text.empty()) {
    const std::size_t length = utf8_length(text);
    const auto first = static_cast<unsigned char>(text[0]);
    const auto second = static_cast<unsigned char>(text.size() > 1 ? text[1] : 0);
    // C1 controls are two bytes in UTF-8, and one byte to a terminal that does not read UTF-8.
    const bool c1 = (length == 2 && first == 0xC2 && second < 0xA0) || (length == 0 && first < 0xA0);
    const bool c0 = length == 1 && (first < ' ' || first == 0x7F);
    const bool kept = keeps_lines && (first == '\n' || first == '\t');
    const std::size_t taken = length == 0 ? 1 : length;
    if ((c0 || c1) && !kept)
      out += '?';
    else
      out += text.substr(0, taken);
    text.remove_prefix(taken);
  }
  return out;
}

}  // namespace

std::string without_controls(std::string_view text) { return cleaned(text, true); }
std::string without_line_ends(std::string_view text) { return cleaned(text, false); }

void terminal::write_result(std::string_view text) { std::fwrite(text.data(), 1, text.size(), stdout); }
void terminal::write_note(std::string_view text) { std::fwrite(text.data(), 1, text.size(), stderr); }

void flush_result() { std::fflush(stdout); }
