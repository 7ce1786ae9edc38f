// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/tensor.hpp>

namespace laconic {
inline namespace LACONIC_ABI {

/// Holds a value of a computation on a GPU: a contiguous row-major matrix (rows, cols) in a block of an arena of device
/// memory. Copies share the block. The host can hold its address and not read it.
template <class T>
class CudaTensor : private Tensor<T> {
 public:
  using Scalar = T;  ///< the type of an element

  /// Makes an empty tensor, or takes an uninitialised block (rows, cols) of an arena of device memory. Throws `Error`
  /// for a negative size or one beyond the address space.
  using Tensor<T>::Tensor;

  using Tensor<T>::rows;
  using Tensor<T>::cols;
  using Tensor<T>::size;
  using Tensor<T>::empty;
  using Tensor<T>::unique;
  using Tensor<T>::data;
  using Tensor<T>::row;
};

}  // namespace LACONIC_ABI
}  // namespace laconic
