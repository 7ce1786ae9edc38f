// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/shapes.hpp>
#include <laconic/core/parameter.hpp>

namespace laconic {
inline namespace LACONIC_ABI {

/// Says whether a layer has a bias.
enum class Bias {
  no,  ///< without
  yes  ///< with
};

/// Computes y = x W^T + b for every row, (rows, in) to (rows, out). A convolution of kernel 1 over time is the same
/// with a weight stored as `(out, in, 1)`. Initial values are PyTorch's: uniform within 1/sqrt(in).
template <class T>
class Linear : public Module<Linear<T>> {
 public:
  /// Makes an empty layer, without parameters.
  Linear() = default;
  /// Makes the layer with its initial parameters. Allocates.
  Linear(Index in, Index out, Seed seed, Bias with_bias = Bias::yes) : Linear({out, in}, seed, with_bias) {}
  /// Makes a convolution of kernel 1 without bias. Allocates.
  static Linear pointwise_conv(Index in, Index out, Seed seed) { return Linear({out, in, 1}, seed, Bias::no); }

  /// Returns the input channels.
  Index in() const { return weight.cols(); }
  /// Returns the output channels.
  Index out() const { return weight.rows(); }
  /// Returns whether the layer has a bias.
  bool has_bias() const { return bias.size() > 0; }
  /// Returns the bias, or null.
  const Parameter<T>* bias_or_null() const { return has_bias() ? &bias : nullptr; }

  /// Returns x W^T + b.
  template <class Context, class Tensor>
  auto operator()(Context& context, const Tensor& x) const {
    return context.linear(x, weight, bias_or_null());
  }
  /// Returns the activation of x W^T + b.
  template <class Context, class Tensor>
  auto operator()(Context& context, const Tensor& x, Activation activation) const {
    return context.linear(x, weight, bias_or_null(), activation);
  }

  /// Visits the parameters with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    visit("weight", self.weight);
    if (self.has_bias()) visit("bias", self.bias);
  }

  Parameter<T> weight;  ///< (out, in), or (out, in, 1)
  Parameter<T> bias;    ///< (out), or empty

 private:
  Linear(std::initializer_list<Index> shape, Seed seed, Bias with_bias) : weight(shape) {
    const double bound = 1 / std::sqrt(static_cast<double>(in()));
    weight.use = WeightUse::linear;
    fill_uniform(weight, bound, Random(seed, "weight"));
    if (with_bias == Bias::yes) {
      bias = Parameter<T>({out()});
      fill_uniform(bias, bound, Random(seed, "bias"));
    }
  }
};

/// Says that single heads multiply by the weights of these layers, too (`head_linear`).
template <class... Layers>
void used_by_heads(Layers&... layers) {
  ((layers.weight.use = WeightUse::heads), ...);
}

}  // namespace LACONIC_ABI
}  // namespace laconic
