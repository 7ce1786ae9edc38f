// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/version.hpp>

#include <charconv>
#include <concepts>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

namespace laconic {
inline namespace LACONIC_ABI {

namespace detail {

/// Makes a text one readable line, whatever it quotes from a file: control characters become '?', and a text of more
/// than 2000 bytes loses its middle, without cutting a UTF-8 character.
inline std::string one_line(std::string line) {
  for (char& c : line)
    if (static_cast<unsigned char>(c) < ' ' || c == 127) c = '?';
  constexpr std::size_t kept = 1000;
  if (line.size() <= 2 * kept) return line;
  const auto within = [&](std::size_t at) { return (static_cast<unsigned char>(line[at]) & 0xC0) == 0x80; };
  std::size_t begin = kept, end = line.size() - kept;
  while (begin > 0 && within(begin)) --begin;
  while (end + 1 < line.size() && within(end)) ++end;
  return line.replace(begin, end - begin, " ... ");
}

}  // namespace detail

/// Reports a run-time failure. Its text says in one line where it happened, what was given and what was expected.
class Error : public std::runtime_error {
 public:
  /// Makes an error with this text, as `detail::one_line` shortens it.
  explicit Error(std::string line) : std::runtime_error(detail::one_line(std::move(line))) {}
};

namespace detail {

/// Appends a text to a message.
inline void append(std::string& out, std::string_view part) { out += part; }
/// Appends a character to a message.
inline void append(std::string& out, char part) { out += part; }

/// Appends a number to a message, in its shortest exact form.
template <class Number>
requires std::integral<Number> || std::floating_point<Number>
void append(std::string& out, Number part) {
  if constexpr (std::unsigned_integral<Number>) {
    out += std::to_string(static_cast<unsigned long long>(part));
  } else if constexpr (std::integral<Number>) {
    out += std::to_string(static_cast<long long>(part));
  } else {
    char digits[32];
    out.append(digits, std::to_chars(digits, digits + sizeof digits, part).ptr);
  }
}

}  // namespace detail

/// Returns the parts, written one after the other: `text("rank ", 64, " > ", 32)`. Allocates.
template <class... Parts>
std::string text(const Parts&... parts) {
  std::string out;
  (detail::append(out, parts), ...);
  return out;
}

namespace detail {

/// Marks the end of a constant expression whose numbers do not fit. It is not constexpr, so that compilers name it.
inline void these_numbers_do_not_fit() {}

/// Returns a part of a message as a value that a constant expression can hold.
template <class Part>
constexpr auto value_of(const Part& part) {
  if constexpr (std::convertible_to<const Part&, const char*>)
    return static_cast<const char*>(part);
  else if constexpr (std::convertible_to<const Part&, std::string_view>)
    return std::string_view(part);
  else
    return part;
}
/// Takes the parts of a message as values, which clang then prints with the failed constant expression.
template <class... Parts>
constexpr void explain(bool fits, Parts...) {
  if (!fits) these_numbers_do_not_fit();
}

/// Throws `Error` with the parts as its text. It is compiled once for all literals, however long they are.
template <class... Parts>
[[noreturn]] void fail(Parts... parts) {
  throw Error(text(parts...));
}

}  // namespace detail

/// Throws `Error` with the parts as its text unless `condition` holds. The text is built only when it is needed. In a
/// constant expression the compiler's message names the parts instead.
template <class... Parts>
constexpr void require(bool condition, const Parts&... parts) {
  if (!condition) [[unlikely]] {
    if (std::is_constant_evaluated()) detail::explain(condition, detail::value_of(parts)...);
    detail::fail(detail::value_of(parts)...);
  }
}

}  // namespace LACONIC_ABI
}  // namespace laconic
