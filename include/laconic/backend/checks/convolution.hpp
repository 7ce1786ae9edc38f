// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/shapes.hpp>
#include <laconic/core/parameter.hpp>

// The checks of arguments of convolutions, which all backends share. Each throws `Error` for sizes that do not fit.

namespace laconic {
inline namespace LACONIC_ABI {
namespace checks {

/// Checks the sequences in and out of a convolution, which is named.
template <class Shape>
void convolved(const char* name, const Shape& shape, const Sequences& from, const Sequences& to) {
  require(from.size() == to.size(), name, ": ", to.size(), " sequences out given for ", from.size(), " in");
  for (Index n = 0; n < from.size(); ++n)
    require(to.length(n) == shape.out_length(from.length(n)), name, ": length ", to.length(n), " out given for ",
            from.length(n), " in, ", shape.out_length(from.length(n)), " expected");
}
/// Checks the arguments of `conv1d`.
template <class Tensor, class T>
void conv1d(const Tensor& x, const Parameter<T>& weight, const Parameter<T>* bias, const Conv1dShape& shape,
            const Sequences& from, const Sequences& to) {
  require(shape.stride > 0 && weight.rows() == shape.out_channels && weight.cols() == shape.patch() &&
              (bias == nullptr || bias->size() == shape.out_channels),
          "conv1d: stride ", shape.stride, ", a weight of (", weight.rows(), ", ", weight.cols(), ") and a bias of ",
          bias == nullptr ? 0 : bias->size(), " given, a positive one, (", shape.out_channels, ", ", shape.patch(),
          ") and none or ", shape.out_channels, " expected");
  require(x.cols() == shape.in_channels && x.rows() == from.rows(), "conv1d: input is (", x.rows(), ", ", x.cols(),
          "), expected (", from.rows(), ", ", shape.in_channels, ")");
  convolved("conv1d", shape, from, to);
}
/// Checks the arguments of `conv2d`.
template <class Tensor, class T>
void conv2d(const Tensor& x, const Parameter<T>& weight, const Parameter<T>& bias, const Conv2dShape& shape,
            const Sequences& from, const Sequences& to) {
  require(shape.stride > 0 && weight.rows() == shape.out_channels && weight.cols() == shape.patch() &&
              bias.size() == shape.out_channels,
          "conv2d: stride ", shape.stride, ", a weight of (", weight.rows(), ", ", weight.cols(), ") and a bias of ",
          bias.size(), " given, a positive one, (", shape.out_channels, ", ", shape.patch(), ") and ",
          shape.out_channels, " expected");
  require(x.cols() == shape.in_cols() && x.rows() == from.rows(), "conv2d: input is (", x.rows(), ", ", x.cols(),
          "), expected (", from.rows(), ", ", shape.in_cols(), ")");
  convolved("conv2d", shape, from, to);
}
/// Checks the arguments of `depthwise_conv`.
template <class Tensor, class T>
void depthwise_conv(const Tensor& x, const Parameter<T>& weight, const Parameter<T>* bias, const Sequences& sequences,
                    const DepthwiseShape& shape) {
  const Index channels = weight.rows();
  require(x.cols() == channels && x.rows() == sequences.rows(), "depthwise_conv: input is (", x.rows(), ", ", x.cols(),
          "), expected (", sequences.rows(), ", ", channels, ")");
  require(bias == nullptr || bias->size() == channels, "depthwise_conv: a bias of ", bias == nullptr ? 0 : bias->size(),
          " given for ", channels, " channels");
  require((shape.chunk == Mask::unlimited || shape.chunk > 0) && shape.past >= 0, "depthwise_conv: chunk ", shape.chunk,
          " and past ", shape.past, " given, at least 1 and 0 expected");
  for (Index n = 0; shape.past > 0 && n < sequences.size(); ++n)
    require(sequences.length(n) >= shape.past, "depthwise_conv: sequence ", n, " has ", sequences.length(n),
            " rows, at least ", shape.past, " expected");
}
/// Checks the shape of `depthwise_conv_backward`.
inline void depthwise_conv_backward(const DepthwiseShape& shape) {
  require(shape.past == 0, "depthwise_conv: its derivative is known for whole sequences only, ", shape.past,
          " past rows given");
}

}  // namespace checks
}  // namespace LACONIC_ABI
}  // namespace laconic
