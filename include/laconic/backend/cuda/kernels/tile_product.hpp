// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/block.hpp>

#include <cstddef>

namespace laconic {
inline namespace LACONIC_ABI {
namespace cuda {

/// Computes a tile of a matrix product, 64 x 64 sums over k in one block of threads, 4 x 4 sums a thread. The operands
/// are read by functions of (row or column of the tile, k), so they need not be matrices in memory: they are staged in
/// shared memory, `step` values of k at a time. Each sum is in T and in the order of k.
///
/// An operand is a struct with `T operator()(int i, int k) const`, which returns 0 for a row or column outside the
/// matrix, and `static constexpr bool along_k`, which says whether its neighbours in memory have consecutive k; if not,
/// they have consecutive i.
template <class T>
class TileProduct {
 public:
  static constexpr int threads = 256;  ///< threads of a block
  static constexpr int size = 64;      ///< rows and columns of the tile
  static constexpr int each = 4;       ///< rows and columns of a thread
  static constexpr int step = 16;      ///< values of k that are staged together

  /// Holds the sums of one thread.
  struct Sums {
    T value[each][each] = {};  ///< (rows, columns)
  };

  /// Returns the bytes of shared memory that the product takes.
  static constexpr std::size_t shared_bytes() { return 2 * step * pitch * sizeof(T); }

  /// Takes shared memory of the block.
  LACONIC_DEVICE explicit TileProduct(Block& block)
      : left_(block.template shared<T>(step * pitch)), right_(block.template shared<T>(step * pitch)) {}

  /// Adds sum_k left(row, k) right(column, k) for k in [0, depth) to the sums of each thread.
  template <class Left, class Right>
  LACONIC_DEVICE void add(Block& block, int depth, const Left& left, const Right& right, PerThread<Sums>& sums) const {
    for (int begin = 0; begin < depth; begin += step) {
      block.each([&](int t) {
        stage(left, t, begin, depth, left_);
        stage(right, t, begin, depth, right_);
      });
      block.each([&](int t) {
        Sums& sum = sums[t];
        for (int k = 0; k < step; ++k) {
          const Values a = values(left_, k, row(t, 0)), b = values(right_, k, column(t, 0));
          for (int i = 0; i < each; ++i)
            for (int j = 0; j < each; ++j) sum.value[i][j] = multiply_add(a.value[i], b.value[j], sum.value[i][j]);
        }
      });
    }
  }
  /// Calls f(row of the tile, column of the tile, i, j) for every sum value[i][j] of thread t.
  template <class F>
  LACONIC_DEVICE static void each_sum(int t, F&& f) {
    for (int i = 0; i < each; ++i)
      for (int j = 0; j < each; ++j) f(row(t, i), column(t, j), i, j);
  }

 private:
  static constexpr int pitch = size + 4;  // values of a thread stay aligned, and those of consecutive k share few banks
  static constexpr int across = size / each;
  static_assert(across * across == threads);

  /// Holds what a thread reads at once.
  struct alignas(16) Values {
    T value[each];
  };
  static_assert(pitch * sizeof(T) % alignof(Values) == 0);
  LACONIC_DEVICE static const Values& values(const T* tile, int k, int first) {
    return *reinterpret_cast<const Values*>(tile + k * pitch + first);
  }
  // Neighbouring threads have neighbouring columns, so that they write neighbouring results.
  LACONIC_DEVICE static int row(int t, int i) { return t / across * each + i; }
  LACONIC_DEVICE static int column(int t, int j) { return t % across * each + j; }

  /// Writes the values of k in [begin, begin + step) to a tile (step, pitch), zeros from k = depth on.
  template <class Operand>
  LACONIC_DEVICE static void stage(const Operand& operand, int t, int begin, int depth, T* tile) {
    for (int at = t; at < size * step; at += threads) {
      const int i = Operand::along_k ? at / step : at % size, k = Operand::along_k ? at % step : at / size;
      tile[k * pitch + i] = begin + k < depth ? operand(i, begin + k) : T(0);
    }
  }

  T *left_, *right_;
};

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
