// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/kernels/row_sums.hpp>
#include <laconic/backend/cuda/row_cache.hpp>

namespace laconic {
inline namespace LACONIC_ABI {
namespace cuda {

/// Stores row b of x (rows, width) after the rows of its sequence's ring, one in each block. Of more rows than a slot
/// has room for, only the last are stored. `offsets` are those of x; null: every sequence has one row.
template <class T>
struct AppendRows {
  static constexpr int threads = 128;
  const T* x;
  const Index* offsets;
  const CachedRing* rings;
  Index sequences, capacity;
  StoredRows<T> to;
  LACONIC_DEVICE void operator()(Block& block) const {
    const Index r = block.x(), n = offsets == nullptr ? r : sequence_of(offsets, sequences, r);
    const Index begin = offsets == nullptr ? r : offsets[n], end = offsets == nullptr ? r + 1 : offsets[n + 1];
    const Index skipped = end - begin > capacity ? end - begin - capacity : 0, i = r - begin - skipped;
    if (i < 0) return;
    to.store(block, rings[n].slot + (rings[n].begin + rings[n].count + i) % capacity, x + r * to.width);
  }
};

/// Copies a row of `width` values to memory.
template <class T>
LACONIC_DEVICE void copy_row(Block& block, const StoredRow<T>& row, Index width, T* to) {
  constexpr int together = vector_size<T>;
  block.each([&](int t) {
    in_vectors<together>(block, t, width, are_aligned<together>(to) && row.template are_in_vectors<together>(),
                         [&]<int N>(Index c) { store(to + c, row.template load<N>(c)); });
  });
}

/// Copies row b of all sequences to y (rows, width), one in each block. `offsets` are those of the rows of y.
template <class T>
struct GatherRows {
  static constexpr int threads = 128;
  CachedRowsView<T> x;
  const Index* offsets;
  Index sequences;
  T* y;
  LACONIC_DEVICE void operator()(Block& block) const {
    const Index r = block.x(), n = sequence_of(offsets, sequences, r);
    copy_row(block, x.row(n, r - offsets[n]), x.width, y + r * x.width);
  }
};

/// Copies the oldest row of ring b to row b of y (rings, width), one in each block.
template <class T>
struct OldestRows {
  static constexpr int threads = 128;
  StoredRows<T> from;
  const CachedRing* rings;
  T* y;
  LACONIC_DEVICE void operator()(Block& block) const {
    const Index n = block.x();
    copy_row(block, from.row(rings[n].slot + rings[n].begin), from.width, y + n * from.width);
  }
};

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
