// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/kernels/columns.hpp>
#include <laconic/backend/cuda/kernels/held_rows.hpp>
#include <laconic/backend/cuda/kernels/map.hpp>

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
    HeldRows<T, threads, 4> from(block, cols, x + block.x() * cols);
    T* to = y + block.x() * cols;
    PerThread<T> best(block);
    block.each([&](int t) {
      T max = -std::numeric_limits<T>::infinity();
      from.each(t, [&](Index c, const auto& v) {
        LACONIC_UNROLL_DEVICE
        for (int k = 0; k < vector_size<T>; ++k)
          if (c + k < cols) max = max != max || max > v[0][k] ? max : v[0][k];  // NaN stays
      });
      best[t] = max;
    });
    const T max = block.max(best);
    const T logsumexp = max + std::log(from.sum([&](T v) { return std::exp(v - max); }));
    block.each([&](int t) {
      from.each(t, [&](Index c, const auto& v) {
        Vector<T> out;
        LACONIC_UNROLL_DEVICE
        for (int k = 0; k < vector_size<T>; ++k)
          out[k] = exponentials ? std::exp(v[0][k] - logsumexp) : v[0][k] - logsumexp;
        store_within(to, c, cols, out);
      });
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
    HeldRows<T, threads, 2, 2> from(block, cols, dy + block.x() * cols, y + block.x() * cols);
    T* to = dx + block.x() * cols;
    const T sum = from.sum([](T g) { return g; });
    block.each([&](int t) {
      from.each(t, [&](Index c, const auto& v) {
        Vector<T> out;
        LACONIC_UNROLL_DEVICE
        for (int k = 0; k < vector_size<T>; ++k) out[k] = v[0][k] - std::exp(v[1][k]) * sum;
        store_within(to, c, cols, out);
      });
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
    if (on_all > 0 && target != ignored) loss -= on_all * sum_over<T>(block, row, cols, [](T v) { return v; });
    block.one([&] { losses[block.x()] = loss; });
  }
};
/// Computes elements of the derivative of `CrossEntropy` by the logits, from that by the losses (rows).
template <class T>
struct CrossEntropyBackward {
  static constexpr int together = vector_size<T>;
  const T *dlosses, *log_probs;
  const int* targets;
  T* dx;
  Index cols;
  int ignored;
  T on_target, on_all;
  bool in_vectors() const { return are_aligned<together>(log_probs, dx) && are_multiples<together>(cols); }
  template <int N>
  LACONIC_DEVICE void at(Index i) const {
    const Index r = i / cols;
    const int target = targets[r];
    const T d = target == ignored ? T(0) : dlosses[r];
    Index c = i % cols;
    const auto one = [&](T log_prob) {
      return d * (std::exp(log_prob) - (c++ == target ? on_all + on_target : on_all));
    };
    map<N>(dx + i, one, log_probs + i);
  }
};

/// Computes y = factor[n] * x for the rows of each sequence n (see `EachColumn`).
template <class T>
struct ScaleSequences {
  static constexpr int together = vector_size<T>;
  const T *x, *factor;
  T* y;
  Index cols;
  LACONIC_DEVICE void operator()(Index n, Index c, Index row, Index end, Index step) const {
    for (; row < end; row += step) {
      Vector<T> v = load_within(x + row * cols, c, cols);
      LACONIC_UNROLL_DEVICE
      for (int k = 0; k < together; ++k) v[k] *= factor[n];
      store_within(y + row * cols, c, cols, v);
    }
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
  static constexpr int together = vector_size<T>;
  const T *dy, *x;
  T* dx;
  T size;
  bool in_vectors() const { return are_aligned<together>(x, dx); }
  template <int N>
  LACONIC_DEVICE void at(Index i) const {
    const T d = dy[0] / size;
    map<N>(
        dx + i, [&](T v) { return std::isinf(v) ? T(0) : d; }, x + i);
  }
};

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
