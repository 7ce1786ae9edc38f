// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cpu/kernels/elementwise.hpp>
#include <laconic/backend/cpu/kernels/gemm.hpp>
#include <laconic/backend/cpu/row_cache.hpp>
#include <laconic/backend/shapes.hpp>
#include <laconic/core/sequences.hpp>

#include <algorithm>
#include <limits>
#include <span>

namespace laconic {
inline namespace LACONIC_ABI {
namespace kernels {

/// Queries handled at once: memory grows with tile x keys, never with queries x keys. A multiple of every register
/// tile's rows and columns.
inline constexpr Index attend_tile = 48;
static_assert(attend_tile % GemmTile<float>::cols == 0 && attend_tile % GemmTile<double>::cols == 0);

constexpr Index attend_tiles(Index queries) { return (queries + attend_tile - 1) / attend_tile; }
/// Queries of a full tile: all of them where there is but one tile.
constexpr Index tile_height(Index queries) { return std::min(attend_tile, queries); }

/// Keys or values of all heads, (rows, cols): those of each sequence that came now, after what a cache has in its slot.
template <class T>
struct AttendRows {
  const T* data;  // of those that came now, sequence after sequence
  Index cols;
  const Sequences* sequences;  // of them
  const RowCache<T>* cache = nullptr;
  std::span<const Index> slots{};

  bool is_rounded() const { return cache != nullptr && cache->storage() != Storage::full; }
  Index cached(Index sequence) const {
    return cache == nullptr ? 0 : cache->count(slots[static_cast<std::size_t>(sequence)]);
  }
  /// Where no cache is.
  Operand<T> whole(Index sequence, Index col) const { return {data + sequences->begin(sequence) * cols + col, cols}; }

  /// visit(first, count, rows): columns col .. col + width - 1 of a sequence's rows begin .. end - 1, in their order:
  /// `count` rows from `first` on where they lie, or in `space` (attend_tile, width) if they must be read from what is
  /// rounded.
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

/// Raw operands of softmax attention over packed rows. Query head h reads key-value head h / (num_heads /
/// num_kv_heads). q (q_rows, num_heads * key_width), k (rows, num_kv_heads * key_width), v (rows, num_kv_heads *
/// value_width), of which a cache may hold the first of each sequence. With relative positions (Dai et al. 2019,
/// section 3.3): p (2 * span - 1, num_heads * position_width) holds the projected table, row span-1 - r for key r
/// frames to the left of the query, and meets position_q, which is q or as wide as p; u and w (one row each) are
/// pos_bias_u and pos_bias_v. The table may come as `pack_table` left it.
template <class T>
struct AttendOperands {
  AttendShape shape;
  const Sequences *q_sequences, *kv_sequences;
  Index key_width, value_width;
  const T* q;
  AttendRows<T> k, v;
  const T *p = nullptr, *u = nullptr, *w = nullptr, *position_q = nullptr;
  Index span = 0, position_width = 0;
  bool packed_table = false;
  DropoutMask dropout{0.0, Random(Seed(), 0)};

  Index group() const { return shape.num_heads / shape.num_kv_heads; }
  Index q_cols() const { return shape.num_heads * key_width; }
  Index k_cols() const { return shape.num_kv_heads * key_width; }
  Index v_cols() const { return shape.num_kv_heads * value_width; }
  Index out_cols() const { return shape.num_heads * value_width; }
  Index p_cols() const { return shape.num_heads * position_width; }
};

/// Rows origin .. origin + cols - 1 of one head's table (rows, width) as columns of panels (width, cols). Zeros where
/// the table has no such row.
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

/// Distances that a head's panels have for a table of so many rows: tiles read a vector beyond the last.
template <class T>
constexpr Index packed_table_cols(Index rows) {
  return rows + lanes<T>;
}
/// Rows, as wide as the table's, that hold the panels of all heads.
template <class T>
constexpr Index packed_table_rows(Index rows) {
  return rows + 2 * lanes<T>;
}
/// A table of distances (rows, heads * width) for many calls, to (packed_table_rows, heads * width): the panels of each
/// head, one after the other.
template <class T>
void pack_table(int threads, Index rows, Index heads, Index width, const T* table, T* to) {
  parallel_for(threads, heads, [&](Index head, int) {
    const Index cols = packed_table_cols<T>(rows);
    pack_distances(Operand<T>{table + head * width, heads * width}, rows, width, 0, cols,
                   to + head * Panels<T>::size(width, cols));
  });
}

/// What tiles of a sequence multiply by, packed once for them: some keys and values of a key-value head, and the table
/// of distances of a head.
template <class T>
class AttendPanels {
 public:
  /// For so many keys at most.
  static Index space(const AttendOperands<T>& in, Index keys) {
    const Index positions = table_cols(in.q_sequences->max_length(), keys);
    return Panels<T>::size(in.key_width, keys) + values_space(in, keys) + run_space(in) +
           (in.p == nullptr || in.packed_table ? 0 : Panels<T>::size(in.position_width, positions));
  }

  /// `range`, of the sequence's keys, begins where a panel of all of them would.
  AttendPanels(const AttendOperands<T>& in, Index sequence, Index kv_head, Range range, T* memory)
      : in_(in), sequence_(sequence), kv_head_(kv_head), range_(range), memory_(memory) {
    pack_keys();
  }

  Range range() const { return range_; }
  /// (key_width, range).
  const Panels<T>& keys() const { return keys_; }
  /// Where they lie, without a cache.
  Operand<T> k() const { return in_.k.whole(sequence_, kv_head_ * in_.key_width); }

  /// (range, value_width), for products of several tiles; or (value_width, range) of all keys, without a cache.
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
  void pack_values_transposed() {
    values_ = pack(1, in_.v.whole(sequence_, kv_head_ * in_.value_width).transposed(), in_.value_width, range_.size(),
                   values_memory());
  }
  const Panels<T>& values() const { return values_; }
  /// visit(first, count, rows) for values that are not packed.
  template <class Visit>
  void each_run_of_values(Range keys, Visit&& visit) const {
    in_.v.each_run(sequence_, keys, kv_head_ * in_.value_width, in_.value_width, run_memory(), visit);
  }
  /// Where values would be packed: scratch for `gemm_block`, which packs what it must.
  T* values_memory() const { return memory_ + Panels<T>::size(in_.key_width, range_.size()); }

  /// (position_width, distances). Column 0 is row 0 of a packed table; else the distance of a query behind the last
  /// tile's last to the first key of the range, so that tiles begin where panels do.
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
            fetch_ahead(rows, end - first, std::min(some, end - first + together), width);
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

/// The scores of one tile: queries [row, row + rows) of one head of one sequence, against keys [key, key + keys): those
/// of the panels that a query sees.
template <class T>
struct AttendTile {
  const AttendOperands<T>& in;
  const AttendPanels<T>& panels;
  Index sequence, head, row, rows, key, keys;
  Index height;    // rows of a full tile
  Index stride;    // of a row of scores: whole vectors
  T* content;      // (rows, key_width): (q + u) scale
  T* positional;   // (rows, position_width): (position_q + w) scale
  T* scores;       // (rows, stride)
  T* by_position;  // row i holds the positional score of (i, j) in column lead + rows - 1 - i + j
  Index lead = 0, position_stride = 0;

  static Index space(const AttendOperands<T>& in, Index keys) {
    const Index cols = padded_cols<T>(keys) + GemmTile<T>::cols;
    return attend_tile * (in.key_width + in.position_width + cols + (in.p == nullptr ? 0 : cols + 2 * attend_tile));
  }

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

  Index query_row() const { return in.q_sequences->begin(sequence) + row; }
  Index key_row() const { return in.kv_sequences->begin(sequence) + key; }
  Index past() const { return in.kv_sequences->length(sequence) - in.q_sequences->length(sequence); }
  Operand<T> k() const { return {panels.k().at(key, 0), in.k_cols()}; }
  /// First row of the table that this tile reads: that of its last query and its first key.
  Index table_row() const { return in.span - 1 - (past() + row + rows - 1) + key; }
  Operand<T> p() const { return {in.p + table_row() * in.p_cols() + head * in.position_width, in.p_cols()}; }
  Mask::Keys visible(Index i) const {
    const auto seen = in.shape.mask.keys(row + i, past(), in.kv_sequences->length(sequence));
    const Index begin = std::clamp<Index>(seen.begin - key, 0, keys);
    return {begin, std::clamp(seen.end - key, begin, keys)};
  }
  std::uint64_t dropout_index(Index i) const {
    return static_cast<std::uint64_t>((query_row() + i) * in.shape.num_heads + head) << 24;
  }

  /// (q_i + u) . k_j scale for the whole tile, and apart from them (q_i + w) . p_{i-j} scale.
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

  /// to (rows, width) = (q + bias) scale for this tile's queries and head.
  void scale_queries(const T* q, const T* bias, Index width, T* to) const {
    const T scale = static_cast<T>(in.shape.scale);
    for (Index i = 0; i < rows; ++i) {
      const T* from = q + ((query_row() + i) * in.shape.num_heads + head) * width;
      for (Index c = 0; c < width; ++c)
        to[i * width + c] = (from[c] + (bias == nullptr ? T(0) : bias[head * width + c])) * scale;
    }
  }

  /// The largest score of a row, and the sum of exponents of what is below it: minus infinity and 0 if nothing is seen.
  struct RowSum {
    T most, sum;
  };
  /// Scores of row i to these exponents, 0 where nothing is seen.
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
    const T most = max_lanes<T>(best);
    return {most, exponents_below(s, most)};
  }
  /// Probabilities again, from the logarithm of the sum of all exponents.
  void probabilities(Index i, T log_sum) {
    T* s = scores + i * stride;
    if (hide(i)) return;
    if (in.p != nullptr) {
      const T* add = shifted(i);
      for (Index j = 0; j < stride; j += lanes<T>) store(s + j, load(s + j) + load(add + j));
    }
    exponents_below(s, log_sum);
  }

 private:
  const T* shifted(Index i) const { return by_position + i * position_stride + lead + rows - 1 - i; }

  /// What row i does not see becomes minus infinity; zeros and true if it sees nothing.
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
  T exponents_below(T* s, T most) const {
    const Batch<T> top(most);
    Batch<T> total(T(0));
    for (Index j = 0; j < stride; j += lanes<T>) {
      const Batch<T> e = exp<T>(load(s + j) - top);
      store(s + j, e);
      total += e;
    }
    return sum_lanes<T>(total);
  }
};

}  // namespace kernels
}  // namespace LACONIC_ABI
}  // namespace laconic
