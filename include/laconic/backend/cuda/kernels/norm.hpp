// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/block.hpp>

#include <cmath>

// Norms of rows and their derivatives. A block computes a row, so a row depends on no other.

namespace laconic {
inline namespace LACONIC_ABI {
namespace cuda {

/// Returns the sum of f(i) for i in [0, size), in every thread.
template <class T, class F>
LACONIC_DEVICE T sum_over(Block& block, Index size, F f) {
  PerThread<T> part(block);
  block.each([&](int t) {
    T sum = 0;
    for (Index i = t; i < size; i += block.threads()) sum += f(i);
    part[t] = sum;
  });
  return block.sum(part);
}

/// Computes y = (x - mean) / sqrt(variance + eps) * weight + bias for each row of x (rows, cols) (Ba et al. 2016).
/// weight and bias (cols). Writes mean and 1/std of each row to moments (rows, 2) unless it is null.
template <class T>
struct LayerNorm {
  static constexpr int threads = 128;
  const T *x, *weight, *bias;
  T *y, *moments;
  Index cols;
  T eps;
  LACONIC_DEVICE void operator()(Block& block) const {
    const T* from = x + block.x() * cols;
    T* to = y + block.x() * cols;
    const T n = static_cast<T>(cols);
    const T mean = sum_over<T>(block, cols, [&](Index c) { return from[c]; }) / n;
    const T square = sum_over<T>(block, cols, [&](Index c) { return (from[c] - mean) * (from[c] - mean); });
    const T inverse = T(1) / std::sqrt(square / n + eps);
    block.each([&](int t) {
      for (Index c = t; c < cols; c += threads) to[c] = (from[c] - mean) * inverse * weight[c] + bias[c];
    });
    if (moments == nullptr) return;
    block.one([&] {
      moments[2 * block.x()] = mean;
      moments[2 * block.x() + 1] = inverse;
    });
  }
};

/// Computes dx (rows, cols) of `LayerNorm` from dy (rows, cols).
template <class T>
struct LayerNormBackward {
  static constexpr int threads = 128;
  const T *dy, *x, *weight, *moments;
  T* dx;
  Index cols;
  LACONIC_DEVICE void operator()(Block& block) const {
    const T *g = dy + block.x() * cols, *from = x + block.x() * cols;
    T* to = dx + block.x() * cols;
    const T n = static_cast<T>(cols), mean = moments[2 * block.x()], inverse = moments[2 * block.x() + 1];
    const T sum = sum_over<T>(block, cols, [&](Index c) { return g[c] * weight[c]; }) / n;
    const T dot = sum_over<T>(block, cols, [&](Index c) { return g[c] * weight[c] * (from[c] - mean) * inverse; }) / n;
    block.each([&](int t) {
      for (Index c = t; c < cols; c += threads)
        to[c] = inverse * (g[c] * weight[c] - sum - (from[c] - mean) * inverse * dot);
    });
  }
};

/// Computes y = x / sqrt(mean(x^2) + eps) * weight for each row of x (rows, cols) (Zhang and Sennrich 2019). weight
/// (cols). Writes 1/rms of each row to inverses (rows) unless it is null.
template <class T>
struct RmsNorm {
  static constexpr int threads = 128;
  const T *x, *weight;
  T *y, *inverses;
  Index cols;
  T eps;
  LACONIC_DEVICE void operator()(Block& block) const {
    const T* from = x + block.x() * cols;
    T* to = y + block.x() * cols;
    const T square = sum_over<T>(block, cols, [&](Index c) { return from[c] * from[c]; });
    const T inverse = T(1) / std::sqrt(square / static_cast<T>(cols) + eps);
    block.each([&](int t) {
      for (Index c = t; c < cols; c += threads) to[c] = from[c] * inverse * weight[c];
    });
    if (inverses != nullptr) block.one([&] { inverses[block.x()] = inverse; });
  }
};

/// Computes dx (rows, cols) of `RmsNorm` from dy (rows, cols).
template <class T>
struct RmsNormBackward {
  static constexpr int threads = 128;
  const T *dy, *x, *weight, *inverses;
  T* dx;
  Index cols;
  LACONIC_DEVICE void operator()(Block& block) const {
    const T *g = dy + block.x() * cols, *from = x + block.x() * cols, inverse = inverses[block.x()];
    T* to = dx + block.x() * cols;
    const T dot = sum_over<T>(block, cols, [&](Index c) { return g[c] * weight[c] * from[c]; }) / static_cast<T>(cols);
    const T along = dot * inverse * inverse * inverse;
    block.each([&](int t) {
      for (Index c = t; c < cols; c += threads) to[c] = g[c] * weight[c] * inverse - from[c] * along;
    });
  }
};

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
