// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/model/encoder_config.hpp>
#include <laconic/nn/depthwise_conv.hpp>
#include <laconic/nn/linear.hpp>
#include <laconic/nn/norm.hpp>
#include <laconic/nn/pass.hpp>

namespace laconic {
inline namespace LACONIC_ABI {

/// Gates by a convolution (Sakuma et al. 2022; Peng et al. 2022, section 3.3), (rows, channels) to (rows, channels /
/// 2): the second half of the channels, normed and convolved over time, multiplies the first.
template <class T>
class ConvolutionalSpatialGatingUnit : public Module<ConvolutionalSpatialGatingUnit<T>> {
 public:
  /// Makes a unit whose gate starts near 1. Allocates.
  ConvolutionalSpatialGatingUnit(Index channels, Index kernel, ConvolutionContext sees, double dropout, Seed seed)
      : norm(channels / 2), conv(channels / 2, kernel, sees, seed / "conv", Bias::yes), dropout_(dropout) {
    const Random random(seed / "conv", "weight");
    for (Index i = 0; i < conv.weight.size(); ++i)
      conv.weight.host().data()[i] = static_cast<T>(1e-6 * random.normal(static_cast<std::uint64_t>(i)));
    conv.bias.host().setOnes();
  }

  /// Returns the output of the module. With a pointer to a state, x follows what the state holds.
  template <class Context, class Tensor, class S = std::nullptr_t>
  Tensor operator()(Context& context, const Tensor& x, const Pass<Tensor>& pass, S state = nullptr) const {
    const Index half = x.cols() / 2;
    const Tensor gate = conv(context, norm(context, context.columns(x, half, half)), pass, state);
    return context.dropout(context.multiply(context.columns(x, 0, half), gate), dropout_);
  }

  /// Visits the parameters with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    visit("norm", self.norm);
    visit("conv", self.conv);
  }

  LayerNorm<T> norm;      ///< the norm of the gate
  DepthwiseConv<T> conv;  ///< the convolution of the gate

 private:
  double dropout_;
};

/// Computes the cgMLP (Peng et al. 2022, section 3.3), (rows, d_model) to (rows, d_model): linear, GELU, gating unit,
/// linear.
template <class T>
class ConvolutionalGatingMlp : public Module<ConvolutionalGatingMlp<T>> {
 public:
  /// Makes the layer with its initial parameters. Allocates.
  ConvolutionalGatingMlp(const EncoderConfig& c, Seed seed)
      : channel_proj1(c.d_model, units(c), seed / "channel_proj1"),
        csgu(units(c), c.conv_kernel, c.convolution, c.dropout, seed / "csgu"),
        channel_proj2(units(c) / 2, c.d_model, seed / "channel_proj2") {}

  /// Returns the channels between the linear layers.
  static constexpr Index units(const EncoderConfig& c) { return c.cgmlp_expansion * c.d_model; }
  /// Returns the trained parameters.
  static constexpr Index parameter_count(const EncoderConfig& c) {
    const Index d = c.d_model, u = units(c);
    return (d + 1) * u + u + DepthwiseConv<T>::parameter_count(u / 2, c.conv_kernel, Bias::yes) + (u / 2 + 1) * d;
  }
  /// Returns the floating-point operations for `frames` frames.
  static constexpr Index flops(const EncoderConfig& c, Index frames) {
    return 2 * frames * units(c) * (c.d_model + c.conv_kernel / 2 + c.d_model / 2);
  }

  /// Returns the output of the module. With a pointer to a state, x follows what the state holds.
  template <class Context, class Tensor, class S = std::nullptr_t>
  Tensor operator()(Context& context, const Tensor& x, const Pass<Tensor>& pass, S state = nullptr) const {
    const Tensor hidden = channel_proj1(context, x, Activation::gelu);
    return channel_proj2(context, csgu(context, hidden, pass, state));
  }

  /// Visits the parameters with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    visit("channel_proj1", self.channel_proj1);
    visit("csgu", self.csgu);
    visit("channel_proj2", self.channel_proj2);
  }

  Linear<T> channel_proj1;                 ///< from d_model to `units` channels
  ConvolutionalSpatialGatingUnit<T> csgu;  ///< the gate
  Linear<T> channel_proj2;                 ///< from half of them to d_model
};

}  // namespace LACONIC_ABI
}  // namespace laconic
