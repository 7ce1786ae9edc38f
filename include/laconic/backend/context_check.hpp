// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/version.hpp>

#include <concepts>
#include <type_traits>

namespace laconic {
inline namespace LACONIC_ABI {

/// Requires that C is a context that computes models whose elements are of type T.
template <class C, class T>
concept ContextOf = !std::is_const_v<C> && std::same_as<typename C::Scalar, T> && requires {
  typename C::Tensor;
};

namespace detail {

/// Ends the compilation with one sentence if C is no `ContextOf<T>`. As the first statement of a function,
/// static_assert(detail::is_context_of<Context, T>()) gives the first of all messages.
template <class C, class T>
constexpr bool is_context_of() {
  if constexpr (requires { typename C::Tensor; }) {
    static_assert(!std::is_const_v<C>,
                  "laconic: a context changes while it computes, so no model runs on a const one: pass it as Cpu<>&, "
                  "not as const Cpu<>&");
    static_assert(std::is_same_v<typename C::Scalar, T>,
                  "laconic: model and context compute with different number types; Cpu<double> runs models of double, "
                  "such as Conformer<Mha<8>, double>");
  } else {
    static_assert(!std::is_same_v<C, C>,
                  "laconic: the first argument of a model is the context that computes it, such as Cpu<> or Autodiff");
  }
  return true;
}

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
