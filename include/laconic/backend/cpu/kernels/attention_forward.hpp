// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cpu/kernels/attention_tile.hpp>
#include <laconic/core/compiled.hpp>

#include <algorithm>
#include <cmath>
#include <limits>

namespace laconic {
inline namespace LACONIC_ABI {
namespace kernels {

/// Gives the min number of keys that are split into tasks of their own, if the queries fit into one tile (flash
/// decoding).
inline constexpr Index attend_split_from = 20 * attend_tile;
/// Gives the max number of keys of a split. Keys and values of heads up to a width of 64 fit a second-level cache
/// together.
inline constexpr Index attend_split_keys = attend_split_from / 2;

/// Divides the keys of each sequence into splits, holds the partial results, and merges them (Dao et al. 2023,
/// "Flash-Decoding"). Only the shape of a sequence decides, so results depend neither on threads nor on other
/// sequences. With dropout there is one split: a training pass has many queries.
template <class T>
class AttendSplits {
 public:
  /// Takes memory for the partial results from `arena`.
  AttendSplits(Arena& arena, const AttendOperands<T>& in)
      : in_(in),
        splits_(
            Sequences::make(arena, in.q_sequences->size(), [&](Index n) { return is_split(n) ? max_splits(n) : 1; })),
        // Sequences with too many queries to be split get memory, too, so that a later call with fewer queries
        // allocates nothing: a stream of long chunks has few queries only at its end.
        rows_(Sequences::make(arena, in.q_sequences->size(),
                              [&](Index n) {
                                const Index queries = std::min(attend_tile, in.q_sequences->length(n));
                                return has_many_keys(n) ? max_splits(n) * queries : 0;
                              })),
        memory_(arena.allocate(static_cast<std::size_t>(rows_.rows() * (in.out_cols() + 2 * in.shape.num_heads)) *
                               sizeof(T))) {}

  /// Returns the splits of all sequences, end to end.
  const Sequences& all() const { return splits_; }
  /// Returns whether the keys of sequence n are in more than one split.
  bool is_split(Index n) const { return has_many_keys(n) && in_.q_sequences->length(n) <= attend_tile; }
  /// Returns the keys of a split of sequence n.
  Range keys(Index n, Index split) const {
    return equal_part(in_.kv_sequences->length(n), attend_tile, split, splits_.length(n));
  }
  /// Returns the max number of keys of a task. A sequence that is split counts as the longest one that is not, so that
  /// the scratch never shrinks as keys are added.
  Index max_keys() const {
    Index keys = 0;
    for (Index n = 0; n < splits_.size(); ++n)
      keys = std::max(keys, is_split(n) ? attend_split_from : in_.kv_sequences->length(n));
    return keys;
  }

  /// Returns the sum over a split of exp(score - max) v, (value_width), for a query and a head.
  T* values(Index n, Index split, Index query, Index head) const {
    return data() + at(n, split, query, head) * in_.value_width;
  }
  /// Returns the max score of a split for a query and a head.
  T& max_score(Index n, Index split, Index query, Index head) const {
    return data()[rows_.rows() * in_.out_cols() + at(n, split, query, head)];
  }
  /// Returns the sum over a split of exp(score - max) for a query and a head.
  T& sum(Index n, Index split, Index query, Index head) const {
    return data()[rows_.rows() * (in_.out_cols() + in_.shape.num_heads) + at(n, split, query, head)];
  }

  /// Computes the attention of all split sequences from their partial results. out (q_rows, num_heads * value_width);
  /// logsumexp (q_rows, num_heads) or null.
  void merge(int threads, T* out, T* logsumexp) const {
    if (splits_.rows() == splits_.size()) return;
    // Blocks of rows whose work is worth waking a thread.
    const Index grain = 32 * 32 * 32 / (splits_.max_length() * in_.out_cols() + 1) + 1;
    parallel_blocks(threads, in_.q_sequences->rows(), grain, [&](Index begin, Index end) {
      each_part(*in_.q_sequences, {begin, end}, [&](Index n, Range rows) {
        for (Index query = rows.begin; is_split(n) && query < rows.end; ++query)
          for (Index head = 0; head < in_.shape.num_heads; ++head) {
            const Index to = (in_.q_sequences->begin(n) + query) * in_.shape.num_heads + head;
            const T row_logsumexp = merge(n, query, head, out + to * in_.value_width);
            if (logsumexp != nullptr) logsumexp[to] = row_logsumexp;
          }
      });
    });
  }

 private:
  bool has_many_keys(Index n) const { return in_.kv_sequences->length(n) >= attend_split_from && !in_.dropout.any(); }
  Index max_splits(Index n) const { return (in_.kv_sequences->length(n) + attend_split_keys - 1) / attend_split_keys; }
  T* data() const { return static_cast<T*>(memory_.data()); }
  Index at(Index n, Index split, Index query, Index head) const {
    return (rows_.begin(n) + split * in_.q_sequences->length(n) + query) * in_.shape.num_heads + head;
  }
  /// Merges the splits of one query and head into out (value_width), and returns the logsumexp of its scores. It
  /// overwrites the max scores by the weights of the splits.
  T merge(Index n, Index query, Index head, T* out) const {
    T best = -std::numeric_limits<T>::infinity(), total = 0;
    const auto each_seen = [&](auto&& visit) {  // splits of which the query sees nothing have a sum of 0
      for (Index split = 0; split < splits_.length(n); ++split)
        if (sum(n, split, query, head) != 0) visit(split);
    };
    each_seen([&](Index split) { best = std::max(best, max_score(n, split, query, head)); });
    each_seen([&](Index split) {
      T& weight = max_score(n, split, query, head);
      weight = std::exp(weight - best);
      total += weight * sum(n, split, query, head);
    });
    std::fill_n(out, in_.value_width, T(0));
    each_seen([&](Index split) {
      map_span(
          in_.value_width, out,
          [w = Batch<T>(max_score(n, split, query, head) / total)](auto a, auto b) { return a + w * b; }, out,
          values(n, split, query, head));
    });
    return best + std::log(total);
  }

  const AttendOperands<T>& in_;
  Sequences splits_;
  Sequences rows_;  // the queries of each sequence, once for each split
  Buffer memory_;   // products with values, then max scores, then sums, for all rows and heads
};

/// Computes softmax attention: out_i = sum_j exp(s_ij - m_i) v_j / sum_j exp(s_ij - m_i) for every head, with the
/// scores s_ij of `AttendTile` and their max m_i (Milakov and Gimelshein 2018). A tile of queries meets all its keys at
/// once, unless these are split (see AttendSplits). A task packs the keys and values that it reads. out (q_rows,
/// num_heads * value_width); logsumexp (q_rows, num_heads) or null. Takes scratch from `arena`; call it from one
/// thread.
template <class T>
void attend(int threads, Arena& arena, const AttendOperands<T>& in, T* out, T* logsumexp) {
  const Index heads = in.shape.num_heads, kv_heads = in.shape.num_kv_heads, group = in.group();
  const AttendSplits<T> splits(arena, in);
  const Index packs = splits.all().rows() * kv_heads;
  if (packs == 0) return;
  // Each task packs the keys that it reads, so queries are shared among tasks only if threads would have no task.
  const Index shares = std::clamp<Index>((threads + packs - 1) / packs, 1,
                                         std::max<Index>(1, group * attend_tiles(in.q_sequences->max_length())));
  const Index keys = splits.max_keys(), packed = AttendPanels<T>::space(in, keys),
              tile_space = AttendTile<T>::space(in, keys), space = packed + tile_space + attend_tile;
  const Buffer scratch = arena.allocate(static_cast<std::size_t>(threads * space) * sizeof(T));
  parallel_for(threads, packs * shares, [&](Index task, int thread) {
    const Index share = task % shares, kv_head = task / shares % kv_heads, piece = task / shares / kv_heads,
                sequence = splits.all().sequence_of(piece), split = piece - splits.all().begin(sequence),
                queries = in.q_sequences->length(sequence), tiles = attend_tiles(queries);
    const Range units = equal_part(group * tiles, 1, share, shares);
    if (units.size() == 0) return;
    T* memory = static_cast<T*>(scratch.data()) + thread * space;
    T* inverses = memory + packed + tile_space;
    AttendPanels<T> panels(in, sequence, kv_head, splits.keys(sequence, split), memory);
    // With few queries, values that are not rounded are read in place as fast as they are packed.
    const bool packs_values = in.v.is_rounded() || (units.size() > 1 && queries > GemmTile<T>::rows);
    if (packs_values) panels.pack_values();
    const bool splits_keys = splits.is_split(sequence);
    for (Index unit = units.begin; unit < units.end; ++unit) {
      const Index head = kv_head * group + unit / tiles;
      if (in.p != nullptr && (unit == units.begin || unit % tiles == 0)) panels.pack_positions(head);
      AttendTile<T> tile(in, panels, sequence, head, unit % tiles * attend_tile, memory + packed);
      tile.multiply();
      for (Index i = 0; i < tile.rows; ++i) {
        const auto [max, sum] = tile.exponents(i);
        if (splits_keys) {
          splits.max_score(sequence, split, i, head) = max;
          splits.sum(sequence, split, i, head) = sum;
          continue;
        }
        inverses[i] = sum == 0 ? T(0) : T(1) / sum;
        if (logsumexp != nullptr) logsumexp[(tile.query_row() + i) * heads + head] = max + std::log(sum);
        T* row = tile.scores + i * tile.stride;
        if (in.dropout.any()) in.dropout.apply(tile.keys, tile.dropout_index(i), row, row);
      }
      T* to = splits_keys ? splits.values(sequence, split, 0, head)
                          : out + tile.query_row() * in.out_cols() + head * in.value_width;
      const Operand<T> weights{tile.scores, tile.stride};
      if (packs_values) {
        const Index first = tile.key - panels.range().begin;
        gemm_panels(tile.rows, weights, panels.values(), {first, first + tile.keys}, {0, in.value_width}, to,
                    in.out_cols(), false, static_cast<const T*>(nullptr));
      } else if (tile.keys == 0) {
        detail::fill_product(tile.rows, in.value_width, to, in.out_cols(), static_cast<const T*>(nullptr));
      } else {
        panels.each_run_of_values({tile.key, tile.key + tile.keys}, [&](Index first, Index some, Operand<T> values) {
          gemm_block<T>(tile.rows, in.value_width, some, {weights.at(0, first - tile.key), tile.stride}, values, to,
                        in.out_cols(), first > tile.key, nullptr, panels.values_memory());
        });
      }
      if (splits_keys) continue;
      for (Index i = 0; i < tile.rows; ++i) {
        T* row = to + i * in.out_cols();
        const Batch<T> inverse(inverses[i]);
        map_span(
            in.value_width, row, [inverse](auto a) { return a * inverse; }, row);
      }
    }
  });
  splits.merge(threads, out, logsumexp);
}

LACONIC_COMPILE(attend);

}  // namespace kernels
}  // namespace LACONIC_ABI
}  // namespace laconic
