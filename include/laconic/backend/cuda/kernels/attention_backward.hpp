// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/kernels/attention_pairs.hpp>

// The derivatives of softmax attention: with the attention weights P, dP = dout V^T and dS = P (dP - sum P dP), dQ =
// scale dS K, dK = scale dS^T Q and dV = P^T dout, to which relative positions add their terms. P is recomputed tile by
// tile from q, k and logsumexp, so nothing of size queries x keys is kept (Dao et al. 2022). Each derivative has a
// kernel of its own, whose blocks own what they write and sum in a fixed order. A range of columns is a block of its
// own if the derivative is wide.

namespace laconic {
inline namespace LACONIC_ABI {
namespace cuda {

/// Writes dots = sum_j P dP, (q_rows, num_heads). A block is a tile of queries of one head.
template <class T, class Tiles>
struct AttendDots {
  using Pairs = AttendPairs<T, QueriesByKeys, Tiles>;
  static constexpr int threads = Pairs::threads, rows = Pairs::rows, cols = Pairs::cols;
  static constexpr int row_parts = 4;  ///< threads of a row
  AttendGradientOperands<T> of;
  T* dots;

  /// Returns the shared memory of a block.
  static constexpr std::size_t bytes(bool relative) {
    return Pairs::bytes(0, relative) + shared_bytes<double>(threads);
  }
  LACONIC_DEVICE void operator()(Block& block) const {
    const AttendOperands<T>& in = of.in;
    const TileSlot place = tile_of(block.x(), in.q_offsets, in.sequences, 1, rows);
    const Index n = place.sequence, head = block.y(), past = in.past(n), num_keys = in.keys(n), queries = in.queries(n);
    if (place.first >= queries) return;
    Pairs pairs(block, of, 0);
    double* parts = block.shared<double>(threads);
    block.each([&](int t) { parts[t] = 0; });
    pairs.set_queries(n, head, place.first);
    const Index last = (place.first + rows < queries ? place.first + rows : queries) - 1,
                end = in.mask.keys(last, past, num_keys).end;
    for (Index key = in.mask.keys(place.first, past, num_keys).begin / cols * cols; key < end; key += cols) {
      pairs.template compute<PairValue::product>({n, head, key, in.span - 1 - past + key - place.first - (rows - 1)});
      block.each([&](int t) {
        if (t >= rows * row_parts) return;
        T sum = 0;
        for (int c = 0; c < cols / row_parts; ++c)
          sum += pairs.value(t / row_parts, t % row_parts * (cols / row_parts) + c);
        parts[t] += static_cast<double>(sum);
      });
    }
    block.each([&](int t) {
      if (t >= rows || pairs.queries().id[t] < 0) return;
      double sum = 0;
      for (int i = 0; i < row_parts; ++i) sum += parts[t * row_parts + i];
      dots[pairs.queries().id[t]] = static_cast<T>(sum);
    });
  }
};

/// Writes the derivative by the queries that meet the keys, dq (q_rows, num_heads * key_width). A block is a tile of
/// queries of one head.
template <class T, class Tiles>
struct AttendQueryGradient {
  using Pairs = AttendPairs<T, QueriesByKeys, Tiles>;
  static constexpr int threads = Pairs::threads, rows = Pairs::rows, cols = Pairs::cols;
  AttendGradientOperands<T> of;
  T* to;
  Index columns;  ///< columns of a block

  LACONIC_DEVICE void operator()(Block& block) const {
    const AttendOperands<T>& in = of.in;
    const TileSlot place = tile_of(block.x(), in.q_offsets, in.sequences, 1, rows);
    const Index n = place.sequence, past = in.past(n), num_keys = in.keys(n), queries = in.queries(n);
    if (place.first >= queries) return;
    const Index parts = pieces(in.key_width, columns), head = block.y() / parts,
                first_column = block.y() % parts * columns, kv_head = head / (in.num_heads / in.num_kv_heads);
    Pairs pairs(block, of, columns);
    pairs.set_queries(n, head, place.first);
    const Index last = (place.first + rows < queries ? place.first + rows : queries) - 1,
                end = in.mask.keys(last, past, num_keys).end;
    for (Index key = in.mask.keys(place.first, past, num_keys).begin / cols * cols; key < end; key += cols) {
      pairs.template compute<PairValue::derivative>(
          {n, head, key, in.span - 1 - past + key - place.first - (rows - 1)});
      pairs.accumulate([&](int j, Index c) {
        return key + j < num_keys && first_column + c < in.key_width
                   ? of.k.load(n, key + j, kv_head * in.key_width + first_column + c)
                   : T(0);
      });
    }
    pairs.each_total([&](int r, Index c, T sum) {
      const Index id = pairs.queries().id[r];
      if (id >= 0 && first_column + c < in.key_width) to[id * in.key_width + first_column + c] = sum * in.scale;
    });
  }
};

/// Writes the derivative by the queries that meet the table, (q_rows, num_heads * position_width). A block is a tile of
/// queries of one head. Tiles of distances begin at the least distance of the block, so that they do not depend on the
/// size of the table, which depends on the batch.
template <class T, class Tiles>
struct AttendPositionGradient {
  using Pairs = AttendPairs<T, QueriesByDistances, Tiles>;
  static constexpr int threads = Pairs::threads, rows = Pairs::rows, cols = Pairs::cols;
  AttendGradientOperands<T> of;
  T* to;
  Index columns;  ///< columns of a block

  LACONIC_DEVICE void operator()(Block& block) const {
    const AttendOperands<T>& in = of.in;
    const TileSlot place = tile_of(block.x(), in.q_offsets, in.sequences, 1, rows);
    const Index n = place.sequence, past = in.past(n), num_keys = in.keys(n), queries = in.queries(n);
    if (place.first >= queries) return;
    const Index parts = pieces(in.position_width, columns), head = block.y() / parts,
                first_column = block.y() % parts * columns;
    Pairs pairs(block, of, columns);
    pairs.set_queries(n, head, place.first);
    const Index last = (place.first + rows < queries ? place.first + rows : queries) - 1,
                first_key = in.mask.keys(place.first, past, num_keys).begin,
                end_key = in.mask.keys(last, past, num_keys).end;
    const Index zero = in.span - 1;  // the row of the table for a key at the query
    for (Index row = zero + first_key - past - last; row < zero + end_key - past - place.first; row += cols) {
      pairs.template compute<PairValue::derivative>({n, head, past + place.first + row - zero, row});
      pairs.accumulate([&](int j, Index c) {
        return first_column + c < in.position_width ? in.distance(row + j, head, first_column + c) : T(0);
      });
    }
    pairs.each_total([&](int r, Index c, T sum) {
      const Index id = pairs.queries().id[r];
      if (id >= 0 && first_column + c < in.position_width)
        to[id * in.position_width + first_column + c] = sum * in.scale;
    });
  }
};

/// Writes the derivative by the keys, dk (kv_rows, num_kv_heads * key_width), or by the values, dv (kv_rows,
/// num_kv_heads * value_width). A block is a tile of keys of one key-value head; it sums over the queries of all heads
/// of the group.
template <class T, class Tiles, bool OfValues>
struct AttendKeyGradient {
  using Pairs = AttendPairs<T, KeysByQueries, Tiles>;
  static constexpr int threads = Pairs::threads, rows = Pairs::rows, cols = Pairs::cols;
  AttendGradientOperands<T> of;
  T* to;
  Index columns;  ///< columns of a block

  LACONIC_DEVICE void operator()(Block& block) const {
    const AttendOperands<T>& in = of.in;
    const TileSlot place = tile_of(block.x(), in.kv_offsets, in.sequences, 1, rows);
    const Index n = place.sequence, first_key = place.first, past = in.past(n), num_keys = in.keys(n),
                queries = in.queries(n);
    if (first_key >= num_keys) return;
    const Index width = OfValues ? in.value_width : in.key_width, parts = pieces(width, columns),
                kv_head = block.y() / parts, first_column = block.y() % parts * columns,
                group = in.num_heads / in.num_kv_heads;
    Pairs pairs(block, of, columns);
    for (Index head = kv_head * group; head < (kv_head + 1) * group; ++head)
      for (Index query = 0; query < queries; query += cols) {
        const Index last = (query + cols < queries ? query + cols : queries) - 1;
        if (in.mask.keys(query, past, num_keys).begin >= first_key + rows ||
            in.mask.keys(last, past, num_keys).end <= first_key)
          continue;
        pairs.set_queries(n, head, query);
        pairs.template compute<OfValues ? PairValue::weight : PairValue::derivative>(
            {n, head, first_key, in.span - 1 - past + first_key - query + rows - 1});
        pairs.accumulate([&](int j, Index c) {
          const Index id = pairs.queries().id[j];
          if (id < 0 || first_column + c >= width) return T(0);
          return OfValues ? of.dout[id * width + first_column + c] : in.content(id, head, first_column + c);
        });
      }
    pairs.each_total([&](int r, Index c, T sum) {
      if (first_key + r < num_keys && first_column + c < width)
        to[((in.kv_offsets[n] + first_key + r) * in.num_kv_heads + kv_head) * width + first_column + c] = sum;
    });
  }
};

/// Writes the derivative by the table of positions for ranges of sequences, (ranges, 2 * span - 1, num_heads *
/// position_width). A block is a tile of distances of one head and one range; it sums over the queries of the range, in
/// double from tile to tile.
template <class T, class Tiles>
struct AttendTableGradient {
  using Pairs = AttendPairs<T, DistancesByQueries, Tiles, double>;
  static constexpr int threads = Pairs::threads, rows = Pairs::rows, cols = Pairs::cols;
  AttendGradientOperands<T> of;
  T* to;
  Index columns;  ///< columns of a block
  Index ranges;   ///< ranges of sequences

  LACONIC_DEVICE void operator()(Block& block) const {
    const AttendOperands<T>& in = of.in;
    const Index range = block.x() % ranges, first_row = block.x() / ranges * rows, table_rows = 2 * in.span - 1;
    const Index parts = pieces(in.position_width, columns), head = block.y() / parts,
                first_column = block.y() % parts * columns;
    const Index zero = in.span - 1;  // the row of the table for a key at the query
    Pairs pairs(block, of, columns);
    for (Index n = range * in.sequences / ranges; n < (range + 1) * in.sequences / ranges; ++n) {
      const Index past = in.past(n), num_keys = in.keys(n), queries = in.queries(n);
      for (Index query = 0; query < queries; query += cols) {
        const Index last = (query + cols < queries ? query + cols : queries) - 1,
                    first_key = past + query + first_row - zero, last_key = past + last + first_row + rows - 1 - zero;
        if (in.mask.keys(query, past, num_keys).begin > last_key || in.mask.keys(last, past, num_keys).end <= first_key)
          continue;
        pairs.set_queries(n, head, query);
        pairs.template compute<PairValue::derivative>({n, head, first_key, first_row});
        pairs.accumulate([&](int j, Index c) {
          const Index id = pairs.queries().id[j];
          return id < 0 || first_column + c >= in.position_width ? T(0) : in.positional(id, head, first_column + c);
        });
      }
    }
    pairs.each_total([&](int r, Index c, T sum) {
      if (first_row + r < table_rows && first_column + c < in.position_width)
        to[((range * table_rows + first_row + r) * in.num_heads + head) * in.position_width + first_column + c] = sum;
    });
  }
};

/// Computes to[i] = sum_n from[n * size + i], in double.
template <class T>
struct SumOfParts {
  const T* from;
  T* to;
  Index parts, size;
  LACONIC_DEVICE void operator()(Index i) const {
    double sum = 0;
    for (Index n = 0; n < parts; ++n) sum += static_cast<double>(from[n * size + i]);
    to[i] = static_cast<T>(sum);
  }
};

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
