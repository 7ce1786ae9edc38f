// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/kernels/row_sums.hpp>
#include <laconic/backend/shapes.hpp>

#include <cstddef>

namespace laconic {
inline namespace LACONIC_ABI {
namespace cuda {

/// Says what the outputs of a depthwise convolution see. If `flipped`, the taps run backwards and an output does not
/// see frames before its own chunk: the derivative by x.
struct DepthwiseRows {
  const Index* offsets;   ///< offsets of the sequences of x
  Index sequences, rows;  ///< number of sequences, and rows of y
  Index kernel;           ///< taps
  DepthwiseShape shape;   ///< left, chunk, past
  bool flipped = false;

  /// Holds what one output sees: taps begin .. end - 1. Tap k is at row first + k of x.
  struct Seen {
    Index first, begin, end;
  };
  /// Returns what the output in a row of y sees. Beyond the rows, it sees nothing.
  LACONIC_DEVICE Seen operator()(Index row) const {
    if (row >= rows) return {0, 0, 0};
    const Index n = sequence_of(offsets, sequences, row, -shape.past), begin = offsets[n],
                t = row - (begin - n * shape.past), first = shape.past - shape.left + t,
                left = offsets[n + 1] - begin - first;
    Seen seen{begin + first, first < 0 ? -first : 0, left < kernel ? left : kernel};
    if (shape.chunk == Mask::unlimited) return seen;
    const Index in_chunk = t % shape.chunk, nearest = shape.left - in_chunk,
                after = shape.left + shape.chunk - in_chunk;
    if (flipped && nearest > seen.begin) seen.begin = nearest;
    if (!flipped && after < seen.end) seen.end = after;
    return seen;
  }
};

/// Computes y[t, c] = bias[c] + sum_k weight[c, k] x[first + k, c] over the taps that each output sees. x and y (rows,
/// channels), weight (channels, kernel), bias (channels) or null. A block computes 32 rows (along x) of 32 channels
/// (along y), with some taps at a time in shared memory.
template <class T>
struct Depthwise {
  static constexpr int threads = 256, together = warp_threads, lanes = threads / together, rows = 32,
                       rows_of_thread = rows / lanes, some = 64, pitch = together + 1;
  DepthwiseRows seen_by;
  const T *x, *weight, *bias;
  T* y;
  Index channels;

  /// Returns the blocks to run.
  Grid grid() const { return {pieces(seen_by.rows, rows), pieces(channels, together)}; }
  /// Returns the bytes of shared memory of a block.
  static constexpr std::size_t shared_bytes() {
    return some * pitch * sizeof(T) + rows * sizeof(DepthwiseRows::Seen) + 16;
  }

  struct Sums {
    T value[rows_of_thread];
  };
  LACONIC_DEVICE void operator()(Block& block) const {
    const Index first = block.x() * rows, first_channel = block.y() * together, kernel = seen_by.kernel;
    auto* seen = block.template shared<DepthwiseRows::Seen>(rows);
    T* taps = block.template shared<T>(some * pitch);
    PerThread<Sums> sums(block);
    block.each([&](int t) {
      if (t < rows) seen[t] = seen_by(first + t);
      const Index c = first_channel + t % together;
      for (int i = 0; i < rows_of_thread; ++i) sums[t].value[i] = bias != nullptr && c < channels ? bias[c] : T(0);
    });
    for (Index begin = 0; begin < kernel; begin += some) {
      const Index count = kernel - begin < some ? kernel - begin : some;
      block.each([&](int t) {
        for (Index i = t; i < count * together; i += threads) {
          const Index c = first_channel + i / count, k = begin + i % count;
          if (c < channels)
            taps[i % count * pitch + i / count] = weight[c * kernel + (seen_by.flipped ? kernel - 1 - k : k)];
        }
      });
      block.each([&](int t) {
        const int lane = t % together;
        const Index c = first_channel + lane;
        if (c >= channels) return;
        for (int i = 0; i < rows_of_thread; ++i) {
          const DepthwiseRows::Seen& one = seen[t / together + lanes * i];
          const Index from = one.begin > begin ? one.begin : begin,
                      to = one.end < begin + count ? one.end : begin + count;
          T sum = sums[t].value[i];
          for (Index k = from; k < to; ++k) sum += taps[(k - begin) * pitch + lane] * x[(one.first + k) * channels + c];
          sums[t].value[i] = sum;
        }
      });
    }
    block.each([&](int t) {
      const Index c = first_channel + t % together;
      for (int i = 0; i < rows_of_thread; ++i) {
        const Index row = first + t / together + lanes * i;
        if (c < channels && row < seen_by.rows) y[row * channels + c] = sums[t].value[i];
      }
    });
  }
};

/// Computes parts of the derivative by the taps, sum_t dy[t, c] x[first(t) + k, c]. A block computes 32 channels of 32
/// taps (along x) over the chunks of one part (along y); the sums of a chunk are in T, those of chunks in double.
template <class T>
struct DepthwiseBackwardTaps {
  static constexpr int threads = 256, together = warp_threads, lanes = threads / together, taps = 32,
                       taps_of_thread = taps / lanes;
  static constexpr Index chunk = 256;  ///< rows of a chunk
  DepthwiseRows seen_by;
  RowSplit split;
  const T *dy, *x;
  double* parts;  ///< (parts, channels, kernel)
  Index channels;

  /// Returns the blocks of one part.
  static Index tiles(Index channels, Index kernel) { return pieces(channels, together) * pieces(kernel, taps); }
  /// Returns the bytes of shared memory of a block.
  static constexpr std::size_t shared_bytes() { return chunk * sizeof(DepthwiseRows::Seen); }

  struct Sums {
    double total[taps_of_thread];
  };
  LACONIC_DEVICE void operator()(Block& block) const {
    const Index kernel = seen_by.kernel, across = pieces(kernel, taps), first_channel = block.x() / across * together,
                first_tap = block.x() % across * taps;
    auto* seen = block.template shared<DepthwiseRows::Seen>(chunk);
    PerThread<Sums> sums(block);
    block.each([&](int t) { sums[t] = {}; });
    for (Index part = split.begin(block.y()); part < split.end(block.y()); ++part) {
      const Index first = part * chunk;
      block.each([&](int t) {
        for (Index i = t; i < chunk; i += threads) seen[i] = seen_by(first + i);
      });
      block.each([&](int t) {
        const Index c = first_channel + t % together;
        if (c >= channels) return;
        const Index first_of_thread = first_tap + t / together;
        T sum[taps_of_thread] = {};
        for (Index i = 0; i < chunk && first + i < seen_by.rows; ++i) {
          const DepthwiseRows::Seen one = seen[i];
          const T g = dy[(first + i) * channels + c];
          Index at = (one.first + first_of_thread) * channels + c;
          for (int j = 0; j < taps_of_thread; ++j, at += lanes * channels) {
            const Index k = first_of_thread + lanes * j;
            if (k >= one.begin && k < one.end) sum[j] += g * x[at];
          }
        }
        for (int j = 0; j < taps_of_thread; ++j) sums[t].total[j] += static_cast<double>(sum[j]);
      });
    }
    block.each([&](int t) {
      const Index c = first_channel + t % together;
      for (int j = 0; j < taps_of_thread; ++j) {
        const Index k = first_tap + t / together + lanes * j;
        if (c < channels && k < kernel) parts[(block.y() * channels + c) * kernel + k] = sums[t].total[j];
      }
    });
  }
};

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
