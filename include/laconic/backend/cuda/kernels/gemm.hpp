// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/kernels/elementwise.hpp>
#include <laconic/backend/cuda/kernels/gemm_operands.hpp>
#include <laconic/backend/cuda/kernels/row_sums.hpp>

#include <algorithm>
#include <cstddef>
#include <optional>

// Products of matrices in float and double (`products.hpp` starts them).
//
// Each element is the sum of chunks of 256 products, each added up in order, and the chunks in order: a sum depends
// neither on the tile that it is computed in nor on the other rows and columns.

namespace laconic {
inline namespace LACONIC_ABI {
namespace cuda {

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
/// elements. There are two tiles of A and of B in shared memory: while those of one step are multiplied, those of the
/// next are on their way through registers. Chunks are added up in Sum. The sums of several parts go to `parts`, and
/// those of a single one to C.
template <class T, class B, class Sum, int Side>
struct Gemm {
  static constexpr int threads = 256, across = 16, own = Side / across;  // own x own elements of a thread
  static constexpr int step = Side == 16 ? 128 : 16;
  static constexpr Index chunk = 256;
  // A thread of a small tile reads neighbours along the depth from shared memory, and one of a large tile along the
  // sides: `together` elements at a time, those of the other threads between them.
  static constexpr bool by_side = own == 1;
  static constexpr int together = own < vector_size<T> ? own : vector_size<T>;
  static_assert(chunk % step == 0 && Side % across == 0 && own % together == 0);
  using TilesA = GemmTiles<T, GemmOperand<T>, true, threads, Side, step, by_side>;
  using TilesB = GemmTiles<T, B, false, threads, Side, step, by_side>;

  GemmSize size;
  GemmOperand<T> a;
  B b;
  GemmResult<T> c;
  const T* bias;
  bool has_activation, a_rows, b_rows;  // a_rows, b_rows: has_contiguous_rows
  Activation activation;
  RowSplit split;  // of the depth
  double* parts;   // (parts, batches, rows, cols), or null

  /// Returns the bytes of shared memory of a block: two tiles of A and of B, and later that of C.
  static constexpr std::size_t shared_bytes() {
    return std::max(std::size_t{4} * TilesA::values * sizeof(T), std::size_t{Side} * Side * sizeof(Sum));
  }
  /// Returns the tiles of C of one batch.
  static constexpr Index tiles(const GemmSize& size) { return pieces(size.rows, Side) * pieces(size.cols, Side); }

  static constexpr auto own_values = static_cast<std::size_t>(own);
  struct State {
    T chunk_sum[own_values * own_values];
    Sum sum[own_values * own_values];
  };

  LACONIC_DEVICE void operator()(Block& block) const {
    const Index tiles_across = pieces(size.cols, Side), tile = block.x() % tiles(size), batch = block.x() / tiles(size);
    const Index row = tile / tiles_across * Side, col = tile % tiles_across * Side, part = block.y();
    const Index begin = split.begin(part) * chunk, after = split.end(part) * chunk;
    const Index end = after < size.depth ? after : size.depth;
    std::byte* memory = block.template shared<std::byte>(shared_bytes());
    T* staged = reinterpret_cast<T*>(memory);
    Sum* c_tile = reinterpret_cast<Sum*>(memory);
    const TilesA of_a{a, batch, row, size.rows, end, a_rows};
    const TilesB of_b{b, batch / size.sharing, col, size.cols, end, !b_rows};
    PerThread<State> state(block);
    block.each([&](int t) {
      State& s = state[t];
      LACONIC_UNROLL_DEVICE
      for (int i = 0; i < own * own; ++i) {
        s.chunk_sum[i] = T(0);
        s.sum[i] = Sum(0);
      }
      of_a.put(t, of_a.fetch(t, begin), staged);
      of_b.put(t, of_b.fetch(t, begin), staged + TilesA::values);
    });
    int now = 0, next = 2 * TilesA::values;  // where tiles are staged
    for (Index k = begin; k < end; k += step) {
      const bool goes_on = k + step < end, ends_chunk = (k - begin + step) % chunk == 0 || !goes_on;
      block.each([&](int t) {
        State& s = state[t];
        typename TilesA::Fetched next_a{};
        typename TilesB::Fetched next_b{};
        if (goes_on) {
          next_a = of_a.fetch(t, k + step);
          next_b = of_b.fetch(t, k + step);
        }
        multiply(s.chunk_sum, t, end - k, staged + now, staged + now + TilesA::values);
        if (goes_on) {
          of_a.put(t, next_a, staged + next);
          of_b.put(t, next_b, staged + next + TilesA::values);
        }
        if (!ends_chunk) return;
        LACONIC_UNROLL_DEVICE
        for (int i = 0; i < own * own; ++i) {
          s.sum[i] += static_cast<Sum>(s.chunk_sum[i]);
          s.chunk_sum[i] = T(0);
        }
      });
      const int last = now;
      now = next;
      next = last;
    }
    // Through shared memory, neighbours are written by neighbouring threads.
    block.each([&](int t) {
      LACONIC_UNROLL_DEVICE
      for (int i = 0; i < own * own; ++i)
        c_tile[place(t / across, i / own) * Side + place(t % across, i % own)] = state[t].sum[i];
    });
    constexpr int written = vector_size<T>;
    const bool vectors = are_aligned<written>(c.data, bias) && are_aligned<written>(parts) &&
                         are_multiples<written>(size.cols, c.row_stride, c.batch_stride);
    block.each([&](int t) {
      for (int e = t * written; e < Side * Side; e += threads * written) {
        const Index r = row + e / Side, n = col + e % Side;
        if (r >= size.rows) return;
        if (vectors && n < size.cols) put<written>(batch, part, r, n, c_tile + e);
        if (vectors) continue;
        for (int i = 0; i < written && n + i < size.cols; ++i) put<1>(batch, part, r, n + i, c_tile + e + i);
      }
    });
  }

 private:
  /// Returns the place along a side of element i of thread u along that side.
  LACONIC_DEVICE static int place(int u, int i) { return (i / together * across + u) * together + i % together; }
  /// Adds the products of one step to the sums of thread t. `depth` is what is left of it. They are fused in tiles of
  /// every size, not as a compiler likes.
  LACONIC_DEVICE static void multiply(T* sums, int t, Index depth, const T* a_tile, const T* b_tile) {
    constexpr int pitch = TilesA::pitch;
    if constexpr (by_side) {
      constexpr int some = 16;  // more at a time would take more registers than there are for all blocks
      for (int begin = 0; begin < step && begin < depth; begin += some) {
        LACONIC_UNROLL_DEVICE
        for (int d = begin; d < begin + some; d += vector_size<T>) {
          const auto from_a = load<vector_size<T>>(a_tile + t / across * pitch + d),
                     from_b = load<vector_size<T>>(b_tile + t % across * pitch + d);
          LACONIC_UNROLL_DEVICE
          for (int n = 0; n < vector_size<T>; ++n) sums[0] = multiply_add(from_a[n], from_b[n], sums[0]);
        }
      }
    } else {
      LACONIC_UNROLL_DEVICE
      for (int d = 0; d < step; ++d) {
        Vector<T, own> from_a, from_b;
        LACONIC_UNROLL_DEVICE
        for (int i = 0; i < own; i += together) {
          const auto some_a = load<together>(a_tile + d * pitch + place(t / across, i)),
                     some_b = load<together>(b_tile + d * pitch + place(t % across, i));
          LACONIC_UNROLL_DEVICE
          for (int n = 0; n < together; ++n) {
            from_a[i + n] = some_a[n];
            from_b[i + n] = some_b[n];
          }
        }
        LACONIC_UNROLL_DEVICE
        for (int i = 0; i < own * own; ++i) sums[i] = multiply_add(from_a[i / own], from_b[i % own], sums[i]);
      }
    }
  }
  /// Writes N sums of row r, from column n on, where they belong.
  template <int N>
  LACONIC_DEVICE void put(Index batch, Index part, Index r, Index n, const Sum* sums) const {
    if (parts != nullptr)
      return map<N>(
          parts + ((part * size.batches + batch) * size.rows + r) * size.cols + n,
          [](Sum sum) { return static_cast<double>(sum); }, sums);
    Vector<T, N> of_bias{};
    if (bias != nullptr) of_bias = load<N>(bias + batch / size.sharing * size.cols + n);
    Vector<T, N> out;
    LACONIC_UNROLL_DEVICE
    for (int i = 0; i < N; ++i) {
      T value = static_cast<T>(sums[i]);
      if (bias != nullptr) value += of_bias[i];
      out[i] = has_activation ? activate(activation, value) : value;
    }
    store(c.data + batch * c.batch_stride + r * c.row_stride + n, out);
  }
};

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
