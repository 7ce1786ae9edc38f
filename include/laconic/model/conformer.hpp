// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/model/encoder.hpp>
#include <laconic/nn/feed_forward.hpp>

namespace laconic {
inline namespace LACONIC_ABI {

/// Computes the Conformer's convolution module (Gulati et al. 2020, section 2.2), (rows, d_model) to (rows, d_model):
/// layer norm, pointwise convolution, GLU, depthwise convolution, batch norm, activation (SiLU in the paper), pointwise
/// convolution, dropout.
template <class T>
class ConvolutionModule : public Module<ConvolutionModule<T>> {
 public:
  /// Makes the layer with its initial parameters. Allocates.
  ConvolutionModule(const EncoderConfig& c, Seed seed)
      : layer_norm(c.d_model),
        pointwise_conv1(Linear<T>::pointwise_conv(c.d_model, 2 * c.d_model, seed / "pointwise_conv1")),
        depthwise_conv(c.d_model, c.conv_kernel, c.convolution, seed / "depthwise_conv"),
        batch_norm(c.d_model),
        pointwise_conv2(Linear<T>::pointwise_conv(c.d_model, c.d_model, seed / "pointwise_conv2")),
        hidden_act_(c.hidden_act),
        dropout_(c.dropout) {}

  /// Returns the output of the module. With a pointer to a state, x follows what the state holds.
  template <class Context, class Tensor, class S = std::nullptr_t>
  Tensor operator()(Context& context, const Tensor& x, const Pass<Tensor>& pass, S state = nullptr) const {
    auto y = context.glu(pointwise_conv1(context, layer_norm(context, x)));
    y = batch_norm(context, depthwise_conv(context, y, pass, state));
    y = pointwise_conv2(context, context.activation(hidden_act_, std::move(y)));
    return context.dropout(std::move(y), dropout_);
  }

  /// Visits the parameters with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    visit("layer_norm", self.layer_norm);
    visit("pointwise_conv1", self.pointwise_conv1);
    visit("depthwise_conv", self.depthwise_conv);
    visit("batch_norm", self.batch_norm);
    visit("pointwise_conv2", self.pointwise_conv2);
  }

  LayerNorm<T> layer_norm;          ///< the first norm
  Linear<T> pointwise_conv1;        ///< from d_model to twice as many channels
  DepthwiseConv<T> depthwise_conv;  ///< the convolution over time
  BatchNorm<T> batch_norm;          ///< the norm after it
  Linear<T> pointwise_conv2;        ///< from d_model to d_model

 private:
  Activation hidden_act_;
  double dropout_;
};

/// Computes one Conformer block (Gulati et al. 2020, equation 1), (rows, d_model) to (rows, d_model): half a
/// feed-forward, attention, convolution, half a feed-forward, norm. Parameter names and layout are those of the Hugging
/// Face Conformer.
template <class AttentionPolicy, class T>
class ConformerBlock : public Module<ConformerBlock<AttentionPolicy, T>> {
 public:
  using AttentionType = typename AttentionPolicy::template Layer<T>;  ///< the layer of the attention policy

  /// Makes the layer with its initial parameters. Allocates.
  ConformerBlock(const EncoderConfig& c, Seed seed)
      : ffn1_layer_norm(c.d_model),
        ffn1(c.d_model, c.feed_forward_width(), c.hidden_act, c.dropout, seed / "ffn1"),
        self_attn_layer_norm(c.d_model),
        self_attn(c.attention_config(), c.dropout, seed / "self_attn"),
        conv_module(c, seed / "conv_module"),
        ffn2_layer_norm(c.d_model),
        ffn2(c.d_model, c.feed_forward_width(), c.hidden_act, c.dropout, seed / "ffn2"),
        final_layer_norm(c.d_model),
        dropout_(c.dropout) {}

  /// Returns the self-attention.
  auto& attention() { return self_attn; }
  /// Returns the self-attention.
  const auto& attention() const { return self_attn; }

