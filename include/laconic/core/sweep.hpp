// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/version.hpp>

#include <cstddef>
#include <string_view>

namespace laconic {
inline namespace LACONIC_ABI {

/// Lists types, for `sweep`.
template <class... Ts>
struct Types {
  static constexpr std::size_t size = sizeof...(Ts);  ///< the number of types
};

namespace detail {

/// Holds a string as a template argument.
template <std::size_t N>
struct FixedString {
  char text[N]{};  ///< the characters, with a 0 at the end
  /// Copies a string literal.
  constexpr FixedString(const char (&literal)[N]) {
    for (std::size_t i = 0; i < N; ++i) text[i] = literal[i];
  }
};

template <class List>
struct Sweep;
template <class... Ts>
struct Sweep<Types<Ts...>> {
  template <class F>
  static constexpr void run(F&& f) {
    (f(Ts{}), ...);
  }
};

}  // namespace detail

/// Pairs a type with a name, for tables: Named<"MHA", Mha<16>>.
template <detail::FixedString Text, class T>
struct Named {
  using type = T;                                     ///< the type
  static constexpr std::string_view name{Text.text};  ///< the name
};

/// Calls f(T{}) for each type of a list, in order: one program then compiles, counts and measures them all. The types
/// are empty ones, such as `Named`.
///
///     sweep<Types<Named<"MHA", Mha<16>>, Named<"MLA", MlaSimple<16, 256>>>>([]<class V>(V) {
///       std::printf("%s: %td\n", V::name.data(), V::type::cache_bytes(config, frames(1000)));
///     });
template <class List, class F>
constexpr void sweep(F&& f) {
  detail::Sweep<List>::run(f);
}

}  // namespace LACONIC_ABI
}  // namespace laconic
