// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/model/language_model.hpp>
#include <laconic/nn/feed_forward.hpp>
#include <laconic/nn/norm.hpp>

namespace laconic {
inline namespace LACONIC_ABI {

/// Describes Llama, for `LanguageModel`. The names below are those of transformers.
struct LlamaKind {
  /// The norms in the blocks and after them.
  template <class T>
  using Norm = RmsNorm<T>;
  /// The feed-forward modules.
  template <class T>
  using FeedForward = laconic::GatedFeedForward<T>;
  static constexpr const char* attention_norm_name = "input_layernorm";  ///< prefix of the norm before attention
  static constexpr const char* attention_name = "self_attn";             ///< prefix of the attention
  static constexpr const char* feed_forward_norm_name =
      "post_attention_layernorm";  ///< prefix of the norm before the feed-forward module
};

/// Predicts the next token as Llama does (Touvron et al. 2023): RMS norms, gated feed-forward modules, and rotary
/// positions in the attention.
template <class AttentionPolicy, class T = float>
using Llama = LanguageModel<LlamaKind, AttentionPolicy, T>;

}  // namespace LACONIC_ABI
}  // namespace laconic
