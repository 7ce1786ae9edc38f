// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/enum.hpp>
#include <laconic/core/extent.hpp>
#include <laconic/core/index_list.hpp>

namespace laconic {
inline namespace LACONIC_ABI {

/// Attentions by name, for types that leave the choice open (`AnyAttention`).
enum class AttentionName {
  by_type,
  mha,
  gqa,
  mqa,
  mla,
  mla_simple,
  mla_split,
  mla_head,
  mla_decoupled,
  input_latent,
  linear
};
constexpr auto enum_names(AttentionName) {
  using enum AttentionName;
  return std::to_array<EnumName<AttentionName>>({{by_type, "by-type"},
                                                 {mha, "mha"},
                                                 {gqa, "gqa"},
                                                 {mqa, "mqa"},
                                                 {mla, "mla"},
                                                 {mla_simple, "mla-simple"},
                                                 {mla_split, "mla-split"},
                                                 {mla_head, "mla-head"},
                                                 {mla_decoupled, "mla-decoupled"},
                                                 {input_latent, "input-latent"},
                                                 {linear, "linear"}});
}

/// How a frame's place comes in, for types that leave it open: relative (Transformer-XL), or rotary before the
/// projections, as the Hugging Face Conformer calls them.
enum class PositionEmbeddings { relative, rotary };
constexpr auto enum_names(PositionEmbeddings) {
  return std::to_array<EnumName<PositionEmbeddings>>(
      {{PositionEmbeddings::relative, "relative"}, {PositionEmbeddings::rotary, "rotary"}});
}

/// Numbers of an attention that its type may leave open (`dyn`). 0 means "as the type says".
struct AttentionConfig {
  Index d_model = 0;
  Index num_heads = 0;
  Index num_kv_heads = 0;
  Index kv_lora_rank = 0;  ///< of the latent; that of the keys where values have one of their own; of each head where
                           ///< heads have their own
  Index v_lora_rank = 0;   ///< of the values' latent; 0 where the type leaves it open: as kv_lora_rank
  Index q_lora_rank = 0;   ///< of low-rank queries
  Index qk_rope_head_dim = 0;  ///< of the decoupled rotary key
  IndexList rope_pairs{};      ///< which of head_dim / 2 rates that key turns with; empty: rates of its own width
  Index head_dim = 0;          ///< 0: d_model / num_heads
  bool attention_bias = true;  ///< on queries, output, and where the key-value policy has them
  AttentionName attention = AttentionName::by_type;
  PositionEmbeddings position_embeddings_type = PositionEmbeddings::relative;
};

/// All numbers of one attention, from type and configuration together. Numbers that a policy does not have are 0.
struct AttentionDims {
  Index d_model, num_heads, num_kv_heads, head_dim;
  bool bias;
  Index kv_lora_rank = 0, v_lora_rank = 0, q_lora_rank = 0, qk_rope_head_dim = 0;
  IndexList rope_pairs{};

  constexpr Index q_dim() const { return num_heads * head_dim; }
  constexpr Index kv_dim() const { return num_kv_heads * head_dim; }
};

/// H query heads over G key-value heads: G = H is multi-head attention (Vaswani 2017), G = 1 multi-query (Shazeer
/// 2019), between them grouped-query (Ainslie 2023). Query head h reads key-value head h / (H / G).
template <Index H, Index G = H>
struct Heads {
  static_assert(H == dyn || H > 0, "laconic: the number of heads must be positive, or `dyn`");
  static_assert(G == dyn || G > 0, "laconic: the number of key-value heads must be positive, or `dyn`");
  static_assert(H == dyn || G == dyn || H % (G > 0 ? G : 1) == 0,
                "laconic: the number of key-value heads must divide the number of query heads");
  static constexpr Index num_heads = H, num_kv_heads = G;
};

}  // namespace LACONIC_ABI
}  // namespace laconic
