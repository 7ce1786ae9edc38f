// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/block.hpp>

#include <cstddef>

// Products of small tiles, of which attention is made: a block of threads computes a tile of (rows, cols) sums over a
// width of any length, from operands that are staged in shared memory, a slice of the width at a time.

namespace laconic {
inline namespace LACONIC_ABI {
namespace cuda {

/// Returns the bytes of shared memory that `Block::shared` takes for `count` values.
template <class V>
constexpr std::size_t shared_bytes(Index count) {
  return (static_cast<std::size_t>(count) * sizeof(V) + 15) / 16 * 16;
}

/// Says that element (r, c) of a tile reads row r of an operand.
struct OfRow {
  /// Returns the rows of the operand for a tile of (rows, cols).
  static constexpr int count(int rows, int) { return rows; }
  /// Returns the row that element (r, c) reads, in a tile of so many rows.
  static constexpr int at(int r, int, int) { return r; }
};
/// Says that element (r, c) of a tile reads row c of an operand.
struct OfColumn {
  /// Returns the rows of the operand for a tile of (rows, cols).
  static constexpr int count(int, int cols) { return cols; }
  /// Returns the row that element (r, c) reads, in a tile of so many rows.
  static constexpr int at(int, int c, int) { return c; }
};
/// Says that element (r, c) of a tile reads row r + c of an operand.
struct OfSum {
  /// Returns the rows of the operand for a tile of (rows, cols).
  static constexpr int count(int rows, int cols) { return rows + cols - 1; }
  /// Returns the row that element (r, c) reads, in a tile of so many rows.
  static constexpr int at(int r, int c, int) { return r + c; }
};
/// Says that element (r, c) of a tile reads row c - r of an operand, counted from the last row of the tile.
struct OfDifference {
  /// Returns the rows of the operand for a tile of (rows, cols).
  static constexpr int count(int rows, int cols) { return rows + cols - 1; }
  /// Returns the row that element (r, c) reads, in a tile of so many rows.
  static constexpr int at(int r, int c, int rows) { return rows - 1 - r + c; }
};

/// Says which values of an operand are neighbours in memory: those along the width of a row, or those of all rows at
/// the same place of the width.
enum class Along { width, rows };

/// Is an operand of a product: load(row, w) returns the value at place w of the width. It is called for places within
/// the width only.
template <class Picks, Along along, class Load>
struct Staged {
  Load load;  ///< gives the values
};
/// Makes an operand whose rows are contiguous in memory.
template <class Picks, class Load>
LACONIC_DEVICE Staged<Picks, Along::width, Load> by_width(const Load& load) {
  return {load};
}
/// Makes an operand whose columns are contiguous in memory.
template <class Picks, class Load>
LACONIC_DEVICE Staged<Picks, Along::rows, Load> by_rows(const Load& load) {
  return {load};
}

/// Holds a tile of (rows, cols) sums in the registers of a block, RowsEach x 4 in each thread. The sum of an element
/// runs over the width in order, whatever the number of rows.
template <class T, int RowsEach>
class Tile {
 public:
  static constexpr int lanes = 16,  ///< threads along a row, and along a column
      threads = lanes * lanes,      ///< threads of a block
      cols_each = 4,                ///< columns of a thread
      rows = RowsEach * lanes,      ///< rows of the tile
      cols = cols_each * lanes,     ///< columns of the tile
      depth = 16,                   ///< places of the width that are staged at once
      stride = depth + 1;           ///< values from a staged row to the next: neighbours in different banks
  static constexpr Index wide_bytes = 64 << 10;  ///< shared memory that a kernel may use for sums of its own
  static_assert(rows <= cols);

  /// Returns the shared memory of a tile. `diagonal` says whether an operand is read OfSum or OfDifference.
  static constexpr std::size_t bytes(bool diagonal) {
    return shared_bytes<T>(cols * stride) + shared_bytes<T>(second_rows(diagonal) * stride);
  }
  /// Makes a tile of unspecified sums. `diagonal` is as in `bytes`.
  LACONIC_DEVICE Tile(Block& block, bool diagonal)
      : block_(block),
        sums_(block),
        first_(block.shared<T>(cols * stride)),
        second_(block.shared<T>(second_rows(diagonal) * stride)) {}

  /// Sets all sums to zero.
  LACONIC_DEVICE void clear() {
    block_.each([&](int t) { sums_[t] = Sums(); });
  }
  /// Sets the sum of every element to load(r, c).
  template <class Load>
  LACONIC_DEVICE void set(const Load& load) {
    block_.each([&](int t) {
      LACONIC_UNROLL_DEVICE
      for (int x = 0; x < RowsEach; ++x) {
        LACONIC_UNROLL_DEVICE
        for (int y = 0; y < cols_each; ++y) sums_[t].values[x][y] = load(t / lanes + x * lanes, t % lanes + y * lanes);
      }
    });
  }
  /// Adds sum_w a(., w) b(., w) to each element, for w in [0, width). a is read OfRow or OfColumn.
  template <class PicksA, Along along_a, class LoadA, class PicksB, Along along_b, class LoadB>
  LACONIC_DEVICE void add_product(Index width, const Staged<PicksA, along_a, LoadA>& a,
                                  const Staged<PicksB, along_b, LoadB>& b) {
    for (Index begin = 0; begin < width; begin += depth) {
      block_.each([&](int t) {
        stage<PicksA, along_a>(t, begin, width, a.load, first_);
        stage<PicksB, along_b>(t, begin, width, b.load, second_);
      });
      block_.each([&](int t) {
        Sums& sums = sums_[t];
        const int row = t / lanes, col = t % lanes;
        for (int w = 0; w < depth; ++w) {
          LACONIC_UNROLL_DEVICE
          for (int x = 0; x < RowsEach; ++x) {
            LACONIC_UNROLL_DEVICE
            for (int y = 0; y < cols_each; ++y) {
              const int r = row + x * lanes, c = col + y * lanes;
              // Rounded once, so that tiles of all heights give the same bits.
              sums.values[x][y] = multiply_add(first_[PicksA::at(r, c, rows) * stride + w],
                                               second_[PicksB::at(r, c, rows) * stride + w], sums.values[x][y]);
            }
          }
        }
      });
    }
  }
  /// Calls visit(r, c, sum) for every element, in the thread that has it.
  template <class Visit>
  LACONIC_DEVICE void each_sum(const Visit& visit) {
    block_.each([&](int t) {
      LACONIC_UNROLL_DEVICE
      for (int x = 0; x < RowsEach; ++x) {
        LACONIC_UNROLL_DEVICE
        for (int y = 0; y < cols_each; ++y) visit(t / lanes + x * lanes, t % lanes + y * lanes, sums_[t].values[x][y]);
      }
    });
  }

 private:
  struct Sums {
    T values[static_cast<std::size_t>(RowsEach)][static_cast<std::size_t>(cols_each)] = {};
  };
  static constexpr Index second_rows(bool diagonal) { return diagonal ? rows + cols - 1 : cols; }

  template <class Picks, Along along, class Load>
  LACONIC_DEVICE static void stage(int t, Index begin, Index width, const Load& load, T* to) {
    constexpr int count = Picks::count(rows, cols);
    for (int i = t; i < count * depth; i += threads) {
      const int row = along == Along::width ? i / depth : i % count, w = along == Along::width ? i % depth : i / count;
      to[row * stride + w] = begin + w < width ? load(row, begin + w) : T(0);
    }
  }

  Block& block_;
  PerThread<Sums> sums_;
  T *first_, *second_;
};

/// Returns a number of blocks that is enough for tiles of `tile` rows of packed sequences, of which each row counts
/// `per_row` times. It needs only the number of rows of all sequences.
constexpr Index tile_slots(Index rows, Index sequences, Index per_row, Index tile) {
  return rows * per_row / tile + sequences;
}
/// Says which tile a block computes.
struct TileSlot {
  Index sequence;  ///< the sequence
  Index first;     ///< the first row of the tile, counted in its sequence; it may be beyond the last row
};
/// Returns the tile of a slot of `tile_slots`: sequence n has those from offsets[n] * per_row / tile + n on.
LACONIC_DEVICE TileSlot tile_of(Index slot, const Index* offsets, Index sequences, Index per_row, Index tile) {
  Index low = 0, high = sequences;  // the sequence is in [low, high)
  while (high - low > 1) {
    const Index middle = (low + high) / 2;
    (offsets[middle] * per_row / tile + middle <= slot ? low : high) = middle;
  }
  return {low, (slot - low - offsets[low] * per_row / tile) * tile};
}

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
