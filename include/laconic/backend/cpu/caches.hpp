// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/checks/caches.hpp>
#include <laconic/backend/cpu/core.hpp>
#include <laconic/backend/cpu/row_cache.hpp>
#include <laconic/core/compiled.hpp>

#include <algorithm>
#include <span>
#include <utility>

namespace laconic {
inline namespace LACONIC_ABI {

/// Implements the caches of `Cpu` for streams and decoders.
template <class T>
class CpuCaches {
 public:
  /// Names the type of the values that primitives take and return.
  using Tensor = laconic::Tensor<T>;
  /// Names the type of a cache of rows.
  using Cache = RowCache<T>;
  /// Names the type of a view of cached rows and the rows after them.
  using CachedRows = laconic::CachedRows<T>;

  /// Returns a cache of `slots` slots with `capacity` rows of `width` values each. Allocates.
  Cache make_cache(Index slots, Index capacity, Index width, Storage storage = Storage::full) {
    return Cache(slots, capacity, width, storage);
  }
  /// Empties a slot.
  void clear(Cache& cache, Index slot) {
    checks::slots(cache, {&slot, 1});
    cache.clear(slot);
  }
  /// Fills a slot with rows of zeros.
  void fill_zeros(Cache& cache, Index slot) {
    checks::slots(cache, {&slot, 1});
    cache.fill_zeros(slot);
  }
  /// Copies slot `from` to slot `to`.
  void fork(Cache& cache, Index from, Index to) {
    checks::slots(cache, {&from, 1});
    checks::slots(cache, {&to, 1});
    cache.fork(from, to);
  }

  /// Returns a view of the rows in slots[n], followed by the rows of x of sequence n. Copies nothing. Throws `Error`
  /// for shapes or slots that do not fit.
  CachedRows with_cached(const Cache& cache, std::span<const Index> slots, const Tensor& x,
                         const Sequences& sequences) {
    checks::cached_rows(cache, slots, x, sequences);
    return {x, &cache, slots};
  }
  /// Returns the sequences of a view, which count cached and new rows.
  Sequences cached_lengths(const CachedRows& x, const Sequences& sequences) {
    return Sequences::make(core_.arena(), sequences.size(), [&](Index n) {
      return x.cache->count(x.slots[static_cast<std::size_t>(n)]) + sequences.length(n);
    });
  }
  /// Returns a view copied into one tensor. `all` are its cached_lengths.
  Tensor gathered(const CachedRows& x, const Sequences& sequences, const Sequences& all) {
    Tensor out = core_.make(all.rows(), x.rows.cols());
    kernels::parallel_for(core_.threads(), sequences.size(), [&](Index n, int) {
      const Index slot = x.slots[static_cast<std::size_t>(n)], past = x.cache->count(slot);
      T* to = out.row(all.begin(n));
      x.cache->read(slot, to);
      std::copy_n(x.rows.row(sequences.begin(n)), sequences.length(n) * x.rows.cols(), to + past * x.rows.cols());
    });
    return out;
  }
  /// Appends the rows of sequence n to slots[n]; the oldest rows beyond the capacity are dropped.
  void append(Cache& cache, std::span<const Index> slots, const Tensor& x, const Sequences& sequences) {
    checks::cached_rows(cache, slots, x, sequences);
    kernels::parallel_for(core_.threads(), sequences.size(), [&](Index n, int) {
      cache.append(slots[static_cast<std::size_t>(n)], sequences.length(n), x.row(sequences.begin(n)));
    });
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
    append(cache, slots, x, sequences);
    return {std::move(out), std::move(all)};
  }
  /// Calls change(rows) with the one row that each slot holds (slots, width), and stores the changed rows.
  template <class Change>
  void update(Cache& cache, std::span<const Index> slots, Change&& change) {
    checks::slots(cache, slots);
    Tensor rows = core_.make(static_cast<Index>(slots.size()), cache.width());
    for (std::size_t n = 0; n < slots.size(); ++n) cache.read(slots[n], rows.row(static_cast<Index>(n)));
    change(rows);
    for (std::size_t n = 0; n < slots.size(); ++n) cache.append(slots[n], 1, rows.row(static_cast<Index>(n)));
  }

 protected:
  /// Binds this slice to the core of its context.
  explicit CpuCaches(CpuCore<T>& core) : core_(core) {}

 private:
  CpuCore<T>& core_;
};

LACONIC_COMPILE_CLASS(CpuCaches);

}  // namespace LACONIC_ABI
}  // namespace laconic
