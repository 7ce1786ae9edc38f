// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/kernels/row_sums.hpp>

#include <cstddef>

// Sums of columns over time, in double. The rows of a sequence are cut into chunks from its first row on; a block sums
// 32 columns of a chunk, vectors of columns in each thread, and a second kernel joins the chunks of each sequence. So
// the order of a sum depends on the length of its sequence only, and a long sequence keeps many blocks busy.

namespace laconic {
inline namespace LACONIC_ABI {
namespace cuda {

/// Says which rows belong together: those of each sequence, or all.
struct RowGroups {
  /// Holds some rows of a group, [begin, end).
  struct Part {
    Index group, begin, end;
  };

  static constexpr Index chunk = 128;  ///< rows of a chunk
  const Index* offsets;                ///< first row of each group and one past the last, on the device; null: 0, rows
  Index size;                          ///< groups
  Index rows;                          ///< rows of all groups

  /// Returns a number of chunks that is enough for all groups. Some may be empty.
  constexpr Index chunks() const { return rows / chunk + size; }
  /// Returns the first row of a group.
  LACONIC_DEVICE Index begin(Index n) const { return offsets == nullptr ? n * rows : offsets[n]; }
  /// Returns the number of rows of a group.
  LACONIC_DEVICE Index length(Index n) const { return begin(n + 1) - begin(n); }
  /// Returns the number of the first chunk of a group.
  LACONIC_DEVICE Index first_chunk(Index n) const { return begin(n) / chunk + n; }
  /// Returns the rows of a chunk.
  LACONIC_DEVICE Part rows_of(Index number) const {
    const Index n = last_at_most(size, number, [&](Index i) { return first_chunk(i); });
    const Index first = begin(n) + (number - first_chunk(n)) * chunk, end = begin(n + 1);
    return {n, first, first + chunk < end ? first + chunk : end};
  }
};

/// Calls f(group, column, row, end, step) for each chunk of rows and each vector of columns: f takes the rows row, row
/// + step ... below end of the F::together columns from `column` on. Blocks are (chunks, 32 columns).
template <class F>
struct EachColumn {
  static constexpr int threads = 256, across = warp_threads / F::together, lanes = threads / across;
  F f;
  RowGroups groups;
  Index cols;
  LACONIC_DEVICE void operator()(Block& block) const {
    const RowGroups::Part part = groups.rows_of(block.x());
    block.each([&](int t) {
      const Index c = block.y() * warp_threads + t % across * F::together;
      if (c < cols) f(part.group, c, part.begin + t / across, part.end, Index(lanes));
    });
  }
};
/// Runs `EachColumn`.
template <class F>
void each_column(const Stream& stream, const char* name, const RowGroups& groups, Index cols, const F& f) {
  launch(stream, name, {groups.chunks(), pieces(cols, warp_threads)}, EachColumn<F>{f, groups, cols});
}

/// Computes F::sums sums of each column over the rows f.rows_of(x) of each block (x, 32 columns): f.add adds the terms
/// of some of the rows to the sums of F::together columns, f.write takes one sum of all.
template <class F>
struct SumColumns {
  static constexpr int threads = 256, across = warp_threads / F::together, lanes = threads / across;
  static constexpr int values = lanes * warp_threads;  // of one sum
  static constexpr std::size_t shared_bytes = F::sums * values * sizeof(double);
  F f;
  Index cols;
  LACONIC_DEVICE void operator()(Block& block) const {
    double* parts = block.template shared<double>(F::sums * values);
    const RowGroups::Part part = f.rows_of(block.x());
    block.each([&](int t) {
      const int in_block = t % across * F::together;
      const Index c = block.y() * warp_threads + in_block;
      Vector<double, F::together> sum[F::sums] = {};
      if (c < cols) f.add(part.group, c, part.begin + t / across, part.end, Index(lanes), sum);
      LACONIC_UNROLL_DEVICE
      for (int k = 0; k < F::sums; ++k) store(parts + k * values + t / across * warp_threads + in_block, sum[k]);
    });
    for (int k = 0; k < F::sums; ++k)
      add_lanes<lanes>(block, parts + k * values, [&](int column, double sum) {
        const Index c = block.y() * warp_threads + column;
        if (c < cols) f.write(block.x(), k, c, sum);
      });
  }
};

/// Sums the terms of each chunk: term(group, column, row, end, step, sums) adds to F::sums sums of F::together columns.
/// Writes parts (chunks, F::sums, cols).
template <class F>
struct ChunkSums {
  static constexpr int sums = F::sums, together = F::together;
  F term;
  RowGroups groups;
  double* parts;
  Index cols;
  LACONIC_DEVICE RowGroups::Part rows_of(Index x) const { return groups.rows_of(x); }
  LACONIC_DEVICE void add(Index n, Index c, Index row, Index end, Index step, Vector<double, together>* sum) const {
    term(n, c, row, end, step, sum);
  }
  LACONIC_DEVICE void write(Index x, int k, Index c, double sum) const { parts[(x * sums + k) * cols + c] = sum; }
};

/// Adds up the parts (chunks, sums, cols) of each group. Writes to[k] (groups, cols), the rows of which are `stride`
/// elements apart: sum k, or its mean over the rows of the group.
template <class T, std::size_t Sums>
struct JoinChunks {
  static constexpr int sums = static_cast<int>(Sums), together = vector_size<double>;
  const double* parts;
  RowGroups groups;
  T* to[Sums];
  Index cols, stride;
  bool mean;
  LACONIC_DEVICE RowGroups::Part rows_of(Index x) const {
    const Index first = groups.first_chunk(x);
    return {x, first, first + pieces(groups.length(x), RowGroups::chunk)};
  }
  LACONIC_DEVICE void add(Index, Index c, Index row, Index end, Index step, Vector<double, together>* sum) const {
    for (; row < end; row += step) {
      LACONIC_UNROLL_DEVICE
      for (int k = 0; k < sums; ++k) {
        const Vector<double> part = load_within(parts + (row * sums + k) * cols, c, cols);
        LACONIC_UNROLL_DEVICE
        for (int i = 0; i < together; ++i) sum[k][i] += part[i];
      }
    }
  }
  LACONIC_DEVICE void write(Index x, int k, Index c, double sum) const {
    const Index length = groups.length(x);
    const double count = mean && length > 0 ? static_cast<double>(length) : 1;
    to[k][x * stride + c] = static_cast<T>(sum / count);
  }
};

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
