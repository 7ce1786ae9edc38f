// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/kernels/stored_rows.hpp>

#include <cstddef>

// The operands of products, and how tiles of them reach shared memory.

namespace laconic {
inline namespace LACONIC_ABI {
namespace cuda {

/// Refers to a matrix of any strides on the device, one for each batch.
template <class T>
struct GemmOperand {
  const T* data;           ///< element (0, 0) of batch 0
  Index row_stride;        ///< elements from a row to the next
  Index col_stride = 1;    ///< elements from a column to the next
  Index batch_stride = 0;  ///< elements from a batch to the next
  /// Returns the matrix with rows and columns exchanged.
  constexpr GemmOperand transposed() const { return {data, col_stride, row_stride, batch_stride}; }
  /// Returns element (i, j) of a batch.
  LACONIC_DEVICE T operator()(Index batch, Index i, Index j) const { return load<1>(batch, i, j)[0]; }
  static constexpr int together = vector_size<T>;  ///< neighbours of one read
  /// Returns N neighbours of a batch, from element (i, j) on, along the rows or the columns: whichever is contiguous.
  template <int N>
  LACONIC_DEVICE Vector<T, N> load(Index batch, Index i, Index j) const {
    return cuda::load<N>(data + batch * batch_stride + i * row_stride + j * col_stride);
  }
  /// Says whether N neighbours along the rows, or along the columns, can be read at once from every multiple of N on.
  template <int N>
  LACONIC_DEVICE bool in_vectors(bool along_rows) const {
    return (along_rows ? col_stride : row_stride) == 1 && are_aligned<N>(data) &&
           are_multiples<N>(along_rows ? row_stride : col_stride, batch_stride);
  }
};
/// Refers to the transpose of rounded rows: a weight as `linear` multiplies by it. The storage is in the type, so that
/// no thread asks for it in each step.
template <class T, Storage storage>
struct StoredColumns {
  StoredRows<T> rows;  ///< row j is column j of the operand
  /// Returns element (i, j).
  LACONIC_DEVICE T operator()(Index batch, Index i, Index j) const { return load<1>(batch, i, j)[0]; }
  static constexpr int together = 8;  ///< neighbours of one read
  /// Returns N neighbours along a column, from element (i, j) on.
  template <int N>
  LACONIC_DEVICE Vector<T, N> load(Index, Index i, Index j) const {
    StoredRows<T> known = rows;
    known.storage = storage;
    return known.row(j).template load<N>(i);
  }
  /// Says whether N neighbours can be read at once from every multiple of N on.
  template <int N>
  LACONIC_DEVICE bool in_vectors(bool) const {
    return is_aligned_for<T, N>(storage, rows.values) && are_multiples<N>(rows.width);
  }
};
/// Says whether neighbours along a row of an operand are neighbours in memory, rather than those along a column.
template <class T>
constexpr bool has_contiguous_rows(const GemmOperand<T>& x) {
  return x.col_stride == 1;
}
/// Says that neighbours along a column are neighbours in memory.
template <class T, Storage storage>
constexpr bool has_contiguous_rows(const StoredColumns<T, storage>&) {
  return false;
}

/// Copies tiles of an operand to shared memory: Side rows of A (left) or columns of B, Step values of the depth. There
/// they lie by their side, (Side, Step), or by the depth, (Step, Side); what is outside the operand is zero.
template <class T, class Operand, bool left, int Threads, int Side, int Step, bool by_side>
struct GemmTiles {
  static constexpr int loads = Side * Step / Threads;                                     ///< values of a thread
  static constexpr int together = Operand::together < loads ? Operand::together : loads;  ///< values of one read
  static constexpr int pitch = (by_side ? Step : Side) + 4;                               ///< fewer conflicts of banks
  static constexpr int values = (by_side ? Side : Step) * pitch;  ///< values of a tile in shared memory
  static_assert(Side * Step % Threads == 0 && loads % together == 0 && Side % together == 0 && Step % together == 0);

  const Operand& operand;
  Index batch, first, count, end;  // first row or column of the tiles, rows or columns of the operand, its depth
  bool along_depth;                // whether neighbours along the depth are neighbours in memory
  bool vectors = operand.template in_vectors<together>(left == along_depth);

  /// Holds the values of one thread.
  struct Fetched {
    Vector<T, together> of[static_cast<std::size_t>(loads / together)];
  };
  /// Reads the values of thread t of the tile at depth k.
  LACONIC_DEVICE Fetched fetch(int t, Index k) const {
    Fetched out;
    LACONIC_UNROLL_DEVICE
    for (int i = 0; i < loads / together; ++i) {
      const Index side = first + side_of(t + i * Threads), depth = k + depth_of(t + i * Threads);
      const bool whole =
          along_depth ? depth + together <= end && side < count : side + together <= count && depth < end;
      if (vectors && whole) {
        out.of[i] = read<together>(side, depth);
        continue;
      }
      LACONIC_UNROLL_DEVICE
      for (int n = 0; n < together; ++n) {
        const Index s = along_depth ? side : side + n, d = along_depth ? depth + n : depth;
        out.of[i][n] = s < count && d < end ? read<1>(s, d)[0] : T(0);
      }
    }
    return out;
  }
  /// Writes the values of thread t to shared memory.
  LACONIC_DEVICE void put(int t, const Fetched& fetched, T* tile) const {
    LACONIC_UNROLL_DEVICE
    for (int i = 0; i < loads / together; ++i) {
      const int side = side_of(t + i * Threads), depth = depth_of(t + i * Threads);
      T* to = tile + (by_side ? side * pitch + depth : depth * pitch + side);
      if (along_depth == by_side) {
        store(to, fetched.of[i]);
        continue;
      }
      LACONIC_UNROLL_DEVICE
      for (int n = 0; n < together; ++n) to[n * pitch] = fetched.of[i][n];
    }
  }

 private:
  /// Returns the place along the depth of read e of a tile. Neighbouring reads are neighbours in memory.
  LACONIC_DEVICE int depth_of(int e) const {
    return along_depth ? e % (Step / together) * together : e / (Side / together);
  }
  /// Returns its place along the side.
  LACONIC_DEVICE int side_of(int e) const {
    return along_depth ? e / (Step / together) : e % (Side / together) * together;
  }
  template <int N>
  LACONIC_DEVICE Vector<T, N> read(Index side, Index depth) const {
    return left ? operand.template load<N>(batch, side, depth) : operand.template load<N>(batch, depth, side);
  }
};

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
