// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/parameter.hpp>

#include <cstddef>
#include <span>

// The checks of arguments of the updates of parameters, which all backends share. Each throws `Error` for sizes that do
// not fit.

namespace laconic {
inline namespace LACONIC_ABI {
namespace checks {

/// Checks that there are as many values as these parameters have elements.
template <class T>
void gradients(std::span<const Parameter<T>* const> parameters, std::size_t values) {
  Index elements = 0;
  for (const Parameter<T>* p : parameters) elements += p->size();
  require(static_cast<Index>(values) == elements, "gradients: ", values, " values given, ", elements, " expected");
}
/// Checks the arguments of `copy_values`.
template <class T>
void copy_values(const Parameter<T>& from, const Parameter<T>& to) {
  require(from.shape() == to.shape(), "copy_values: a parameter of (", from.rows(), ", ", from.cols(), ") given, (",
          to.rows(), ", ", to.cols(), ") expected");
}

}  // namespace checks
}  // namespace LACONIC_ABI
}  // namespace laconic
