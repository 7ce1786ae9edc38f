// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/block.hpp>
#include <laconic/backend/cuda/device_array.hpp>
#include <laconic/backend/cuda/kernels/stored_rows.hpp>
#include <laconic/backend/cuda/tensor.hpp>
#include <laconic/backend/shapes.hpp>
#include <laconic/core/arena.hpp>

#include <cstddef>
#include <span>
#include <utility>
#include <vector>

// The memory of streams on a GPU. The rows of a cache are on the device. Where the ring of each slot begins and how
// many rows it holds is known on the host, since both change by known amounts; a primitive copies those of its
// sequences to the device.

namespace laconic {
inline namespace LACONIC_ABI {

template <class T>
class CudaCaches;

namespace cuda {

/// Says where the rows of one sequence are: rows of a ring, oldest first, and then new rows.
struct CachedRing {
  Index slot;   ///< the first row of the slot in the memory of the cache
  Index begin;  ///< the oldest row within the slot
  Index count;  ///< the rows that the slot holds
  Index first;  ///< the first new row of the sequence
  /// Returns the number, in the memory of the cache, of row i of the ring. 0 <= i <= capacity.
  constexpr Index place(Index i, Index capacity) const {
    const Index row = begin + i;
    return slot + (row >= capacity ? row - capacity : row);
  }
};

/// Lets kernels read a `CudaCachedRows` in place. Row i of sequence n is one of the cache if i < cached(n), and
/// otherwise new row i - cached(n).
template <class T>
struct CachedRowsView {
  const T* rows;            ///< the new rows of all sequences, (rows, width)
  Index width;              ///< values of a row
  const Index* offsets;     ///< without a cache: the first row of each sequence
  const CachedRing* rings;  ///< places of the rows of each sequence; null: there is no cache
  StoredRows<T> stored;     ///< the rows of the cache
  Index capacity;           ///< rows of a slot of the cache
  /// Returns how many rows of the cache sequence n has.
  LACONIC_DEVICE Index cached(Index n) const { return rings == nullptr ? 0 : rings[n].count; }
  /// Returns row i of sequence n, which counts cached rows first.
  LACONIC_DEVICE StoredRow<T> row(Index n, Index i) const {
    if (rings == nullptr) return {Storage::full, rows + (offsets[n] + i) * width, 1.0f};
    const CachedRing ring = rings[n];
    if (i < ring.count) return stored.row(ring.place(i, capacity));
    return {Storage::full, rows + (ring.first + i - ring.count) * width, 1.0f};
  }
  /// Returns value c of row i of sequence n. `row` is faster where a thread reads several values of a row.
  LACONIC_DEVICE T load(Index n, Index i, Index c) const { return row(n, i)[c]; }
};

}  // namespace cuda

/// Holds the last rows of many streams on a device: for each slot a ring of up to `capacity` rows of `width` values.
/// Its memory is allocated at construction. Storing rounds as `storage` says; reading returns the rounded values.
template <class T>
class CudaRowCache {
 public:
  /// Makes a cache without slots.
  CudaRowCache() = default;
  /// Makes a cache of empty slots. Allocates.
  CudaRowCache(const cuda::Stream& stream, Index slots, Index capacity, Index width, Storage storage)
      : capacity_(capacity),
        width_(width),
        storage_(storage),
        memory_(stream, slots * capacity * cache_row_bytes(storage, width, sizeof(T))),
        rings_(static_cast<std::size_t>(slots)) {}

  /// Returns the number of slots.
  Index slots() const { return static_cast<Index>(rings_.size()); }
  /// Returns the rows that a slot has room for.
  Index capacity() const { return capacity_; }
  /// Returns the values of a row.
  Index width() const { return width_; }
  /// Returns how rows are stored.
  Storage storage() const { return storage_; }
  /// Returns the bytes held for the rows of all slots.
  Index bytes() const { return memory_.size(); }
  /// Returns the rows that a slot holds.
  Index count(Index slot) const { return ring(slot).count; }

  /// Returns the stored rows of all slots.
  cuda::StoredRows<T> stored() const {
    return cuda::StoredRows<T>::in(memory_.data(), storage_, slots() * capacity_, width_);
  }
  /// Returns where the rows of a sequence are: those of a slot, then the new rows from row `first` on.
  cuda::CachedRing ring_of(Index slot, Index first) const {
    return {slot * capacity_, ring(slot).begin, ring(slot).count, first};
  }

 private:
  friend class CudaCaches<T>;
  /// Holds the first row of a ring and its number of rows.
  struct Ring {
    Index begin = 0, count = 0;
  };
  Ring& ring(Index slot) { return rings_[static_cast<std::size_t>(slot)]; }
  const Ring& ring(Index slot) const { return rings_[static_cast<std::size_t>(slot)]; }

  Index capacity_ = 0, width_ = 0;
  Storage storage_ = Storage::full;
  cuda::DeviceArray<std::byte> memory_{};
  std::vector<Ring> rings_{};
};

/// Refers to the rows that a cache holds in one slot for each sequence, followed by new rows.
template <class T>
struct CudaCachedRows {
  CudaTensor<T> rows{};                      ///< the new rows of all sequences
  const CudaRowCache<T>* cache = nullptr;    ///< the cache; null: there are only the new rows
  std::span<const Index> slots{};            ///< the slot of each sequence
  cuda::Uploaded<cuda::CachedRing> rings{};  ///< one for each sequence, if there is a cache

  /// Returns what kernels read. `offsets` are those of the sequences on the device (`CudaCore::offsets_of`), which are
  /// read only if there is no cache. The view lives as long as this and the cache.
  cuda::CachedRowsView<T> view(const Index* offsets) const {
    return {rows.data(),
            rows.cols(),
            offsets,
            rings.data(),
            cache == nullptr ? cuda::StoredRows<T>{} : cache->stored(),
            cache == nullptr ? 0 : cache->capacity()};
  }
};

}  // namespace LACONIC_ABI
}  // namespace laconic
