// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/shapes.hpp>
#include <laconic/core/arena.hpp>
#include <laconic/core/parallel.hpp>
#include <laconic/core/rounding.hpp>
#include <laconic/core/tensor.hpp>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

namespace kernels {

/// Writes a row x (width) to `to` in its stored form. int8 stores a float scale, then the bytes.
template <class T>
void store_row(Storage storage, Index width, const T* x, std::byte* to) {
  if (storage == Storage::full) {
    std::memcpy(to, x, static_cast<std::size_t>(width) * sizeof(T));
  } else if (storage == Storage::bf16) {
    for (Index i = 0; i < width; ++i) {
      const Bf16 rounded = to_bf16(static_cast<float>(x[i]));
      std::memcpy(to + 2 * i, &rounded, 2);
    }
  } else {
    const ByteRow row(width, x);
    const float scale = row.scale();
    std::memcpy(to, &scale, sizeof scale);
    auto* numbers = reinterpret_cast<std::int8_t*>(to + sizeof scale);
    for (Index i = 0; i < width; ++i) numbers[i] = row(x[i]);
  }
}
/// Reads the columns first .. first + width - 1 of a stored row into x.
template <class T>
void load_row(Storage storage, Index first, Index width, const std::byte* from, T* x) {
  if (storage == Storage::full) {
    std::memcpy(x, from + first * static_cast<Index>(sizeof(T)), static_cast<std::size_t>(width) * sizeof(T));
  } else if (storage == Storage::bf16) {
    for (Index i = 0; i < width; ++i) {
      Bf16 rounded;
      std::memcpy(&rounded, from + 2 * (first + i), 2);
      x[i] = static_cast<T>(from_bf16(rounded));
    }
  } else {
    float scale;
    std::memcpy(&scale, from, sizeof scale);
    const auto* numbers = reinterpret_cast<const std::int8_t*>(from + sizeof scale) + first;
    for (Index i = 0; i < width; ++i) x[i] = static_cast<T>(scale * static_cast<float>(numbers[i]));
  }
}

}  // namespace kernels

/// Holds the last rows of many streams: for each slot a ring of up to `capacity` rows of `width` values. Its memory is
/// allocated at construction. Storing rounds as `storage` says; reading returns the rounded values. Slots may be used
/// by different threads at the same time.
template <class T>
class RowCache {
 public:
  /// Makes a cache without slots.
  RowCache() = default;
  /// Makes a cache of empty slots. Allocates.
  RowCache(Index slots, Index capacity, Index width, Storage storage = Storage::full)
      : capacity_(capacity),
        width_(width),
        row_bytes_(cache_row_bytes(storage, width, sizeof(T))),
        storage_(storage),
        memory_(static_cast<std::size_t>(slots * capacity * row_bytes_)),
        rings_(static_cast<std::size_t>(slots)) {}

  /// Returns the number of slots.
  Index slots() const { return static_cast<Index>(rings_.size()); }
  /// Returns the rows that a slot has room for.
  Index capacity() const { return capacity_; }
  /// Returns the values of a row.
  Index width() const { return width_; }
  /// Returns how rows are stored.
  Storage storage() const { return storage_; }
  /// Returns the bytes of a stored row.
  Index row_bytes() const { return row_bytes_; }
  /// Returns the bytes held for the rows of all slots.
  Index bytes() const { return static_cast<Index>(memory_.size()); }
  /// Returns the rows that a slot holds.
  Index count(Index slot) const { return ring(slot).count; }

  /// Empties a slot.
  void clear(Index slot) { ring(slot) = {}; }
  /// Fills a slot with `capacity` rows of zeros.
  void fill_zeros(Index slot) {
    ring(slot) = {0, capacity_};
    std::fill_n(memory_.data() + slot * capacity_ * row_bytes_, capacity_ * row_bytes_, std::byte{0});
  }

  /// Copies slot `from` to slot `to`.
  void fork(Index from, Index to) {
    if (from == to) return;
    ring(to) = ring(from);
    each_run(from, 0, count(from), [&](Index first, Index rows, const std::byte* stored) {
      std::copy_n(stored, rows * row_bytes_, at(to, (ring(from).begin + first) % capacity_));
    });
  }

  /// Calls visit(first, count, stored) for the rows begin .. end - 1 of a slot, oldest first, in contiguous runs:
  /// `stored` points to `count` stored rows from row `first` on.
  template <class Visit>
  void each_run(Index slot, Index begin, Index end, Visit&& visit) const {
    const Ring& r = ring(slot);
    for (Index i = begin, count; i < end; i += count) {
      const Index row = (r.begin + i) % capacity_;
      count = std::min(end - i, capacity_ - row);
      visit(i, count, at(slot, row));
    }
  }
  /// Writes the rows of a slot, oldest first, to x (count, width).
  void read(Index slot, T* x) const {
    each_run(slot, 0, count(slot), [&](Index first, Index rows, const std::byte* stored) {
      for (Index i = 0; i < rows; ++i)
        kernels::load_row(storage_, 0, width_, stored + i * row_bytes_, x + (first + i) * width_);
    });
  }
  /// Appends x (rows, width) to a slot. The oldest rows beyond the capacity are dropped.
  void append(Index slot, Index rows, const T* x) {
    Ring& r = ring(slot);
    for (Index i = std::max<Index>(0, rows - capacity_); i < rows; ++i) {
      kernels::store_row(storage_, width_, x + i * width_, at(slot, (r.begin + r.count) % capacity_));
      if (r.count < capacity_)
        ++r.count;
      else
        r.begin = (r.begin + 1) % capacity_;
    }
  }

 private:
  /// Holds the first row of a ring and its number of rows.
  struct Ring {
    Index begin = 0, count = 0;
  };
  Ring& ring(Index slot) { return rings_[static_cast<std::size_t>(slot)]; }
  const Ring& ring(Index slot) const { return rings_[static_cast<std::size_t>(slot)]; }
  std::byte* at(Index slot, Index row) { return memory_.data() + (slot * capacity_ + row) * row_bytes_; }
  const std::byte* at(Index slot, Index row) const { return memory_.data() + (slot * capacity_ + row) * row_bytes_; }

  Index capacity_ = 0, width_ = 0, row_bytes_ = 0;
  Storage storage_ = Storage::full;
  std::vector<std::byte> memory_;
  std::vector<Ring> rings_;
};

/// Refers to the rows that a cache holds in one slot for each sequence, followed by new rows.
template <class T>
struct CachedRows {
  Tensor<T> rows{};                    ///< the new rows of all sequences
  const RowCache<T>* cache = nullptr;  ///< the cache; null: there are only the new rows
  std::span<const Index> slots{};      ///< the slot of each sequence
};

}  // namespace LACONIC_ABI
}  // namespace laconic
