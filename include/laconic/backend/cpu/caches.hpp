// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cpu/core.hpp>
#include <laconic/backend/cpu/row_cache.hpp>

#include <algorithm>
#include <span>
#include <utility>

namespace laconic {
inline namespace LACONIC_ABI {

/// The slice of `Cpu` that keeps rows of streams.
template <class T>
class CpuCaches {
 public:
  using Tensor = laconic::Tensor<T>;
  using Cache = RowCache<T>;
  using CachedRows = laconic::CachedRows<T>;

  Cache make_cache(Index slots, Index capacity, Index width, Storage storage = Storage::full) {
    return Cache(slots, capacity, width, storage);
  }
  void clear(Cache& cache, Index slot) {
    check_slots(cache, {&slot, 1});
    cache.clear(slot);
  }
  void fill_zeros(Cache& cache, Index slot) {
    check_slots(cache, {&slot, 1});
    cache.fill_zeros(slot);
  }
  void fork(Cache& cache, Index from, Index to) {
    check_slots(cache, {&from, 1});
    check_slots(cache, {&to, 1});
    cache.fork(from, to);
  }

  CachedRows with_cached(const Cache& cache, std::span<const Index> slots, const Tensor& x,
                         const Sequences& sequences) {
    check_rows(cache, slots, x, sequences);
    return {x, &cache, slots};
  }
  Sequences cached_lengths(const CachedRows& x, const Sequences& sequences) {
    return Sequences::make(core_.arena(), sequences.size(), [&](Index n) {
      return x.cache->count(x.slots[static_cast<std::size_t>(n)]) + sequences.length(n);
    });
  }
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
  void append(Cache& cache, std::span<const Index> slots, const Tensor& x, const Sequences& sequences) {
    check_rows(cache, slots, x, sequences);
    kernels::parallel_for(core_.threads(), sequences.size(), [&](Index n, int) {
      cache.append(slots[static_cast<std::size_t>(n)], sequences.length(n), x.row(sequences.begin(n)));
    });
  }
  struct Extended {
    Tensor rows;
    Sequences sequences;
  };
  Extended extend(Cache& cache, std::span<const Index> slots, const Tensor& x, const Sequences& sequences) {
    const CachedRows rows = with_cached(cache, slots, x, sequences);
    Sequences all = cached_lengths(rows, sequences);
    Tensor out = gathered(rows, sequences, all);
    append(cache, slots, x, sequences);
    return {std::move(out), std::move(all)};
  }
  template <class Change>
  void update(Cache& cache, std::span<const Index> slots, Change&& change) {
    check_slots(cache, slots);
    Tensor rows = core_.make(static_cast<Index>(slots.size()), cache.width());
    for (std::size_t n = 0; n < slots.size(); ++n) cache.read(slots[n], rows.row(static_cast<Index>(n)));
    change(rows);
    for (std::size_t n = 0; n < slots.size(); ++n) cache.append(slots[n], 1, rows.row(static_cast<Index>(n)));
  }

 protected:
  explicit CpuCaches(CpuCore<T>& core) : core_(core) {}

 private:
  static void check_rows(const Cache& cache, std::span<const Index> slots, const Tensor& x,
                         const Sequences& sequences) {
    require(static_cast<Index>(slots.size()) == sequences.size() && x.cols() == cache.width() &&
                x.rows() == sequences.rows(),
            "cache: (", x.rows(), ", ", x.cols(), ") in ", sequences.size(), " sequences given, (", sequences.rows(),
            ", ", cache.width(), ") in ", slots.size(), " expected");
    check_slots(cache, slots);
  }
  static void check_slots(const Cache& cache, std::span<const Index> slots) {
    for (const Index slot : slots)
      require(slot >= 0 && slot < cache.slots(), "cache: slot ", slot, " given, 0 to ", cache.slots() - 1, " expected");
  }

  CpuCore<T>& core_;
};

}  // namespace LACONIC_ABI
}  // namespace laconic
