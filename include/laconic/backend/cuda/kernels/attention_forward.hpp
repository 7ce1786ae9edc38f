// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/kernels/attention_operands.hpp>

#include <cmath>
#include <limits>
#include <numbers>

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

/// Returns 2^exponent for a whole exponent of at most 0, exactly; NaN stays NaN.
template <class T>
LACONIC_DEVICE T power_of_two(T exponent) {
  if (exponent >= T(-2000)) return std::ldexp(T(1), static_cast<int>(exponent));
  return exponent != exponent ? exponent : T(0);
}
/// Holds exp(x) as mantissa * 2^exponent, with a mantissa from about 0.7 to 1.4. For NaN and +infinity it is NaN.
template <class T>
struct Exponential {
  T mantissa;  ///< exp(x) / 2^exponent
  T exponent;  ///< x / ln 2, rounded to a whole number
  /// Computes exp(x).
  LACONIC_DEVICE static Exponential of(T x) {
    // ln 2 in two parts, of which `high` has so few bits that exponent * high is exact (Cody and Waite 1980).
    constexpr bool wide = sizeof(T) == sizeof(double);
    const T high = wide ? T(6.93147180369123816490e-01) : T(0.693359375),
            low = wide ? T(1.90821492927058770002e-10) : T(-2.12194440e-4);
    const T exponent = exponent_of(x);
    return {std::exp(x - exponent * high - exponent * low), exponent};
  }
  /// Returns the exponent of exp(x).
  LACONIC_DEVICE static T exponent_of(T x) { return std::rint(x * static_cast<T>(std::numbers::log2e)); }
};

/// Points to the partial results of splits (see AttendSplits::at).
template <class T>
struct AttendPartials {
  T* values = nullptr;    ///< sums of exp(score) v / 2^exponent, (splits and rows, value_width)
  T* exponent = nullptr;  ///< the exponent of the max of exp(score); minus infinity if no key is seen
  T* sum = nullptr;       ///< the sum of exp(score) / 2^exponent
};

