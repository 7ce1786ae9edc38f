// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/arena.hpp>
#include <laconic/core/tensor.hpp>

#include <utility>

namespace laconic {
inline namespace LACONIC_ABI {

namespace cuda {

/// Holds numbers of the host that were copied to the device. Nobody changes them there. Those of a replayed pass are
/// there until the next one begins.
template <class V>
class Uploaded {
 public:
  /// Makes an empty list.
  Uploaded() = default;
  /// Refers to numbers in memory of the device.
  Uploaded(Buffer memory, const void* values) : memory_(std::move(memory)), values_(static_cast<const V*>(values)) {}
  /// Returns the first number, on the device, or null.
  const V* data() const { return values_; }

 private:
  Buffer memory_{};  // keeps the numbers
  const V* values_ = nullptr;
};

}  // namespace cuda

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
