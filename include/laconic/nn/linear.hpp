// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/shapes.hpp>
#include <laconic/core/parameter.hpp>

namespace laconic {
inline namespace LACONIC_ABI {

/// Whether a layer has a bias.
enum class Bias { no, yes };

/// y = x W^T + b for every row: (rows, in) to (rows, out). Also a convolution of kernel 1 over time, whose weight is
/// stored as `(out, in, 1)`. Initial values as PyTorch's: uniform within 1/sqrt(in).
template <class T>
class Linear : public Module<Linear<T>> {
 public:
  Linear() = default;
  Linear(Index in, Index out, Seed seed, Bias with_bias = Bias::yes) : Linear({out, in}, seed, with_bias) {}
  static Linear pointwise_conv(Index in, Index out, Seed seed) { return Linear({out, in, 1}, seed, Bias::no); }

  Index in() const { return weight.cols(); }
  Index out() const { return weight.rows(); }
  bool has_bias() const { return bias.size() > 0; }
  const Parameter<T>* bias_or_null() const { return has_bias() ? &bias : nullptr; }

  template <class Context, class Tensor>
  auto operator()(Context& context, const Tensor& x) const {
    return context.linear(x, weight, bias_or_null());
  }
  /// With an activation on top.
  template <class Context, class Tensor>
  auto operator()(Context& context, const Tensor& x, Activation activation) const {
    return context.linear(x, weight, bias_or_null(), activation);
  }

  static void each_parameter(auto& self, auto&& visit) {
    visit("weight", self.weight);
    if (self.has_bias()) visit("bias", self.bias);
  }

  Parameter<T> weight, bias;

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
