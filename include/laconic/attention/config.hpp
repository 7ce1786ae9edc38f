// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/shapes.hpp>
#include <laconic/core/enum.hpp>
#include <laconic/core/index_list.hpp>

namespace laconic {
inline namespace LACONIC_ABI {

/// Names the attention that a configuration chooses where the type leaves it open (`AnyAttention`).
enum class AttentionName {
  by_type,        ///< the type decides
  mha,            ///< multi-head attention
  gqa,            ///< grouped-query attention
  mqa,            ///< multi-query attention
  mla,            ///< one latent, two steps to every head (`TwoStageLatent`)
  mla_simple,     ///< one latent, one step (`SharedLatent`)
  mla_split,      ///< one latent for keys and one for values (`SplitLatent`)
  mla_head,       ///< latents for every head (`HeadLatent`)
  mla_decoupled,  ///< DeepSeek-V2's latent and rotary key (`DecoupledLatent`)
  input_latent,   ///< the layer's input is cached (`InputLatent`)
  linear          ///< linear attention (`LinearKernel`)
};
/// Lists the names as configurations spell them.
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

/// Names the position that a configuration chooses where the type leaves it open (`AnyAttention`).
enum class PositionEmbeddings {
  relative,  ///< Transformer-XL's relative positions
  rotary,    ///< rotation: of an encoder's input before the projections, as the Hugging Face Conformer computes it; of
             ///< a decoder's queries and keys after them
  learned,   ///< a decoder's trained vector for each position, added to the embeddings
  none       ///< no positions: convolutions alone know the order
};
/// Lists the names as configurations spell them.
constexpr auto enum_names(PositionEmbeddings) {
  return std::to_array<EnumName<PositionEmbeddings>>({{PositionEmbeddings::relative, "relative"},
                                                      {PositionEmbeddings::rotary, "rotary"},
                                                      {PositionEmbeddings::learned, "learned"},
                                                      {PositionEmbeddings::none, "none"}});
}

/// Holds the sizes of an attention that its type may leave open (`dyn`). 0 means "as the type says".
struct AttentionConfig {
  Index d_model = 0;       ///< channels of the layer's input and output
  Index num_heads = 0;     ///< query heads
  Index num_kv_heads = 0;  ///< key-value heads, a divisor of num_heads
  /// Rank of the latent; of the keys' latent where values have their own; of each head's where heads have their own.
  Index kv_lora_rank = 0;
  Index v_lora_rank = 0;       ///< rank of the values' latent or latents; 0 where the type leaves it open: kv_lora_rank
  Index q_lora_rank = 0;       ///< rank of the queries
  Index qk_rope_head_dim = 0;  ///< width of the decoupled rotary key
  /// Pairs, out of head_dim / 2, whose rates the decoupled rotary key uses; empty: the rates of its own width.
  IndexList rope_pairs{};
  RotaryRates rope{};          ///< how fast the pairs of rotary positions rotate
  Index head_dim = 0;          ///< channels of a head; 0: d_model / num_heads
  bool attention_bias = true;  ///< biases on queries, output, and where the key-value policy has them
  AttentionName attention = AttentionName::by_type;                            ///< the attention by name
  PositionEmbeddings position_embeddings_type = PositionEmbeddings::relative;  ///< the position by name
};

/// Holds all sizes of one attention, resolved from type and configuration. Sizes that a policy does not have are 0.
struct AttentionDims {
  Index d_model;               ///< channels of the layer's input and output
  Index num_heads;             ///< query heads, H
  Index num_kv_heads;          ///< key-value heads, G
  Index head_dim;              ///< channels of a head
  bool bias;                   ///< whether the projections have biases
  Index kv_lora_rank = 0;      ///< as in AttentionConfig
  Index v_lora_rank = 0;       ///< as in AttentionConfig
  Index q_lora_rank = 0;       ///< as in AttentionConfig
  Index qk_rope_head_dim = 0;  ///< as in AttentionConfig
  IndexList rope_pairs{};      ///< as in AttentionConfig
  RotaryRates rope{};          ///< as in AttentionConfig

  /// Returns the channels of all query heads together.
  constexpr Index q_dim() const { return num_heads * head_dim; }
  /// Returns the channels of all key heads together, which is that of all value heads, too.
  constexpr Index kv_dim() const { return num_kv_heads * head_dim; }
};

}  // namespace LACONIC_ABI
}  // namespace laconic
