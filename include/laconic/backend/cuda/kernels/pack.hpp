// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/kernels/tensor_gemm.hpp>

#include <cstddef>
#include <cstdint>

// Operands of products on tensor cores, rounded and laid out as these read them (`TensorRows`).

namespace laconic {
inline namespace LACONIC_ABI {
namespace cuda {

/// Holds 16 bytes of an operand, which are stored at once.
template <TensorElement E>
struct alignas(16) TensorChunk {
  static constexpr int count = static_cast<int>(TensorRows<E>::in_chunk);
  std::uint32_t bits[4];
  /// Rounds the values of a chunk; of(i) returns value i.
  template <class Of>
  LACONIC_DEVICE static TensorChunk rounded(const Of& of) {
    TensorChunk out;
    LACONIC_UNROLL_DEVICE
    for (int i = 0; i < 4; ++i) {
      if constexpr (count == 8)
        out.bits[i] = two_bf16(of(2 * i), of(2 * i + 1));
      else
        out.bits[i] = std::bit_cast<std::uint32_t>(of(i));  // rounded when it is multiplied
    }
    return out;
  }
};

/// Packs chunk i of an operand whose neighbours along a row are neighbours in memory. `Operand` is as `GemmOperand`.
template <TensorElement E, class Operand>
struct PackRows {
  Operand from;
  E* to;                      ///< (batches * rows, stride)
  Index rows, depth, stride;  ///< rows and elements of one batch, and elements from a packed row to the next
  bool aligned;               ///< whether each row is of floats and begins at a multiple of 16 bytes
  LACONIC_DEVICE void operator()(Index i) const {
    using Chunk = TensorChunk<E>;
    const Index chunks = stride / Chunk::count, row = i / chunks % rows, batch = i / chunks / rows,
                k = i % chunks * Chunk::count;
    if constexpr (std::same_as<Operand, GemmOperand<float>>)
      if (aligned && k + Chunk::count <= depth) {
        const auto* const source =
            reinterpret_cast<const FourFloats*>(from.data + batch * from.batch_stride + row * from.row_stride + k);
        FourFloats values[std::size_t{Chunk::count / 4}];
        LACONIC_UNROLL_DEVICE
        for (int v = 0; v < Chunk::count / 4; ++v) values[v] = source[v];
        reinterpret_cast<Chunk*>(to)[i] = Chunk::rounded([&](int e) { return values[e / 4].value[e % 4]; });
        return;
      }
    reinterpret_cast<Chunk*>(to)[i] =
        Chunk::rounded([&](int e) { return k + e < depth ? from(batch, row, k + e) : 0.0f; });
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
  bool aligned;               ///< whether each column begins at a multiple of 16 bytes

  /// Returns the tiles of a batch.
  constexpr Index tiles() const { return pieces(rows, side) * pieces(stride, side); }
  /// Returns the bytes of shared memory of a block.
  static constexpr std::size_t shared_bytes() { return (side * pitch * sizeof(float) + 15) / 16 * 16; }

  LACONIC_DEVICE void operator()(Block& block) const {
    using Chunk = TensorChunk<E>;
    const Index down = pieces(rows, side), first = block.x() % down * side, k = block.x() / down * side,
                batch = block.y();
    float* const tile = block.template shared<float>(side * pitch);
    block.each([&](int t) {
      LACONIC_UNROLL_DEVICE
      for (int n = 0; n < side * side / 4 / threads; ++n) {
        const int at = t + n * threads, i = at % (side / 4) * 4, j = at / (side / 4);
        FourFloats four{};
        if (aligned && k + j < depth && first + i + 4 <= rows)
          four = *reinterpret_cast<const FourFloats*>(from.data + batch * from.batch_stride + first + i +
                                                      (k + j) * from.col_stride);
        else
          for (int e = 0; e < 4; ++e)
            if (k + j < depth && first + i + e < rows) four.value[e] = from(batch, first + i + e, k + j);
        LACONIC_UNROLL_DEVICE
        for (int e = 0; e < 4; ++e) tile[(i + e) * pitch + j] = four.value[e];
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
            Chunk::rounded([&](int e) { return values[e]; });
      }
    });
  }
};

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
