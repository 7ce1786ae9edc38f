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

/// Says whether N stored values can be read or written at once at an address.
template <class T, int N>
constexpr bool is_aligned_for(Storage storage, const void* at) {
  return storage == Storage::bf16   ? are_aligned<N>(static_cast<const Bf16*>(at))
         : storage == Storage::int8 ? are_aligned<N>(static_cast<const std::int8_t*>(at))
                                    : are_aligned<N>(static_cast<const T*>(at));
}

/// Refers to one row, stored or not, on the device.
template <class T>
struct StoredRow {
  Storage storage;     ///< how the values are stored
  const void* values;  ///< the first value
  float scale;         ///< the factor of int8 values
  /// Returns value c.
  LACONIC_DEVICE T operator[](Index c) const { return load<1>(c)[0]; }
  /// Returns the values from c on, N at once: c is a multiple of N, and N values of the row `are_in_vectors`.
  template <int N>
  LACONIC_DEVICE Vector<T, N> load(Index c) const {
    Vector<T, N> out;
    switch (storage) {
      case Storage::bf16: {
        const auto stored = cuda::load<N>(static_cast<const Bf16*>(values) + c);
        LACONIC_UNROLL_DEVICE
        for (int k = 0; k < N; ++k) out[k] = static_cast<T>(from_bf16(stored[k]));
        return out;
      }
      case Storage::int8: {
        const auto stored = cuda::load<N>(static_cast<const std::int8_t*>(values) + c);
        LACONIC_UNROLL_DEVICE
        for (int k = 0; k < N; ++k) out[k] = static_cast<T>(scale * static_cast<float>(stored[k]));
        return out;
      }
      default:
        return cuda::load<N>(static_cast<const T*>(values) + c);
    }
  }
  /// Says whether N values can be read at once.
  template <int N>
  LACONIC_DEVICE bool are_in_vectors() const {
    return is_aligned_for<T, N>(storage, values);
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
  /// Returns `rows` rows in memory that has `cache_row_bytes` for each. The values are first, where they are aligned as
  /// the memory is, unless the scales after them would not be.
  static StoredRows in(std::byte* memory, Storage storage, Index rows, Index width) {
    if (storage != Storage::int8) return {storage, width, memory, nullptr};
    const Index of_scales = rows * static_cast<Index>(sizeof(float)), of_values = rows * width;
    if (of_values % static_cast<Index>(alignof(float)) == 0)
      return {storage, width, memory, reinterpret_cast<float*>(memory + of_values)};
    return {storage, width, memory + of_scales, reinterpret_cast<float*>(memory)};
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
    constexpr int together = vector_size<T>;
    std::byte* to = values + r * value_bytes();
    const bool aligned = are_aligned<together>(x) && is_aligned_for<T, together>(storage, to);
    std::uint32_t largest = 0;
    if (storage == Storage::int8) {
      PerThread<std::uint32_t> part(block);
      block.each([&](int t) {
        std::uint32_t most = 0;
        in_vectors<together>(block, t, width, aligned, [&]<int N>(Index c) {
          const Vector<T, N> v = load<N>(x + c);
          LACONIC_UNROLL_DEVICE
          for (int k = 0; k < N; ++k) {
            const std::uint32_t one = ByteRow::magnitude(v[k]);
            most = one > most ? one : most;
          }
        });
        part[t] = most;
      });
      largest = block.max(part);
      block.one([&] { scales[r] = ByteRow(largest).scale(); });
    }
    const ByteRow bytes(largest);
    block.each([&](int t) {
      in_vectors<together>(block, t, width, aligned, [&]<int N>(Index c) {
        switch (storage) {
          case Storage::bf16:
            return map<N>(
                reinterpret_cast<Bf16*>(to) + c, [](T v) { return to_bf16(static_cast<float>(v)); }, x + c);
          case Storage::int8:
            return map<N>(
                reinterpret_cast<std::int8_t*>(to) + c, [&](T v) { return bytes(v); }, x + c);
          default:
            return cuda::store(reinterpret_cast<T*>(to) + c, load<N>(x + c));
        }
      });
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

/// Writes values of y (rows, width) of stored rows: row ids[r] in row r, or row r itself if ids is null.
template <class T>
struct LoadRows {
  static constexpr int together = vector_size<T>;
  StoredRows<T> from;
  const int* ids;
  T* y;
  bool in_vectors() const {
    return are_aligned<together>(y) && is_aligned_for<T, together>(from.storage, from.values) &&
           are_multiples<together>(from.width);
  }
  template <int N>
  LACONIC_DEVICE void at(Index i) const {
    const Index r = i / from.width;
    store(y + i, from.row(ids == nullptr ? r : ids[r]).template load<N>(i % from.width));
  }
};

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
