// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cpu/kernels/simd.hpp>
#include <laconic/backend/shapes.hpp>
#include <laconic/core/compiled.hpp>
#include <laconic/core/matrix.hpp>
#include <laconic/core/random.hpp>

#include <cstdint>
#include <numbers>
#include <optional>
#include <utility>

namespace laconic {
inline namespace LACONIC_ABI {

namespace kernels {

/// Returns 2 u and its derivative by x, where GPT-2's approximation of GELU is x sigmoid(2 u): u = sqrt(2 / pi) (x +
/// 0.044715 x^3) (Hendrycks and Gimpel 2016, section 2).
template <class T>
std::pair<Batch<T>, Batch<T>> gelu_new_argument(const Batch<T>& x) {
  using B = Batch<T>;
  // Beyond these the sigmoid is 0 or 1 and the slope does not matter, but must not overflow.
  const B factor(T(2 * std::numbers::sqrt2 * std::numbers::inv_sqrtpi)), cubic(T(0.044715));
  const B limited = xsimd::select(x > B(T(1e4)), B(T(1e4)), xsimd::select(x < B(T(-1e4)), B(T(-1e4)), x));
  const B square = limited * limited;
  return {factor * limited * xsimd::fma(cubic, square, B(T(1))), factor * xsimd::fma(B(T(3)) * cubic, square, B(T(1)))};
}

/// Returns ReLU max(x, 0), SiLU x sigmoid(x), GELU x (1 + erf(x / sqrt 2)) / 2 (Hendrycks and Gimpel 2016), or GPT-2's
/// approximation of GELU, of a vector.
template <class T>
Batch<T> activate(Activation kind, const Batch<T>& x) {
  switch (kind) {
    case Activation::relu:
      return xsimd::select(x < Batch<T>(T(0)), Batch<T>(T(0)), x);  // NaN stays NaN
    case Activation::silu:
      return x * sigmoid(x);
    case Activation::gelu_new:
      return x * sigmoid(gelu_new_argument<T>(x).first);
    default:
      return Batch<T>(T(0.5)) * x * (Batch<T>(T(1)) + xsimd::erf(x * Batch<T>(T(0.5 * std::numbers::sqrt2))));
  }
}

/// Returns dy times the derivative of the activation at x.
template <class T>
Batch<T> activate_backward(Activation kind, const Batch<T>& dy, const Batch<T>& x) {
  using B = Batch<T>;
  switch (kind) {
    case Activation::relu:
      return xsimd::select(x > B(T(0)), dy, B(T(0)));
    case Activation::silu: {
      const B s = sigmoid(x);
      return dy * s * (B(T(1)) + x * (B(T(1)) - s));
    }
    case Activation::gelu_new: {
      const auto [argument, slope] = gelu_new_argument<T>(x);
      const B s = sigmoid(argument);
      return dy * s * (B(T(1)) + x * (B(T(1)) - s) * slope);
    }
    default: {
      const B cdf = B(T(0.5)) * (B(T(1)) + xsimd::erf(x * B(T(0.5 * std::numbers::sqrt2))));
      const B pdf = B(T(0.5 * std::numbers::inv_sqrtpi * std::numbers::sqrt2)) * exp<T>(B(T(-0.5)) * x * x);
      return dy * (cdf + x * pdf);
    }
  }
}

/// Applies an activation, if there is one, to each finished tile of a product (see gemm_panels).
struct ActivationEpilogue {
  std::optional<Activation> kind;  ///< the activation, or none

  /// Applies the activation to c (rows, cols), whose rows are c_stride apart.
  template <class T>
  void operator()(Index, Index, T* c, Index c_stride, Index rows, Index cols) const {
    if (!kind) return;
    for (Index r = 0; r < rows; ++r)
      map_span(
          cols, c + r * c_stride, [kind = *kind](auto a) { return activate(kind, a); }, c + r * c_stride);
  }
};

/// Computes the gated linear unit y = a sigmoid(b) (rows, cols) of x = [a, b] (rows, 2 * cols) (Dauphin et al. 2017).
/// Parallel over rows; no allocation.
template <class T>
void glu(int threads, Index rows, Index cols, const T* x, T* y) {
  parallel_blocks(threads, rows, 64, [&](Index begin, Index end) {
    for (Index r = begin; r < end; ++r)
      map_span(
          cols, y + r * cols, [](auto a, auto b) { return a * sigmoid(b); }, x + 2 * r * cols, x + (2 * r + 1) * cols);
  });
}

/// Computes the derivative dx (rows, 2 * cols) of `glu` from dy (rows, cols). Parallel over rows; no allocation.
template <class T>
void glu_backward(int threads, Index rows, Index cols, const T* dy, const T* x, T* dx) {
  parallel_blocks(threads, rows, 64, [&](Index begin, Index end) {
    for (Index r = begin; r < end; ++r) {
      const T *g = dy + r * cols, *a = x + 2 * r * cols, *b = a + cols;
      map_span(
          cols, dx + 2 * r * cols, [](auto d, auto q) { return d * sigmoid(q); }, g, b);
      map_span(
          cols, dx + (2 * r + 1) * cols,
          [](auto d, auto p, auto q) {
            const auto s = sigmoid(q);
            return d * p * s * (decltype(s)(T(1)) - s);
          },
          g, a, b);
    }
  });
}

/// Adds the column sums of x (rows, cols) to `sum` (cols). The order of each sum is fixed, whatever the number of
/// threads. Parallel over columns; no allocation.
template <class T>
void add_column_sums(int threads, Index rows, Index cols, const T* x, T* sum) {
  constexpr Index width = 4 * lanes<T>;
  parallel_blocks(threads, cols, width, [&](Index begin, Index end) {
    Local<T, width> total = {};
    for (Index r = 0; r < rows; ++r)
      for (Index c = begin; c < end; ++c) total[c - begin] += x[r * cols + c];
    for (Index c = begin; c < end; ++c) sum[c] += total[c - begin];
  });
}

/// Computes y[i] = x[i] * (mask.keeps(i) ? mask.scale() : 0) for i in [0, n). Parallel over elements; no allocation.
template <class T>
void dropout(int threads, Index n, const DropoutMask& mask, const T* x, T* y) {
  parallel_blocks(threads, n, 8192, [&](Index begin, Index end) {
    mask.apply(end - begin, static_cast<std::uint64_t>(begin), x + begin, y + begin);
  });
}

LACONIC_COMPILE(glu);
LACONIC_COMPILE(glu_backward);
LACONIC_COMPILE(add_column_sums);
LACONIC_COMPILE(dropout);

}  // namespace kernels
}  // namespace LACONIC_ABI
}  // namespace laconic
