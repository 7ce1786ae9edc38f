// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/attention.hpp>
#include <laconic/core/index_list.hpp>
#include <laconic/model/waveform_config.hpp>
#include <laconic/nn/depthwise_conv.hpp>

#include <string_view>

namespace laconic {
inline namespace LACONIC_ABI {

/// Names the encoders, for files and command lines.
enum class EncoderName {
  conformer,          ///< `Conformer`
  branchformer,       ///< `Branchformer`
  e_branchformer,     ///< `EBranchformer`
  wav2vec2_conformer  ///< `Wav2Vec2Conformer`
};
/// Lists the names as configurations spell them.
constexpr auto enum_names(EncoderName) {
  return std::to_array<EnumName<EncoderName>>({{EncoderName::conformer, "conformer"},
                                               {EncoderName::branchformer, "branchformer"},
                                               {EncoderName::e_branchformer, "e-branchformer"},
                                               {EncoderName::wav2vec2_conformer, "wav2vec2-conformer"}});
}

/// Names the ways in which a Branchformer merges attention and cgMLP (Peng et al. 2022, section 3.4).
enum class BranchMerge {
  concat,          ///< concatenates the channels before a linear layer
  fixed_average,   ///< averages with fixed weights
  learned_average  ///< averages with weights that are computed from each utterance
};
/// Lists the names as configurations spell them.
constexpr auto enum_names(BranchMerge) {
  return std::to_array<EnumName<BranchMerge>>({{BranchMerge::concat, "concat"},
                                               {BranchMerge::fixed_average, "fixed-average"},
                                               {BranchMerge::learned_average, "learned-average"}});
}

/// Holds all sizes of an encoder with a CTC head. Those of the attention may stay 0 where its type gives them.
struct EncoderConfig {
  Index num_mels = 80;                               ///< mel bins of the features; 1 where the encoder takes samples
  Index d_model = 256;                               ///< channels of encoder frames
  Index num_layers = 12;                             ///< blocks
  Index vocab_size = 29;                             ///< tokens, the CTC blank included
  AttentionName attention = AttentionName::by_type;  ///< the attention by name
  Index num_heads = 0;                               ///< query heads
  Index num_kv_heads = 0;                            ///< key-value heads, a divisor of num_heads
  Index kv_lora_rank = 0;                            ///< rank of the latent: see AttentionConfig
  Index v_lora_rank = 0;                             ///< rank of the values' latent: see AttentionConfig
  IndexList kv_lora_ranks{};                         ///< kv_lora_rank of each layer; empty: kv_lora_rank
  IndexList v_lora_ranks{};    ///< v_lora_rank of each layer; empty: kv_lora_ranks, or v_lora_rank without these
  Index q_lora_rank = 0;       ///< rank of the queries
  Index qk_rope_head_dim = 0;  ///< width of the decoupled rotary key
  IndexList rope_pairs{};      ///< pairs whose rates the decoupled rotary key uses: see AttentionConfig
  /// The position by name, where the attention leaves it open.
  PositionEmbeddings position_embeddings_type = PositionEmbeddings::relative;
  Activation hidden_act = Activation::silu;  ///< activation in feed-forward and convolution modules
  double layer_norm_eps = 1e-5;  ///< epsilon of the norms before and after the blocks; in the blocks it is 1e-5
  Index ffn_expansion = 4;       ///< width of the feed-forward modules over d_model (none in a Branchformer)
  Index intermediate_size = 0;   ///< width of the feed-forward modules; 0: ffn_expansion * d_model
  Index conv_kernel = 31;        ///< frames, odd: kernel of the convolution module, or in the cgMLP
  Index cgmlp_expansion = 6;     ///< width of the cgMLP over d_model (Branchformer and E-Branchformer)
  BranchMerge merge = BranchMerge::concat;  ///< how a Branchformer merges its branches
  double cgmlp_weight = 0.5;                ///< weight of the cgMLP in a fixed average
  Index merge_kernel = 3;                   ///< frames, odd: kernel of an E-Branchformer's merge
  Index subsampling = 4;           ///< rows of features an encoder frame, 2 or 4; of samples, the product of strides
  Index subsampling_channels = 0;  ///< channels of the subsampling's convolutions; 0: d_model
  double dropout = 0.1;            ///< probability of dropout in training
  ConvolutionContext convolution = ConvolutionContext::centred;  ///< the frames that convolutions over time see
  Index chunk = 0;            ///< encoder frames that are seen together; 0: whole utterances
  Index left_context = -1;    ///< encoder frames seen before the own chunk; -1: all
  WaveformConfig waveform{};  ///< convolutions over samples; empty where the encoder takes features

  /// Returns the sizes of the attention, with the ranks that all layers share.
  constexpr AttentionConfig attention_config() const {
    return {.d_model = d_model,
            .num_heads = num_heads,
            .num_kv_heads = num_kv_heads,
            .kv_lora_rank = kv_lora_rank,
            .v_lora_rank = v_lora_rank,
            .q_lora_rank = q_lora_rank,
            .qk_rope_head_dim = qk_rope_head_dim,
            .rope_pairs = rope_pairs,
            .attention = attention,
            .position_embeddings_type = position_embeddings_type};
  }
  /// Returns this configuration with the ranks of layer i.
  constexpr EncoderConfig for_layer(Index i) const {
    EncoderConfig out = *this;
    if (kv_lora_ranks.size() > 0) out.kv_lora_rank = kv_lora_ranks[i];
    if (kv_lora_ranks.size() > 0 || v_lora_ranks.size() > 0)
      out.v_lora_rank = v_lora_ranks.size() > 0 ? v_lora_ranks[i] : 0;
    return out;
  }
  /// Returns the sum of count(attention_config) over the layers.
  template <class Count>
  constexpr Index over_layers(Count&& count) const {
    if (kv_lora_ranks.size() == 0 && v_lora_ranks.size() == 0) return num_layers * count(attention_config());
    Index sum = 0;
    for (Index i = 0; i < num_layers; ++i) sum += count(for_layer(i).attention_config());
    return sum;
  }
  /// Returns the mask that `chunk` and `left_context` describe.
  constexpr Mask mask() const {
    return chunk > 0 ? Mask::chunked(chunk, left_context < 0 ? Mask::unlimited : left_context) : Mask();
  }
  /// Returns the channels of the subsampling's convolutions.
  constexpr Index channels() const { return subsampling_channels > 0 ? subsampling_channels : d_model; }

  /// Returns the width of the feed-forward modules.
  constexpr Index feed_forward_width() const {
    return intermediate_size > 0 ? intermediate_size : ffn_expansion * d_model;
  }

  /// Returns whether files of earlier versions lack this member, which then has its default.
  static constexpr bool may_lack(std::string_view name) { return name == "intermediate_size"; }
  /// Visits each member with its name, for files and command lines.
  static constexpr void fields(auto& self, auto&& visit) {
    visit("num_mels", self.num_mels);
    visit("d_model", self.d_model);
    visit("num_layers", self.num_layers);
    visit("vocab_size", self.vocab_size);
    visit("attention", self.attention);
    visit("num_heads", self.num_heads);
    visit("num_kv_heads", self.num_kv_heads);
    visit("kv_lora_rank", self.kv_lora_rank);
    visit("v_lora_rank", self.v_lora_rank);
    visit("kv_lora_ranks", self.kv_lora_ranks);
    visit("v_lora_ranks", self.v_lora_ranks);
    visit("q_lora_rank", self.q_lora_rank);
    visit("qk_rope_head_dim", self.qk_rope_head_dim);
    visit("rope_pairs", self.rope_pairs);
    visit("position_embeddings_type", self.position_embeddings_type);
    visit("hidden_act", self.hidden_act);
    visit("layer_norm_eps", self.layer_norm_eps);
    visit("ffn_expansion", self.ffn_expansion);
    visit("intermediate_size", self.intermediate_size);
    visit("conv_kernel", self.conv_kernel);
    visit("cgmlp_expansion", self.cgmlp_expansion);
    visit("merge", self.merge);
    visit("cgmlp_weight", self.cgmlp_weight);
    visit("merge_kernel", self.merge_kernel);
    visit("subsampling", self.subsampling);
    visit("subsampling_channels", self.subsampling_channels);
    visit("dropout", self.dropout);
    visit("convolution", self.convolution);
    visit("chunk", self.chunk);
    visit("left_context", self.left_context);
    visit("waveform", self.waveform);
  }

  /// Returns this configuration if every size is in its range. Throws Error otherwise. The upper ends exceed any use
  /// and keep products from overflowing.
  constexpr const EncoderConfig& checked() const {
    const auto within = [](Index value, Index min, Index max, const char* name) {
      require(value >= min && value <= max, "encoder: ", name, ' ', value, " given, ", min, " to ", max, " expected");
    };
    within(num_mels, waveform.empty() ? 7 : 1, waveform.empty() ? 1 << 12 : 1, "num_mels");
    within(d_model, 1, 1 << 16, "d_model");
    within(num_layers, 1, 1 << 12, "num_layers");
    within(vocab_size, 2, 1 << 24, "vocab_size");
    require(position_embeddings_type != PositionEmbeddings::learned,
            "encoder: position_embeddings_type learned given, relative, rotary or none expected");
    within(num_heads, 0, 1 << 16, "num_heads");
    within(num_kv_heads, 0, 1 << 16, "num_kv_heads");
    within(kv_lora_rank, 0, 1 << 16, "kv_lora_rank");
    within(v_lora_rank, 0, 1 << 16, "v_lora_rank");
    within(q_lora_rank, 0, 1 << 16, "q_lora_rank");
    within(qk_rope_head_dim, 0, 1 << 16, "qk_rope_head_dim");
    within(ffn_expansion, 1, 1 << 6, "ffn_expansion");
    within(intermediate_size, 0, 1 << 22, "intermediate_size");
    within(conv_kernel, 1, 1 << 12, "conv_kernel");
    within(cgmlp_expansion, 1, 1 << 6, "cgmlp_expansion");
    within(merge_kernel, 1, 1 << 12, "merge_kernel");
    within(subsampling_channels, 0, 1 << 16, "subsampling_channels");
    within(chunk, 0, 1 << 20, "chunk");
    within(left_context, -1, 1 << 20, "left_context");
    for (const IndexList* ranks : {&kv_lora_ranks, &v_lora_ranks})
      require(ranks->size() == 0 || ranks->size() == num_layers, "encoder: ranks of ", ranks->size(),
              " layers given for ", num_layers);
    require(conv_kernel % 2 == 1, "encoder: conv_kernel ", conv_kernel, " given, an odd number expected");
    require(merge_kernel % 2 == 1, "encoder: merge_kernel ", merge_kernel, " given, an odd number expected");
    require(cgmlp_expansion * d_model % 2 == 0, "encoder: a cgMLP of ", cgmlp_expansion * d_model,
            " channels given, an even number expected");
    require(layer_norm_eps > 0 && layer_norm_eps < 1, "encoder: layer_norm_eps ", layer_norm_eps,
            " given, more than 0 and less than 1 expected");
    if (waveform.empty()) {
      require(subsampling == 2 || subsampling == 4, "encoder: subsampling ", subsampling, " given, 2 or 4 expected");
    } else {
      const Index layers = waveform.conv_dim.size();
      within(layers, 1, 12, "conv_dim's length");
      require(waveform.conv_kernel.size() == layers && waveform.conv_stride.size() == layers, "encoder: conv_dim of ",
              layers, " layers, conv_kernel of ", waveform.conv_kernel.size(), " and conv_stride of ",
              waveform.conv_stride.size(), " given, equal numbers expected");
      for (Index i = 0; i < layers; ++i) {
        within(waveform.conv_dim[i], 1, 1 << 16, "conv_dim");
        within(waveform.conv_kernel[i], 1, 1 << 12, "conv_kernel");
        within(waveform.conv_stride[i], 1, 16, "conv_stride");
      }
      require(subsampling == waveform.stride(), "encoder: subsampling ", subsampling,
              " given, but the strides multiply to ", waveform.stride());
    }
    require(dropout >= 0 && dropout < 1, "encoder: dropout ", dropout, " given, expected from 0 to less than 1");
    require(cgmlp_weight >= 0 && cgmlp_weight <= 1, "encoder: cgmlp_weight ", cgmlp_weight, " given, 0 to 1 expected");
    require(chunk > 0 || left_context < 0, "encoder: left_context ", left_context, " given without a chunk");
    return *this;
  }
};

}  // namespace LACONIC_ABI
}  // namespace laconic
