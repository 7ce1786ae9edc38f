// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cpu/kernels/attention_tile.hpp>

#include <algorithm>
#include <cmath>
#include <limits>

namespace laconic {
inline namespace LACONIC_ABI {
namespace kernels {

/// Where no more than a tile of queries meets at least so many keys, parts of these are tasks of their own.
inline constexpr Index attend_cut_from = 20 * attend_tile;
/// Keys of a part, at most: of heads as wide as 64, keys and values fit a second-level cache together.
inline constexpr Index attend_part = attend_cut_from / 2;

/// How the keys of each sequence are cut into parts, and what comes out of these. A sequence's own shape decides, so
/// that results depend neither on threads nor on other sequences. With dropout none is cut: its decisions are counted
/// from the first key of a tile.
template <class T>
class AttendParts {
 public:
  AttendParts(Arena& arena, const AttendOperands<T>& in)
      : in_(in),
        parts_(Sequences::make(arena, in.q_sequences->size(), [&](Index n) { return is_cut(n) ? most_parts(n) : 1; })),
        // Also for queries that are too many, so that memory that was enough for them is enough for fewer: a stream of
        // long chunks meets few queries at its end alone.
        rows_(Sequences::make(arena, in.q_sequences->size(),
                              [&](Index n) {
                                const Index queries = std::min(attend_tile, in.q_sequences->length(n));
                                return has_many_keys(n) ? most_parts(n) * queries : 0;
                              })),
        memory_(arena.allocate(static_cast<std::size_t>(rows_.rows() * (in.out_cols() + 2 * in.shape.num_heads)) *
                               sizeof(T))) {}

  /// Parts of all sequences, end to end.
  const Sequences& all() const { return parts_; }
  bool is_cut(Index n) const { return has_many_keys(n) && in_.q_sequences->length(n) <= attend_tile; }
  Range keys(Index n, Index part) const {
    return equal_part(in_.kv_sequences->length(n), attend_tile, part, parts_.length(n));
  }
  /// Keys that scratch must have room for: where they are cut, as many as the most that are not, so that it never
  /// shrinks as keys grow.
  Index most_keys() const {
    Index most = 0;
    for (Index n = 0; n < parts_.size(); ++n)
      most = std::max(most, is_cut(n) ? attend_cut_from : in_.kv_sequences->length(n));
    return most;
  }

  /// Where a part's products of exponents and values go, for this query and head.
  T* values(Index n, Index part, Index query, Index head) const {
    return data() + at(n, part, query, head) * in_.value_width;
  }
  /// Its largest score, and the sum of its exponents.
  T& most(Index n, Index part, Index query, Index head) const {
    return data()[rows_.rows() * in_.out_cols() + at(n, part, query, head)];
  }
  T& sum(Index n, Index part, Index query, Index head) const {
    return data()[rows_.rows() * (in_.out_cols() + in_.shape.num_heads) + at(n, part, query, head)];
  }

  /// The softmax over all parts, of sequences that were cut, from what each of them gave.
  void merge(int threads, T* out, T* log_sums) const {
    if (parts_.rows() == parts_.size()) return;
    // Blocks of rows whose work is worth waking a thread.
    const Index grain = 32 * 32 * 32 / (parts_.max_length() * in_.out_cols() + 1) + 1;
    parallel_blocks(threads, in_.q_sequences->rows(), grain, [&](Index begin, Index end) {
      each_part(*in_.q_sequences, {begin, end}, [&](Index n, Range rows) {
        for (Index query = rows.begin; is_cut(n) && query < rows.end; ++query)
          for (Index head = 0; head < in_.shape.num_heads; ++head) {
            const Index to = (in_.q_sequences->begin(n) + query) * in_.shape.num_heads + head;
            const T log_sum = merge(n, query, head, out + to * in_.value_width);
            if (log_sums != nullptr) log_sums[to] = log_sum;
          }
      });
    });
  }

 private:
  bool has_many_keys(Index n) const { return in_.kv_sequences->length(n) >= attend_cut_from && !in_.dropout.any(); }
  Index most_parts(Index n) const { return (in_.kv_sequences->length(n) + attend_part - 1) / attend_part; }
  T* data() const { return static_cast<T*>(memory_.data()); }
  Index at(Index n, Index part, Index query, Index head) const {
    return (rows_.begin(n) + part * in_.q_sequences->length(n) + query) * in_.shape.num_heads + head;
  }
  /// Gives the logarithm of the sum of all exponents. Largest scores become the weights of the parts.
  T merge(Index n, Index query, Index head, T* out) const {
    T best = -std::numeric_limits<T>::infinity(), total = 0;
    const auto each_seen = [&](auto&& visit) {  // parts that see nothing have a sum of 0
      for (Index part = 0; part < parts_.length(n); ++part)
        if (sum(n, part, query, head) != 0) visit(part);
    };
    each_seen([&](Index part) { best = std::max(best, most(n, part, query, head)); });
    each_seen([&](Index part) {
      T& weight = most(n, part, query, head);
      weight = std::exp(weight - best);
      total += weight * sum(n, part, query, head);
    });
    std::fill_n(out, in_.value_width, T(0));
    each_seen([&](Index part) {
      map_span(
          in_.value_width, out,
          [w = Batch<T>(most(n, part, query, head) / total)](auto a, auto b) { return a + w * b; }, out,
          values(n, part, query, head));
    });
    return best + std::log(total);
  }

  const AttendOperands<T>& in_;
  Sequences parts_;
  Sequences rows_;  // part by part, the queries of each sequence
  Buffer memory_;   // products with values, then largest scores, then sums, of all rows and heads
};

/// out (q_rows, num_heads * value_width); log_sums (q_rows, num_heads) if not null. A tile is divided by the sum of its
/// exponents at the end (Milakov and Gimelshein 2018), and sees all its keys at once but for parts, whose sums are
/// added afterwards (Dao et al. 2023, "Flash-Decoding").
template <class T>
void attend(int threads, Arena& arena, const AttendOperands<T>& in, T* out, T* log_sums) {
  const Index heads = in.shape.num_heads, kv_heads = in.shape.num_kv_heads, group = in.group();
  const AttendParts<T> parts(arena, in);
  const Index packs = parts.all().rows() * kv_heads;
  if (packs == 0) return;
  // A task packs what it multiplies by, so its queries are shared only where there are threads without a task.
  const Index shares = std::clamp<Index>((threads + packs - 1) / packs, 1,
                                         std::max<Index>(1, group * attend_tiles(in.q_sequences->max_length())));
  const Index keys = parts.most_keys(), packed = AttendPanels<T>::space(in, keys),
              tile_space = AttendTile<T>::space(in, keys), space = packed + tile_space + attend_tile;
  const Buffer scratch = arena.allocate(static_cast<std::size_t>(threads * space) * sizeof(T));
  parallel_for(threads, packs * shares, [&](Index task, int thread) {
    const Index share = task % shares, kv_head = task / shares % kv_heads, piece = task / shares / kv_heads,
                sequence = parts.all().sequence_of(piece), part = piece - parts.all().begin(sequence),
                queries = in.q_sequences->length(sequence), tiles = attend_tiles(queries);
    const Range units = equal_part(group * tiles, 1, share, shares);
    if (units.size() == 0) return;
    T* memory = static_cast<T*>(scratch.data()) + thread * space;
    T* inverses = memory + packed + tile_space;
    AttendPanels<T> panels(in, sequence, kv_head, parts.keys(sequence, part), memory);
    // Rows of values that few queries meet are read as fast where they lie, if they can be.
    const bool packs_values = in.v.is_rounded() || (units.size() > 1 && queries > GemmTile<T>::rows);
    if (packs_values) panels.pack_values();
    const bool is_part = parts.is_cut(sequence);
    for (Index unit = units.begin; unit < units.end; ++unit) {
      const Index head = kv_head * group + unit / tiles;
      if (in.p != nullptr && (unit == units.begin || unit % tiles == 0)) panels.pack_positions(head);
      AttendTile<T> tile(in, panels, sequence, head, unit % tiles * attend_tile, memory + packed);
      tile.multiply();
      for (Index i = 0; i < tile.rows; ++i) {
        const auto [most, sum] = tile.exponents(i);
        if (is_part) {
          parts.most(sequence, part, i, head) = most;
          parts.sum(sequence, part, i, head) = sum;
          continue;
        }
        inverses[i] = sum == 0 ? T(0) : T(1) / sum;
        if (log_sums != nullptr) log_sums[(tile.query_row() + i) * heads + head] = most + std::log(sum);
        T* row = tile.scores + i * tile.stride;
        if (in.dropout.any()) in.dropout.apply(tile.keys, tile.dropout_index(i), row, row);
      }
      T* to = is_part ? parts.values(sequence, part, 0, head)
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
      if (is_part) continue;
      for (Index i = 0; i < tile.rows; ++i) {
        T* row = to + i * in.out_cols();
        const Batch<T> inverse(inverses[i]);
        map_span(
            in.value_width, row, [inverse](auto a) { return a * inverse; }, row);
      }
    }
  });
  parts.merge(threads, out, log_sums);
}

}  // namespace kernels
}  // namespace LACONIC_ABI
}  // namespace laconic
