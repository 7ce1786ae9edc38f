// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <laconic/core/error.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>

namespace laconic {
inline namespace LACONIC_ABI {

/// One value of an enumeration and how files and command lines spell it.
template <class Enum>
struct EnumName {
  Enum value;
  std::string_view name;
};

/// An enumeration whose values have names. Beside `enum class Norm { layer, batch };` stands, once,
///   constexpr auto enum_names(Norm) {
///     return std::to_array<EnumName<Norm>>({{Norm::layer, "layer"}, {Norm::batch, "batch"}});
///   }
/// (inside a class: `friend constexpr`). It is found by argument-dependent lookup.
template <class Enum>
concept NamedEnum = std::is_enum_v<Enum> && requires(Enum e) {
  enum_names(e);
};

/// The name of a value. Throws `Error` for a number that is none of the enumeration's values.
template <NamedEnum Enum>
constexpr std::string_view to_name(Enum value) {
  for (const EnumName<Enum>& entry : enum_names(Enum{}))
    if (entry.value == value) return entry.name;
  throw Error(text("no name for value ", static_cast<long long>(value), " of an enumeration"));
}

/// The value of a name, if there is one.
template <NamedEnum Enum>
constexpr std::optional<Enum> from_name(std::string_view name) {
  for (const EnumName<Enum>& entry : enum_names(Enum{}))
    if (entry.name == name) return entry.value;
  return std::nullopt;
}

/// All names, for messages: "layer, batch".
template <NamedEnum Enum>
std::string all_names() {
  std::string out;
  for (const EnumName<Enum>& entry : enum_names(Enum{})) {
    if (!out.empty()) out += ", ";
    out += entry.name;
  }
  return out;
}

}  // namespace LACONIC_ABI
}  // namespace laconic
