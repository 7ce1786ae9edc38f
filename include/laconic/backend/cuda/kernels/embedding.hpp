// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/kernels/map.hpp>

namespace laconic {
inline namespace LACONIC_ABI {
namespace cuda {

/// Selects the rows rows[begin] .. rows[end - 1] of a derivative: those that came from row `id` of an embedding.
struct EmbeddingRun {
  Index id;     ///< the row of the embedding
  Index begin;  ///< its first entry of the list of rows
  Index end;    ///< one past the last
};

/// Adds rows of dy (rows, cols) to the rows of `to` that they came from, one of these in each block (x: runs; y: 32
/// columns each). The sum of a column is that of 8 interleaved parts, in double.
template <class T>
struct EmbedBackward {
  static constexpr int threads = 256, lanes = threads / warp_threads;
  const T* dy;
  const EmbeddingRun* runs;
  const Index* rows;
  T* to;
  Index cols;
  LACONIC_DEVICE void operator()(Block& block) const {
    double* part = block.template shared<double>(threads);
    const EmbeddingRun run = runs[block.x()];
    block.each([&](int t) {
      const Index c = block.y() * warp_threads + t % warp_threads;
      double sum = 0;
      for (Index i = run.begin + t / warp_threads; c < cols && i < run.end; i += lanes)
        sum += static_cast<double>(dy[rows[i] * cols + c]);
      part[t] = sum;
    });
    block.each([&](int t) {
      const Index c = block.y() * warp_threads + t;
      if (t >= warp_threads || c >= cols) return;
      double sum = 0;
      for (int lane = 0; lane < lanes; ++lane) sum += part[lane * warp_threads + t];
      to[run.id * cols + c] += static_cast<T>(sum);
    });
  }
};

/// Adds the sums over `group` neighbouring heads of x (blocks * group, width) to one element of `to` (blocks, width).
template <class T>
struct AddHeadSums {
  const T* x;
  T* to;
  Index group, width;
  LACONIC_DEVICE void operator()(Index i) const {
    T sum = 0;
    for (Index h = 0; h < group; ++h) sum += x[(i / width * group + h) * width + i % width];
    to[i] += sum;
  }
};

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
