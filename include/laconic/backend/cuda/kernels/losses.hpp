// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/kernels/columns.hpp>
#include <laconic/backend/cuda/kernels/norm.hpp>

#include <cmath>
#include <limits>

// Softmax of rows, cross entropy, and sums over elements.

namespace laconic {
inline namespace LACONIC_ABI {
namespace cuda {

/// Computes y = x - logsumexp(x) for each row of x (rows, cols), or the exponential of that. A block is a row.
template <class T>
struct LogSoftmax {
  static constexpr int threads = 256;
  const T* x;
  T* y;
  Index cols;
  bool exponentials;
  LACONIC_DEVICE void operator()(Block& block) const {
    const T* from = x + block.x() * cols;
    T* to = y + block.x() * cols;
    PerThread<T> best(block);
    block.each([&](int t) {
      T max = -std::numeric_limits<T>::infinity();
      for (Index c = t; c < cols; c += threads) max = max != max || max > from[c] ? max : from[c];  // NaN stays
      best[t] = max;
    });
    const T max = block.max(best);
    const T logsumexp = max + std::log(sum_over<T>(block, cols, [&](Index c) { return std::exp(from[c] - max); }));
    block.each([&](int t) {
      for (Index c = t; c < cols; c += threads)
        to[c] = exponentials ? std::exp(from[c] - logsumexp) : from[c] - logsumexp;
    });
  }
};
/// Computes dx = dy - exp(y) sum(dy) for each row, from the result y of `LogSoftmax`; all (rows, cols). A block is a
/// row.
template <class T>
struct LogSoftmaxBackward {
  static constexpr int threads = 256;
  const T *dy, *y;
  T* dx;
  Index cols;
  LACONIC_DEVICE void operator()(Block& block) const {
    const T *g = dy + block.x() * cols, *of = y + block.x() * cols;
    T* to = dx + block.x() * cols;
    const T sum = sum_over<T>(block, cols, [&](Index c) { return g[c]; });
    block.each([&](int t) {
      for (Index c = t; c < cols; c += threads) to[c] = g[c] - std::exp(of[c]) * sum;
    });
  }
};

/// Computes the cross entropy of each row from log_probs (rows, cols): of its target, and of all classes by weights. An
/// ignored target gives 0. A block is a row.
template <class T>
struct CrossEntropy {
  static constexpr int threads = 128;
  const T* log_probs;
  const int* targets;
  T* losses;
  Index cols;
  int ignored;
  T on_target, on_all;
  LACONIC_DEVICE void operator()(Block& block) const {
    const T* row = log_probs + block.x() * cols;
    const int target = targets[block.x()];
    T loss = target == ignored ? T(0) : -on_target * row[target];
    if (on_all > 0 && target != ignored) loss -= on_all * sum_over<T>(block, cols, [&](Index c) { return row[c]; });
    block.one([&] { losses[block.x()] = loss; });
  }
};
/// Computes one element of the derivative of `CrossEntropy` by the logits, from that by the losses (rows).
template <class T>
struct CrossEntropyBackward {
  const T *dlosses, *log_probs;
  const int* targets;
  T* dx;
  Index cols;
  int ignored;
  T on_target, on_all;
  LACONIC_DEVICE void operator()(Index i) const {
    const Index r = i / cols;
    const int target = targets[r];
    const T d = target == ignored ? T(0) : dlosses[r];
    const T wanted = i % cols == target ? on_all + on_target : on_all;
    dx[i] = d * (std::exp(log_probs[i]) - wanted);
  }
};

/// Computes y = factor[n] * x for the rows of each sequence n (see `EachColumn`).
template <class T>
struct ScaleSequences {
  const T *x, *factor;
  T* y;
  Index cols;
  LACONIC_DEVICE void operator()(Index n, Index c, Index row, Index end, Index step) const {
    for (; row < end; row += step) y[row * cols + c] = factor[n] * x[row * cols + c];
  }
};

/// Returns x[i] * y[i] in double, as the term of a sum.
template <class T>
struct Products {
  const T *x, *y;
  LACONIC_DEVICE double operator()(Index i) const { return static_cast<double>(x[i]) * static_cast<double>(y[i]); }
};
/// Returns x[i], or 0 for an infinite one, as the term of a sum.
template <class T>
struct FiniteValues {
  const T* x;
  LACONIC_DEVICE double operator()(Index i) const { return std::isinf(x[i]) ? 0.0 : static_cast<double>(x[i]); }
};
/// Writes to[i] = from[i] / size, with the precision of T.
template <class T>
struct Divide {
  const double* from;
  T* to;
  double size;
  LACONIC_DEVICE void operator()(Index i) const { to[i] = static_cast<T>(from[i] / size); }
};
/// Writes dx[i] = dy[0] / size, or 0 for an infinite x[i].
template <class T>
struct MeanFiniteBackward {
  const T *dy, *x;
  T* dx;
  T size;
  LACONIC_DEVICE void operator()(Index i) const { dx[i] = std::isinf(x[i]) ? T(0) : dy[0] / size; }
};

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
