// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/extent.hpp>

namespace laconic::inline LACONIC_ABI {

/// Numbers of an attention that its type may leave open (`dyn`). 0 means "as the type says".
struct AttentionConfig {
  Index d_model = 0;
  Index num_heads = 0;
  Index num_kv_heads = 0;
  Index kv_lora_rank = 0;
};

/// All numbers of one attention, from type and configuration together.
struct AttentionDims {
  Index d_model, num_heads, num_kv_heads, kv_lora_rank;
  constexpr Index head_dim() const { return d_model / num_heads; }
  constexpr Index kv_dim() const { return num_kv_heads * head_dim(); }
};

/// H query heads over G key-value heads: G = H is multi-head attention (Vaswani 2017), G = 1 multi-query (Shazeer 2019),
/// between them grouped-query (Ainslie 2023). Query head h reads key-value head h / (H / G).
template <Index H, Index G = H>
struct Heads {
  static_assert(H == dyn || H > 0, "laconic: the number of heads must be positive, or `dyn`");
  static_assert(G == dyn || G > 0, "laconic: the number of key-value heads must be positive, or `dyn`");
  static_assert(H == dyn || G == dyn || H % (G > 0 ? G : 1) == 0,
                "laconic: the number of key-value heads must divide the number of query heads");
  static constexpr Index num_heads = H, num_kv_heads = G;
};

}  // namespace laconic
