// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/model/language_model.hpp>
#include <laconic/nn/feed_forward.hpp>
#include <laconic/nn/norm.hpp>

namespace laconic {
inline namespace LACONIC_ABI {

/// Describes GPT-2, for `LanguageModel`. The names below are those of transformers.
struct GptKind {
  /// The norms in the blocks and after them.
  template <class T>
  using Norm = LayerNorm<T>;
  /// The feed-forward modules.
  template <class T>
  using FeedForward = laconic::FeedForward<T>;
  static constexpr const char* attention_norm_name = "ln_1";     ///< prefix of the norm before attention
  static constexpr const char* attention_name = "attn";          ///< prefix of the attention
  static constexpr const char* feed_forward_norm_name = "ln_2";  ///< prefix of the norm before the feed-forward module
};

/// Predicts the next token as GPT-2 does (Radford et al. 2019): layer norms, and feed-forward modules with GELU.
template <class AttentionPolicy, class T = float>
using Gpt = LanguageModel<GptKind, AttentionPolicy, T>;

}  // namespace LACONIC_ABI
}  // namespace laconic
