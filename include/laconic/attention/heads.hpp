// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/extent.hpp>

#include <concepts>

namespace laconic {
inline namespace LACONIC_ABI {

/// Says how many heads there are.
template <class P>
concept HeadsPolicy = requires {
  { P::num_heads } -> std::convertible_to<Index>;     // query heads, or `dyn`
  { P::num_kv_heads } -> std::convertible_to<Index>;  // key-value heads, or `dyn`
};

/// Groups H query heads over G key-value heads: query head h reads key-value head h / (H / G). G = H is multi-head
/// attention (Vaswani et al. 2017), G = 1 multi-query (Shazeer 2019), anything between grouped-query (Ainslie et al.
/// 2023).
template <Index H, Index G = H>
struct Heads {
  static_assert(H == dyn || H > 0, "laconic: the number of heads must be positive, or `dyn`");
  static_assert(G == dyn || G > 0, "laconic: the number of key-value heads must be positive, or `dyn`");
  static_assert(H == dyn || G == dyn || H % (G > 0 ? G : 1) == 0,
                "laconic: the number of key-value heads must divide the number of query heads");
  static constexpr Index num_heads = H;     ///< query heads, or `dyn`
  static constexpr Index num_kv_heads = G;  ///< key-value heads, or `dyn`
};

}  // namespace LACONIC_ABI
}  // namespace laconic