  /// Holds what streams keep of earlier frames.
  template <class Context>
  struct State {
    /// Makes the state of `shape.slots` streams. Allocates.
    State(Context& context, const ConformerBlock& block, const StateShape& shape)
        : attention(context, block.self_attn, shape), conv(context, block.conv_module.depthwise_conv, shape) {}
    /// Empties a slot for a new stream.
    void clear(Context& context, Index slot) {
      attention.clear(context, slot);
      conv.clear(context, slot);
    }
    /// Fills a slot as if frames of zeros had come before, as many as are kept.
    void fill_zeros(Context& context, Index slot) { attention.fill_zeros(context, slot); }
    /// Returns the bytes that the convolutions hold, all slots.
    Index convolution_bytes() const { return conv.cache_bytes(); }

    typename AttentionType::template State<Context> attention;  ///< the past of attention
    typename DepthwiseConv<T>::template State<Context> conv;    ///< the past of the convolution
  };

  /// Returns the output of the block. `state` is a pointer to a State, or `nullptr` for whole sequences.
  template <class Context, class Tensor, class S>
  Tensor operator()(Context& context, Tensor x, const Pass<Tensor>& pass, S state) const {
    // Each result before `x` is moved from: arguments are evaluated in any order.
    Tensor y = ffn1(context, ffn1_layer_norm(context, x));
    x = context.add(std::move(x), y, 0.5);
    if constexpr (has_state<S>)
      y = self_attn(context, self_attn_layer_norm(context, x), pass, &state->attention);
    else
      y = self_attn(context, self_attn_layer_norm(context, x), pass);
    x = context.add(std::move(x), context.dropout(std::move(y), dropout_));
    if constexpr (has_state<S>)
      y = conv_module(context, x, pass, &state->conv);
    else
      y = conv_module(context, x, pass);
    x = context.add(std::move(x), y);
    y = ffn2(context, ffn2_layer_norm(context, x));
    x = context.add(std::move(x), y, 0.5);
    return final_layer_norm(context, x);
  }

  /// Visits the parameters with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    visit("ffn1_layer_norm", self.ffn1_layer_norm);
    visit("ffn1", self.ffn1);
    visit("self_attn_layer_norm", self.self_attn_layer_norm);
    visit("self_attn", self.self_attn);
    visit("conv_module", self.conv_module);
    visit("ffn2_layer_norm", self.ffn2_layer_norm);
    visit("ffn2", self.ffn2);
    visit("final_layer_norm", self.final_layer_norm);
  }

  LayerNorm<T> ffn1_layer_norm;       ///< the norm before the first feed-forward
  FeedForward<T> ffn1;                ///< the first feed-forward
  LayerNorm<T> self_attn_layer_norm;  ///< the norm before attention
  AttentionType self_attn;            ///< the attention
  ConvolutionModule<T> conv_module;   ///< the convolution module with its norm
  LayerNorm<T> ffn2_layer_norm;       ///< the norm before the second feed-forward
  FeedForward<T> ffn2;                ///< the second feed-forward
  LayerNorm<T> final_layer_norm;      ///< the last norm

 private:
  double dropout_;
};

/// Describes Conformer blocks after convolutional subsampling, for `Encoder`.
struct ConformerKind : FeatureFront {
  /// The block of an attention policy in numbers of type T.
  template <class AttentionPolicy, class T>
  using Block = ConformerBlock<AttentionPolicy, T>;
  static constexpr const char* attention_name = "self_attn";  ///< prefix of the attention's parameters in a block

  /// Returns the trained parameters of a block without its attention.
  static constexpr Index parameter_count(const EncoderConfig& c) {
    const Index d = c.d_model, hidden = c.feed_forward_width();
    return 5 * 2 * d + 2 * (2 * d * hidden + hidden + d) + 3 * d * d + c.conv_kernel * d + 2 * d;
  }
  /// Returns the floating-point operations of a block without its attention.
  static constexpr Index flops(const EncoderConfig& c, Index frames) {
    const Index d = c.d_model;
    return 2 * frames * (2 * 2 * c.feed_forward_width() * d + 3 * d * d + c.conv_kernel * d);
  }
  /// Throws Error for centred convolutions.
  static constexpr void require_streamable(const EncoderConfig& c) {
    require(c.convolution != ConvolutionContext::centred,
            "conformer: a centred convolution cannot be streamed; causal or chunk expected");
  }
};

/// Encodes log-mel features by a Conformer (Gulati et al. 2020) with convolutional subsampling and a CTC head.
template <class AttentionPolicy, class T = float>
using Conformer = Encoder<ConformerKind, AttentionPolicy, T>;

}  // namespace LACONIC_ABI
}  // namespace laconic
