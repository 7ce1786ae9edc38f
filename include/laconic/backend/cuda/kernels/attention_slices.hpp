// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/kernels/stored_rows.hpp>
#include <laconic/backend/cuda/row_cache.hpp>
#include <laconic/backend/cuda/tensor_cores.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>

// How rows of keys, values and positions come to tensor cores: in slices of 64 rows and 64 columns of Bf16 in shared
// memory, whatever they are in the device's memory.

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
  /// Returns where a chunk of the same row begins, `pairs` times two chunks after the chunk at `place`, whose number
  /// has zeros where that of `pairs` has ones, but for the last bit.
  static constexpr int after(int place, int pairs) { return place ^ pairs * 2 * chunk; }
  /// Returns the slices of a row of so many values.
  static constexpr int count(Index values) { return static_cast<int>(pieces(values, width)); }
};

/// Holds 8 values as they are in memory, so that several loads can be under way before the first value is used.
struct StoredChunk {
  /// Says what the values are: all zero, copied while the kernel goes on, 8 floats, 8 bytes, or not loaded.
  enum class Kind { none, copied, floats, bytes, not_loaded };
  Kind kind;      ///< says what the values are
  float bits[8];  ///< the floats, or the 8 bytes in the first two and then their scale

  /// Loads floats from an address that is a multiple of 16.
  LACONIC_DEVICE void load_floats(const void* aligned) {
    const auto* const from = static_cast<const float*>(aligned);
    const auto low = load<4>(from), high = load<4>(from + 4);
    LACONIC_UNROLL_DEVICE
    for (int i = 0; i < 4; ++i) {
      bits[i] = low[i];
      bits[4 + i] = high[i];
    }
    kind = Kind::floats;
  }
  /// Loads bytes from an address that is a multiple of 8.
  LACONIC_DEVICE void load_bytes(const void* aligned, float scale) {
    const auto two = load<2>(static_cast<const float*>(aligned));
    bits[0] = two[0];
    bits[1] = two[1];
    bits[2] = scale;
    kind = Kind::bytes;
  }
  /// Rounds floats.
  LACONIC_DEVICE TensorChunk<Bf16> rounded_floats() const {
    return TensorChunk<Bf16>::of([&](int i) { return bits[i]; });
  }
  /// Rounds bytes times their scale.
  LACONIC_DEVICE TensorChunk<Bf16> rounded_bytes() const {
    return TensorChunk<Bf16>::of([&](int i) {
      const auto byte = static_cast<std::int8_t>(std::bit_cast<std::uint32_t>(bits[i / 4]) >> i % 4 * 8);
      return bits[2] * static_cast<float>(byte);
    });
  }
};

/// Refers to rows that tensor cores multiply: those of a cache and new ones (see CachedRowsView), or those of a table.
struct AttendRows {
  StoredRows<float> fresh{};          ///< rows that no cache holds, floats or Bf16
  const Index* offsets = nullptr;     ///< without a cache: the first row of each sequence; null: there is one
  const CachedRing* rings = nullptr;  ///< places of the rows of each sequence; null: there is no cache
  StoredRows<float> stored{};         ///< the rows of the cache
  Index capacity = 0;                 ///< rows of a slot of the cache
  Index head_stride = 0;              ///< values of a row from one head to the next
};

/// Refers to the rows of one head of one sequence.
class SequenceRows {
 public:
  /// Refers to no rows.
  SequenceRows() = default;
  /// Refers to the first `count` rows of a sequence, of which the head has `width` values each.
  LACONIC_DEVICE SequenceRows(const AttendRows& rows, Index sequence, Index head, Index count, Index width)
      : count_(static_cast<int>(count)), width_(static_cast<int>(width)) {
    Index first = rows.offsets == nullptr ? 0 : rows.offsets[sequence];
    if (rows.rings != nullptr) {
      const CachedRing ring = rows.rings[sequence];
      first = ring.first;
      cached_ = static_cast<int>(ring.count);
      begin_ = static_cast<int>(ring.begin);
      capacity_ = static_cast<int>(rows.capacity);
      stored_ = Part(rows.stored, ring.slot, head * rows.head_stride);
      scales_ = stored_.storage == Storage::int8 ? rows.stored.scales + ring.slot : nullptr;
    }
    fresh_ = Part(rows.fresh, first, head * rows.head_stride);
  }

