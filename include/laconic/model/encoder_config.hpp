// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/attention.hpp>
#include <laconic/nn/depthwise_conv.hpp>

namespace laconic::inline LACONIC_ABI {

/// The encoders by name, for files and command lines.
enum class EncoderName { conformer, branchformer, e_branchformer };
constexpr auto enum_names(EncoderName) {
  return std::to_array<EnumName<EncoderName>>(
      {{EncoderName::conformer, "conformer"}, {EncoderName::branchformer, "branchformer"}, {EncoderName::e_branchformer, "e-branchformer"}});
}

/// How a Branchformer joins its branches of attention and cgMLP (Peng et al. 2022, section 3.4): side by side into a linear
/// layer; as an average of fixed weights; or of weights that each utterance decides.
enum class BranchMerge { concat, fixed_average, learned_average };
constexpr auto enum_names(BranchMerge) {
  return std::to_array<EnumName<BranchMerge>>({{BranchMerge::concat, "concat"},
                                               {BranchMerge::fixed_average, "fixed-average"},
                                               {BranchMerge::learned_average, "learned-average"}});
}

/// All numbers of an encoder with a CTC head: a Conformer, a Branchformer or an E-Branchformer. Those of the attention may be
/// left 0 where its type says them.
struct EncoderConfig {
  Index num_mels = 80;
  Index d_model = 256;
  Index num_layers = 12;
  Index vocab_size = 29;
  AttentionName attention = AttentionName::by_type;
  Index num_heads = 0;
  Index num_kv_heads = 0;
  Index kv_lora_rank = 0;
  Index v_lora_rank = 0;
  Index q_lora_rank = 0;
  Index qk_rope_head_dim = 0;
  Index ffn_expansion = 4;          ///< width of the feed-forward modules over d_model (not in a Branchformer)
  Index conv_kernel = 31;           ///< frames, odd: of the convolution module, or in the cgMLP
  Index cgmlp_expansion = 6;        ///< width of the cgMLP over d_model (Branchformer and E-Branchformer)
  BranchMerge merge = BranchMerge::concat;  ///< of a Branchformer
  double cgmlp_weight = 0.5;        ///< of the cgMLP in a fixed average
  Index merge_kernel = 3;           ///< frames, odd: of an E-Branchformer's merge
  Index subsampling = 4;            ///< 2 or 4
  Index subsampling_channels = 0;   ///< 0: d_model
  double dropout = 0.1;
  ConvolutionContext convolution = ConvolutionContext::centred;
  Index chunk = 0;                  ///< encoder frames that are seen together; 0: whole utterances
  Index left_context = -1;          ///< encoder frames seen before the own chunk; -1: all

  constexpr AttentionConfig attention_config() const {
    return {.d_model = d_model,
            .num_heads = num_heads,
            .num_kv_heads = num_kv_heads,
            .kv_lora_rank = kv_lora_rank,
            .v_lora_rank = v_lora_rank,
            .q_lora_rank = q_lora_rank,
            .qk_rope_head_dim = qk_rope_head_dim,
            .attention = attention};
  }
  /// What every frame sees, as the model is meant to be used.
  constexpr Mask mask() const { return chunk > 0 ? Mask::chunked(chunk, left_context < 0 ? Mask::unlimited : left_context) : Mask(); }
  constexpr Index channels() const { return subsampling_channels > 0 ? subsampling_channels : d_model; }

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
    visit("q_lora_rank", self.q_lora_rank);
    visit("qk_rope_head_dim", self.qk_rope_head_dim);
    visit("ffn_expansion", self.ffn_expansion);
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
  }

  /// Looks at every number before anything is built from it. The upper ends are far from any use and keep products small.
  constexpr const EncoderConfig& checked() const {
    const auto within = [](Index value, Index least, Index most, const char* name) {
      require(value >= least && value <= most, "encoder: ", name, ' ', value, " given, ", least, " to ", most, " expected");
    };
    within(num_mels, 7, 1 << 12, "num_mels");
    within(d_model, 1, 1 << 16, "d_model");
    within(num_layers, 1, 1 << 12, "num_layers");
    within(vocab_size, 2, 1 << 24, "vocab_size");
    within(ffn_expansion, 1, 1 << 6, "ffn_expansion");
    within(conv_kernel, 1, 1 << 12, "conv_kernel");
    within(cgmlp_expansion, 1, 1 << 6, "cgmlp_expansion");
    within(merge_kernel, 1, 1 << 12, "merge_kernel");
    within(subsampling_channels, 0, 1 << 16, "subsampling_channels");
    within(chunk, 0, 1 << 20, "chunk");
    within(left_context, -1, 1 << 20, "left_context");
    require(conv_kernel % 2 == 1, "encoder: conv_kernel ", conv_kernel, " given, an odd number expected");
    require(merge_kernel % 2 == 1, "encoder: merge_kernel ", merge_kernel, " given, an odd number expected");
    require(cgmlp_expansion * d_model % 2 == 0, "encoder: a cgMLP of ", cgmlp_expansion * d_model, " channels given, an even number expected");
    require(subsampling == 2 || subsampling == 4, "encoder: subsampling ", subsampling, " given, 2 or 4 expected");
    require(dropout >= 0 && dropout < 1, "encoder: dropout ", dropout, " given, expected from 0 to less than 1");
    require(cgmlp_weight >= 0 && cgmlp_weight <= 1, "encoder: cgmlp_weight ", cgmlp_weight, " given, 0 to 1 expected");
    require(chunk > 0 || left_context < 0, "encoder: left_context ", left_context, " given without a chunk");
    return *this;
  }
};

}  // namespace laconic
