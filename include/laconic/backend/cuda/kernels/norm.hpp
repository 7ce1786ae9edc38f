// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/kernels/held_rows.hpp>

#include <cmath>

// Norms of rows and their derivatives. A block computes a row, so a row depends on no other.

namespace laconic {
inline namespace LACONIC_ABI {
namespace cuda {

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
    HeldRows<T, threads, 8> from(block, cols, x + block.x() * cols);
    T* to = y + block.x() * cols;
    const T n = static_cast<T>(cols);
    const T mean = from.sum([](T v) { return v; }) / n;
    const T square = from.sum([&](T v) { return (v - mean) * (v - mean); });
    const T inverse = T(1) / std::sqrt(square / n + eps);
    block.each([&](int t) {
      from.each(t, [&](Index c, const auto& v) {
        const Vector<T> w = load_within(weight, c, cols), b = load_within(bias, c, cols);
        Vector<T> out;
        LACONIC_UNROLL_DEVICE
        for (int k = 0; k < vector_size<T>; ++k) out[k] = (v[0][k] - mean) * inverse * w[k] + b[k];
        store_within(to, c, cols, out);
      });
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
    HeldRows<T, threads, 4, 2> from(block, cols, dy + block.x() * cols, x + block.x() * cols);
    T* to = dx + block.x() * cols;
    const T n = static_cast<T>(cols), mean = moments[2 * block.x()], inverse = moments[2 * block.x() + 1];
    PerThread<T> sums(block), dots(block);
    block.each([&](int t) {
      T sum_of_thread = 0, dot_of_thread = 0;
      from.each(t, [&](Index c, const auto& v) {
        const Vector<T> w = load_within(weight, c, cols);
        LACONIC_UNROLL_DEVICE
        for (int k = 0; k < vector_size<T>; ++k) {
          sum_of_thread += v[0][k] * w[k];
          dot_of_thread += v[0][k] * w[k] * (v[1][k] - mean) * inverse;
        }
      });
      sums[t] = sum_of_thread;
      dots[t] = dot_of_thread;
    });
    const T sum = block.sum(sums) / n, dot = block.sum(dots) / n;
    block.each([&](int t) {
      from.each(t, [&](Index c, const auto& v) {
        const Vector<T> w = load_within(weight, c, cols);
        Vector<T> out;
        LACONIC_UNROLL_DEVICE
        for (int k = 0; k < vector_size<T>; ++k)
          out[k] = inverse * (v[0][k] * w[k] - sum - (v[1][k] - mean) * inverse * dot);
        store_within(to, c, cols, out);
      });
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
    HeldRows<T, threads, 8> from(block, cols, x + block.x() * cols);
    T* to = y + block.x() * cols;
    const T square = from.sum([](T v) { return v * v; });
    const T inverse = T(1) / std::sqrt(square / static_cast<T>(cols) + eps);
    block.each([&](int t) {
      from.each(t, [&](Index c, const auto& v) {
        const Vector<T> w = load_within(weight, c, cols);
        Vector<T> out;
        LACONIC_UNROLL_DEVICE
        for (int k = 0; k < vector_size<T>; ++k) out[k] = v[0][k] * inverse * w[k];
        store_within(to, c, cols, out);
      });
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
    HeldRows<T, threads, 4, 2> from(block, cols, dy + block.x() * cols, x + block.x() * cols);
    const T inverse = inverses[block.x()];
    T* to = dx + block.x() * cols;
    PerThread<T> dots(block);
    block.each([&](int t) {
      T dot = 0;
      from.each(t, [&](Index c, const auto& v) {
        const Vector<T> w = load_within(weight, c, cols);
        LACONIC_UNROLL_DEVICE
        for (int k = 0; k < vector_size<T>; ++k) dot += v[0][k] * w[k] * v[1][k];
      });
      dots[t] = dot;
    });
    const T along = block.sum(dots) / static_cast<T>(cols) * inverse * inverse * inverse;
    block.each([&](int t) {
      from.each(t, [&](Index c, const auto& v) {
        const Vector<T> w = load_within(weight, c, cols);
        Vector<T> out;
        LACONIC_UNROLL_DEVICE
        for (int k = 0; k < vector_size<T>; ++k) out[k] = v[0][k] * w[k] * inverse - v[1][k] * along;
        store_within(to, c, cols, out);
      });
    });
  }
};

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
