// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/kernels/attention_slices.hpp>
#include <laconic/backend/cuda/kernels/tile.hpp>

#include <cstddef>
#include <type_traits>

namespace laconic {
inline namespace LACONIC_ABI {
namespace cuda {

/// Holds a tile of (64, 64) sums as `Tile` does, whose products are computed on tensor cores, with operands rounded to
/// Bf16.
class TensorTile {
 public:
  static constexpr int threads = 256,            ///< threads of a block
      rows = 64,                                 ///< rows of the tile
      cols = 64;                                 ///< columns of the tile
  static constexpr Index wide_bytes = 32 << 10;  ///< shared memory that a kernel may use for sums of its own

  /// Returns the shared memory of a tile. `diagonal` says whether an operand is read OfSum or OfDifference.
  static constexpr std::size_t bytes(bool diagonal) {
    return shared_bytes<Bf16>(Slice::size) + shared_bytes<Bf16>(second_slices(diagonal) * Slice::size) +
           shared_bytes<float>(diagonal_count(diagonal));
  }
  /// Makes a tile of unspecified sums. `diagonal` is as in `bytes`.
  LACONIC_DEVICE TensorTile(Block& block, bool diagonal)
      : block_(block),
        state_(block),
        first_(block.shared<Bf16>(Slice::size)),
        second_(block.shared<Bf16>(second_slices(diagonal) * Slice::size)),
        diagonals_(block.shared<float>(diagonal_count(diagonal))) {}

  /// Sets all sums to zero.
  LACONIC_DEVICE void clear() {
    block_.each_unordered([&](int t) { clear(state_[t].sums); });
  }
  /// Adds sum_w a(., w) b(., w) to each element, for w in [0, width). a is read OfRow or OfColumn.
  template <class PicksA, Along along_a, class LoadA, class PicksB, Along along_b, class LoadB>
  LACONIC_DEVICE void add_product(Index width, const Staged<PicksA, along_a, LoadA>& a,
                                  const Staged<PicksB, along_b, LoadB>& b) {
    constexpr bool is_diagonal = PicksB::count(rows, cols) > cols, of_rows = std::is_same_v<PicksA, OfRow>;
    if constexpr (is_diagonal) block_.each_unordered([&](int t) { clear(state_[t].diagonals); });
    for (Index begin = 0; begin < width; begin += Slice::width) {
      const int depth = width - begin < Slice::width ? static_cast<int>(width - begin) : Slice::width;
      block_.each([&](int t) {
        stage<PicksA, along_a>(t, begin, depth, a.load, first_);
        stage<PicksB, along_b>(t, begin, depth, b.load, second_);
      });
      if constexpr (is_diagonal)
        multiply<diagonal_tiles / 2>(
            first_, depth, [&](int t, int i) { return second_ + diagonal_of<PicksA, PicksB>(t, i) * Slice::width; },
            [&](int t, int i) { return state_[t].diagonals[i]; });
      else
        multiply<sum_tiles / 2>(
            of_rows ? first_ : second_, depth,
            [&](int t, int i) { return (of_rows ? second_ : first_) + (col_of(t) + 16 * i) * Slice::width; },
            [&](int t, int i) { return state_[t].sums[i]; });
      block_.each([](int) {});  // until all have read the slices
    }
    if constexpr (is_diagonal) add_diagonals<PicksA, PicksB>();
  }
  /// Calls visit(r, c, sum) for every element, in the thread that has it.
  template <class Visit>
  LACONIC_DEVICE void each_sum(const Visit& visit) {
    block_.each([&](int t) {
      each_place(t, sum_tiles,
                 [&](int tile, int i, int r, int c) { visit(row_of(t) + r, col_of(t) + c, state_[t].sums[tile][i]); });
    });
  }

 private:
  static constexpr int sum_tiles = 4,  ///< tiles of 8 columns of a warp, which has 16 rows and 32 columns
      diagonal_tiles = 6,              ///< such tiles of products along diagonals: half of 80 columns, or more
      diagonal_stride = cols + 4;      ///< from a row of sums along diagonals to the next
  struct State {
    float sums[std::size_t{sum_tiles}][4], diagonals[std::size_t{diagonal_tiles}][4];
    std::uint32_t a[4], b[4];
  };
  static constexpr Index second_slices(bool diagonal) { return diagonal ? 2 : 1; }
  static constexpr Index diagonal_count(bool diagonal) { return diagonal ? rows * diagonal_stride : 0; }
  LACONIC_DEVICE static int lane_of(int t) { return t & (warp_threads - 1); }
  LACONIC_DEVICE static int row_of(int t) { return (t >> 6 & 3) * 16; }
  LACONIC_DEVICE static int col_of(int t) { return (t >> 5 & 1) * 32; }
  template <class Fours>
  LACONIC_DEVICE static void clear(Fours& fours) {
    LACONIC_UNROLL_DEVICE
    for (auto& four : fours) {
      LACONIC_UNROLL_DEVICE
      for (float& value : four) value = 0;
    }
  }
  /// Calls visit(tile, i, row, column) for all values of a thread in tiles of 8 columns.
  template <class Visit>
  LACONIC_DEVICE static void each_place(int t, int tiles, const Visit& visit) {
    LACONIC_UNROLL_DEVICE
    for (int tile = 0; tile < tiles; ++tile) {
      LACONIC_UNROLL_DEVICE
      for (int i = 0; i < 4; ++i) visit(tile, i, (lane_of(t) >> 2) + i / 2 * 8, 8 * tile + (t & 3) * 2 + i % 2);
    }
  }

  /// Writes `depth` values of each row of an operand to slices, and zeros up to the depth of a product.
  template <class Picks, Along along, class Load>
  LACONIC_DEVICE static void stage(int t, Index begin, int depth, const Load& load, Bf16* to) {
    constexpr int count = Picks::count(rows, cols), pairs = Slice::width / 2;
    for (int i = t; i < count * pairs; i += threads) {
      const int row = along == Along::width ? i / pairs : i % count,
                w = 2 * (along == Along::width ? i % pairs : i / count);
      if (w >= depth + Slice::depth) continue;
      const float low = w < depth ? load(row, begin + w) : 0.0f, high = w + 1 < depth ? load(row, begin + w + 1) : 0.0f;
      *reinterpret_cast<std::uint32_t*>(to + Slice::at(row, w / Slice::chunk) + w % Slice::chunk) = two_bf16(low, high);
    }
  }
  /// Adds products of 16 rows of a slice for each warp and 16 * Groups rows, of which 16 begin at of(thread, i), to
  /// sums(thread, tile).
  template <int Groups, class Of, class Sums>
  LACONIC_DEVICE void multiply(const Bf16* slice, int depth, const Of& of, const Sums& sums) {
    LACONIC_UNROLL_DEVICE
    for (int d = 0; d < Slice::width / Slice::depth; ++d) {
      if (d * Slice::depth >= depth) break;
      load_matrices(
          block_,
          [&](int t) {
            const int lane = lane_of(t);
            return slice + Slice::after(Slice::at(row_of(t) + (lane & 15), lane >> 4), d);
          },
          [&](int t) { return state_[t].a; });
      LACONIC_UNROLL_DEVICE
      for (int i = 0; i < Groups; ++i) {
        load_matrices(
            block_,
            [&](int t) {
              const int lane = lane_of(t);
              return of(t, i) + Slice::after(Slice::at((lane & 7) + (lane >> 4) * 8, lane >> 3 & 1), d);
            },
            [&](int t) { return state_[t].b; });
        LACONIC_UNROLL_DEVICE
        for (int half = 0; half < 2; ++half) add_product_of(sums, 2 * i + half, 2 * half);
      }
    }
  }
  template <class Sums>
  LACONIC_DEVICE void add_product_of(const Sums& sums, int tile, int b) {
    cuda::add_product<Bf16>(block_, [&](int t) {
      return TensorRegisters{sums(t, tile), state_[t].a, state_[t].b + b};
    });
  }

  /// Returns the first of 16 rows of the second operand, for group i of columns of a warp. Its 16 rows of the first
  /// operand meet 80 of the second. Two warps share them; the last group is computed twice.
  template <class PicksA, class PicksB>
  LACONIC_DEVICE static int diagonal_of(int t, int i) {
    constexpr bool falls = std::is_same_v<PicksA, OfRow> && std::is_same_v<PicksB, OfDifference>;
    const int first = col_of(t) / 32 * 48 + 16 * i;
    return (falls ? rows - 16 - row_of(t) : row_of(t)) + (first < 64 ? first : 64);
  }
  /// Adds products along diagonals to the sums: that of row i of the first operand and row x of the second is element
  /// (r, c), of which one is i and the other is such that PicksB::at(r, c, rows) is x.
  template <class PicksA, class PicksB>
  LACONIC_DEVICE void add_diagonals() {
    constexpr bool of_rows = std::is_same_v<PicksA, OfRow>, of_sum = std::is_same_v<PicksB, OfSum>;
    block_.each([&](int t) {
      each_place(t, diagonal_tiles, [&](int tile, int k, int row, int col) {
        const int i = row_of(t) + row, x = diagonal_of<PicksA, PicksB>(t, tile / 2) + col % 16;
        const int other = of_sum ? x - i : of_rows ? x + i - (rows - 1) : rows - 1 + i - x;
        if (other >= 0 && other < cols)
          diagonals_[of_rows ? i * diagonal_stride + other : other * diagonal_stride + i] =
              state_[t].diagonals[tile][k];
      });
    });
    block_.each_unordered([&](int t) {
      each_place(t, sum_tiles, [&](int tile, int k, int r, int c) {
        state_[t].sums[tile][k] += diagonals_[(row_of(t) + r) * diagonal_stride + col_of(t) + c];
      });
    });
  }

  Block& block_;
  PerThread<State> state_;
  Bf16 *first_, *second_;
  float* diagonals_;
};

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
