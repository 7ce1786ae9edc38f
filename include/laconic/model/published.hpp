// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/model/encoder_config.hpp>

#include <array>
#include <string>
#include <string_view>

namespace laconic {
inline namespace LACONIC_ABI {

/// Names an encoder of known sizes.
struct PublishedModel {
  std::string_view name;  ///< such as "conformer_mla_small"
  EncoderName encoder;    ///< the kind of encoder
  EncoderConfig config;   ///< its sizes
};

namespace detail {

/// Returns the configuration with an attention: two key-value heads for GQA, a latent of this rank for MLA.
constexpr EncoderConfig with_attention(EncoderConfig config, AttentionName attention, Index rank) {
  config.attention = attention;
  if (attention == AttentionName::gqa) config.num_kv_heads = 2;
  if (attention == AttentionName::mla) config.kv_lora_rank = rank;
  return config;
}
constexpr EncoderConfig published_conformer(AttentionName attention) {
  return with_attention({.d_model = 1024, .num_layers = 24, .vocab_size = 32, .num_heads = 16}, attention, 1024);
}
constexpr EncoderConfig published_branchformer(AttentionName attention) {
  return with_attention({.d_model = 512, .num_layers = 18, .vocab_size = 32, .num_heads = 8}, attention, 512);
}
constexpr EncoderConfig small_encoder(AttentionName attention) {
  return with_attention({.num_mels = 40,
                         .d_model = 128,
                         .num_layers = 4,
                         .vocab_size = 32,
                         .num_heads = 8,
                         .conv_kernel = 15,
                         .subsampling_channels = 32},
                        attention, 64);
}

}  // namespace detail

/// Lists Conformer and Branchformer with MHA, MLA (two stages), GQA and linear attention in the sizes that were
/// published with such attention (speech_mha2mla: 24 layers of 1024 and 18 of 512, kernel 31, R = d_model), and, as
/// `_small`, in a size that trains on a CPU in minutes (R = d_model / 2).
inline constexpr std::array published_models{
    PublishedModel{"conformer_mha", EncoderName::conformer, detail::published_conformer(AttentionName::mha)},
    PublishedModel{"conformer_mla", EncoderName::conformer, detail::published_conformer(AttentionName::mla)},
    PublishedModel{"conformer_gqa", EncoderName::conformer, detail::published_conformer(AttentionName::gqa)},
    PublishedModel{"conformer_linear", EncoderName::conformer, detail::published_conformer(AttentionName::linear)},
    PublishedModel{"branchformer_mha", EncoderName::branchformer, detail::published_branchformer(AttentionName::mha)},
    PublishedModel{"branchformer_mla", EncoderName::branchformer, detail::published_branchformer(AttentionName::mla)},
    PublishedModel{"branchformer_gqa", EncoderName::branchformer, detail::published_branchformer(AttentionName::gqa)},
    PublishedModel{"branchformer_linear", EncoderName::branchformer,
                   detail::published_branchformer(AttentionName::linear)},
    PublishedModel{"conformer_mha_small", EncoderName::conformer, detail::small_encoder(AttentionName::mha)},
    PublishedModel{"conformer_mla_small", EncoderName::conformer, detail::small_encoder(AttentionName::mla)},
    PublishedModel{"conformer_gqa_small", EncoderName::conformer, detail::small_encoder(AttentionName::gqa)},
    PublishedModel{"conformer_linear_small", EncoderName::conformer, detail::small_encoder(AttentionName::linear)},
    PublishedModel{"branchformer_mha_small", EncoderName::branchformer, detail::small_encoder(AttentionName::mha)},
    PublishedModel{"branchformer_mla_small", EncoderName::branchformer, detail::small_encoder(AttentionName::mla)},
    PublishedModel{"branchformer_gqa_small", EncoderName::branchformer, detail::small_encoder(AttentionName::gqa)},
    PublishedModel{"branchformer_linear_small", EncoderName::branchformer,
                   detail::small_encoder(AttentionName::linear)},
};

namespace detail {

[[noreturn]] inline void unknown_model(std::string_view name) {
  std::string known;
  for (const PublishedModel& model : published_models) known += text(known.empty() ? "" : ", ", model.name);
  throw Error(text("published model: \"", name, "\" given, one of ", known, " expected"));
}

}  // namespace detail

/// Returns the published model of this name. Throws Error that lists all names where there is none.
constexpr const PublishedModel& published_model(std::string_view name) {
  for (const PublishedModel& model : published_models)
    if (model.name == name) return model;
  detail::unknown_model(name);
}

/// Returns the encoder with every attention by name, for comparisons. Latents and groups have a quarter of MHA's cache,
/// the cached input half of it; linear attention has a state instead, which cannot forget.
constexpr std::array<EncoderConfig, 9> quarter_caches(const EncoderConfig& encoder) {
  using enum AttentionName;
  const Index quarter = encoder.d_model / 2;
  const auto with = [&](AttentionName attention, Index kv_heads, Index rank, Index rope) {
    EncoderConfig config = encoder;
    config.attention = attention;
    config.num_kv_heads = kv_heads;
    config.kv_lora_rank = rank;
    config.qk_rope_head_dim = rope;
    if (attention == linear) config.left_context = -1;
    return config;
  };
  return {with(mha, 0, 0, 0),
          with(gqa, encoder.num_heads / 4, 0, 0),
          with(mla, 0, quarter, 0),
          with(mla_simple, 0, quarter, 0),
          with(mla_split, 0, quarter / 2, 0),
          with(mla_head, 0, quarter / 2 / encoder.num_heads, 0),
          with(mla_decoupled, 0, quarter - quarter / 4, quarter / 4),
          with(input_latent, 0, 0, 0),
          with(linear, 0, 0, 0)};
}

}  // namespace LACONIC_ABI
}  // namespace laconic
