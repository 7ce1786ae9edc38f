// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/kernels/tensor_gemm.hpp>

#include <cstddef>
#include <cstdint>

// Operands of products on tensor cores, rounded and laid out as these read them (`TensorRows`).

namespace laconic {
inline namespace LACONIC_ABI {
namespace cuda {

/// Packs chunk i of an operand whose neighbours along a row are neighbours in memory. `Operand` is as `GemmOperand`.
template <TensorElement E, class Operand>
struct PackRows {
  Operand from;
  E* to;                      ///< (batches * rows, stride)
  Index rows, depth, stride;  ///< rows and elements of one batch, and elements from a packed row to the next
  LACONIC_DEVICE void operator()(Index i) const {
    using Chunk = TensorChunk<E>;
    const Index chunks = stride / Chunk::count, row = i / chunks % rows, batch = i / chunks / rows,
                k = i % chunks * Chunk::count;
    Vector<float> values[std::size_t{Chunk::count / 4}];
    if (k + Chunk::count <= depth && from.template in_vectors<4>(true)) {
      LACONIC_UNROLL_DEVICE
      for (int v = 0; v < Chunk::count / 4; ++v) values[v] = from.template load<4>(batch, row, k + 4 * v);
    } else {
      LACONIC_UNROLL_DEVICE
      for (int e = 0; e < Chunk::count; ++e)
        values[e / 4][e % 4] = k + e < depth ? from.template load<1>(batch, row, k + e)[0] : 0.0f;
    }
    reinterpret_cast<Chunk*>(to)[i] = Chunk::of([&](int e) { return values[e / 4][e % 4]; });
  }
};

/// Packs an operand whose neighbours along a column are neighbours in memory. A block packs 64 x 64 values (x: tiles of
/// a batch; y: batches), which it exchanges in shared memory.
template <TensorElement E>
struct PackColumns {
  static constexpr int threads = 256, side = 64, pitch = side + 1;
  GemmOperand<float> from;
  E* to;                      ///< (batches * rows, stride)
  Index rows, depth, stride;  ///< rows and elements of one batch, and elements from a packed row to the next

  /// Returns the tiles of a batch.
  constexpr Index tiles() const { return pieces(rows, side) * pieces(stride, side); }
  /// Returns the bytes of shared memory of a block.
  static constexpr std::size_t shared_bytes() { return (side * pitch * sizeof(float) + 15) / 16 * 16; }

  LACONIC_DEVICE void operator()(Block& block) const {
    using Chunk = TensorChunk<E>;
    const Index down = pieces(rows, side), first = block.x() % down * side, k = block.x() / down * side,
                batch = block.y();
    const bool aligned = from.template in_vectors<4>(false);
    float* const tile = block.template shared<float>(side * pitch);
    block.each([&](int t) {
      LACONIC_UNROLL_DEVICE
      for (int n = 0; n < side * side / 4 / threads; ++n) {
        const int at = t + n * threads, i = at % (side / 4) * 4, j = at / (side / 4);
        Vector<float> four{};
        if (aligned && k + j < depth && first + i + 4 <= rows)
          four = from.template load<4>(batch, first + i, k + j);
        else
          for (int e = 0; e < 4; ++e)
            if (k + j < depth && first + i + e < rows) four[e] = from.template load<1>(batch, first + i + e, k + j)[0];
        LACONIC_UNROLL_DEVICE
        for (int e = 0; e < 4; ++e) tile[(i + e) * pitch + j] = four[e];
      }
    });
    block.each([&](int t) {
      constexpr int across = side / Chunk::count;
      LACONIC_UNROLL_DEVICE
      for (int n = 0; n < side * across / threads; ++n) {
        const int at = t + n * threads, i = at / across, j = at % across * Chunk::count;
        if (first + i >= rows || k + j >= stride) continue;
        const float* const values = tile + i * pitch + j;
        *reinterpret_cast<Chunk*>(to + (batch * rows + first + i) * stride + k + j) =
            Chunk::of([&](int e) { return values[e]; });
      }
    });
  }
};

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
