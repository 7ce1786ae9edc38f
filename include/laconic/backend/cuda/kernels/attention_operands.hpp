// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/kernels/tile.hpp>
#include <laconic/backend/shapes.hpp>

#include <cstdint>

namespace laconic {
inline namespace LACONIC_ABI {
namespace cuda {

/// Refers to keys or values that are whole, the rows of each sequence one after the other. It is read like a
/// `CachedRowsView`.
template <class T>
struct WholeRows {
  const T* rows;         ///< rows of all sequences, (rows, width)
  Index width;           ///< values of a row
  const Index* offsets;  ///< the first row of each sequence
  /// Returns value c of row i of sequence n.
  LACONIC_DEVICE T load(Index n, Index i, Index c) const { return rows[(offsets[n] + i) * width + c]; }
};

/// Holds the operands of softmax attention, except keys and values. Query head h reads key-value head h / (num_heads /
/// num_kv_heads).
///
/// The score of query i and key j of a head is scale * ((q_i + u) . k_j + (position_q_i + w) . p_(j - i)), the second
/// term only with relative positions (Dai et al. 2019, section 3.3). Row span - 1 + d of p is for a key d frames to the
/// right of the query. A "query id" is its row times num_heads plus its head.
template <class T>
struct AttendOperands {
  Index num_heads;                              ///< query heads
  Index num_kv_heads;                           ///< key-value heads
  Index key_width;                              ///< columns of a query or key head
  Index value_width;                            ///< columns of a value head
  T scale;                                      ///< factor of the scores
  Mask mask;                                    ///< the keys that a query sees
  Index sequences;                              ///< sequences
  const Index* q_offsets;                       ///< the first query row of each sequence
  const Index* kv_offsets;                      ///< the first key of each sequence, cached ones included
  const T* q;                                   ///< (q_rows, num_heads * key_width)
  const T* p = nullptr;                         ///< table, (2 * span - 1, num_heads * position_width), or null
  const T* u = nullptr;                         ///< pos_bias_u, (num_heads * key_width), or null for zeros
  const T* w = nullptr;                         ///< pos_bias_v, (num_heads * position_width), or null for zeros
  const T* position_q = nullptr;                ///< queries that meet p, (q_rows, num_heads * position_width)
  Index span = 0;                               ///< distances of p on either side, 0 included
  Index position_width = 0;                     ///< columns of a head of p
  bool drops = false;                           ///< whether `dropout` drops anything
  DropoutMask dropout{0.0, Random(Seed(), 0)};  ///< dropout of the attention weights

  /// Returns the queries of a sequence.
  LACONIC_DEVICE Index queries(Index n) const { return q_offsets[n + 1] - q_offsets[n]; }
  /// Returns the keys of a sequence.
  LACONIC_DEVICE Index keys(Index n) const { return kv_offsets[n + 1] - kv_offsets[n]; }
  /// Returns the keys of a sequence before its first query.
  LACONIC_DEVICE Index past(Index n) const { return keys(n) - queries(n); }
  /// Returns value c of (q + u) scale for a query id of a head.
  LACONIC_DEVICE T content(Index id, Index head, Index c) const {
    const T value = q[id * key_width + c];
    return (u == nullptr ? value : value + u[head * key_width + c]) * scale;
  }
  /// Returns value c of (position_q + w) scale for a query id of a head.
  LACONIC_DEVICE T positional(Index id, Index head, Index c) const {
    const T value = position_q[id * position_width + c];
    return (w == nullptr ? value : value + w[head * position_width + c]) * scale;
  }
  /// Returns value c of a row of the table for a head, 0 for a row that the table does not have.
  LACONIC_DEVICE T distance(Index row, Index head, Index c) const {
    return row < 0 || row >= 2 * span - 1 ? T(0) : p[(row * num_heads + head) * position_width + c];
  }
  /// Returns the factor of the attention weight of a query id and a key: 0 if it is dropped.
  LACONIC_DEVICE T dropout_factor(Index id, Index key) const {
    if (!drops) return T(1);
    const std::uint64_t index = (static_cast<std::uint64_t>(id) << 24) + static_cast<std::uint64_t>(key);
    return dropout.keeps(index) ? static_cast<T>(dropout.scale()) : T(0);
  }
};

/// Holds which queries a tile has, in shared memory. A tile has all `group` heads of a query next to each other.
struct TileQueries {
  Index* id;     ///< the query id; -1 beyond the last query
  Index* head;   ///< the head
  Index* begin;  ///< the first key that the query sees
  Index* end;    ///< the key after the last one that it sees

  /// Returns the shared memory for the queries of a tile.
  static constexpr std::size_t bytes(int count) { return 4 * shared_bytes<Index>(count); }
  /// Takes memory for `count` queries.
  LACONIC_DEVICE TileQueries(Block& block, int count)
      : id(block.shared<Index>(count)),
        head(block.shared<Index>(count)),
        begin(block.shared<Index>(count)),
        end(block.shared<Index>(count)) {}
  /// Sets `count` queries of sequence n: entry i is query (first + i) / group and head first_head + (first + i) %
  /// group.
  template <class T>
  LACONIC_DEVICE void set(Block& block, const AttendOperands<T>& in, int count, Index n, Index first, Index first_head,
                          Index group) const {
    block.each([&](int t) {
      if (t >= count) return;
      const Index query = (first + t) / group;
      const bool exists = query < in.queries(n);
      head[t] = first_head + (first + t) % group;
      id[t] = exists ? (in.q_offsets[n] + query) * in.num_heads + head[t] : -1;
      const auto seen = in.mask.keys(query, in.past(n), in.keys(n));
      begin[t] = exists ? seen.begin : 0;
      end[t] = exists ? seen.end : 0;
    });
  }
  /// Says whether query i sees a key.
  LACONIC_DEVICE bool sees(int i, Index key) const { return key >= begin[i] && key < end[i]; }
};

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