/// Computes softmax attention: out_i = sum_j exp(s_ij) v_j / sum_j exp(s_ij), both sums divided by 2^e_i, where e_i and
/// the sums grow from tile to tile of keys (Milakov and Gimelshein 2018). The sums run over the keys in order, and
/// powers of two change no bits of them. So the bits of a query depend on the keys that it sees, and neither on where
/// tiles begin nor on the number of rows in a tile: a stream gives those of a whole pass, unless keys are split. (Only
/// NaN or infinite values of keys that it does not see may reach it, since their weight is 0.) A
/// block is a tile of the queries of one sequence, with the heads of a group as rows next to each other, and a range of
/// columns of the values; it may have one split of the keys only.
template <class T, int RowsEach, class Rows>
struct Attend {
  using Scores = Tile<T, RowsEach>;
  static constexpr int threads = Scores::threads, rows = Scores::rows, cols = Scores::cols;
  static constexpr int row_parts = 4;        ///< threads of a row of the softmax, each with every fourth key
  static constexpr Index max_columns = 512;  ///< columns of the values in a block
  static constexpr int weight_stride = cols + row_parts;  ///< neighbours are in different banks
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
    T* row_exponent = block.shared<T>(rows);
    T* row_sum = block.shared<T>(rows);
    T* row_factor = block.shared<T>(rows);
    T* part_max = block.shared<T>(rows * row_parts);
    T* part_sum = block.shared<T>(rows * row_parts);
    queries.set(block, in, rows, n, place.first, head_block * group, group);
    block.each([&](int t) {
      for (Index i = t; i < rows * columns; i += threads) sums[i] = T(0);
      if (t < rows) row_exponent[t] = -std::numeric_limits<T>::infinity();
      if (t < rows * row_parts) part_sum[t] = T(0);
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
      update_softmax(block, queries, key, weights, row_exponent, row_factor, part_max, part_sum);
      for (int column = 0; column < width; column += cols) {
        tile.set(
            [&](int r, int c) { return column + c < width ? sums[r * columns + column + c] * row_factor[r] : T(0); });
        tile.add_product(cols, by_width<OfRow>([&](int r, Index j) { return weights[r * weight_stride + j]; }),
                         by_rows<OfColumn>([&](int c, Index j) {
                           return key + j < num_keys && column + c < width
                                      ? v.load(n, key + j, kv_head * in.value_width + first_column + column + c)
                                      : T(0);
                         }));
        tile.each_sum([&](int r, int c, T sum) {
          if (column + c < width) sums[r * columns + column + c] = sum;
        });
      }
    }

    block.each([&](int t) {
      const T* sum = part_sum + t * row_parts;  // this order gives the same bits whichever part the first key is in
      if (t < rows) row_sum[t] = (sum[0] + sum[2]) + (sum[1] + sum[3]);
    });
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
        partials.exponent[splits.at(n, split, head_block, place.first + t)] = row_exponent[t];
        partials.sum[splits.at(n, split, head_block, place.first + t)] = row_sum[t];
      } else if (logsumexp != nullptr) {
        logsumexp[queries.id[t]] = row_exponent[t] * static_cast<T>(std::numbers::ln2) + std::log(row_sum[t]);
      }
    });
  }

 private:
  /// Replaces the scores of a tile by exp(score) / 2^exponent, dropped out, and updates the exponent and the partial
  /// sums of each row. The products so far must be multiplied by row_factor.
  LACONIC_DEVICE void update_softmax(Block& block, const TileQueries& queries, Index key, T* weights, T* row_exponent,
                                     T* row_factor, T* part_max, T* part_sum) const {
    const T nothing = -std::numeric_limits<T>::infinity();
    block.each([&](int t) {
      if (t >= rows * row_parts) return;
      const T* scores = weights + t / row_parts * weight_stride;
      T best = nothing;
      for (int c = t % row_parts; c < cols; c += row_parts) best = scores[c] > best ? scores[c] : best;
      part_max[t] = best;
    });
    block.each([&](int t) {
      if (t >= rows) return;
      T best = nothing;
      for (int i = t * row_parts; i < (t + 1) * row_parts; ++i) best = part_max[i] > best ? part_max[i] : best;
      const T before = row_exponent[t], here = Exponential<T>::exponent_of(best), after = here > before ? here : before;
      row_factor[t] = after == before ? T(1) : power_of_two(before - after);
      row_exponent[t] = after;
    });
    block.each([&](int t) {
      if (t >= rows * row_parts) return;
      const int r = t / row_parts;
      T* scores = weights + r * weight_stride;
      T total = part_sum[t] * row_factor[r];
      for (int c = t % row_parts; c < cols; c += row_parts) {
        T weight = 0;
        if (scores[c] != nothing) {
          const auto e = Exponential<T>::of(scores[c]);
          weight = e.mantissa * power_of_two(e.exponent - row_exponent[r]);
          total += weight;
          weight *= in.dropout_factor(queries.id[r], key + c);
        }
        scores[c] = weight;
      }
      part_sum[t] = total;
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
      const T exponent = partials.exponent[splits.at(n, split, head_block, row)];
      best = exponent > best ? exponent : best;
    }
    // A split of which the query sees nothing has a sum of 0.
    T total = 0;
    for (Index split = 0; split < num_splits; ++split) {
      const Index at = splits.at(n, split, head_block, row);
      if (partials.sum[at] != T(0)) total += power_of_two(partials.exponent[at] - best) * partials.sum[at];
    }
    const Index id = (in.q_offsets[n] + row / group) * in.num_heads + head_block * group + row % group;
    block.each([&](int t) {
      for (Index c = t; c < in.value_width; c += threads) {
        T sum = 0;
        for (Index split = 0; split < num_splits; ++split) {
          const Index at = splits.at(n, split, head_block, row);
          if (partials.sum[at] != T(0))
            sum += power_of_two(partials.exponent[at] - best) * partials.values[at * in.value_width + c];
        }
        out[id * in.value_width + c] = total == T(0) ? T(0) : sum * (T(1) / total);
      }
      if (t == 0 && logsumexp != nullptr) logsumexp[id] = best * static_cast<T>(std::numbers::ln2) + std::log(total);
    });
  }
};

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
