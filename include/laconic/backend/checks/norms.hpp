// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/shapes.hpp>
#include <laconic/core/parameter.hpp>

// The checks of arguments of norms, which all backends share. Each throws `Error` for sizes that do not fit.

namespace laconic {
inline namespace LACONIC_ABI {
namespace checks {

/// Checks the arguments of `layer_norm`.
template <class Tensor, class T>
void layer_norm(const Tensor& x, const Parameter<T>& weight, const Parameter<T>& bias) {
  require(x.cols() == weight.size() && x.cols() == bias.size(), "layer_norm: input has ", x.cols(),
          " channels, weight and bias expect ", weight.size(), " and ", bias.size());
}
/// Checks the arguments of `rms_norm`.
template <class Tensor, class T>
void rms_norm(const Tensor& x, const Parameter<T>& weight) {
  require(x.cols() == weight.size(), "rms_norm: input has ", x.cols(), " channels, the weight expects ", weight.size());
}
/// Checks the arguments of `batch_norm`.
template <class Tensor, class T>
void batch_norm(const Tensor& x, const BatchNormParameters<T>& p) {
  for (const Parameter<T>* one : {&p.weight, &p.bias, &p.running_mean, &p.running_var})
    require(one->size() == x.cols(), "batch_norm: input has ", x.cols(), " channels, a parameter expects ",
            one->size());
}
/// Checks the arguments of `sequence_norm`.
template <class Tensor, class T>
void sequence_norm(const Tensor& x, const Parameter<T>& weight, const Parameter<T>& bias, const Sequences& sequences) {
  require(x.cols() == weight.size() && x.cols() == bias.size() && x.rows() == sequences.rows(),
          "sequence_norm: input is (", x.rows(), ", ", x.cols(), "), expected (", sequences.rows(), ", ", weight.size(),
          ")");
}

}  // namespace checks
}  // namespace LACONIC_ABI
}  // namespace laconic
