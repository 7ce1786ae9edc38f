// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/version.hpp>

#include <concepts>

namespace laconic {
inline namespace LACONIC_ABI {

/// Says how queries score keys. There are two, since each is a primitive of every backend.
template <class P>
concept ScorePolicy = requires {
  { P::is_linear } -> std::convertible_to<bool>;
};

/// Scores keys by softmax of scaled products (Vaswani et al. 2017, equation 1).
struct Softmax {
  static constexpr bool is_linear = false;  ///< all keys are read again for every query
};

/// Scores keys by products of features elu + 1, without softmax, so that the past is a state of fixed size
/// (Katharopoulos et al. 2020). The state cannot forget: a mask with a limited left context is refused.
struct LinearKernel {
  static constexpr bool is_linear = true;  ///< the past is a state of fixed size
};

}  // namespace LACONIC_ABI
}  // namespace laconic
