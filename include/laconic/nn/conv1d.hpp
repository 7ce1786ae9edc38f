// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/shapes.hpp>
#include <laconic/core/parameter.hpp>
#include <laconic/nn/linear.hpp>

namespace laconic {
inline namespace LACONIC_ABI {

/// Convolves over time without padding: (rows, in) to (fewer rows, out).
template <class T>
class Conv1d : public Module<Conv1d<T>> {
 public:
  /// Makes the layer with its initial parameters. Allocates.
  Conv1d(const Conv1dShape& shape, Seed seed, Bias with_bias)
      : weight({shape.out_channels, shape.in_channels, shape.kernel}), shape_(shape) {
    weight.use = WeightUse::conv1d;
    const double bound = 1 / std::sqrt(static_cast<double>(shape.patch()));
    fill_uniform(weight, bound, Random(seed, "weight"));
    if (with_bias == Bias::yes) {
      bias = Parameter<T>({shape.out_channels});
      fill_uniform(bias, bound, Random(seed, "bias"));
    }
  }
  /// Returns the shape.
  const Conv1dShape& shape() const { return shape_; }

  /// Returns the convolution of the sequences `from`, whose lengths become those of `to`.
  template <class Context, class Tensor>
  auto operator()(Context& context, const Tensor& x, const Sequences& from, const Sequences& to) const {
    return context.conv1d(x, weight, bias.size() > 0 ? &bias : nullptr, shape_, from, to);
  }

  /// Visits the parameters with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    visit("weight", self.weight);
    if (self.bias.size() > 0) visit("bias", self.bias);
  }

  Parameter<T> weight;  ///< (out, in, kernel)
  Parameter<T> bias;    ///< (out), or empty

 private:
  Conv1dShape shape_;
};

}  // namespace LACONIC_ABI
}  // namespace laconic
