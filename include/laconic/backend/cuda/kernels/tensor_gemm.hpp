// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/kernels/gemm.hpp>
#include <laconic/backend/cuda/kernels/row_sums.hpp>
#include <laconic/backend/cuda/kernels/vectors.hpp>
#include <laconic/backend/cuda/tensor_cores.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>

// Products of matrices on tensor cores. Each element is one sum over the depth, in steps of 32 bytes of its operands
// and in order, whatever the tile that it is computed in: rows depend on no other rows, to the bit.

namespace laconic {
inline namespace LACONIC_ABI {
namespace cuda {

template <TensorElement E, int Threads, int Rows>
struct TensorLines;

/// Refers to an operand as tensor cores read it: the values of a row along the depth are contiguous, and each row
/// begins at a multiple of 16 bytes. Of B these rows are the columns.
template <TensorElement E>
struct TensorRows {
  const E* data;           ///< element (0, 0) of batch 0
  Index row_stride;        ///< elements from a row to the next
  Index batch_stride = 0;  ///< elements from a batch to the next

  /// Names what a thread copies of it.
  template <int Threads, int Rows>
  using Lines = TensorLines<E, Threads, Rows>;
  /// Returns the elements of 16 bytes.
  static constexpr Index in_chunk = 16 / static_cast<Index>(sizeof(E));
  /// Returns the elements from a row to the next where rows of `depth` elements are packed.
  static constexpr Index stride_for(Index depth) { return pieces(depth, in_chunk) * in_chunk; }
  /// Says whether rows with these strides can be read.
  static bool can_read(const void* data, Index row_stride, Index batch_stride) {
    return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && row_stride % in_chunk == 0 &&
           batch_stride % in_chunk == 0;
  }
};

/// Says how a slice of an operand lies in shared memory: 128 bytes of each row, whose 16-byte chunks are permuted so
/// that those of 8 rows at the same depth are in different banks.
namespace tensor_slice {
inline constexpr int bytes = 128, chunks = bytes / 16;
/// Returns where a chunk of a row is in its 128 bytes.
LACONIC_DEVICE int swizzled(int chunk, int row) { return (chunk ^ row % chunks) * 16; }
/// Returns the bytes of a chunk at k that are before the end of the depth.
template <TensorElement E>
LACONIC_DEVICE int bytes_before(int k, int until) {
  constexpr int in_chunk = static_cast<int>(TensorRows<E>::in_chunk);
  const int left = until - k;
  return (left < 0 ? 0 : left < in_chunk ? left : in_chunk) * static_cast<int>(sizeof(E));
}
}  // namespace tensor_slice

/// Says what one of so many threads copies of TensorRows: the same chunk of every `together`-th row of a tile.
template <TensorElement E, int Threads, int Rows>
struct TensorLines {
  static constexpr int together = Threads / tensor_slice::chunks;
  static_assert(together % tensor_slice::chunks == 0 && Rows % together == 0);
  const E* first;  ///< the chunk of the thread's first row where the depth begins
  Index stride;    ///< elements from a row to the next
  int rows;        ///< rows from that one to the end of the matrix

  /// Returns those of thread t for the rows from `row` on and the depth from `begin` on.
  LACONIC_DEVICE static TensorLines of(int t, const TensorRows<E>& x, Index batch, Index row, Index all_rows,
                                       Index begin) {
    const Index own = row + t / tensor_slice::chunks, left = all_rows - own;
    const E* const data = x.data + batch * x.batch_stride + begin + t % tensor_slice::chunks * TensorRows<E>::in_chunk;
    return {data + (left > 0 ? own : 0) * x.row_stride, x.row_stride, static_cast<int>(left < Rows ? left : Rows)};
  }
  /// Begins to copy a slice at k, zeros where the matrix has ended.
  LACONIC_DEVICE void copy(Block& block, int t, std::byte* slice, int k, int until) const {
    const int chunk = t % tensor_slice::chunks, row = t / tensor_slice::chunks,
              bytes = tensor_slice::bytes_before<E>(k + chunk * static_cast<int>(TensorRows<E>::in_chunk), until);
    std::byte* const to = slice + row * tensor_slice::bytes + tensor_slice::swizzled(chunk, row);
    LACONIC_UNROLL_DEVICE
    for (int i = 0; i < Rows / together; ++i) {
      const bool exists = bytes > 0 && i * together < rows;
      block.copy(to + i * together * tensor_slice::bytes, exists ? first + k + i * together * stride : first,
                 exists ? bytes : 0);
    }
  }
};

/// Computes one tile (Rows, Cols) of C in each block (x: tiles of all batches; y: parts of the depth), with Down x
/// Across warps. Slices of 128 bytes of the depth are copied to shared memory while earlier ones are multiplied; the 16
/// bytes of a row are permuted there, so that the 8 rows of a matrix are in different banks.
template <TensorElement E, int Rows, int Cols, int Down, int Across, int Stages, class A = TensorRows<E>>
struct TensorGemm {
  static constexpr int threads = warp_threads * Down * Across;
  static constexpr int slice_bytes = 128, chunks = slice_bytes / 16, depth = slice_bytes / static_cast<int>(sizeof(E));
  static constexpr int warp_rows = Rows / Down, warp_cols = Cols / Across, down = warp_rows / 16,
                       across = warp_cols / 8;  // products of a warp
  static constexpr int stage_bytes = (Rows + Cols) * slice_bytes;
  static constexpr int pitch = Cols + 8;  // of a row of sums in shared memory: the writes of a warp are in all banks
  static constexpr Index chunk = 1024;    ///< elements of the depth that parts are made of; a part is one sum
  static_assert(Rows % (16 * Down) == 0 && Cols % (8 * Across) == 0);
  static_assert(Rows * chunks % threads == 0 && Cols * chunks % threads == 0 && chunk % depth == 0);
  static_assert(Rows * pitch * static_cast<int>(sizeof(float)) <= Stages * stage_bytes);

  GemmSize size;
  A a;
  TensorRows<E> b;
  GemmResult<float> c;
  const float* bias;
  bool has_activation;
  Activation activation;
  RowSplit split;  // of the depth
  double* parts;   // (parts, batches, rows, cols), or null

  /// Returns the bytes of shared memory of a block.
  static constexpr std::size_t shared_bytes() { return std::size_t{Stages} * stage_bytes; }
  /// Returns the tiles of C of one batch.
  static constexpr Index tiles(const GemmSize& size) { return pieces(size.rows, Rows) * pieces(size.cols, Cols); }

  LACONIC_DEVICE void operator()(Block& block) const {
    // Numbers of tiles fit in 32 bits, which leaves registers for the sums.
    const int tiles_across = static_cast<int>(pieces(size.cols, Cols)), all = static_cast<int>(tiles(size)),
              x = static_cast<int>(block.x()), part = static_cast<int>(block.y());
    const int batch = x / all, tile_row = x % all / tiles_across, tile_col = x % all % tiles_across;
    const Index begin = split.begin(part) * chunk, after = split.end(part) * chunk,
                last = after < size.depth ? after : size.depth;
    const int until = static_cast<int>(last - begin);  // of the depth, from the first of this part
    std::byte* const memory = block.template shared<std::byte>(shared_bytes());
    PerThread<State> state(block);
    PerThread<LinesA> lines_a(block);
    PerThread<LinesB> lines_b(block);
    block.each_unordered([&](int t) {
      lines_a[t] = LinesA::of(t, a, batch, Index{Rows} * tile_row, size.rows, begin);
      lines_b[t] = LinesB::of(t, b, batch / size.sharing, Index{Cols} * tile_col, size.cols, begin);
      LACONIC_UNROLL_DEVICE
      for (int i = 0; i < down; ++i) {
        LACONIC_UNROLL_DEVICE
        for (int j = 0; j < across; ++j) {
          LACONIC_UNROLL_DEVICE
          for (int n = 0; n < 4; ++n) state[t].c[i][j][n] = 0;
        }
      }
    });
    const auto fetch = [&](int k, int stage) {
      std::byte* const to = memory + stage * stage_bytes;
      block.each_unordered([&](int t) {
        lines_a[t].copy(block, t, to, k, until);
        lines_b[t].copy(block, t, to + Rows * slice_bytes, k, until);
      });
      block.end_copies();
    };
    for (int s = 0; s + 1 < Stages; ++s) fetch(s * depth, s);
    int stage = 0;
    for (int k = 0; k < until; k += depth) {
      block.template wait_for_copies<Stages - 2>();  // and for the products of the slice before
      fetch(k + (Stages - 1) * depth, stage == 0 ? Stages - 1 : stage - 1);
      multiply(block, memory + stage * stage_bytes, state);
      stage = stage + 1 == Stages ? 0 : stage + 1;
    }
    block.template wait_for_copies<0>();
    write(block, reinterpret_cast<float*>(memory), state, batch, part, Index{Rows} * tile_row, Index{Cols} * tile_col);
  }

 private:
  using LinesA = typename A::template Lines<threads, Rows>;
  using LinesB = TensorLines<E, threads, Cols>;
  struct State {
    float c[static_cast<std::size_t>(down)][static_cast<std::size_t>(across)][4];
    std::uint32_t a[4], b[static_cast<std::size_t>(across)][4];
  };
  /// Adds the products of a slice.
  LACONIC_DEVICE static void multiply(Block& block, std::byte* slice, PerThread<State>& state) {
    LACONIC_UNROLL_DEVICE
    for (int half = 0; half < 2; ++half) {  // 64 bytes of the depth: two products
      LACONIC_UNROLL_DEVICE
      for (int j = 0; j < across; ++j)
        load_matrices(
            block,
            [&](int t) {
              const int lane = t % warp_threads, row = t / warp_threads % Across * warp_cols + lane % 8;
              return slice + (Rows + row + 8 * j) * slice_bytes + tensor_slice::swizzled(4 * half + lane / 8, lane);
            },
            [&](int t) { return state[t].b[j]; });
      round<4 * across>(block, [&](int t) { return &state[t].b[0][0]; });
      LACONIC_UNROLL_DEVICE
      for (int step = 0; step < 2; ++step) {
        LACONIC_UNROLL_DEVICE
        for (int i = 0; i < down; ++i) {
          load_matrices(
              block,
              [&](int t) {
                const int lane = t % warp_threads, row = t / warp_threads / Across * warp_rows + lane % 16;
                return slice + (row + 16 * i) * slice_bytes +
                       tensor_slice::swizzled(4 * half + 2 * step + lane / 16, lane);
              },
              [&](int t) { return state[t].a; });
          round<4>(block, [&](int t) { return state[t].a; });
          LACONIC_UNROLL_DEVICE
          for (int j = 0; j < across; ++j)
            add_product<E>(block, [&](int t) {
              State& s = state[t];
              return TensorRegisters{s.c[i][j], s.a, s.b[j] + 2 * step};
            });
        }
      }
    }
  }
  /// Rounds registers of floats to TF32.
  template <int Count, class Of>
  LACONIC_DEVICE static void round(Block& block, const Of& of) {
    if constexpr (std::same_as<E, float>)
      block.each_unordered([&](int t) {
        LACONIC_UNROLL_DEVICE
        for (int i = 0; i < Count; ++i) of(t)[i] = tf32(std::bit_cast<float>(of(t)[i]));
      });
  }
  /// Writes the sums of a tile where they belong, through shared memory, so that neighbours are written by neighbouring
  /// threads.
  LACONIC_DEVICE void write(Block& block, float* tile, PerThread<State>& state, Index batch, Index part, Index row,
                            Index col) const {
    block.each([&](int t) {
      const int warp = t / warp_threads, lane = t % warp_threads;
      float* const first =
          tile + (warp / Across * warp_rows + lane / 4) * pitch + warp % Across * warp_cols + lane % 4 * 2;
      LACONIC_UNROLL_DEVICE
      for (int i = 0; i < down; ++i) {
        LACONIC_UNROLL_DEVICE
        for (int j = 0; j < across; ++j) {
          LACONIC_UNROLL_DEVICE
          for (int n = 0; n < 4; ++n) first[(16 * i + n / 2 * 8) * pitch + 8 * j + n % 2] = state[t].c[i][j][n];
        }
      }
    });
    block.each_unordered([&](int t) {
      for (int at = t * 4; at < Rows * Cols; at += threads * 4) {
        const int i = at / Cols, j = at % Cols;
        const int count = size.cols - col - j < 4 ? static_cast<int>(size.cols - col - j) : 4;
        if (row + i < size.rows && count > 0) put(batch, part, row + i, col + j, tile + i * pitch + j, count);
      }
    });
  }
  /// Writes `count` sums, of (r, n) and the columns after it.
  LACONIC_DEVICE void put(Index batch, Index part, Index r, Index n, const float* sums, int count) const {
    if (parts != nullptr) {
      double* const to = parts + ((part * size.batches + batch) * size.rows + r) * size.cols + n;
      for (int i = 0; i < count; ++i) to[i] = static_cast<double>(sums[i]);
      return;
    }
    auto four = load<4>(sums);
    LACONIC_UNROLL_DEVICE
    for (int i = 0; i < 4; ++i) {
      if (bias != nullptr && i < count) four[i] += bias[batch / size.sharing * size.cols + n + i];
      if (has_activation) four[i] = activate(activation, four[i]);
    }
    float* const to = c.data + batch * c.batch_stride + r * c.row_stride + n;
    if (count == 4 && are_aligned<4>(to)) {
      store(to, four);
      return;
    }
    LACONIC_UNROLL_DEVICE
    for (int i = 0; i < 4; ++i)
      if (i < count) to[i] = four[i];
  }
};

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
