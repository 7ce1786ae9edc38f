// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/checks/caches.hpp>
#include <laconic/backend/cuda/core.hpp>
#include <laconic/backend/cuda/kernels/row_cache.hpp>
#include <laconic/backend/cuda/row_cache.hpp>

#include <algorithm>
#include <cstddef>
#include <span>
#include <utility>

namespace laconic {
inline namespace LACONIC_ABI {

/// Implements the caches of `Cuda` for streams and decoders.
template <class T>
class CudaCaches {
 public:
  /// Names the type of the values that primitives take and return.
  using Tensor = CudaTensor<T>;
  /// Names the type of a cache of rows.
  using Cache = CudaRowCache<T>;
  /// Names the type of a view of cached rows and the rows after them.
  using CachedRows = CudaCachedRows<T>;

  /// Returns a cache of `slots` slots with `capacity` rows of `width` values each. Allocates.
  Cache make_cache(Index slots, Index capacity, Index width, Storage storage = Storage::full) {
    return Cache(core_.stream(), slots, capacity, width, storage);
  }
  /// Empties a slot.
  void clear(Cache& cache, Index slot) {
    checks::slots(cache, {&slot, 1});
    cache.ring(slot) = {};
  }
  /// Fills a slot with rows of zeros.
  void fill_zeros(Cache& cache, Index slot) {
    checks::slots(cache, {&slot, 1});
    cache.ring(slot) = {0, cache.capacity()};
    const Piece all = piece(cache, slot, 0, cache.capacity());
    core_.stream().zero(all.values, all.value_bytes);
    core_.stream().zero(all.scales, all.scale_bytes);
  }
  /// Copies slot `from` to slot `to`.
  void fork(Cache& cache, Index from, Index to) {
    checks::slots(cache, {&from, 1});
    checks::slots(cache, {&to, 1});
    if (from == to) return;
    const auto ring = cache.ring(to) = cache.ring(from);
    const Index before_end = std::min(ring.count, cache.capacity() - ring.begin);
    copy(piece(cache, from, ring.begin, before_end), piece(cache, to, ring.begin, before_end));
    copy(piece(cache, from, 0, ring.count - before_end), piece(cache, to, 0, ring.count - before_end));
  }

  /// Returns a view of the rows in slots[n], followed by the rows of x of sequence n. Copies no rows. Throws `Error`
  /// for shapes or slots that do not fit.
  CachedRows with_cached(const Cache& cache, std::span<const Index> slots, const Tensor& x,
                         const Sequences& sequences) {
    checks::cached_rows(cache, slots, x, sequences);
    return {x, &cache, slots, rings_of(cache, slots, &sequences)};
  }
  /// Returns the sequences of a view, which count cached and new rows.
  Sequences cached_lengths(const CachedRows& x, const Sequences& sequences) {
    return Sequences::make(core_.arena(), sequences.size(), [&](Index n) {
      return x.cache->count(x.slots[static_cast<std::size_t>(n)]) + sequences.length(n);
    });
  }
  /// Returns a view copied into one tensor. `all` are its cached_lengths.
  Tensor gathered(const CachedRows& x, const Sequences&, const Sequences& all) {
    Tensor out = core_.make(all.rows(), x.rows.cols());
    const Index* offsets = core_.offsets_of(all);
    launch(core_.stream(), "gathered", {all.rows()},
           cuda::GatherRows<T>{x.view(nullptr), offsets, all.size(), out.data()});
    return out;
  }
  /// Appends the rows of sequence n to slots[n]; the oldest rows beyond the capacity are dropped.
  void append(Cache& cache, std::span<const Index> slots, const Tensor& x, const Sequences& sequences) {
    checks::cached_rows(cache, slots, x, sequences);
    append_rows(cache, slots, x, rings_of(cache, slots, &sequences), &sequences);
  }
  /// Holds the result of `extend`.
  struct Extended {
    Tensor rows;          ///< cached rows and new rows of every sequence
    Sequences sequences;  ///< the sequences of these rows
  };
  /// Returns the cached rows and the rows of x as one tensor, then appends the rows of x to the cache.
  Extended extend(Cache& cache, std::span<const Index> slots, const Tensor& x, const Sequences& sequences) {
    const CachedRows rows = with_cached(cache, slots, x, sequences);
    Sequences all = cached_lengths(rows, sequences);
    Tensor out = gathered(rows, sequences, all);
    append_rows(cache, slots, x, rows.rings, &sequences);
    return {std::move(out), std::move(all)};
  }
  /// Calls change(rows) with the one row that each slot holds (slots, width), and stores the changed rows.
  template <class Change>
  void update(Cache& cache, std::span<const Index> slots, Change&& change) {
    Tensor rows = oldest(cache, slots);
    change(rows);
    append_rows(cache, slots, rows, rings_of(cache, slots, nullptr), nullptr);
  }

 protected:
  /// Binds this slice to the core of its context.
  explicit CudaCaches(CudaCore<T>& core) : core_(core) {}

 private:
  /// Refers to some rows of a slot, on the device.
  struct Piece {
    std::byte* values;
    std::size_t value_bytes;
    float* scales;
    std::size_t scale_bytes;
  };
  static Piece piece(const Cache& cache, Index slot, Index first, Index count) {
    const cuda::StoredRows<T> rows = cache.stored();
    const Index at = slot * cache.capacity() + first;
    const bool scaled = rows.scales != nullptr;
    return {rows.values + at * rows.value_bytes(), static_cast<std::size_t>(count * rows.value_bytes()),
            scaled ? rows.scales + at : nullptr, scaled ? static_cast<std::size_t>(count) * sizeof(float) : 0};
  }
  void copy(const Piece& from, const Piece& to) {
    core_.stream().copy(to.values, from.values, from.value_bytes);
    core_.stream().copy(to.scales, from.scales, from.scale_bytes);
  }
  /// Returns where the rows of each sequence are, on the device. `sequences` are those of new rows; null: one each.
  cuda::Uploaded<cuda::CachedRing> rings_of(const Cache& cache, std::span<const Index> slots,
                                            const Sequences* sequences) {
    const Buffer here = core_.arena().allocate(slots.size() * sizeof(cuda::CachedRing));
    auto* rings = static_cast<cuda::CachedRing*>(here.data());
    for (std::size_t n = 0; n < slots.size(); ++n) {
      const auto row = static_cast<Index>(n);
      rings[n] = cache.ring_of(slots[n], sequences == nullptr ? row : sequences->begin(row));
    }
    return core_.upload(std::span<const cuda::CachedRing>(rings, slots.size()));
  }
  /// Stores x after the rows of `rings`, which are those of the slots, and moves these on. `sequences` are those of x;
  /// null: one row each.
  void append_rows(Cache& cache, std::span<const Index> slots, const Tensor& x,
                   const cuda::Uploaded<cuda::CachedRing>& rings, const Sequences* sequences) {
    const Index capacity = cache.capacity();
    if (capacity == 0) return;
    const Index* offsets = sequences == nullptr ? nullptr : core_.offsets_of(*sequences);
    launch(core_.stream(), "append", {x.rows()},
           cuda::AppendRows<T>{x.data(), offsets, rings.data(), static_cast<Index>(slots.size()), capacity,
                               cache.stored()});
    for (std::size_t n = 0; n < slots.size(); ++n) {
      auto& ring = cache.ring(slots[n]);
      const Index rows = sequences == nullptr ? 1 : sequences->length(static_cast<Index>(n));
      const Index count = ring.count + std::min(rows, capacity);
      ring.begin = (ring.begin + std::max<Index>(0, count - capacity)) % capacity;
      ring.count = std::min(count, capacity);
    }
  }
  /// Returns the oldest row of each slot, (slots, width).
  Tensor oldest(const Cache& cache, std::span<const Index> slots) {
    checks::slots(cache, slots);
    Tensor rows = core_.make(static_cast<Index>(slots.size()), cache.width());
    const auto rings = rings_of(cache, slots, nullptr);
    launch(core_.stream(), "update", {rows.rows()}, cuda::OldestRows<T>{cache.stored(), rings.data(), rows.data()});
    return rows;
  }

  CudaCore<T>& core_;
};

LACONIC_COMPILE_CUDA_CLASS(CudaCaches);

}  // namespace LACONIC_ABI
}  // namespace laconic
