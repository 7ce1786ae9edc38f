// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/parameter.hpp>
#include <laconic/nn/linear.hpp>
#include <laconic/nn/pass.hpp>

namespace laconic {
inline namespace LACONIC_ABI {

/// Names the frames that a convolution over time sees.
enum class ConvolutionContext {
  centred,  ///< as many before as after; cannot be streamed
  causal,   ///< none after
  chunk     ///< as centred, but none after the end of the own chunk (Li et al. 2023, "Dynamic chunk convolution")
};
/// Lists the names as configurations spell them.
constexpr auto enum_names(ConvolutionContext) {
  return std::to_array<EnumName<ConvolutionContext>>({{ConvolutionContext::centred, "centred"},
                                                      {ConvolutionContext::causal, "causal"},
                                                      {ConvolutionContext::chunk, "chunk"}});
}

/// Convolves each channel of each sequence over time by a kernel of its own: (rows, channels) to (rows, channels).
template <class T>
class DepthwiseConv : public Module<DepthwiseConv<T>> {
 public:
  /// Makes the layer with its initial parameters. Allocates. Throws Error for an even kernel.
  DepthwiseConv(Index channels, Index kernel, ConvolutionContext sees, Seed seed, Bias with_bias = Bias::no)
      : weight({channels, 1, kernel}), sees_(sees) {
    require(kernel % 2 == 1, "depthwise_conv: kernel ", kernel, " given, an odd number expected");
    const double bound = 1 / std::sqrt(static_cast<double>(kernel));
    fill_uniform(weight, bound, Random(seed, "weight"));
    if (with_bias == Bias::yes) {
      bias = Parameter<T>({channels});
      fill_uniform(bias, bound, Random(seed, "bias"));
    }
  }
  /// Returns the trained parameters.
  static constexpr Index parameter_count(Index channels, Index kernel, Bias with_bias = Bias::no) {
    return channels * (kernel + (with_bias == Bias::yes ? 1 : 0));
  }

  /// Returns the frames that an output sees before its own.
  Index left() const { return sees_ == ConvolutionContext::causal ? weight.cols() - 1 : (weight.cols() - 1) / 2; }

  /// Holds the last `left()` frames of every stream, zeros before its first one. Takes memory at construction only.
  template <class Context>
  class State {
   public:
    /// Makes the state of `shape.slots` streams. Allocates.
    State(Context& context, const DepthwiseConv& conv, const StateShape& shape)
        : cache_(context.make_cache(shape.slots, conv.left(), conv.weight.rows())) {}
    /// Empties a slot for a new stream.
    void clear(Context& context, Index slot) { context.fill_zeros(cache_, slot); }
    /// Returns the bytes that the cache holds, all slots.
    Index cache_bytes() const { return cache_.bytes(); }

   private:
    friend DepthwiseConv;
    typename Context::Cache cache_;
  };

  /// Returns the convolution of x (rows, channels). With a pointer to a state, x follows what the state holds. Throws
  /// Error for a centred convolution under a mask of chunks.
  template <class Context, class Tensor, class S = std::nullptr_t>
  Tensor operator()(Context& context, const Tensor& x, const Pass<Tensor>& pass, S state = nullptr) const {
    const Parameter<T>* b = bias.size() > 0 ? &bias : nullptr;
    require(sees_ != ConvolutionContext::centred || pass.mask.chunk == Mask::unlimited,
            "depthwise_conv: a centred convolution sees beyond its chunk; under a mask of chunks, causal or chunk is "
            "expected");
    DepthwiseShape shape{left(), sees_ == ConvolutionContext::chunk ? pass.mask.chunk : Mask::unlimited, 0};
    if constexpr (has_state<S>) {
      const auto extended = context.extend(state->cache_, pass.slots, x, pass.sequences);
      shape.past = left();
      return context.depthwise_conv(extended.rows, weight, b, extended.sequences, shape);
    } else {
      return context.depthwise_conv(x, weight, b, pass.sequences, shape);
    }
  }

  /// Visits the parameters with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    visit("weight", self.weight);
    if (self.bias.size() > 0) visit("bias", self.bias);
  }

  Parameter<T> weight;  ///< (channels, 1, kernel)
  Parameter<T> bias;    ///< (channels), or empty

 private:
  ConvolutionContext sees_;
};

}  // namespace LACONIC_ABI
}  // namespace laconic
