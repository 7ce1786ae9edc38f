// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include "cpu_with.hpp"

// Needs an installed BLAS with the C interface, and a program that links it.
#if __has_include(<cblas.h>)
#include <cblas.h>

#include <type_traits>

namespace laconic {
inline namespace LACONIC_ABI {

/// Computes products with an installed BLAS (OpenBLAS, BLIS, MKL ...), for `CpuWith`. The library sets its number of
/// threads itself.
struct CblasProducts {
  template <class T>
  static void add_product(int, Index m, Index n, Index k, kernels::Operand<T> a, kernels::Operand<T> b, T* c,
                          Index c_stride) {
    static_assert(std::is_same_v<T, float> || std::is_same_v<T, double>);
    const auto call = [&](auto gemm) {
      gemm(CblasRowMajor, transposed(a), transposed(b), static_cast<int>(m), static_cast<int>(n), static_cast<int>(k),
           T(1), a.data, stride(a), b.data, stride(b), T(1), c, static_cast<int>(c_stride));
    };
    if constexpr (std::is_same_v<T, float>)
      call(cblas_sgemm);
    else
      call(cblas_dgemm);
  }

 private:
  template <class T>
  static CBLAS_TRANSPOSE transposed(kernels::Operand<T> x) {
    return x.col_stride == 1 ? CblasNoTrans : CblasTrans;
  }
  template <class T>
  static int stride(kernels::Operand<T> x) {
    return static_cast<int>(x.col_stride == 1 ? x.row_stride : x.col_stride);
  }
};

}  // namespace LACONIC_ABI
}  // namespace laconic
#endif