  /// Begins to load a slice: values from `column` on of the 64 rows from `first` on, zeros for what is not there. Rows
  /// of Bf16 are copied while the kernel goes on, others are rounded on the way. All is there after the
  /// `wait_for_copies` of the group of these copies.
  template <int threads>
  LACONIC_DEVICE void load(Block& block, int first, int column, Bf16* slice) const {
    block.each_in_warps([&](int t) {  // rows differ in what they do, and warps multiply next
      constexpr int at_once = threads / Slice::chunks, passes = Slice::rows / at_once;
      static_assert(at_once % 8 == 0 && Slice::rows % at_once == 0);
      const int row_of_thread = t >> 3, chunk = t & (Slice::chunks - 1), c = column + chunk * Slice::chunk,
                left = width_ - c;
      const int count = left < Slice::chunk ? left : Slice::chunk;
      Bf16* const to = slice + Slice::at(row_of_thread, chunk);  // at_once rows have the same place in their rows
      StoredChunk chunks[std::size_t{passes}];
      LACONIC_UNROLL_DEVICE
      for (int i = 0; i < passes; ++i) {
        const int r = first + row_of_thread + i * at_once;
        begin_chunk(block, chunks[i], r, c, r < 0 || r >= count_ ? 0 : count, to + i * at_once * Slice::width);
      }
      LACONIC_UNROLL_DEVICE
      for (int i = 0; i < passes; ++i)
        end_chunk(chunks[i], first + row_of_thread + i * at_once, c, count, to + i * at_once * Slice::width);
    });
  }

 private:
  /// Refers to rows that are stored alike.
  struct Part {
    const std::byte* values = nullptr;  ///< value 0 of row 0
    int row_bytes = 0;                  ///< bytes from a row to the next
    Storage storage = Storage::full;    ///< how they are stored

    Part() = default;
    LACONIC_DEVICE Part(const StoredRows<float>& rows, Index first, Index column)
        : values(rows.values + first * rows.value_bytes() +
                 column * (rows.storage == Storage::full   ? Index{sizeof(float)}
                           : rows.storage == Storage::bf16 ? Index{sizeof(Bf16)}
                                                           : Index{1})),
          row_bytes(static_cast<int>(rows.value_bytes())),
          storage(rows.storage) {}
  };

  /// Returns row r, from the first value of the head on.
  LACONIC_DEVICE StoredRow<float> row(int r) const {
    if (r >= cached_)
      return {fresh_.storage, fresh_.values + static_cast<std::ptrdiff_t>(r - cached_) * fresh_.row_bytes, 1.0f};
    const int place = begin_ + r >= capacity_ ? begin_ + r - capacity_ : begin_ + r;
    return {stored_.storage, stored_.values + static_cast<std::ptrdiff_t>(place) * stored_.row_bytes,
            stored_.storage == Storage::int8 ? scales_[place] : 1.0f};
  }
  /// Begins to load `count` values of row r from value c on.
  LACONIC_DEVICE void begin_chunk(Block& block, StoredChunk& chunk, int r, int c, int count, Bf16* to) const {
    using Kind = StoredChunk::Kind;
    chunk.kind = Kind::none;
    if (count <= 0) return;
    const StoredRow<float> from = row(r);
    const auto* values = static_cast<const std::byte*>(from.values);
    values += from.storage == Storage::full ? 4 * c : from.storage == Storage::bf16 ? 2 * c : c;
    chunk.kind = Kind::not_loaded;
    if (count < Slice::chunk ||
        reinterpret_cast<std::uintptr_t>(values) % (from.storage == Storage::int8 ? 8 : 16) != 0)
      return;
    if (from.storage == Storage::bf16) {
      block.copy(to, values, 16);
      chunk.kind = Kind::copied;
    } else if (from.storage == Storage::full) {
      chunk.load_floats(values);
    } else {
      chunk.load_bytes(values, from.scale);
    }
  }
  /// Writes what is not copied.
  LACONIC_DEVICE void end_chunk(const StoredChunk& chunk, int r, int c, int count, Bf16* to) const {
    using Kind = StoredChunk::Kind;
    if (chunk.kind == Kind::copied) return;
    if (chunk.kind == Kind::floats) {
      *reinterpret_cast<TensorChunk<Bf16>*>(to) = chunk.rounded_floats();
    } else if (chunk.kind == Kind::bytes) {
      *reinterpret_cast<TensorChunk<Bf16>*>(to) = chunk.rounded_bytes();
    } else if (chunk.kind == Kind::none) {
      *reinterpret_cast<TensorChunk<Bf16>*>(to) = {};
    } else {
      const StoredRow<float> from = row(r);
      for (int i = 0; i < Slice::chunk; ++i) to[i] = i < count ? to_bf16(from[c + i]) : Bf16{0};
    }
  }

  Part fresh_{}, stored_{};
  const float* scales_ = nullptr;
  int cached_ = 0, begin_ = 0, capacity_ = 0;  // of the ring
  int count_ = 0, width_ = 0;
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
    const Index chunks = padded / Slice::chunk, head = i / chunks, c = i % chunks * Slice::chunk;
    const float* from = x + head * width + c;
    auto* const chunk = reinterpret_cast<TensorChunk<Bf16>*>(to) + i;
    if (c + Slice::chunk <= width && reinterpret_cast<std::uintptr_t>(from) % 16 == 0) {
      StoredChunk floats;
      floats.load_floats(from);
      *chunk = floats.rounded_floats();
      return;
    }
    *chunk = TensorChunk<Bf16>::of([&](int j) { return c + j < width ? from[j] : 0.0f; });
  }
};

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
