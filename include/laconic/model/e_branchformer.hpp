// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/model/branches.hpp>
#include <laconic/model/encoder.hpp>
#include <laconic/nn/feed_forward.hpp>

namespace laconic {
inline namespace LACONIC_ABI {

/// Computes one E-Branchformer block (Kim et al. 2022), (rows, d_model) to (rows, d_model): half a feed-forward, both
/// branches, their merge with a depthwise convolution, half a feed-forward, norm. Parameter names are ESPnet's; those
/// in the feed-forwards are Hugging Face's.
template <class AttentionPolicy, class T>
class EBranchformerBlock : public Module<EBranchformerBlock<AttentionPolicy, T>> {
 public:
  /// Makes the layer with its initial parameters. Allocates.
  EBranchformerBlock(const EncoderConfig& c, Seed seed)
      : norm_ff_macaron(c.d_model),
        feed_forward_macaron(c.d_model, c.feed_forward_width(), c.hidden_act, c.dropout, seed / "feed_forward_macaron"),
        branches(c, seed),
        depthwise_conv_fusion(2 * c.d_model, c.merge_kernel, c.convolution, seed / "depthwise_conv_fusion", Bias::yes),
        merge_proj(2 * c.d_model, c.d_model, seed / "merge_proj"),
        norm_ff(c.d_model),
        feed_forward(c.d_model, c.feed_forward_width(), c.hidden_act, c.dropout, seed / "feed_forward"),
        norm_final(c.d_model),
        dropout_(c.dropout) {}

  /// Returns the self-attention.
  auto& attention() { return branches.attn; }
  /// Returns the self-attention.
  const auto& attention() const { return branches.attn; }

  /// Holds what streams keep of earlier frames.
  template <class Context>
  struct State {
    /// Makes the state of `shape.slots` streams. Allocates.
    State(Context& context, const EBranchformerBlock& block, const StateShape& shape)
        : attention(context, block.branches.attn, shape),
          conv(context, block.branches.cgmlp.csgu.conv, shape),
          fusion(context, block.depthwise_conv_fusion, shape) {}
    /// Empties a slot for a new stream.
    void clear(Context& context, Index slot) {
      attention.clear(context, slot);
      conv.clear(context, slot);
      fusion.clear(context, slot);
    }
    /// Fills a slot as if frames of zeros had come before, as many as are kept.
    void fill_zeros(Context& context, Index slot) { attention.fill_zeros(context, slot); }
    /// Returns the bytes that the convolutions hold, all slots.
    Index convolution_bytes() const { return conv.cache_bytes() + fusion.cache_bytes(); }

    typename Branches<AttentionPolicy, T>::AttentionType::template State<Context> attention;  ///< the past of attention
    typename DepthwiseConv<T>::template State<Context> conv;    ///< the past of the cgMLP's convolution
    typename DepthwiseConv<T>::template State<Context> fusion;  ///< the past of the merge's convolution
  };

  /// Returns the output of the block. `state` is a pointer to a State, or `nullptr` for whole sequences.
  template <class Context, class Tensor, class S>
  Tensor operator()(Context& context, Tensor x, const Pass<Tensor>& pass, S state) const {
    Tensor y = feed_forward_macaron(context, norm_ff_macaron(context, x));
    x = context.add(std::move(x), y, 0.5);
    const auto [attention, cgmlp] = branches(context, x, pass, state);
    Tensor both = context.concat(attention, cgmlp);
    if constexpr (has_state<S>)
      y = depthwise_conv_fusion(context, both, pass, &state->fusion);
    else
      y = depthwise_conv_fusion(context, both, pass);
    y = merge_proj(context, context.add(std::move(both), y));
    x = context.add(std::move(x), context.dropout(std::move(y), dropout_));
    y = feed_forward(context, norm_ff(context, x));
    x = context.add(std::move(x), y, 0.5);
    return norm_final(context, x);
  }

  /// Visits the parameters with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    visit("norm_ff_macaron", self.norm_ff_macaron);
    visit("feed_forward_macaron", self.feed_forward_macaron);
    Branches<AttentionPolicy, T>::each_parameter(self.branches, visit);
    visit("depthwise_conv_fusion", self.depthwise_conv_fusion);
    visit("merge_proj", self.merge_proj);
    visit("norm_ff", self.norm_ff);
    visit("feed_forward", self.feed_forward);
    visit("norm_final", self.norm_final);
  }

  LayerNorm<T> norm_ff_macaron;            ///< the norm before the first feed-forward
  FeedForward<T> feed_forward_macaron;     ///< the first feed-forward
  Branches<AttentionPolicy, T> branches;   ///< attention and cgMLP
  DepthwiseConv<T> depthwise_conv_fusion;  ///< the convolution of both branches
  Linear<T> merge_proj;                    ///< from both branches to d_model
  LayerNorm<T> norm_ff;                    ///< the norm before the second feed-forward
  FeedForward<T> feed_forward;             ///< the second feed-forward
  LayerNorm<T> norm_final;                 ///< the last norm

 private:
  double dropout_;
};

/// Describes E-Branchformer blocks after convolutional subsampling, for `Encoder`.
struct EBranchformerKind : FeatureFront {
  /// The block of an attention policy in numbers of type T.
  template <class AttentionPolicy, class T>
  using Block = EBranchformerBlock<AttentionPolicy, T>;
  static constexpr const char* attention_name = "attn";  ///< prefix of the attention's parameters in a block

  /// Returns the trained parameters of a block without its attention.
  static constexpr Index parameter_count(const EncoderConfig& c) {
    const Index d = c.d_model, hidden = c.feed_forward_width();
    return Branches<Mha<1>, float>::parameter_count(c) + 3 * 2 * d + 2 * (2 * d * hidden + hidden + d) +
           DepthwiseConv<float>::parameter_count(2 * d, c.merge_kernel, Bias::yes) + (2 * d + 1) * d;
  }
  /// Returns the floating-point operations of a block without its attention.
  static constexpr Index flops(const EncoderConfig& c, Index frames) {
    const Index d = c.d_model;
    return ConvolutionalGatingMlp<float>::flops(c, frames) +
           2 * frames * (2 * 2 * c.feed_forward_width() * d + 2 * d * c.merge_kernel + 2 * d * d);
  }
  /// Throws Error for centred convolutions.
  static constexpr void require_streamable(const EncoderConfig& c) {
    require(c.convolution != ConvolutionContext::centred,
            "e-branchformer: a centred convolution cannot be streamed; causal or chunk expected");
  }
};

/// Encodes log-mel features by an E-Branchformer (Kim et al. 2022) with convolutional subsampling and a CTC head.
template <class AttentionPolicy, class T = float>
using EBranchformer = Encoder<EBranchformerKind, AttentionPolicy, T>;

}  // namespace LACONIC_ABI
}  // namespace laconic
