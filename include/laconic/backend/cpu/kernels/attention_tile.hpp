// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cpu/kernels/elementwise.hpp>
#include <laconic/backend/cpu/kernels/gemm.hpp>
#include <laconic/backend/cpu/row_cache.hpp>
#include <laconic/backend/shapes.hpp>
#include <laconic/core/compiled.hpp>
#include <laconic/core/sequences.hpp>

#include <algorithm>
#include <limits>
#include <span>

namespace laconic {
inline namespace LACONIC_ABI {
namespace kernels {

/// Gives the queries of a tile. Memory grows with tile x keys, never with queries x keys. It is a multiple of the rows
/// and columns of every register tile.
inline constexpr Index attend_tile = 48;
static_assert(attend_tile % GemmTile<float>::cols == 0 && attend_tile % GemmTile<double>::cols == 0);

/// Returns the number of tiles of so many queries.
constexpr Index attend_tiles(Index queries) { return (queries + attend_tile - 1) / attend_tile; }
/// Returns the queries of a full tile, which are all if there is one tile.
constexpr Index tile_height(Index queries) { return std::min(attend_tile, queries); }

/// Refers to the keys or values of all heads (rows, cols): for each sequence the rows in its slot of a cache, if there
/// is one, followed by its new rows.
template <class T>
struct AttendRows {
  const T* data;                       ///< the new rows, sequence after sequence
  Index cols;                          ///< columns of all heads
  const Sequences* sequences;          ///< the sequences of the new rows
  const RowCache<T>* cache = nullptr;  ///< earlier rows, or null
  std::span<const Index> slots{};      ///< the slot of each sequence

  /// Returns whether cached rows are stored rounded, and so must be converted to be read.
  bool is_rounded() const { return cache != nullptr && cache->storage() != Storage::full; }
  /// Returns the number of cached rows of a sequence.
  Index cached(Index sequence) const {
    return cache == nullptr ? 0 : cache->count(slots[static_cast<std::size_t>(sequence)]);
  }
  /// Returns the new rows of a sequence from column `col` on. Without a cache these are all its rows.
  Operand<T> whole(Index sequence, Index col) const { return {data + sequences->begin(sequence) * cols + col, cols}; }

  /// Calls visit(first, count, rows) for the columns col .. col + width - 1 of the rows range.begin .. range.end - 1 of
  /// a sequence, in order: `rows` is an operand of `count` rows from row `first` on. Rows are read in place, or
  /// converted into `space` (attend_tile, width) if they are stored rounded.
  template <class Visit>
  void each_run(Index sequence, Range range, Index col, Index width, T* space, Visit&& visit) const {
    const Index past = cached(sequence);
    if (range.begin < past)
      cache->each_run(slots[static_cast<std::size_t>(sequence)], range.begin, std::min(range.end, past),
                      [&](Index first, Index count, const std::byte* stored) {
                        if (!is_rounded())
                          return visit(first, count, Operand<T>{reinterpret_cast<const T*>(stored) + col, cols});
                        for (Index i = 0; i < count; i += attend_tile) {
                          const Index some = std::min(attend_tile, count - i);
                          for (Index r = 0; r < some; ++r)
                            load_row(cache->storage(), col, width, stored + (i + r) * cache->row_bytes(),
                                     space + r * width);
                          visit(first + i, some, Operand<T>{space, width});
                        }
                      });
    const Index begin = std::max(range.begin, past);
    if (begin < range.end) visit(begin, range.end - begin, Operand<T>{whole(sequence, col).at(begin - past, 0), cols});
  }
};

/// Holds the operands of softmax attention over packed rows. Query head h reads key-value head h / (num_heads /
/// num_kv_heads).
///
/// The score of query i and key j of a head is scale * ((q_i + u) . k_j + (position_q_i + w) . p_(i - j)), the second
/// term only with relative positions (Dai et al. 2019, section 3.3). Row span - 1 - r of p is for a key r frames to the
/// left of the query. `pack_table` may have packed p.
template <class T>
struct AttendOperands {
  AttendShape shape;              ///< heads, scale and mask
  const Sequences* q_sequences;   ///< sequences of the queries
  const Sequences* kv_sequences;  ///< sequences of keys and values, cached ones included
  Index key_width;                ///< columns of a query or key head
  Index value_width;              ///< columns of a value head
  const T* q;                     ///< (q_rows, num_heads * key_width)
  AttendRows<T> k;                ///< (kv_rows, num_kv_heads * key_width)
  AttendRows<T> v;                ///< (kv_rows, num_kv_heads * value_width)
  const T* p = nullptr;           ///< projected table, (2 * span - 1, num_heads * position_width), or null
  const T* u = nullptr;           ///< pos_bias_u, (num_heads * key_width), or null for zeros
  const T* w = nullptr;           ///< pos_bias_v, (num_heads * position_width), or null for zeros
  const T* position_q = nullptr;  ///< queries that meet p, (q_rows, num_heads * position_width)
  Index span = 0;                 ///< distances of p on either side, 0 included
  Index position_width = 0;       ///< columns of a head of p
  bool packed_table = false;      ///< whether `pack_table` packed p
  DropoutMask dropout{0.0, Random(Seed(), 0)};  ///< dropout of the attention weights

  /// Returns the query heads that share a key-value head.
  Index group() const { return shape.num_heads / shape.num_kv_heads; }
  /// Returns the columns of q.
  Index q_cols() const { return shape.num_heads * key_width; }
  /// Returns the columns of k.
  Index k_cols() const { return shape.num_kv_heads * key_width; }
  /// Returns the columns of v.
  Index v_cols() const { return shape.num_kv_heads * value_width; }
  /// Returns the columns of the result.
  Index out_cols() const { return shape.num_heads * value_width; }
  /// Returns the columns of p.
  Index p_cols() const { return shape.num_heads * position_width; }
};

/// Packs the rows origin .. origin + cols - 1 of one head's table (rows, width) as columns of panels (width, cols).
/// Columns for rows that the table does not have are zeros. One thread; no allocation.
template <class T>
void pack_distances(Operand<T> table, Index rows, Index width, Index origin, Index cols, T* to) {
  for (Index j = 0; j < cols; j += GemmTile<T>::cols) {
    const Index used = std::min(GemmTile<T>::cols, cols - j), padded = padded_cols<T>(used);
    T* panel = to + j * width;
    const Index begin = std::clamp<Index>(-origin - j, 0, used), end = std::clamp(rows - origin - j, begin, used);
    if (end - begin < padded) std::fill_n(panel, padded * width, T(0));
    const Operand<T> from = table.transposed();
    detail::pack_panel(Operand<T>{from.at(0, origin + j + begin), from.row_stride, from.col_stride}, width, end - begin,
                       end - begin, panel + begin, padded);
  }
}

/// Returns the columns of the panels of one head for a table of so many rows. Tiles read up to a vector after the last
/// row.
template <class T>
constexpr Index packed_table_cols(Index rows) {
  return rows + lanes<T>;
}
/// Returns the rows, as wide as the table, that hold the panels of all heads.
template <class T>
constexpr Index packed_table_rows(Index rows) {
  return rows + 2 * lanes<T>;
}
/// Packs a table of distances (rows, heads * width) for many calls: the panels of each head, one head after the other.
/// to (packed_table_rows(rows), heads * width). A task is a head; no allocation.
template <class T>
void pack_table(int threads, Index rows, Index heads, Index width, const T* table, T* to) {
  parallel_for(threads, heads, [&](Index head, int) {
    const Index cols = packed_table_cols<T>(rows);
    pack_distances(Operand<T>{table + head * width, heads * width}, rows, width, 0, cols,
                   to + head * Panels<T>::size(width, cols));
  });
}

/// Packs the operands that the tiles of a sequence share: a range of keys and values of a key-value head, and the table
/// of distances of a head. Used by one thread, in memory of the caller.
template <class T>
class AttendPanels {
 public:
  /// Returns the elements of memory that the panels of up to `keys` keys need.
  static Index space(const AttendOperands<T>& in, Index keys) {
    const Index positions = table_cols(in.q_sequences->max_length(), keys);
    return Panels<T>::size(in.key_width, keys) + values_space(in, keys) + run_space(in) +
           (in.p == nullptr || in.packed_table ? 0 : Panels<T>::size(in.position_width, positions));
  }

  /// Packs the keys `range` of a sequence into `memory`. range.begin is a multiple of the columns of a panel.
  AttendPanels(const AttendOperands<T>& in, Index sequence, Index kv_head, Range range, T* memory)
      : in_(in), sequence_(sequence), kv_head_(kv_head), range_(range), memory_(memory) {
    pack_keys();
  }

  /// Returns the keys that are packed.
  Range range() const { return range_; }
  /// Returns the keys as panels (key_width, range).
  const Panels<T>& keys() const { return keys_; }
  /// Returns the keys in place, without a cache.
  Operand<T> k() const { return in_.k.whole(sequence_, kv_head_ * in_.key_width); }

  /// Packs the values as panels (range, value_width), for products of several tiles.
  void pack_values() {
    values_ = {values_memory(), range_.size(), in_.value_width};
    each_run_of_values(range_, [&](Index first, Index some, Operand<T> rows) {
      for (Index j = 0; j < in_.value_width; j += GemmTile<T>::cols) {
        const Index used = std::min(GemmTile<T>::cols, in_.value_width - j), padded = padded_cols<T>(used);
        detail::pack_panel(Operand<T>{rows.at(0, j), rows.row_stride}, some, used, padded,
                           values_memory() + j * range_.size() + (first - range_.begin) * padded, padded);
      }
    });
  }
  /// Packs the values as panels (value_width, range), without a cache and for a range of all keys.
  void pack_values_transposed() {
    values_ = pack(1, in_.v.whole(sequence_, kv_head_ * in_.value_width).transposed(), in_.value_width, range_.size(),
                   values_memory());
  }
  /// Returns the panels of values that were packed last.
  const Panels<T>& values() const { return values_; }
  /// Calls visit(first, count, rows) for values that are not packed (see AttendRows::each_run).
  template <class Visit>
  void each_run_of_values(Range keys, Visit&& visit) const {
    in_.v.each_run(sequence_, keys, kv_head_ * in_.value_width, in_.value_width, run_memory(), visit);
  }
  /// Returns the memory of the values' panels, which `gemm_block` takes as scratch if values are not packed.
  T* values_memory() const { return memory_ + Panels<T>::size(in_.key_width, range_.size()); }

  /// Packs the distances of a head as panels (position_width, distances). Column 0 of a packed table is its row 0.
  /// Otherwise column 0 is the distance from the last query of a full last tile to the first key of the range, so that
  /// tiles begin at panels.
  void pack_positions(Index head) {
    const Index width = in_.position_width, rows = 2 * in_.span - 1;
    if (in_.packed_table) {
      const Index cols = packed_table_cols<T>(rows);
      positions_ = {in_.p + head * Panels<T>::size(width, cols), width, cols};
      return;
    }
    const Index queries = in_.q_sequences->length(sequence_), past = in_.kv_sequences->length(sequence_) - queries,
                cols = table_cols(queries, range_.size()),
                origin = in_.span - past - attend_tiles(queries) * tile_height(queries) + range_.begin;
    T* to = run_memory() + run_space(in_);
    pack_distances(Operand<T>{in_.p + head * width, in_.p_cols()}, rows, width, origin, cols, to);
    positions_ = {to, width, cols};
  }
  /// Returns the panels of distances that were packed last.
  const Panels<T>& positions() const { return positions_; }

 private:
  static Index table_cols(Index queries, Index keys) {
    return attend_tiles(queries) * tile_height(queries) + padded_cols<T>(keys);
  }
  static Index values_space(const AttendOperands<T>& in, Index keys) {
    return std::max({Panels<T>::size(keys, in.value_width), Panels<T>::size(in.value_width, keys), gemm_scratch<T>()});
  }
  static Index run_space(const AttendOperands<T>& in) { return attend_tile * std::max(in.key_width, in.value_width); }
  T* run_memory() const { return values_memory() + values_space(in_, range_.size()); }

  void pack_keys() {
    constexpr Index cols = GemmTile<T>::cols;
    const Index width = in_.key_width, count = range_.size(), last = (count - 1) / cols * cols;
    keys_ = {memory_, width, count};
    const Index used = count - last, padded = padded_cols<T>(used);
    for (Index k = 0; used < padded && k < width; ++k)
      std::fill_n(memory_ + last * width + k * padded + used, padded - used, T(0));
    in_.k.each_run(
        sequence_, range_, kv_head_ * width, width, run_memory(), [&](Index key, Index some, Operand<T> rows) {
          constexpr Index together = 8;
          const Index first = key - range_.begin;
          for (Index at = first, end; at < first + some; at = end) {
            const Index panel = at / cols * cols;
            end = std::min({first + some, panel + cols, at + together});
            prefetch_rows(rows, end - first, std::min(some, end - first + together), width);
            detail::pack_panel(Operand<T>{rows.at(at - first, 0), rows.row_stride}.transposed(), width, end - at,
                               end - at, memory_ + panel * width + (at - panel), keys_.width(panel));
          }
        });
  }

  const AttendOperands<T>& in_;
  Index sequence_, kv_head_;
  Range range_;
  T* memory_;
  Panels<T> keys_{}, values_{}, positions_{};
};

/// Computes the scores of one tile: the queries [row, row + rows) of one head of one sequence against the keys [key,
/// key + keys), which are those of the panels that any of the queries sees. Used by one thread, in memory of the
/// caller.
template <class T>
struct AttendTile {
  const AttendOperands<T>& in;    ///< the operands
  const AttendPanels<T>& panels;  ///< the panels that this tile reads
  Index sequence;                 ///< the sequence of the tile
  Index head;                     ///< the query head of the tile
  Index row;                      ///< the first query, counted in its sequence
  Index rows;                     ///< queries
  Index key;                      ///< the first key, counted in its sequence
  Index keys;                     ///< keys
  Index height;                   ///< queries of a full tile
  Index stride;                   ///< columns of a row of scores: keys, padded to whole vectors
  T* content;                     ///< (q + u) scale, (rows, key_width)
  T* positional;                  ///< (position_q + w) scale, (rows, position_width)
  T* scores;                      ///< scores, later their exponentials or weights, (rows, stride)
  T* by_position;                 ///< positional score of (i, j) in row i, column lead + rows - 1 - i + j
  Index lead = 0;                 ///< columns of by_position before the first distance
  Index position_stride = 0;      ///< columns of by_position

  /// Returns the elements of memory that a tile of up to `keys` keys needs.
  static Index space(const AttendOperands<T>& in, Index keys) {
    const Index cols = padded_cols<T>(keys) + GemmTile<T>::cols;
    return attend_tile * (in.key_width + in.position_width + cols + (in.p == nullptr ? 0 : cols + 2 * attend_tile));
  }

  /// Sets up the tile of the queries from row `row_` on. Computes nothing yet.
  AttendTile(const AttendOperands<T>& operands, const AttendPanels<T>& packed, Index sequence_, Index head_, Index row_,
             T* memory)
      : in(operands), panels(packed), sequence(sequence_), head(head_), row(row_) {
    const Index queries = in.q_sequences->length(sequence), all = in.kv_sequences->length(sequence);
    height = tile_height(queries);
    rows = std::min(height, queries - row);
    const auto first = in.shape.mask.keys(row, all - queries, all),
               last = in.shape.mask.keys(row + rows - 1, all - queries, all);
    const Range range = panels.range();
    key = std::clamp(first.begin, range.begin, range.end) / GemmTile<T>::cols * GemmTile<T>::cols;  // a panel begins
    keys = std::max(key, std::min(last.end, range.end)) - key;
    stride = padded_cols<T>(keys);
    content = memory;
    positional = content + attend_tile * in.key_width;
    scores = positional + attend_tile * in.position_width;
    by_position = scores + attend_tile * stride;
  }

  /// Returns the row of q of the first query.
  Index query_row() const { return in.q_sequences->begin(sequence) + row; }
  /// Returns the row of k of the first key, without a cache.
  Index key_row() const { return in.kv_sequences->begin(sequence) + key; }
  /// Returns the keys before the first query of the sequence.
  Index past() const { return in.kv_sequences->length(sequence) - in.q_sequences->length(sequence); }
  /// Returns the keys of the tile in place, without a cache.
  Operand<T> k() const { return {panels.k().at(key, 0), in.k_cols()}; }
  /// Returns the first row of the table that this tile reads, which is for its last query and its first key.
  Index table_row() const { return in.span - 1 - (past() + row + rows - 1) + key; }
  /// Returns the rows of the table from `table_row` on in place.
  Operand<T> p() const { return {in.p + table_row() * in.p_cols() + head * in.position_width, in.p_cols()}; }
  /// Returns the keys that query i of the tile sees, counted from the first key of the tile.
  Mask::Keys visible(Index i) const {
    const auto seen = in.shape.mask.keys(row + i, past(), in.kv_sequences->length(sequence));
    const Index begin = std::clamp<Index>(seen.begin - key, 0, keys);
    return {begin, std::clamp(seen.end - key, begin, keys)};
  }
  /// Returns the index of the dropout decision for query i and the first key of the tile. The decisions of a query are
  /// numbered by the keys of its sequence, so that they do not depend on where tiles begin.
  std::uint64_t dropout_index(Index i) const {
    return (static_cast<std::uint64_t>((query_row() + i) * in.shape.num_heads + head) << 24) +
           static_cast<std::uint64_t>(key);
  }

  /// Computes scores_ij = scale (q_i + u) . k_j for the whole tile, and by_position for scale (position_q_i + w) . p_(i
  /// - j).
  void multiply() {
    scale_queries(in.q, in.u, in.key_width, content);
    const Index own = key - panels.range().begin;
    gemm_panels(rows, Operand<T>{content, in.key_width}, panels.keys(), {0, in.key_width}, {own, own + stride}, scores,
                stride, false, static_cast<const T*>(nullptr));
    if (in.p == nullptr) return;
    scale_queries(in.position_q, in.w, in.position_width, positional);
    constexpr Index cols = GemmTile<T>::cols;
    const Index first = in.packed_table
                            ? table_row()
                            : (attend_tiles(in.q_sequences->length(sequence)) - 1) * height - row + own + height - rows,
                start = first / cols * cols;  // where a panel begins
    lead = first - start;
    position_stride = lead + rows + stride;
    gemm_panels(rows, Operand<T>{positional, in.position_width}, panels.positions(), {0, in.position_width},
                {start, start + position_stride}, by_position, position_stride, false, static_cast<const T*>(nullptr));
  }

  /// Computes to (rows, width) = (q + bias) scale for the queries and the head of the tile.
  void scale_queries(const T* q, const T* bias, Index width, T* to) const {
    const T scale = static_cast<T>(in.shape.scale);
    for (Index i = 0; i < rows; ++i) {
      const T* from = q + ((query_row() + i) * in.shape.num_heads + head) * width;
      for (Index c = 0; c < width; ++c)
        to[i * width + c] = (from[c] + (bias == nullptr ? T(0) : bias[head * width + c])) * scale;
    }
  }

  /// Holds the max of a row of scores and the sum of exp(score - max). They are minus infinity and 0 if the query sees
  /// no key.
  struct RowSum {
    T max;  ///< the max score
    T sum;  ///< the sum of exp(score - max)
  };
  /// Adds the positional scores of row i, replaces its scores by exp(score - max), and returns max and sum. Keys that
  /// the query does not see become 0.
  RowSum exponents(Index i) {
    T* s = scores + i * stride;
    if (hide(i)) return {-std::numeric_limits<T>::infinity(), T(0)};
    Batch<T> best(-std::numeric_limits<T>::infinity());
    if (in.p == nullptr) {
      for (Index j = 0; j < stride; j += lanes<T>) best = xsimd::max(best, load(s + j));
    } else {
      const T* add = shifted(i);
      for (Index j = 0; j < stride; j += lanes<T>) {
        const Batch<T> sum = load(s + j) + load(add + j);
        store(s + j, sum);
        best = xsimd::max(best, sum);
      }
    }
    const T max = max_lanes<T>(best);
    return {max, exponents_below(s, max)};
  }
  /// Replaces the scores of row i by its attention weights exp(score - logsumexp). Keys that the query does not see
  /// become 0.
  void probabilities(Index i, T logsumexp) {
    T* s = scores + i * stride;
    if (hide(i)) return;
    if (in.p != nullptr) {
      const T* add = shifted(i);
      for (Index j = 0; j < stride; j += lanes<T>) store(s + j, load(s + j) + load(add + j));
    }
    exponents_below(s, logsumexp);
  }

 private:
  const T* shifted(Index i) const { return by_position + i * position_stride + lead + rows - 1 - i; }

  /// Sets the scores of keys that query i does not see to minus infinity. If it sees none, sets all to 0 and returns
  /// true.
  bool hide(Index i) {
    T* s = scores + i * stride;
    const auto seen = visible(i);
    if (seen.begin >= seen.end) {
      std::fill_n(s, stride, T(0));
      return true;
    }
    std::fill(s, s + seen.begin, -std::numeric_limits<T>::infinity());
    std::fill(s + seen.end, s + stride, -std::numeric_limits<T>::infinity());
    return false;
  }
  /// Replaces the scores s (stride) by exp(score - max), and returns their sum.
  T exponents_below(T* s, T max) const {
    const Batch<T> top(max);
    Batch<T> total(T(0));
    for (Index j = 0; j < stride; j += lanes<T>) {
      const Batch<T> e = exp<T>(load(s + j) - top);
      store(s + j, e);
      total += e;
    }
    return sum_lanes<T>(total);
  }
};

LACONIC_COMPILE(pack_table);

}  // namespace kernels
}  // namespace LACONIC_ABI
}  // namespace laconic
