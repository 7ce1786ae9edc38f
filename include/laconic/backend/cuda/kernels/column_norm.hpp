// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/kernels/columns.hpp>

#include <cmath>

// The terms of sums over rows that norms need, and norms of columns (see kernels/columns.hpp). A group is a sequence,
// or all rows. Mean and variance of group n are rows of `stride` elements.

namespace laconic {
inline namespace LACONIC_ABI {
namespace cuda {

/// Adds the elements of x (rows, cols), for means.
template <class T>
struct Values {
  static constexpr int sums = 1, together = vector_size<T>;
  const T* x;
  Index cols;
  LACONIC_DEVICE void operator()(Index, Index c, Index row, Index end, Index step,
                                 Vector<double, together>* sum) const {
    for (; row < end; row += step) {
      const Vector<T> v = load_within(x + row * cols, c, cols);
      LACONIC_UNROLL_DEVICE
      for (int k = 0; k < together; ++k) sum[0][k] += static_cast<double>(v[k]);
    }
  }
};
/// Adds the squared distances of x (rows, cols) to the mean of its group, for variances.
template <class T>
struct SquaredDistances {
  static constexpr int sums = 1, together = vector_size<T>;
  const T *x, *mean;
  Index cols, stride;
  LACONIC_DEVICE void operator()(Index n, Index c, Index row, Index end, Index step,
                                 Vector<double, together>* sum) const {
    const Vector<T> middle = load_within(mean + n * stride, c, cols);
    for (; row < end; row += step) {
      const Vector<T> v = load_within(x + row * cols, c, cols);
      LACONIC_UNROLL_DEVICE
      for (int k = 0; k < together; ++k) {
        const T d = v[k] - middle[k];
        sum[0][k] += static_cast<double>(d * d);
      }
    }
  }
};

/// Adds dy and dy * (x - mean) / std, both (rows, cols), with moments (rows, 2) of each row: the derivatives of
/// `LayerNorm` by bias and weight.
template <class T>
struct LayerNormTerms {
  static constexpr int sums = 2, together = vector_size<T>;
  const T *dy, *x, *moments;
  Index cols;
  LACONIC_DEVICE void operator()(Index, Index c, Index row, Index end, Index step,
                                 Vector<double, together>* sum) const {
    for (; row < end; row += step) {
      const Vector<T> d = load_within(dy + row * cols, c, cols), v = load_within(x + row * cols, c, cols);
      const T mean = moments[2 * row], inverse = moments[2 * row + 1];
      LACONIC_UNROLL_DEVICE
      for (int k = 0; k < together; ++k) {
        sum[0][k] += static_cast<double>(d[k]);
        sum[1][k] += static_cast<double>(d[k] * (v[k] - mean) * inverse);
      }
    }
  }
};
/// Adds dy * x / rms, with 1/rms of each row (rows): the derivative of `RmsNorm` by its weight.
template <class T>
struct RmsNormTerms {
  static constexpr int sums = 1, together = vector_size<T>;
  const T *dy, *x, *inverses;
  Index cols;
  LACONIC_DEVICE void operator()(Index, Index c, Index row, Index end, Index step,
                                 Vector<double, together>* sum) const {
    for (; row < end; row += step) {
      const Vector<T> d = load_within(dy + row * cols, c, cols), v = load_within(x + row * cols, c, cols);
      LACONIC_UNROLL_DEVICE
      for (int k = 0; k < together; ++k) sum[0][k] += static_cast<double>(d[k] * v[k] * inverses[row]);
    }
  }
};
/// Returns 1 / sqrt(variance + eps) of a vector of columns.
template <class T>
LACONIC_DEVICE Vector<T> inverse_deviations(const Vector<T>& variances, T eps) {
  Vector<T> out;
  LACONIC_UNROLL_DEVICE
  for (int k = 0; k < vector_size<T>; ++k) out[k] = T(1) / std::sqrt(variances[k] + eps);
  return out;
}
/// Adds dy and dy * (x - mean) / std with the moments of the group: the derivatives of `ColumnNorm` by bias and weight.
template <class T>
struct ColumnNormTerms {
  static constexpr int sums = 2, together = vector_size<T>;
  const T *dy, *x, *mean, *variance;
  Index cols, stride;
  T eps;
  LACONIC_DEVICE void operator()(Index n, Index c, Index row, Index end, Index step,
                                 Vector<double, together>* sum) const {
    const Vector<T> middle = load_within(mean + n * stride, c, cols),
                    inverse = inverse_deviations(load_within(variance + n * stride, c, cols), eps);
    for (; row < end; row += step) {
      const Vector<T> d = load_within(dy + row * cols, c, cols), v = load_within(x + row * cols, c, cols);
      LACONIC_UNROLL_DEVICE
      for (int k = 0; k < together; ++k) {
        sum[0][k] += static_cast<double>(d[k]);
        sum[1][k] += static_cast<double>(d[k] * (v[k] - middle[k]) * inverse[k]);
      }
    }
  }
};

/// Computes y = (x - mean) / sqrt(variance + eps) * weight + bias for each column of x (rows, cols) (Ioffe and Szegedy
/// 2015). weight and bias (cols).
template <class T>
struct ColumnNorm {
  static constexpr int together = vector_size<T>;
  const T *x, *weight, *bias, *mean, *variance;
  T* y;
  Index cols, stride;
  T eps;
  LACONIC_DEVICE void operator()(Index n, Index c, Index row, Index end, Index step) const {
    const Vector<T> middle = load_within(mean + n * stride, c, cols), shift = load_within(bias, c, cols),
                    w = load_within(weight, c, cols), variances = load_within(variance + n * stride, c, cols);
    Vector<T> factor;
    LACONIC_UNROLL_DEVICE
    for (int k = 0; k < together; ++k) factor[k] = w[k] / std::sqrt(variances[k] + eps);
    for (; row < end; row += step) {
      Vector<T> v = load_within(x + row * cols, c, cols);
      LACONIC_UNROLL_DEVICE
      for (int k = 0; k < together; ++k) v[k] = (v[k] - middle[k]) * factor[k] + shift[k];
      store_within(y + row * cols, c, cols, v);
    }
  }
};
/// Computes dx (rows, cols) of `ColumnNorm` whose moments are those of x. sum and dot (groups, cols) are those of
/// `ColumnNormTerms`, or null if the moments do not depend on x.
template <class T>
struct ColumnNormBackward {
  static constexpr int together = vector_size<T>;
  const T *dy, *x, *weight, *mean, *variance, *sum, *dot;
  T* dx;
  RowGroups groups;
  Index cols, stride;
  T eps;
  LACONIC_DEVICE void operator()(Index n, Index c, Index row, Index end, Index step) const {
    const Vector<T> inverse = inverse_deviations(load_within(variance + n * stride, c, cols), eps);
    Vector<T> factor = load_within(weight, c, cols);
    LACONIC_UNROLL_DEVICE
    for (int k = 0; k < together; ++k) factor[k] *= inverse[k];
    if (sum == nullptr) {
      for (; row < end; row += step) {
        Vector<T> d = load_within(dy + row * cols, c, cols);
        LACONIC_UNROLL_DEVICE
        for (int k = 0; k < together; ++k) d[k] *= factor[k];
        store_within(dx + row * cols, c, cols, d);
      }
      return;
    }
    const T count = static_cast<T>(groups.length(n));
    const Vector<T> middle = load_within(mean + n * stride, c, cols);
    Vector<T> common = load_within(sum + n * cols, c, cols), along = load_within(dot + n * cols, c, cols);
    LACONIC_UNROLL_DEVICE
    for (int k = 0; k < together; ++k) {
      common[k] /= count;
      along[k] *= inverse[k] / count;
    }
    for (; row < end; row += step) {
      Vector<T> d = load_within(dy + row * cols, c, cols);
      const Vector<T> v = load_within(x + row * cols, c, cols);
      LACONIC_UNROLL_DEVICE
      for (int k = 0; k < together; ++k) d[k] = factor[k] * (d[k] - common[k] - (v[k] - middle[k]) * along[k]);
      store_within(dx + row * cols, c, cols, d);
    }
  }
};

/// Adds to update[c] what a batch changes in a moving average (Ioffe and Szegedy 2015): rate * (statistic[c] * factor -
/// (value[c] + update[c])). Each batch changes what the batches before it left.
template <class T>
struct MovingAverage {
  const T *statistic, *value;
  T* update;
  T rate, factor;
  LACONIC_DEVICE void operator()(Index c) const {
    update[c] += rate * (statistic[c] * factor - (value[c] + update[c]));
  }
};

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
