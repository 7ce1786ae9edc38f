// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/parameter.hpp>
#include <laconic/core/sequences.hpp>

namespace laconic::inline LACONIC_ABI {

/// A kernel of its own for each channel, over time, within each sequence; as many frames out as in. The kernel is
/// centred, so it sees (kernel - 1) / 2 frames to either side. No bias: a batch norm follows.
template <class T>
class DepthwiseConv : public Module<DepthwiseConv<T>> {
 public:
  DepthwiseConv(Index channels, Index kernel, Seed seed) : weight({channels, 1, kernel}) {
    require(kernel % 2 == 1, "depthwise_conv: kernel ", kernel, " given, an odd number expected");
    fill_uniform(weight, 1 / std::sqrt(static_cast<double>(kernel)), Random(seed, "weight"));
  }

  template <class Context, class Tensor>
  auto operator()(Context& context, const Tensor& x, const Sequences& sequences) const {
    return context.depthwise_conv(x, weight, nullptr, sequences, (weight.value.cols() - 1) / 2);
  }

  static void each_parameter(auto& self, auto&& visit) { visit("weight", self.weight); }

  Parameter<T> weight;
};

}  // namespace laconic
