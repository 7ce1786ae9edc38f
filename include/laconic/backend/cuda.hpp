// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/attention.hpp>
#include <laconic/backend/cuda/core.hpp>
#include <laconic/backend/cuda/elementwise.hpp>

namespace laconic {
inline namespace LACONIC_ABI {

/// Computes on a GPU. Tensors and prepared parameters are in its memory; the host waits only where a result is read.
/// Models are prepared before they run. Results do not depend on the rest of a batch. One context belongs to one
/// thread. The concepts `Context`, `StreamingContext` and `TrainingContext` (backend/context.hpp) document what each
/// primitive computes.
template <class T = float>
class Cuda : public CudaCore<T>, public CudaElementwise<T>, public CudaAttention<T> {
 public:
  /// Names the type of the elements.
  using Scalar = T;
  /// Names the type of the values that primitives take and return.
  using Tensor = CudaTensor<T>;

  /// Says that primitives compute their forward form: dropout returns its input and batch_norm uses the running
  /// statistics.
  static constexpr bool training = false;
  /// Says that models are prepared before they run.
  static constexpr bool computes_on_host = false;

  /// Makes a context on the device of this number. Throws `Error` if there is none.
  explicit Cuda(int device = 0) : CudaCore<T>(device), CudaElementwise<T>(core()), CudaAttention<T>(core()) {}

 private:
  CudaCore<T>& core() { return *this; }
};

}  // namespace LACONIC_ABI
}  // namespace laconic
