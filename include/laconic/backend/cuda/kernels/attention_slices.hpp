// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/kernels/stored_rows.hpp>
#include <laconic/backend/cuda/row_cache.hpp>
#include <laconic/backend/cuda/tensor_cores.hpp>

#include <cstdint>
#include <cstring>

// How rows of keys, values and positions come to the tensor cores: in slices of 64 rows and 64 columns of Bf16 in
// shared memory, whatever they are in the device's memory.

namespace laconic {
inline namespace LACONIC_ABI {
namespace cuda {

/// Describes a slice in shared memory: rows of 128 bytes, in 8 chunks of 16 bytes. Chunk c of row r is at place c ^ r %
/// 8 of the row, so that the same chunk of 8 rows is in all banks.
struct Slice {
  static constexpr int rows = 64,  ///< rows of a slice
      width = 64,                  ///< values of a row
      chunk = 8,                   ///< values of a chunk
      chunks = width / chunk,      ///< chunks of a row
      depth = tensor_depth<Bf16>,  ///< values of a row that one product of tensor cores takes
      size = rows * width;         ///< values of a slice
  /// Returns where a chunk of a row begins.
  static constexpr int at(int row, int chunk_of_row) { return row * width + (chunk_of_row ^ (row & 7)) * chunk; }
  /// Returns the slices of a row of so many values.
  static constexpr int count(Index values) { return static_cast<int>(pieces(values, width)); }
  /// Returns the products of tensor cores along slice s of rows of so many values.
  static constexpr int depths(Index values, int s) {
    const Index left = values - s * width;
    return static_cast<int>(pieces(left < width ? left : width, depth));
  }
};

/// Holds a chunk in registers.
struct alignas(16) SliceChunk {
  std::uint32_t pairs[4];  ///< 8 Bf16
};

/// Returns 8 values of a stored row from value c on, of which the first `count` are there: zeros after them.
LACONIC_DEVICE SliceChunk chunk_of(const StoredRow<float>& row, Index c, int count) {
  struct alignas(16) Floats {
    float values[4];
  };
  struct alignas(8) Bytes {
    std::int8_t values[8];
  };
  float x[Slice::chunk];
  if (row.storage == Storage::full && count == Slice::chunk &&
      reinterpret_cast<std::uintptr_t>(static_cast<const float*>(row.values) + c) % alignof(Floats) == 0) {
    const auto* from = reinterpret_cast<const Floats*>(static_cast<const float*>(row.values) + c);
    const Floats low = from[0], high = from[1];
    LACONIC_UNROLL_DEVICE
    for (int i = 0; i < 4; ++i) {
      x[i] = low.values[i];
      x[4 + i] = high.values[i];
    }
  } else if (row.storage == Storage::int8 && count == Slice::chunk &&
             reinterpret_cast<std::uintptr_t>(static_cast<const std::int8_t*>(row.values) + c) % alignof(Bytes) == 0) {
    const Bytes bytes = *reinterpret_cast<const Bytes*>(static_cast<const std::int8_t*>(row.values) + c);
    LACONIC_UNROLL_DEVICE
    for (int i = 0; i < Slice::chunk; ++i) x[i] = row.scale * static_cast<float>(bytes.values[i]);
  } else {
    LACONIC_UNROLL_DEVICE
    for (int i = 0; i < Slice::chunk; ++i) x[i] = i < count ? row[c + i] : 0.0f;
  }
  SliceChunk out;
  LACONIC_UNROLL_DEVICE
  for (int i = 0; i < 4; ++i) out.pairs[i] = two_bf16(x[2 * i], x[2 * i + 1]);
  return out;
}

/// Begins to load a slice: values `column` to `column` + 63 of its 64 rows, of which each has `values`; zeros beyond
/// them. row(r) returns row r, with null for the values of one that is not there. Rows of Bf16 are copied while the
/// kernel goes on, others are rounded on the way. The slice is there after the `wait_for_copies` of the group of
/// copies.
template <int threads, class Row>
LACONIC_DEVICE void load_slice(Block& block, Bf16* slice, Index column, Index values, const Row& row) {
  block.each_unordered([&](int t) {
    constexpr int at_once = threads / Slice::chunks, passes = Slice::rows / at_once;
    static_assert(at_once % 8 == 0 && Slice::rows % at_once == 0);
    const int chunk = t & (Slice::chunks - 1);
    const Index c = column + chunk * Slice::chunk, left = values - c;
    const int count = left < 0 ? 0 : left < Slice::chunk ? static_cast<int>(left) : Slice::chunk;
    SliceChunk chunks[std::size_t{passes}];
    bool copied[std::size_t{passes}];
    LACONIC_UNROLL_DEVICE
    for (int i = 0; i < passes; ++i) {
      const int r = t / Slice::chunks + i * at_once;
      const StoredRow<float> from = row(r);
      const auto* bf16 = static_cast<const Bf16*>(from.values) + c;
      copied[i] = from.values != nullptr && from.storage == Storage::bf16 && count == Slice::chunk &&
                  reinterpret_cast<std::uintptr_t>(bf16) % 16 == 0;
      if (copied[i])
        block.copy(slice + Slice::at(r, chunk), bf16, 16);
      else if (from.values != nullptr && count > 0)
        chunks[i] = chunk_of(from, c, count);
      else
        chunks[i] = {};
    }
    LACONIC_UNROLL_DEVICE
    for (int i = 0; i < passes; ++i)
      if (!copied[i])
        *reinterpret_cast<SliceChunk*>(slice + Slice::at(t / Slice::chunks + i * at_once, chunk)) = chunks[i];
  });
}

/// Refers to rows that tensor cores multiply: those of a cache and new ones (see CachedRowsView), or those of a table.
struct AttendRows {
  StoredRows<float> fresh{};          ///< rows that no cache holds, floats or Bf16
  const Index* offsets = nullptr;     ///< without a cache: the first row of each sequence; null: there is one
  const CachedRing* rings = nullptr;  ///< places of the rows of each sequence; null: there is no cache
  StoredRows<float> stored{};         ///< the rows of the cache
  Index capacity = 0;                 ///< rows of a slot of the cache
  Index head_stride = 0;              ///< values of a row from one head to the next

  /// Returns where the rows of sequence n are.
  LACONIC_DEVICE CachedRing ring(Index n) const {
    if (rings != nullptr) return rings[n];
    return {0, 0, 0, offsets == nullptr ? 0 : offsets[n]};
  }
  /// Returns row i of a sequence, from the first value of a head on.
  LACONIC_DEVICE StoredRow<float> row(const CachedRing& ring, Index i, Index head) const {
    StoredRow<float> out =
        i < ring.count ? stored.row(ring.place(i, capacity)) : fresh.row(ring.first + i - ring.count);
    const Index bytes_each = out.storage == Storage::full ? 4 : out.storage == Storage::bf16 ? 2 : 1;
    out.values = static_cast<const std::byte*>(out.values) + head * head_stride * bytes_each;
    return out;
  }
};

/// Rounds the heads of rows x (rows, heads * width) to Bf16, each with zeros up to a width `padded` that is a multiple
/// of 8: index i is chunk i of the result (rows, heads * padded).
struct RoundHeads {
  const float* x;
  Bf16* to;
  Index width, padded;

  /// Returns the width of a head of the result.
  static constexpr Index padded_width(Index width) { return pieces(width, Slice::chunk) * Slice::chunk; }
  LACONIC_DEVICE void operator()(Index i) const {
    const Index chunks = padded / Slice::chunk, head = i / chunks, c = i % chunks * Slice::chunk, left = width - c;
    const int count = left < Slice::chunk ? static_cast<int>(left) : Slice::chunk;
    reinterpret_cast<SliceChunk*>(to)[i] = chunk_of({Storage::full, x + head * width, 1.0f}, c, count);
  }
};

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
