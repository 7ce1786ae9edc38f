// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/config.hpp>
#include <laconic/backend/shapes.hpp>

#include <string_view>

namespace laconic {
inline namespace LACONIC_ABI {

/// Holds all sizes of a decoder-only language model. Those of the attention may stay 0 where its type gives them.
struct LanguageModelConfig {
  Index vocab_size = 50257;                          ///< tokens
  Index max_positions = 1024;                        ///< tokens that the model sees at a time
  Index d_model = 768;                               ///< channels between the blocks
  Index num_layers = 12;                             ///< blocks
  AttentionName attention = AttentionName::by_type;  ///< the attention by name
  Index num_heads = 0;                               ///< query heads
  Index num_kv_heads = 0;                            ///< key-value heads, a divisor of num_heads
  Index head_dim = 0;                                ///< channels of a head; 0: d_model / num_heads
  Index kv_lora_rank = 0;                            ///< rank of the latent: see AttentionConfig
  Index v_lora_rank = 0;                             ///< rank of the values' latent: see AttentionConfig
  Index q_lora_rank = 0;                             ///< rank of the queries
  Index qk_rope_head_dim = 0;                        ///< width of the decoupled rotary key
  IndexList rope_pairs{};                            ///< pairs of the decoupled rotary key: see AttentionConfig
  RotaryRates rope{};                                ///< how fast the pairs of rotary positions rotate
  /// How the order of tokens is known: by `learned` vectors that are added to the embeddings, or by `rotary` positions.
  PositionEmbeddings position_embeddings_type = PositionEmbeddings::learned;
  bool attention_bias = true;                    ///< biases in the attention
  Activation hidden_act = Activation::gelu_new;  ///< activation of the feed-forward modules
  Index intermediate_size = 0;                   ///< width of the feed-forward modules; 0: 4 * d_model
  double layer_norm_eps = 1e-5;                  ///< epsilon of the norms
  bool tied_embeddings = true;                   ///< whether the logits are products with the embeddings themselves
  double dropout = 0;                            ///< probability of dropout in training

  /// Returns the sizes of the attention.
  constexpr AttentionConfig attention_config() const {
    return {.d_model = d_model,
            .num_heads = num_heads,
            .num_kv_heads = num_kv_heads,
            .kv_lora_rank = kv_lora_rank,
            .v_lora_rank = v_lora_rank,
            .q_lora_rank = q_lora_rank,
            .qk_rope_head_dim = qk_rope_head_dim,
            .rope_pairs = rope_pairs,
            .rope = rope,
            .head_dim = head_dim,
            .attention_bias = attention_bias,
            .attention = attention,
            .position_embeddings_type = position_embeddings_type};
  }
  /// Returns the mask under which a token sees itself and the tokens before it.
  static constexpr Mask mask() { return Mask::causal(); }
  /// Returns the width of the feed-forward modules.
  constexpr Index feed_forward_width() const { return intermediate_size > 0 ? intermediate_size : 4 * d_model; }

  /// Visits each member with its name, for files and command lines.
  static constexpr void fields(auto& self, auto&& visit) {
    visit("vocab_size", self.vocab_size);
    visit("max_positions", self.max_positions);
    visit("d_model", self.d_model);
    visit("num_layers", self.num_layers);
    visit("attention", self.attention);
    visit("num_heads", self.num_heads);
    visit("num_kv_heads", self.num_kv_heads);
    visit("head_dim", self.head_dim);
    visit("kv_lora_rank", self.kv_lora_rank);
    visit("v_lora_rank", self.v_lora_rank);
    visit("q_lora_rank", self.q_lora_rank);
    visit("qk_rope_head_dim", self.qk_rope_head_dim);
    visit("rope_pairs", self.rope_pairs);
    visit("rope", self.rope);
    visit("position_embeddings_type", self.position_embeddings_type);
    visit("attention_bias", self.attention_bias);
    visit("hidden_act", self.hidden_act);
    visit("intermediate_size", self.intermediate_size);
    visit("layer_norm_eps", self.layer_norm_eps);
    visit("tied_embeddings", self.tied_embeddings);
    visit("dropout", self.dropout);
  }

  /// Returns this configuration if every size is in its range. Throws Error otherwise. The upper ends exceed any use
  /// and keep products from overflowing.
  constexpr const LanguageModelConfig& checked() const {
    const auto within = [](Index value, Index min, Index max, const char* name) {
      require(value >= min && value <= max, "language model: ", name, ' ', value, " given, ", min, " to ", max,
              " expected");
    };
    within(vocab_size, 1, 1 << 24, "vocab_size");
    within(max_positions, 1, 1 << 24, "max_positions");
    within(d_model, 1, 1 << 16, "d_model");
    within(num_layers, 1, 1 << 12, "num_layers");
    within(num_heads, 0, 1 << 16, "num_heads");
    within(num_kv_heads, 0, 1 << 16, "num_kv_heads");
    within(head_dim, 0, 1 << 16, "head_dim");
    within(kv_lora_rank, 0, 1 << 16, "kv_lora_rank");
    within(v_lora_rank, 0, 1 << 16, "v_lora_rank");
    within(q_lora_rank, 0, 1 << 16, "q_lora_rank");
    within(qk_rope_head_dim, 0, 1 << 16, "qk_rope_head_dim");
    within(intermediate_size, 0, 1 << 22, "intermediate_size");
    within(num_heads * head_dim, 0, 1 << 20, "num_heads * head_dim");
    require(position_embeddings_type == PositionEmbeddings::learned ||
                position_embeddings_type == PositionEmbeddings::rotary,
            "language model: position_embeddings_type ", to_name(position_embeddings_type),
            " given, learned or rotary expected");
    require(layer_norm_eps > 0 && layer_norm_eps < 1, "language model: layer_norm_eps ", layer_norm_eps,
            " given, more than 0 and less than 1 expected");
    require(dropout >= 0 && dropout < 1, "language model: dropout ", dropout, " given, expected from 0 to less than 1");
    return *this;
  }
};

}  // namespace LACONIC_ABI
}  // namespace laconic
