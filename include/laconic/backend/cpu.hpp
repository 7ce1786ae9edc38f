// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cpu/attention.hpp>
#include <laconic/backend/cpu/caches.hpp>
#include <laconic/backend/cpu/convolution.hpp>
#include <laconic/backend/cpu/core.hpp>
#include <laconic/backend/cpu/elementwise.hpp>
#include <laconic/backend/cpu/linear.hpp>
#include <laconic/backend/cpu/losses.hpp>
#include <laconic/backend/cpu/norms.hpp>
#include <laconic/backend/cpu/positions.hpp>
#include <laconic/backend/cpu/training.hpp>

namespace laconic {
inline namespace LACONIC_ABI {

/// Computes on the CPU: kernels with xsimd, threads of the process, tensors in an arena, so that a warm forward pass
/// allocates nothing. It accepts parameters on the host and those that it has prepared itself. Results do not depend on
/// the number of threads. One context belongs to one thread. The concepts `Context`, `StreamingContext` and
/// `TrainingContext` (backend/context.hpp) document what each primitive computes.
template <class T = float>
class Cpu : public CpuCore<T>,
            public CpuLinear<T>,
            public CpuNorms<T>,
            public CpuPositions<T>,
            public CpuElementwise<T>,
            public CpuConvolution<T>,
            public CpuAttention<T>,
            public CpuCaches<T>,
            public CpuLosses<T>,
            public CpuTraining<T> {
 public:
  /// Names the type of the elements.
  using Scalar = T;
  /// Names the type of the values that primitives take and return.
  using Tensor = laconic::Tensor<T>;
  /// Names the type of the caches of streams.
  using Cache = RowCache<T>;
  /// Names the type of a view of cached rows and the rows after them.
  using CachedRows = laconic::CachedRows<T>;

  /// Says that primitives compute their forward form: dropout returns its input and batch_norm uses the running
  /// statistics.
  static constexpr bool training = false;
  /// Says that primitives accept parameters that are on the host.
  static constexpr bool computes_on_host = true;

  /// Makes a context with `threads` threads; 0 takes all that the machine offers. Throws `Error` unless 0 <= threads <=
  /// 4096.
  explicit Cpu(int threads = 0)
      : CpuCore<T>(threads),
        CpuLinear<T>(core()),
        CpuNorms<T>(core()),
        CpuPositions<T>(core()),
        CpuElementwise<T>(core()),
        CpuConvolution<T>(core()),
        CpuAttention<T>(core()),
        CpuCaches<T>(core()),
        CpuLosses<T>(core()),
        CpuTraining<T>(core()) {}

 private:
  CpuCore<T>& core() { return *this; }
};

}  // namespace LACONIC_ABI
}  // namespace laconic
