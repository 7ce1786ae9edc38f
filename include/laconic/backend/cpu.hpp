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
#include <laconic/backend/cpu/training.hpp>

namespace laconic {
inline namespace LACONIC_ABI {

/// The context that computes on the CPU: kernels by xsimd, threads by OpenMP, tensors in an arena (a warm forward pass
/// allocates nothing). It computes with parameters on the host and with those that it was asked to `prepare`. Results
/// do not depend on the number of threads. One context belongs to one thread. What each primitive computes is
/// documented at the concepts `Context`, `StreamingContext` and `TrainingContext` (backend/context.hpp).
template <class T = float>
class Cpu : public CpuCore<T>,
            public CpuLinear<T>,
            public CpuNorms<T>,
            public CpuElementwise<T>,
            public CpuConvolution<T>,
            public CpuAttention<T>,
            public CpuCaches<T>,
            public CpuLosses<T>,
            public CpuTraining<T> {
 public:
  using Scalar = T;
  using Tensor = laconic::Tensor<T>;
  using Cache = RowCache<T>;
  using CachedRows = laconic::CachedRows<T>;

  /// A primitive computes its forward form: dropout does nothing, batch norm uses the running statistics.
  static constexpr bool training = false;
  /// Parameters on the host can be computed with as they are.
  static constexpr bool computes_on_host = true;

  /// Makes a context with `threads` threads; 0 takes all that the machine offers. Throws `Error` for a number that no
  /// machine has.
  explicit Cpu(int threads = 0)
      : CpuCore<T>(threads),
        CpuLinear<T>(core()),
        CpuNorms<T>(core()),
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
