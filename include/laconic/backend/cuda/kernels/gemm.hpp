// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/kernels/elementwise.hpp>
#include <laconic/backend/cuda/kernels/row_sums.hpp>
#include <laconic/backend/cuda/kernels/stored_rows.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <optional>

// Products of matrices in float and double, and the operands of all products (`products.hpp` starts them).
//
// Each element is the sum of chunks of 256 products, each added up in order, and the chunks in order: a sum depends
// neither on the tile that it is computed in nor on the other rows and columns.

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
  LACONIC_DEVICE T operator()(Index batch, Index i, Index j) const {
    return data[batch * batch_stride + i * row_stride + j * col_stride];
  }
};
/// Refers to the transpose of rounded rows: a weight as `linear` multiplies by it. The storage is in the type, so that
/// no thread asks for it in each step.
template <class T, Storage storage>
struct StoredColumns {
  StoredRows<T> rows;  ///< row j is column j of the operand
  /// Returns element (i, j).
  LACONIC_DEVICE T operator()(Index, Index i, Index j) const {
    StoredRows<T> known = rows;
    known.storage = storage;
    return known.row(j)[i];
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

/// Gives the sizes of C (rows, cols) = A (rows, depth) B (depth, cols), computed for each of `batches`.
struct GemmSize {
  Index rows, cols, depth;
  Index batches = 1;  ///< independent products
  Index sharing = 1;  ///< batches in a row that have the same B and bias: batch n reads those of n / sharing
};
/// Refers to C, rows of contiguous elements on the device.
template <class T>
struct GemmResult {
  T* data;                 ///< element (0, 0) of batch 0
  Index row_stride;        ///< elements from a row to the next
  Index batch_stride = 0;  ///< elements from a batch to the next
};
/// Says what is done with a product: a bias is added, then an activation computed.
template <class T>
struct GemmEpilogue {
  const T* bias = nullptr;                    ///< (cols) for each batch of B, on the device; null: none
  std::optional<Activation> activation = {};  ///< null: none
};

/// Computes one tile of C in each block (x: tiles of all batches; y: parts of the depth). A thread computes a square of
/// elements. Tiles of A and B are in shared memory while those of the next step are on their way to registers. Chunks
/// are added up in Sum. The sums of several parts go to `parts`, and those of a single one to C.
template <class T, class B, class Sum, int Side>
struct Gemm {
  static constexpr int threads = 256, across = 16, own = Side / across;  // own x own elements of a thread
  static constexpr int step = Side == 64 ? 16 : 64, loads = Side * step / threads;
  static constexpr Index chunk = 256;
  static constexpr int pitch = Side + 4;  // a row of a tile in shared memory: fewer conflicts of banks
  static_assert(chunk % step == 0 && Side % across == 0 && Side * step % threads == 0);

  GemmSize size;
  GemmOperand<T> a;
  B b;
  GemmResult<T> c;
  const T* bias;
  bool has_activation, a_rows, b_rows;  // a_rows, b_rows: has_contiguous_rows
  Activation activation;
  RowSplit split;  // of the depth
  double* parts;   // (parts, batches, rows, cols), or null

  /// Returns the bytes of shared memory of a block: the tiles of A and B, and later that of C.
  static constexpr std::size_t shared_bytes() {
    return std::max(std::size_t{2} * step * pitch * sizeof(T), std::size_t{Side} * Side * sizeof(Sum));
  }
  /// Returns the tiles of C of one batch.
  static constexpr Index tiles(const GemmSize& size) { return pieces(size.rows, Side) * pieces(size.cols, Side); }

  static constexpr auto own_values = static_cast<std::size_t>(own);
  struct alignas(own_values * sizeof(T) < 16 ? own_values * sizeof(T) : 16) Values {
    T v[own_values];
  };
  struct State {
    T next_a[static_cast<std::size_t>(loads)], next_b[static_cast<std::size_t>(loads)];
    T chunk_sum[own_values * own_values];
    Sum sum[own_values * own_values];
  };

  LACONIC_DEVICE void operator()(Block& block) const {
    const Index tiles_across = pieces(size.cols, Side), tile = block.x() % tiles(size), batch = block.x() / tiles(size);
    const Index row = tile / tiles_across * Side, col = tile % tiles_across * Side, part = block.y();
    const Index begin = split.begin(part) * chunk, after = split.end(part) * chunk;
    const Index end = after < size.depth ? after : size.depth;
    std::byte* memory = block.template shared<std::byte>(shared_bytes());
    T *a_tile = reinterpret_cast<T*>(memory), *b_tile = a_tile + step * pitch;
    Sum* c_tile = reinterpret_cast<Sum*>(memory);
    PerThread<State> state(block);
    block.each([&](int t) {
      State& s = state[t];
      LACONIC_UNROLL_DEVICE
      for (int i = 0; i < own * own; ++i) {
        s.chunk_sum[i] = T(0);
        s.sum[i] = Sum(0);
      }
      fetch(s, t, batch, row, col, begin, end);
    });
    for (Index k = begin; k < end; k += step) {
      block.each([&](int t) {
        LACONIC_UNROLL_DEVICE
        for (int i = 0; i < loads; ++i) {
          const int e = t + i * threads;
          a_tile[depth_of(e, a_rows) * pitch + side_of(e, a_rows)] = state[t].next_a[i];
          b_tile[depth_of(e, !b_rows) * pitch + side_of(e, !b_rows)] = state[t].next_b[i];
        }
      });
      const bool ends_chunk = (k - begin + step) % chunk == 0 || k + step >= end;
      block.each([&](int t) {
        State& s = state[t];
        if (k + step < end) fetch(s, t, batch, row, col, k + step, end);
        LACONIC_UNROLL_DEVICE
        for (int d = 0; d < step; ++d) {
          const Values from_a = reinterpret_cast<const Values*>(a_tile + d * pitch)[t / across],
                       from_b = reinterpret_cast<const Values*>(b_tile + d * pitch)[t % across];
          LACONIC_UNROLL_DEVICE
          for (int i = 0; i < own * own; ++i)  // fused in tiles of every size, not as a compiler likes
            s.chunk_sum[i] = std::fma(from_a.v[i / own], from_b.v[i % own], s.chunk_sum[i]);
        }
        if (!ends_chunk) return;
        LACONIC_UNROLL_DEVICE
        for (int i = 0; i < own * own; ++i) {
          s.sum[i] += static_cast<Sum>(s.chunk_sum[i]);
          s.chunk_sum[i] = T(0);
        }
      });
    }
    // Through shared memory, neighbours are written by neighbouring threads.
    block.each([&](int t) {
      LACONIC_UNROLL_DEVICE
      for (int i = 0; i < own * own; ++i)
        c_tile[(t / across * own + i / own) * Side + t % across * own + i % own] = state[t].sum[i];
    });
    block.each([&](int t) {
      for (int e = t; e < Side * Side; e += threads) {
        const Index r = row + e / Side, n = col + e % Side;
        if (r < size.rows && n < size.cols) put(batch, part, r, n, c_tile[e]);
      }
    });
  }

 private:
  /// Returns the place along the depth of value e of a tile, whose neighbours are neighbours in memory.
  LACONIC_DEVICE static int depth_of(int e, bool along_depth) { return along_depth ? e % step : e / Side; }
  /// Returns its place along the side.
  LACONIC_DEVICE static int side_of(int e, bool along_depth) { return along_depth ? e / step : e % Side; }
  /// Reads the values of thread t of the tiles at k. What is outside the matrices is zero.
  LACONIC_DEVICE void fetch(State& s, int t, Index batch, Index row, Index col, Index k, Index end) const {
    LACONIC_UNROLL_DEVICE
    for (int i = 0; i < loads; ++i) {
      const int e = t + i * threads;
      const Index r = row + side_of(e, a_rows), a_k = k + depth_of(e, a_rows);
      const Index n = col + side_of(e, !b_rows), b_k = k + depth_of(e, !b_rows);
      s.next_a[i] = r < size.rows && a_k < end ? a(batch, r, a_k) : T(0);
      s.next_b[i] = n < size.cols && b_k < end ? b(batch / size.sharing, b_k, n) : T(0);
    }
  }
  /// Writes one sum where it belongs.
  LACONIC_DEVICE void put(Index batch, Index part, Index r, Index n, Sum sum) const {
    if (parts != nullptr) {
      parts[((part * size.batches + batch) * size.rows + r) * size.cols + n] = static_cast<double>(sum);
      return;
    }
    T* to = c.data + batch * c.batch_stride + r * c.row_stride + n;
    T value = static_cast<T>(sum);
    if (bias != nullptr) value += bias[batch / size.sharing * size.cols + n];
    *to = has_activation ? activate(activation, value) : value;
  }
};

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
