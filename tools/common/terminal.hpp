// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/error.hpp>

#include <string>
#include <string_view>
#include <utility>

// The one place through which text reaches a terminal. Names of files, texts of corpora and tokens of vocabularies come
// from others and may hold characters that a terminal obeys, or line ends that make a line of their own.

/// Returns a text without characters that a terminal would obey: all control characters but line ends and tabs become
/// '?'. Other bytes stay as they are, for the name of a file may be no UTF-8.
std::string without_controls(std::string_view text);
/// Returns a text of one line: line ends and tabs become '?', too.
std::string without_line_ends(std::string_view text);

/// Holds several lines that the program made, such as a table: their line ends are printed, all other control
/// characters are not.
struct Lines {
  std::string text;
};

namespace terminal {

/// Appends what is printed of a part: a literal of the program as it is, a text from elsewhere as one line.
template <class Part>
void append(std::string& out, const Part& part) {
  if constexpr (std::is_array_v<Part>)
    out += part;
  else if constexpr (std::is_same_v<Part, Lines>)
    out += without_controls(part.text);
  else if constexpr (std::is_convertible_v<const Part&, std::string_view>)
    out += without_line_ends(part);
  else
    laconic::detail::append(out, part);
}

/// Writes to standard output.
void write_result(std::string_view text);
/// Writes to standard error.
void write_note(std::string_view text);

}  // namespace terminal

/// Prints a part of the result on standard output: `print("model: ", folder, '\n')`. Literals are printed as they are,
/// other texts as one line without control characters, `Lines` as lines.
template <class... Parts>
void print(const Parts&... parts) {
  std::string out;
  (terminal::append(out, parts), ...);
  terminal::write_result(out);
}

/// Shows what was printed so far, also where standard output is a pipe.
void flush_result();

/// Prints a line for a person on standard error.
template <class... Parts>
void say_in_all(const Parts&... parts) {
  std::string out;
  (terminal::append(out, parts), ...);
  terminal::write_note(out + '\n');
}
