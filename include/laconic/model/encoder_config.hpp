// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/attention.hpp>
#include <laconic/core/index_list.hpp>
#include <laconic/nn/depthwise_conv.hpp>

namespace laconic {
inline namespace LACONIC_ABI {

/// The encoders by name, for files and command lines.
enum class EncoderName { conformer, branchformer, e_branchformer, wav2vec2_conformer };
constexpr auto enum_names(EncoderName) {
  return std::to_array<EnumName<EncoderName>>({{EncoderName::conformer, "conformer"},
                                               {EncoderName::branchformer, "branchformer"},
                                               {EncoderName::e_branchformer, "e-branchformer"},
                                               {EncoderName::wav2vec2_conformer, "wav2vec2-conformer"}});
}

/// How a Branchformer joins its branches of attention and cgMLP (Peng et al. 2022, section 3.4): side by side into a
/// linear layer; as an average of fixed weights; or of weights that each utterance decides.
enum class BranchMerge { concat, fixed_average, learned_average };
constexpr auto enum_names(BranchMerge) {
  return std::to_array<EnumName<BranchMerge>>({{BranchMerge::concat, "concat"},
                                               {BranchMerge::fixed_average, "fixed-average"},
                                               {BranchMerge::learned_average, "learned-average"}});
}

/// The norm behind convolutions over samples: of every frame, behind each; or of every channel over time, behind the
/// first alone.
enum class WaveformNorm { layer, group };
constexpr auto enum_names(WaveformNorm) {
  return std::to_array<EnumName<WaveformNorm>>({{WaveformNorm::layer, "layer"}, {WaveformNorm::group, "group"}});
}

/// Convolutions over samples in place of log-mel features (wav2vec 2.0, Baevski et al. 2020, section 2). Names are
/// Hugging Face's.
struct WaveformConfig {
  IndexList conv_dim{}, conv_kernel{},
      conv_stride{};  ///< of each layer its channels, samples or frames, step; empty: no such layers
  bool conv_bias = false;
  WaveformNorm feat_extract_norm = WaveformNorm::layer;
  Activation feat_extract_activation = Activation::gelu;

  constexpr bool empty() const { return conv_dim.size() == 0; }
  constexpr Conv1dShape layer(Index i) const {
    return {i == 0 ? 1 : conv_dim[i - 1], conv_dim[i], conv_kernel[i], conv_stride[i]};
  }
  /// Samples for each frame that comes out (0 where the strides are absurd), and those that the first one needs.
  constexpr Index stride() const {
    Index out = 1;
    for (const Index one : conv_stride) out = one > 0 && one <= 16 && out < (Index{1} << 48) ? out * one : 0;
    return out;
  }
  constexpr Index window() const {
    Index out = 1;
    for (Index i = conv_dim.size(); i-- > 0;) out = (out - 1) * conv_stride[i] + conv_kernel[i];
    return out;
  }

  static constexpr void fields(auto& self, auto&& visit) {
    visit("conv_dim", self.conv_dim);
    visit("conv_kernel", self.conv_kernel);
    visit("conv_stride", self.conv_stride);
    visit("conv_bias", self.conv_bias);
    visit("feat_extract_norm", self.feat_extract_norm);
    visit("feat_extract_activation", self.feat_extract_activation);
  }
};

/// All numbers of an encoder with a CTC head: a Conformer, a Branchformer or an E-Branchformer. Those of the attention
/// may be left 0 where its type says them.
struct EncoderConfig {
  Index num_mels = 80;  ///< 1 where the encoder takes samples
  Index d_model = 256;
  Index num_layers = 12;
  Index vocab_size = 29;
  AttentionName attention = AttentionName::by_type;
  Index num_heads = 0;
  Index num_kv_heads = 0;
  Index kv_lora_rank = 0;
  Index v_lora_rank = 0;
  IndexList kv_lora_ranks{},
      v_lora_ranks{};  ///< of each layer its own; empty: the one above for all, of values as kv_lora_ranks
  Index q_lora_rank = 0;
  Index qk_rope_head_dim = 0;
  IndexList rope_pairs{};  ///< which of the rates of head_dim / 2 pairs its pairs turn with; empty: geometric ones of
                           ///< its own width
  PositionEmbeddings position_embeddings_type = PositionEmbeddings::relative;  ///< where the attention leaves it open
  Activation hidden_act = Activation::silu;  ///< of feed-forward and convolution modules
  double layer_norm_eps = 1e-5;              ///< of the norms before and behind the blocks; in the blocks it is 1e-5
  Index ffn_expansion = 4;                   ///< width of the feed-forward modules over d_model (not in a Branchformer)
  Index conv_kernel = 31;                    ///< frames, odd: of the convolution module, or in the cgMLP
  Index cgmlp_expansion = 6;                 ///< width of the cgMLP over d_model (Branchformer and E-Branchformer)
  BranchMerge merge = BranchMerge::concat;   ///< of a Branchformer
  double cgmlp_weight = 0.5;                 ///< of the cgMLP in a fixed average
  Index merge_kernel = 3;                    ///< frames, odd: of an E-Branchformer's merge
  Index subsampling = 4;                     ///< 2 or 4; the product of the strides where the encoder takes samples
  Index subsampling_channels = 0;            ///< 0: d_model
  double dropout = 0.1;
  ConvolutionContext convolution = ConvolutionContext::centred;
  Index chunk = 0;            ///< encoder frames that are seen together; 0: whole utterances
  Index left_context = -1;    ///< encoder frames seen before the own chunk; -1: all
  WaveformConfig waveform{};  ///< empty where the encoder takes features

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
  /// With the ranks of one layer.
  constexpr EncoderConfig for_layer(Index i) const {
    EncoderConfig out = *this;
    if (kv_lora_ranks.size() > 0) out.kv_lora_rank = kv_lora_ranks[i];
    if (kv_lora_ranks.size() > 0 || v_lora_ranks.size() > 0)
      out.v_lora_rank = v_lora_ranks.size() > 0 ? v_lora_ranks[i] : 0;
    return out;
  }
  /// The sum of count(attention_config) over the layers.
  template <class Count>
  constexpr Index over_layers(Count&& count) const {
    if (kv_lora_ranks.size() == 0 && v_lora_ranks.size() == 0) return num_layers * count(attention_config());
    Index sum = 0;
    for (Index i = 0; i < num_layers; ++i) sum += count(for_layer(i).attention_config());
    return sum;
  }
  /// What every frame sees, as the model is meant to be used.
  constexpr Mask mask() const {
    return chunk > 0 ? Mask::chunked(chunk, left_context < 0 ? Mask::unlimited : left_context) : Mask();
  }
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
    visit("kv_lora_ranks", self.kv_lora_ranks);
    visit("v_lora_ranks", self.v_lora_ranks);
    visit("q_lora_rank", self.q_lora_rank);
    visit("qk_rope_head_dim", self.qk_rope_head_dim);
    visit("rope_pairs", self.rope_pairs);
    visit("position_embeddings_type", self.position_embeddings_type);
    visit("hidden_act", self.hidden_act);
    visit("layer_norm_eps", self.layer_norm_eps);
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
    visit("waveform", self.waveform);
  }

  /// Looks at every number before anything is built from it. The upper ends are far from any use and keep products
  /// small.
  constexpr const EncoderConfig& checked() const {
    const auto within = [](Index value, Index least, Index most, const char* name) {
      require(value >= least && value <= most, "encoder: ", name, ' ', value, " given, ", least, " to ", most,
              " expected");
    };
    within(num_mels, waveform.empty() ? 7 : 1, waveform.empty() ? 1 << 12 : 1, "num_mels");
    within(d_model, 1, 1 << 16, "d_model");
    within(num_layers, 1, 1 << 12, "num_layers");
    within(vocab_size, 2, 1 << 24, "vocab_size");
    within(num_heads, 0, 1 << 16, "num_heads");
    within(num_kv_heads, 0, 1 << 16, "num_kv_heads");
    within(kv_lora_rank, 0, 1 << 16, "kv_lora_rank");
    within(v_lora_rank, 0, 1 << 16, "v_lora_rank");
    within(q_lora_rank, 0, 1 << 16, "q_lora_rank");
    within(qk_rope_head_dim, 0, 1 << 16, "qk_rope_head_dim");
    within(ffn_expansion, 1, 1 << 6, "ffn_expansion");
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
