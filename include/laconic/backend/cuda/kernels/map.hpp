// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/block.hpp>

namespace laconic {
inline namespace LACONIC_ABI {
namespace cuda {

/// Calls f(i) for i in [0, size), each in a thread of its own. F is a struct of pointers and numbers whose call
/// operator is LACONIC_DEVICE.
template <class F>
struct ForEach {
  static constexpr int threads = 256;
  static constexpr Index per_block = 4 * threads;  ///< indices of a block
  F f;
  Index size;
  LACONIC_DEVICE void operator()(Block& block) const {
    block.each([&](int t) {
      const Index first = block.x() * per_block;
      for (Index i = first + t; i < first + per_block && i < size; i += threads) f(i);
    });
  }
};
/// Runs `ForEach`.
template <class F>
void for_each(const Stream& stream, const char* name, Index size, const F& f) {
  launch(stream, name, {pieces(size, ForEach<F>::per_block)}, ForEach<F>{f, size});
}

/// Writes to[i] = value.
template <class T>
struct Fill {
  T* to;
  T value;
  LACONIC_DEVICE void operator()(Index i) const { to[i] = value; }
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
