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
  static constexpr int sums = 1;
  const T* x;
  Index cols;
  LACONIC_DEVICE void operator()(Index, Index c, Index row, Index end, Index step, double* sum) const {
    for (; row < end; row += step) sum[0] += static_cast<double>(x[row * cols + c]);
  }
};
/// Adds the squared distances of x (rows, cols) to the mean of its group, for variances.
template <class T>
struct SquaredDistances {
  static constexpr int sums = 1;
  const T *x, *mean;
  Index cols, stride;
  LACONIC_DEVICE void operator()(Index n, Index c, Index row, Index end, Index step, double* sum) const {
    const T middle = mean[n * stride + c];
    for (; row < end; row += step) {
      const T d = x[row * cols + c] - middle;
      sum[0] += static_cast<double>(d * d);
    }
  }
};

/// Adds dy and dy * (x - mean) / std, both (rows, cols), with moments (rows, 2) of each row: the derivatives of
/// `LayerNorm` by bias and weight.
template <class T>
struct LayerNormTerms {
  static constexpr int sums = 2;
  const T *dy, *x, *moments;
  Index cols;
  LACONIC_DEVICE void operator()(Index, Index c, Index row, Index end, Index step, double* sum) const {
    for (; row < end; row += step) {
      const T d = dy[row * cols + c];
      sum[0] += static_cast<double>(d);
      sum[1] += static_cast<double>(d * (x[row * cols + c] - moments[2 * row]) * moments[2 * row + 1]);
    }
  }
};
/// Adds dy * x / rms, with 1/rms of each row (rows): the derivative of `RmsNorm` by its weight.
template <class T>
struct RmsNormTerms {
  static constexpr int sums = 1;
  const T *dy, *x, *inverses;
  Index cols;
  LACONIC_DEVICE void operator()(Index, Index c, Index row, Index end, Index step, double* sum) const {
    for (; row < end; row += step)
      sum[0] += static_cast<double>(dy[row * cols + c] * x[row * cols + c] * inverses[row]);
  }
};
/// Adds dy and dy * (x - mean) / std with the moments of the group: the derivatives of `ColumnNorm` by bias and weight.
template <class T>
struct ColumnNormTerms {
  static constexpr int sums = 2;
  const T *dy, *x, *mean, *variance;
  Index cols, stride;
  T eps;
  LACONIC_DEVICE void operator()(Index n, Index c, Index row, Index end, Index step, double* sum) const {
    const T middle = mean[n * stride + c], inverse = T(1) / std::sqrt(variance[n * stride + c] + eps);
    for (; row < end; row += step) {
      const T d = dy[row * cols + c];
      sum[0] += static_cast<double>(d);
      sum[1] += static_cast<double>(d * (x[row * cols + c] - middle) * inverse);
    }
  }
};

/// Computes y = (x - mean) / sqrt(variance + eps) * weight + bias for each column of x (rows, cols) (Ioffe and Szegedy
/// 2015). weight and bias (cols).
template <class T>
struct ColumnNorm {
  const T *x, *weight, *bias, *mean, *variance;
  T* y;
  Index cols, stride;
  T eps;
  LACONIC_DEVICE void operator()(Index n, Index c, Index row, Index end, Index step) const {
    const T middle = mean[n * stride + c], shift = bias[c];
    const T factor = weight[c] / std::sqrt(variance[n * stride + c] + eps);
    for (; row < end; row += step) y[row * cols + c] = (x[row * cols + c] - middle) * factor + shift;
  }
};
/// Computes dx (rows, cols) of `ColumnNorm` whose moments are those of x. sum and dot (groups, cols) are those of
/// `ColumnNormTerms`, or null if the moments do not depend on x.
template <class T>
struct ColumnNormBackward {
  const T *dy, *x, *weight, *mean, *variance, *sum, *dot;
  T* dx;
  RowGroups groups;
  Index cols, stride;
  T eps;
  LACONIC_DEVICE void operator()(Index n, Index c, Index row, Index end, Index step) const {
    const T middle = mean[n * stride + c], inverse = T(1) / std::sqrt(variance[n * stride + c] + eps);
    const T factor = weight[c] * inverse, count = static_cast<T>(groups.length(n));
    const T common = sum == nullptr ? T(0) : sum[n * cols + c] / count,
            along = sum == nullptr ? T(0) : inverse * dot[n * cols + c] / count;
    for (; row < end; row += step) {
      const Index i = row * cols + c;
      dx[i] = sum == nullptr ? factor * dy[i] : factor * (dy[i] - common - (x[i] - middle) * along);
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
