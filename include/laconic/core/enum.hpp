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

/// Pairs a value of an enumeration with its spelling in files and on command lines.
template <class Enum>
struct EnumName {
  Enum value;             ///< the value
  std::string_view name;  ///< its spelling
};

/// Requires an enumeration whose values have names. Next to `enum class Norm { layer, batch };` stands, once,
///   constexpr auto enum_names(Norm) {
///     return std::to_array<EnumName<Norm>>({{Norm::layer, "layer"}, {Norm::batch, "batch"}});
///   }
/// or, inside a class, the same function as `friend constexpr`. Argument-dependent lookup finds it.
template <class Enum>
concept NamedEnum = std::is_enum_v<Enum> && requires(Enum e) {
  enum_names(e);
};

/// Returns the name of a value. Throws `Error` for a number that is none of the enumeration's values.
template <NamedEnum Enum>
constexpr std::string_view to_name(Enum value) {
  for (const EnumName<Enum>& entry : enum_names(Enum{}))
    if (entry.value == value) return entry.name;
  throw Error(text("no name for value ", static_cast<long long>(value), " of an enumeration"));
}

/// Returns the value that has this name, if there is one.
template <NamedEnum Enum>
constexpr std::optional<Enum> from_name(std::string_view name) {
  for (const EnumName<Enum>& entry : enum_names(Enum{}))
    if (entry.name == name) return entry.value;
  return std::nullopt;
}

/// Returns all names for a message: "layer, batch". Allocates.
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
