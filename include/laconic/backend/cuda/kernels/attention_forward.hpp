// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/kernels/attention_operands.hpp>

#include <cmath>
#include <limits>

namespace laconic {
inline namespace LACONIC_ABI {
namespace cuda {

/// Divides the keys of a sequence with few queries into splits of fixed positions, which are blocks of their own (Dao
/// et al. 2023, "Flash-Decoding"). Only the shape of a sequence decides.
struct AttendSplits {
  static constexpr Index keys = 512,  ///< keys of a split, whole tiles
      max_rows = 64;                  ///< rows (queries times heads of a group) of a sequence that is split
  Index per_sequence;                 ///< splits of the longest sequence; 1 if no sequence can be split
  Index rows;                         ///< rows of memory for each split
  Index head_blocks;                  ///< key-value heads, or query heads where each has a tile of its own

  /// Returns the splits of a sequence of so many rows and keys.
  static constexpr Index count(Index rows, Index num_keys) {
    return rows <= max_rows && num_keys > keys ? pieces(num_keys, keys) : 1;
  }
  /// Returns where the partial results are of a row of a sequence, for one split and one block of heads.
  constexpr Index at(Index sequence, Index split, Index head_block, Index row) const {
    return ((sequence * per_sequence + split) * head_blocks + head_block) * rows + row;
  }
};

/// Points to the partial results of splits (see AttendSplits::at).
template <class T>
struct AttendPartials {
  T* values = nullptr;  ///< sums of exp(score - max) v, (splits and rows, value_width)
  T* max = nullptr;     ///< the max score; minus infinity if no key is seen
  T* sum = nullptr;     ///< the sum of exp(score - max)
};

/// Computes softmax attention: out_i = sum_j exp(s_ij - m_i) v_j / sum_j exp(s_ij - m_i), where max and sums grow from
/// tile to tile of keys (Milakov and Gimelshein 2018). Tiles of keys begin at multiples of their size, so a row has the
/// same bits with any number of rows in a tile. A block is a tile of the queries of one sequence, with the heads of a
/// group as rows next to each other, and a range of columns of the values; it may have one split of the keys only.
template <class T, int RowsEach, class Rows>
struct Attend {
  using Scores = Tile<T, RowsEach>;
  static constexpr int threads = Scores::threads, rows = Scores::rows, cols = Scores::cols;
  static constexpr int row_parts = 4;        ///< threads of a row of the softmax
  static constexpr Index max_columns = 512;  ///< columns of the values in a block
  static constexpr int weight_stride = cols + 1;
  static_assert(AttendSplits::keys % cols == 0 && rows * row_parts <= threads);

  AttendOperands<T> in;
  Rows k, v;
  T *out, *logsumexp;  ///< (q_rows, num_heads * value_width); (q_rows, num_heads) or null
  Index group;         ///< query heads of a tile
  Index columns;       ///< columns of the values of a block
  AttendSplits splits;
  AttendPartials<T> partials;

  /// Returns the shared memory of a block.
  static constexpr std::size_t bytes(Index columns, bool relative) {
    return Scores::bytes(relative) + TileQueries::bytes(rows) + shared_bytes<T>(rows * weight_stride) +
           shared_bytes<T>(rows * columns) + 3 * shared_bytes<T>(rows) + 2 * shared_bytes<T>(rows * row_parts);
  }

  LACONIC_DEVICE void operator()(Block& block) const {
    const Index split = block.x() % splits.per_sequence;
    const TileSlot place = tile_of(block.x() / splits.per_sequence, in.q_offsets, in.sequences, group, rows);
    const Index n = place.sequence, num_keys = in.keys(n), past = in.past(n), all_rows = in.queries(n) * group;
    const Index num_splits = AttendSplits::count(all_rows, num_keys);
    if (place.first >= all_rows || split >= num_splits) return;
    const Index parts = pieces(in.value_width, columns), part = block.y() % parts, head_block = block.y() / parts;
    const Index kv_head = head_block * group / (in.num_heads / in.num_kv_heads);
    const Index first_column = part * columns;
    const int width =
        static_cast<int>(in.value_width - first_column < columns ? in.value_width - first_column : columns);

    Scores tile(block, in.p != nullptr);
    const TileQueries queries(block, rows);
    T* weights = block.shared<T>(rows * weight_stride);
    T* sums = block.shared<T>(rows * columns);
    T* row_max = block.shared<T>(rows);
    T* row_sum = block.shared<T>(rows);
    T* row_factor = block.shared<T>(rows);
    T* part_max = block.shared<T>(rows * row_parts);
    T* part_sum = block.shared<T>(rows * row_parts);
    queries.set(block, in, rows, n, place.first, head_block * group, group);
    block.each([&](int t) {
      for (Index i = t; i < rows * columns; i += threads) sums[i] = T(0);
      if (t >= rows) return;
      row_max[t] = -std::numeric_limits<T>::infinity();
      row_sum[t] = T(0);
    });

    // The keys that any query of the tile sees, within the split.
    const Index last_row = (place.first + rows < all_rows ? place.first + rows : all_rows) - 1;
    Index begin = in.mask.keys(place.first / group, past, num_keys).begin,
          end = in.mask.keys(last_row / group, past, num_keys).end;
    if (num_splits > 1) {
      begin = begin > split * AttendSplits::keys ? begin : split * AttendSplits::keys;
      end = end < (split + 1) * AttendSplits::keys ? end : (split + 1) * AttendSplits::keys;
    }
    for (Index key = begin / cols * cols; key < end; key += cols) {
      tile.clear();
      tile.add_product(in.key_width, by_width<OfRow>([&](int r, Index c) {
                         return queries.id[r] < 0 ? T(0) : in.content(queries.id[r], queries.head[r], c);
                       }),
                       by_width<OfColumn>([&](int j, Index c) {
                         return key + j < num_keys ? k.load(n, key + j, kv_head * in.key_width + c) : T(0);
                       }));
      if (in.p != nullptr) {  // then group is 1
        const Index lowest = in.span - 1 + key - (past + place.first + rows - 1);
        tile.add_product(
            in.position_width, by_width<OfRow>([&](int r, Index c) {
              return queries.id[r] < 0 ? T(0) : in.positional(queries.id[r], queries.head[r], c);
            }),
            by_width<OfDifference>([&](int i, Index c) { return in.distance(lowest + i, head_block, c); }));
      }
      tile.each_sum([&](int r, int c, T score) {
        weights[r * weight_stride + c] = queries.sees(r, key + c) ? score : -std::numeric_limits<T>::infinity();
      });
      update_softmax(block, queries, key, weights, row_max, row_sum, row_factor, part_max, part_sum);
      for (int column = 0; column < width; column += cols) {
        tile.clear();
        tile.add_product(cols, by_width<OfRow>([&](int r, Index j) { return weights[r * weight_stride + j]; }),
                         by_rows<OfColumn>([&](int c, Index j) {
                           return key + j < num_keys && column + c < width
                                      ? v.load(n, key + j, kv_head * in.value_width + first_column + column + c)
                                      : T(0);
                         }));
        tile.each_sum([&](int r, int c, T sum) {
          if (column + c >= width) return;
          T& to = sums[r * columns + column + c];
          to = to * row_factor[r] + sum;
        });
      }
    }

    block.each([&](int t) {
      for (int i = t; i < rows * width; i += threads) {
        const int r = i / width, c = i % width;
        if (queries.id[r] < 0) continue;
        const T sum = row_sum[r], value = sums[r * columns + c];
        if (num_splits > 1)
          partials.values[splits.at(n, split, head_block, place.first + r) * in.value_width + first_column + c] = value;
        else
          out[queries.id[r] * in.value_width + first_column + c] = value * (sum == T(0) ? T(0) : T(1) / sum);
      }
      if (t >= rows || queries.id[t] < 0 || part > 0) return;
      if (num_splits > 1) {
        partials.max[splits.at(n, split, head_block, place.first + t)] = row_max[t];
        partials.sum[splits.at(n, split, head_block, place.first + t)] = row_sum[t];
      } else if (logsumexp != nullptr) {
        logsumexp[queries.id[t]] = row_max[t] + std::log(row_sum[t]);
      }
    });
  }

 private:
  /// Replaces the scores of a tile by exp(score - max), dropped out, and updates the max and the sum of each row. The
  /// sums so far must be multiplied by row_factor.
  LACONIC_DEVICE void update_softmax(Block& block, const TileQueries& queries, Index key, T* weights, T* row_max,
                                     T* row_sum, T* row_factor, T* part_max, T* part_sum) const {
    constexpr int part_cols = cols / row_parts;
    const T nothing = -std::numeric_limits<T>::infinity();
    block.each([&](int t) {
      if (t >= rows * row_parts) return;
      const T* scores = weights + t / row_parts * weight_stride + t % row_parts * part_cols;
      T best = nothing;
      for (int c = 0; c < part_cols; ++c) best = scores[c] > best ? scores[c] : best;
      part_max[t] = best;
    });
    const auto new_max = [&](int r) {
      T best = row_max[r];
      for (int i = 0; i < row_parts; ++i)
        best = part_max[r * row_parts + i] > best ? part_max[r * row_parts + i] : best;
      return best;
    };
    block.each([&](int t) {
      if (t >= rows * row_parts) return;
      const int r = t / row_parts, first = t % row_parts * part_cols;
      T* scores = weights + r * weight_stride + first;
      const T best = new_max(r);
      T total = 0;
      for (int c = 0; c < part_cols; ++c) {
        const T e = scores[c] == nothing ? T(0) : std::exp(scores[c] - best);
        total += e;
        scores[c] = e == T(0) ? T(0) : e * in.dropout_factor(queries.id[r], key + first + c);
      }
      part_sum[t] = total;
    });
    block.each([&](int t) {
      if (t >= rows) return;
      const T best = new_max(t);
      row_factor[t] = row_max[t] == best ? T(1) : std::exp(row_max[t] - best);
      T total = row_sum[t] * row_factor[t];
      for (int i = 0; i < row_parts; ++i) total += part_sum[t * row_parts + i];
      row_sum[t] = total;
      row_max[t] = best;
    });
  }
};

/// Merges the splits of one row of a sequence that has several. A block is a row and its columns.
template <class T>
struct MergeSplits {
  static constexpr int threads = 128;
  AttendOperands<T> in;
  T *out, *logsumexp;  ///< as in `Attend`
  Index group;         ///< query heads of a tile
  AttendSplits splits;
  AttendPartials<T> partials;

  LACONIC_DEVICE void operator()(Block& block) const {
    const Index row = block.x() % splits.rows, head_block = block.x() / splits.rows % splits.head_blocks,
                n = block.x() / splits.rows / splits.head_blocks;
    const Index all_rows = in.queries(n) * group, num_splits = AttendSplits::count(all_rows, in.keys(n));
    if (row >= all_rows || num_splits == 1) return;
    T best = -std::numeric_limits<T>::infinity();
    for (Index split = 0; split < num_splits; ++split) {
      const T max = partials.max[splits.at(n, split, head_block, row)];
      best = max > best ? max : best;
    }
    // A split of which the query sees nothing has a sum of 0.
    T total = 0;
    for (Index split = 0; split < num_splits; ++split) {
      const Index at = splits.at(n, split, head_block, row);
      if (partials.sum[at] != T(0)) total += std::exp(partials.max[at] - best) * partials.sum[at];
    }
    const Index id = (in.q_offsets[n] + row / group) * in.num_heads + head_block * group + row % group;
    block.each([&](int t) {
      for (Index c = t; c < in.value_width; c += threads) {
        T sum = 0;
        for (Index split = 0; split < num_splits; ++split) {
          const Index at = splits.at(n, split, head_block, row);
          if (partials.sum[at] != T(0))
            sum += std::exp(partials.max[at] - best) / total * partials.values[at * in.value_width + c];
        }
        out[id * in.value_width + c] = sum;
      }
      if (t == 0 && logsumexp != nullptr) logsumexp[id] = best + std::log(total);
    });
  }
};

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
