// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/kernels/map.hpp>
#include <laconic/backend/shapes.hpp>
#include <laconic/core/rounding.hpp>

#include <cstddef>
#include <cstdint>

// Rows that are stored in full or rounded, as weights and caches hold them on a GPU. The numbers are those of the host:
// `to_bf16` and `ByteRow` (core/rounding.hpp) define them.

namespace laconic {
inline namespace LACONIC_ABI {
namespace cuda {

/// Refers to one row, stored or not, on the device.
template <class T>
struct StoredRow {
  Storage storage;     ///< how the values are stored
  const void* values;  ///< the first value
  float scale;         ///< the factor of int8 values
  /// Returns value c.
  LACONIC_DEVICE T operator[](Index c) const {
    switch (storage) {
      case Storage::bf16:
        return static_cast<T>(from_bf16(static_cast<const Bf16*>(values)[c]));
      case Storage::int8:
        return static_cast<T>(scale * static_cast<float>(static_cast<const std::int8_t*>(values)[c]));
      default:
        return static_cast<const T*>(values)[c];
    }
  }
};

/// Refers to stored rows of `width` values on the device. The scales of int8 are apart from the values, so that both
/// are aligned.
template <class T>
struct StoredRows {
  Storage storage = Storage::full;  ///< how values are stored
  Index width = 0;                  ///< values of a row
  std::byte* values = nullptr;      ///< values of all rows
  float* scales = nullptr;          ///< a factor for each row, only in int8
  /// Returns `rows` rows in memory that has `cache_row_bytes` for each.
  static StoredRows in(std::byte* memory, Storage storage, Index rows, Index width) {
    if (storage != Storage::int8) return {storage, width, memory, nullptr};
    return {storage, width, memory + rows * static_cast<Index>(sizeof(float)), reinterpret_cast<float*>(memory)};
  }
  /// Returns the bytes of the values of a row.
  constexpr Index value_bytes() const {
    const Index scale_bytes = storage == Storage::int8 ? sizeof(float) : 0;
    return cache_row_bytes(storage, width, sizeof(T)) - scale_bytes;
  }
  /// Returns row r.
  LACONIC_DEVICE StoredRow<T> row(Index r) const {
    return {storage, values + r * value_bytes(), storage == Storage::int8 ? scales[r] : 1.0f};
  }
  /// Stores x (width) as row r. All threads of the block take part.
  LACONIC_DEVICE void store(Block& block, Index r, const T* x) const {
    std::byte* to = values + r * value_bytes();
    std::uint32_t largest = 0;
    if (storage == Storage::int8) {
      PerThread<std::uint32_t> part(block);
      block.each([&](int t) {
        part[t] = 0;
        for (Index c = t; c < width; c += block.threads()) {
          const std::uint32_t one = ByteRow::magnitude(x[c]);
          part[t] = one > part[t] ? one : part[t];
        }
      });
      largest = block.max(part);
      block.one([&] { scales[r] = ByteRow(largest).scale(); });
    }
    const ByteRow bytes(largest);
    block.each([&](int t) {
      for (Index c = t; c < width; c += block.threads()) switch (storage) {
          case Storage::bf16:
            reinterpret_cast<Bf16*>(to)[c] = to_bf16(static_cast<float>(x[c]));
            break;
          case Storage::int8:
            reinterpret_cast<std::int8_t*>(to)[c] = bytes(x[c]);
            break;
          default:
            reinterpret_cast<T*>(to)[c] = x[c];
        }
    });
  }
};

/// Stores row b of x (rows, width) as row b, one in each block.
template <class T>
struct StoreRows {
  static constexpr int threads = 128;
  const T* x;
  StoredRows<T> to;
  LACONIC_DEVICE void operator()(Block& block) const { to.store(block, block.x(), x + block.x() * to.width); }
};

/// Writes one value of y (rows, width) of stored rows: row ids[r] in row r, or row r itself if ids is null.
template <class T>
struct LoadRows {
  StoredRows<T> from;
  const int* ids;
  T* y;
  LACONIC_DEVICE void operator()(Index i) const {
    const Index r = i / from.width;
    y[i] = from.row(ids == nullptr ? r : ids[r])[i % from.width];
  }
};

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
