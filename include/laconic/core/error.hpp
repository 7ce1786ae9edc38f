// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/version.hpp>

#include <charconv>
#include <concepts>
#include <stdexcept>
#include <string>
#include <string_view>

namespace laconic::inline LACONIC_ABI {

/// What every run-time failure throws. The text says where, what was given and what was expected.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

namespace detail {

inline void append(std::string& out, std::string_view part) { out += part; }
inline void append(std::string& out, char part) { out += part; }

template <class Number>
  requires std::integral<Number> || std::floating_point<Number>
void append(std::string& out, Number part) {
  char digits[32];
  const auto end = std::to_chars(digits, digits + sizeof digits, part).ptr;
  out.append(digits, end);
}

}  // namespace detail

/// The parts, written one after the other: `text("rank ", 64, " > ", 32)`.
template <class... Parts>
std::string text(const Parts&... parts) {
  std::string out;
  (detail::append(out, parts), ...);
  return out;
}

/// Throws `Error` with the parts as its text unless `condition` holds. The text is only built when it is needed.
template <class... Parts>
constexpr void require(bool condition, const Parts&... parts) {
  if (!condition) [[unlikely]]
    throw Error(text(parts...));
}

}  // namespace laconic
