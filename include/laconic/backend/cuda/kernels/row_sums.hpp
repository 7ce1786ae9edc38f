// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/kernels/held_rows.hpp>

#include <algorithm>
#include <cstddef>

// What kernels share that run over rows of sequences, and that sum over the rows of a batch.

namespace laconic {
inline namespace LACONIC_ABI {
namespace cuda {

/// Returns the last of the numbers [0, count) for which first(number), which ascends, is at most `value`; 0 if none is.
template <class F>
LACONIC_DEVICE Index last_at_most(Index count, Index value, F first) {
  Index low = 0, high = count;
  while (high - low > 1) {
    const Index middle = low + (high - low) / 2;
    (first(middle) <= value ? low : high) = middle;
  }
  return low;
}

/// Returns the number of the sequence that has a row. offsets (sequences + 1); every sequence has `longer` rows more
/// than they say, or less if that is negative, but not less than none.
LACONIC_DEVICE Index sequence_of(const Index* offsets, Index sequences, Index row, Index longer = 0) {
  return last_at_most(sequences, row, [&](Index n) { return offsets[n] + n * longer; });
}

/// Splits a sum over rows into parts, each a range of chunks. Sums within a chunk are in T or double, those of chunks
/// and of parts in double, each in its order.
struct RowSplit {
  Index chunks;  ///< chunks of all rows
  Index each;    ///< chunks of a part, but for the last one

  /// Splits rows into chunks of `chunk` and so many parts that their blocks, `tiles` in each part, occupy a GPU.
  static RowSplit of(Index rows, Index chunk, Index tiles) {
    constexpr Index enough = 512;  // blocks; more parts cost memory and one more pass over it
    const Index chunks = pieces(rows, chunk);
    return {chunks, std::max<Index>(1, pieces(chunks, std::max<Index>(1, enough / std::max<Index>(1, tiles))))};
  }
  /// Returns the number of parts.
  constexpr Index parts() const { return pieces(chunks, each); }
  /// Returns the first chunk of a part.
  constexpr Index begin(Index part) const { return part * each; }
  /// Returns the chunk after the last one of a part.
  constexpr Index end(Index part) const { return (part + 1) * each < chunks ? (part + 1) * each : chunks; }
};

/// Adds up sums (lanes, 32) of 32 columns, which are in shared memory, and calls f(column, sum) for each column. The
/// sums are lost.
template <int lanes, class F>
LACONIC_DEVICE void add_lanes(Block& block, double* sums, const F& f) {
  constexpr int some = lanes * warp_threads / 256;  // lanes that a thread of 256 adds up first
  static_assert(some * 256 == lanes * warp_threads);
  block.each([&](int t) {
    double* of_thread = sums + t / warp_threads * some * warp_threads + t % warp_threads;
    for (int lane = 1; lane < some; ++lane) of_thread[0] += of_thread[lane * warp_threads];
  });
  block.each([&](int t) {
    if (t >= warp_threads) return;
    double sum = 0;
    for (int lane = 0; lane < lanes; lane += some) sum += sums[lane * warp_threads + t];
    f(t, sum);
  });
}

/// Writes parts of the sums of the columns of dy (rows, cols). A block sums 32 columns (along x) over the chunks of one
/// part (along y): interleaved sums of vectors of columns, then the sum of these, in double.
template <class T>
struct ColumnSums {
  static constexpr int threads = 256, across = warp_threads / vector_size<T>, lanes = threads / across;
  static constexpr Index chunk = 256;  ///< rows of a chunk
  const T* dy;
  double* parts;  ///< (parts, cols)
  RowSplit split;
  Index rows, cols;

  /// Returns the blocks of one part.
  static Index tiles(Index cols) { return pieces(cols, warp_threads); }
  /// Returns the bytes of shared memory of a block.
  static constexpr std::size_t shared_bytes() { return lanes * warp_threads * sizeof(double); }

  LACONIC_DEVICE void operator()(Block& block) const {
    constexpr int together = vector_size<T>;
    double* sums = block.template shared<double>(lanes * warp_threads);
    const Index first = split.begin(block.y()) * chunk, after = split.end(block.y()) * chunk,
                end = after < rows ? after : rows;
    block.each([&](int t) {
      const int in_block = t % across * together;
      const Index c = block.x() * warp_threads + in_block;
      Vector<double, together> sum{};
      for (Index r = first + t / across; c < cols && r < end; r += lanes) {
        const Vector<T> v = load_within(dy + r * cols, c, cols);
        LACONIC_UNROLL_DEVICE
        for (int k = 0; k < together; ++k) sum[k] += static_cast<double>(v[k]);
      }
      store(sums + t / across * warp_threads + in_block, sum);
    });
    add_lanes<lanes>(block, sums, [&](int column, double sum) {
      const Index c = block.x() * warp_threads + column;
      if (c < cols) parts[block.y() * cols + c] = sum;
    });
  }
};

/// Adds sum_p part[p * size + i], in double, to element i of `to` (size).
template <class T>
struct AddParts {
  const double* part;
  T* to;
  Index parts, size;
  LACONIC_DEVICE void operator()(Index i) const {
    double sum = 0;
    for (Index p = 0; p < parts; ++p) sum += part[p * size + i];
    to[i] += static_cast<T>(sum);
  }
};

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
