// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/kernels/vectors.hpp>

namespace laconic {
inline namespace LACONIC_ABI {
namespace cuda {

/// Says that a functor computes F::together elements at once: f.at<N>(i) computes those from i on, with N = together
/// where i is a multiple of it and f.in_vectors() is true, and otherwise with N = 1.
template <class F>
concept ComputesVectors = requires(const F& f) {
  F::together;
  f.in_vectors();
};

/// Calls f(i) for i in [0, size), each in a thread of its own; of a functor that `ComputesVectors`, f.at<N>(i). F is a
/// struct of pointers and numbers whose functions on the device are LACONIC_DEVICE.
template <class F>
struct ForEach {
  static constexpr int threads = 256;
  F f;
  Index size;
  Index vectors;  ///< threads that compute several elements at once; those after them compute one each
  LACONIC_DEVICE void operator()(Block& block) const {
    block.each_unordered([&](int t) {
      const Index i = block.x() * threads + t;
      if constexpr (ComputesVectors<F>) {
        const Index single = i + vectors * (F::together - 1);
        if (i < vectors)
          f.template at<F::together>(i * F::together);
        else if (single < size)
          f.template at<1>(single);
      } else {
        if (i < size) f(i);
      }
    });
  }
};
/// Runs `ForEach`.
template <class F>
void for_each(const Stream& stream, const char* name, Index size, const F& f) {
  Index vectors = 0, all = size;
  if constexpr (ComputesVectors<F>) {
    if (f.in_vectors()) vectors = size / F::together;
    all -= vectors * (F::together - 1);
  }
  launch(stream, name, {pieces(all, ForEach<F>::threads)}, ForEach<F>{f, size, vectors});
}

/// Writes to[i] = value.
template <class T>
struct Fill {
  static constexpr int together = vector_size<T>;
  T* to;
  T value;
  bool in_vectors() const { return are_aligned<together>(to); }
  template <int N>
  LACONIC_DEVICE void at(Index i) const {
    map<N>(to + i, [&] { return value; });
  }
};

/// Writes part[b], the sum of term(i), in double, over the indices of block b.
template <class F>
struct PartialSums {
  static constexpr int threads = 256;
  static constexpr Index per_block = 16 * threads;  ///< indices of a block
  F term;
  Index size;
  double* part;
  LACONIC_DEVICE void operator()(Block& block) const {
    PerThread<double> sum(block);
    block.each([&](int t) {
      const Index first = block.x() * per_block;
      sum[t] = 0;
      for (Index i = first + t; i < first + per_block && i < size; i += threads) sum[t] += term(i);
    });
    const double all = block.sum(sum);
    block.one([&] { part[block.x()] = all; });
  }
};
/// Reads one number after the other, as the term of a sum.
struct Itself {
  const double* x;
  LACONIC_DEVICE double operator()(Index i) const { return x[i]; }
};

/// Writes, for each row of x (rows, cols), the first column of its max, or -1 - c where c is the column of its first
/// NaN.
template <class T>
struct Argmax {
  static constexpr int threads = 128;
  const T* x;
  Index* to;
  Index cols;
  LACONIC_DEVICE void operator()(Block& block) const {
    const T* row = x + block.x() * cols;
    Index* best = block.template shared<Index>(threads);
    block.each([&](int t) {
      Index found = t;
      for (Index c = t; c < cols; c += threads)
        if (is_better(row, c, found)) found = c;
      best[t] = found;
    });
    block.one([&] {
      Index found = 0;
      for (int t = 0; t < threads && t < cols; ++t)
        if (is_better(row, best[t], found)) found = best[t];
      to[block.x()] = row[found] != row[found] ? -1 - found : found;
    });
  }
  /// Says whether column a comes before column b: a NaN before every number, then the larger, then the first.
  LACONIC_DEVICE static bool is_better(const T* row, Index a, Index b) {
    const bool a_nan = row[a] != row[a], b_nan = row[b] != row[b];
    if (a_nan || b_nan) return a_nan && (!b_nan || a < b);
    return row[a] > row[b] || (row[a] == row[b] && a < b);
  }
};

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
