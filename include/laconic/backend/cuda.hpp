// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/attention.hpp>
#include <laconic/backend/cuda/caches.hpp>
#include <laconic/backend/cuda/convolution.hpp>
#include <laconic/backend/cuda/core.hpp>
#include <laconic/backend/cuda/elementwise.hpp>
#include <laconic/backend/cuda/linear.hpp>
#include <laconic/backend/cuda/losses.hpp>
#include <laconic/backend/cuda/norms.hpp>
#include <laconic/backend/cuda/positions.hpp>
#include <laconic/backend/cuda/training.hpp>

namespace laconic {
inline namespace LACONIC_ABI {

/// Computes on a GPU. Tensors and prepared parameters are in its memory; the host waits only where a result is read, or
/// where much is copied to the device. Each call makes the device the current one of the calling thread.
/// Models are prepared before they run. Results do not depend on the rest of a batch. One context belongs to one
/// thread. The concepts `Context`, `StreamingContext` and `TrainingContext` (backend/context.hpp) document what each
/// primitive computes.
template <class T = float>
class Cuda : public CudaCore<T>,
             public CudaLinear<T>,
             public CudaNorms<T>,
             public CudaPositions<T>,
             public CudaElementwise<T>,
             public CudaConvolution<T>,
             public CudaAttention<T>,
             public CudaCaches<T>,
             public CudaLosses<T>,
             public CudaTraining<T> {
 public:
  /// Names the type of the elements.
  using Scalar = T;
  /// Names the type of the values that primitives take and return.
  using Tensor = CudaTensor<T>;
  /// Names the type of the caches of streams.
  using Cache = CudaRowCache<T>;
  /// Names the type of a view of cached rows and the rows after them.
  using CachedRows = CudaCachedRows<T>;

  /// Says that primitives compute their forward form: dropout returns its input and batch_norm uses the running
  /// statistics.
  static constexpr bool training = false;
  /// Says that models are prepared before they run.
  static constexpr bool computes_on_host = false;

  /// Makes a context on the current device of this thread, which is the first one unless the program has chosen another
  /// (cudaSetDevice). Throws `Error` if there is none.
  Cuda() : Cuda(CudaDevice()) {}
  /// Makes a context on this device, which becomes the current one. Throws `Error` if it is not there, and for products
  /// of doubles that are to be rounded.
  explicit Cuda(const CudaDevice& device)
      : CudaCore<T>(device),
        CudaLinear<T>(core()),
        CudaNorms<T>(core()),
        CudaPositions<T>(core()),
        CudaElementwise<T>(core()),
        CudaConvolution<T>(core()),
        CudaAttention<T>(core()),
        CudaCaches<T>(core()),
        CudaLosses<T>(core()),
        CudaTraining<T>(core()) {}

 private:
  CudaCore<T>& core() { return *this; }
};

}  // namespace LACONIC_ABI
}  // namespace laconic
