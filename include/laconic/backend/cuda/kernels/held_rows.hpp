// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/kernels/vectors.hpp>

// Rows that a block reads by vectors. Which values a thread sums, and in which order, depends on the number of columns
// only: where a row is not aligned, its vectors are read one value after the other.

namespace laconic {
inline namespace LACONIC_ABI {
namespace cuda {

/// Returns the vector from column c on of a row (cols), c being a multiple of its size. What is beyond the row is zero.
template <class T>
LACONIC_DEVICE Vector<T> load_within(const T* row, Index c, Index cols) {
  constexpr int size = vector_size<T>;
  if (c + size <= cols && are_aligned<size>(row)) return load<size>(row + c);
  Vector<T> out{};
  LACONIC_UNROLL_DEVICE
  for (int k = 0; k < size; ++k)
    if (c + k < cols) out[k] = row[c + k];
  return out;
}
/// Writes the vector from column c on of a row (cols), but for what is beyond the row.
template <class T>
LACONIC_DEVICE void store_within(T* row, Index c, Index cols, const Vector<T>& values) {
  constexpr int size = vector_size<T>;
  if (c + size <= cols && are_aligned<size>(row)) return write_16_bytes(row + c, values);
  LACONIC_UNROLL_DEVICE
  for (int k = 0; k < size; ++k)
    if (c + k < cols) row[c + k] = values[k];
}

/// Returns the sum, in V, of f(value) for the values of a row (cols), in every thread.
template <class V, class T, class F>
LACONIC_DEVICE V sum_over(Block& block, const T* row, Index cols, const F& f) {
  constexpr int size = vector_size<T>;
  PerThread<V> part(block);
  block.each([&](int t) {
    V sum = 0;
    for (Index c = Index(t) * size; c < cols; c += block.threads() * size) {
      const Vector<T> v = load_within(row, c, cols);
      LACONIC_UNROLL_DEVICE
      for (int k = 0; k < size; ++k)
        if (c + k < cols) sum += f(v[k]);
    }
    part[t] = sum;
  });
  return block.sum(part);
}

/// Gives a block of `threads` threads a row (cols) of each of `Count` arrays. Each thread holds `Held` vectors of a row
/// in registers, so that it is read once; what is beyond these is read whenever it is asked for.
template <class T, int Threads, int Held, int Count = 1>
class HeldRows {
 public:
  /// Holds neighbours of each row, in the order of the rows.
  struct Values {
    Vector<T> of[static_cast<std::size_t>(Count)];
    /// Returns the values of row i.
    LACONIC_DEVICE const Vector<T>& operator[](int i) const { return of[i]; }
  };

  /// Begins to read the rows.
  template <class... Row>
  LACONIC_DEVICE HeldRows(Block& block, Index cols, const Row*... rows)
      : block_(block), held_(block), cols_(cols), rows_{rows...} {
    block.each_unordered([&](int t) {
      LACONIC_UNROLL_DEVICE
      for (int i = 0; i < Held; ++i)
        if (column(t, i) < cols_) held_[t].values[i] = read(column(t, i));
    });
  }
  /// Calls f(c, values) for the vectors of thread t, where c is their first column. Values beyond the rows are zero.
  template <class F>
  LACONIC_DEVICE void each(int t, const F& f) {
    LACONIC_UNROLL_DEVICE
    for (int i = 0; i < Held; ++i)
      if (column(t, i) < cols_) f(column(t, i), held_[t].values[i]);
    for (Index c = column(t, Held); c < cols_; c += Threads * size) f(c, read(c));
  }
  /// Returns the sum of f(value) for the values of the first row, in every thread.
  template <class F>
  LACONIC_DEVICE T sum(const F& f) {
    PerThread<T> part(block_);
    block_.each([&](int t) {
      T sum = 0;
      each(t, [&](Index c, const Values& v) {
        LACONIC_UNROLL_DEVICE
        for (int k = 0; k < size; ++k)
          if (c + k < cols_) sum += f(v[0][k]);
      });
      part[t] = sum;
    });
    return block_.sum(part);
  }

 private:
  static constexpr int size = vector_size<T>;
  struct Registers {
    Values values[static_cast<std::size_t>(Held)];
  };
  LACONIC_DEVICE static Index column(int t, int i) { return (Index(i) * Threads + t) * size; }
  LACONIC_DEVICE Values read(Index c) const {
    Values out;
    LACONIC_UNROLL_DEVICE
    for (int i = 0; i < Count; ++i) out.of[i] = load_within(rows_[i], c, cols_);
    return out;
  }

  Block& block_;
  PerThread<Registers> held_;
  Index cols_;
  const T* rows_[static_cast<std::size_t>(Count)];
};

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
