// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/kernels/attention_operands.hpp>

#include <algorithm>
#include <cmath>
#include <type_traits>

namespace laconic {
inline namespace LACONIC_ABI {
namespace cuda {

/// Says what a tile of pairs of a query and a key has as rows and as columns. Element (r, c) is about query, key and
/// distance (of the key from the query) number `Query::at`, `Key::at` and `Distance::at` of its tile; numbers of
/// distances count downwards if `distance_step` is -1.
struct QueriesByKeys {
  using Query = OfRow;
  using Key = OfColumn;
  using Distance = OfDifference;
  static constexpr int distance_step = 1;
};
/// Has keys as rows and queries as columns.
struct KeysByQueries {
  using Query = OfColumn;
  using Key = OfRow;
  using Distance = OfDifference;
  static constexpr int distance_step = -1;
};
/// Has distances as rows and queries as columns.
struct DistancesByQueries {
  using Query = OfColumn;
  using Key = OfSum;
  using Distance = OfRow;
  static constexpr int distance_step = 1;
};
/// Has queries as rows and distances as columns.
struct QueriesByDistances {
  using Query = OfRow;
  using Key = OfSum;
  using Distance = OfColumn;
  static constexpr int distance_step = 1;
};

/// Names what is computed for each pair, with the attention weight P and dP = dout . v: P after dropout, P dP, or the
/// derivative by the score, P (dP - sum_j P dP).
enum class PairValue { weight, product, derivative };

/// Refers to the operands of the derivative of softmax attention.
template <class T>
struct AttendGradientOperands {
  AttendOperands<T> in;     ///< the operands of the attention
  WholeRows<T> k, v;        ///< keys and values
  const T* dout;            ///< derivative by the result, (q_rows, num_heads * value_width)
  const T* logsumexp;       ///< logsumexp of the scores, (q_rows, num_heads)
  const T* dots = nullptr;  ///< sum_j P dP, (q_rows, num_heads); used for PairValue::derivative
};

/// Says where a tile of pairs is. A pair of a query that does not exist, or of a key that it does not see, has 0.
struct PairPlace {
  Index sequence;        ///< the sequence
  Index head;            ///< the query head
  Index first_key;       ///< key number 0, which may not exist
  Index first_distance;  ///< row of the table of distance number 0; not used without a table
};

/// Computes products of pairs in T.
template <class T>
using PairTile = Tile<T, sizeof(T) == sizeof(float) ? 4 : 2>;

/// Computes a value for each pair of a tile, and sums of these values times rows of another operand: (rows, columns)
/// sums of type Sum, which grow from tile to tile. `Tiles` multiplies. Used by all threads of a block.
template <class T, class Shape, class Tiles, class Sum = T>
class AttendPairs {
 public:
  using Pairs = Tiles;
  static constexpr int threads = Pairs::threads, rows = Pairs::rows, cols = Pairs::cols;
  static constexpr int num_queries = Shape::Query::count(rows, cols);  ///< queries of a tile
  static constexpr int stride = cols + 1;                              ///< from a row of values to the next
  /// Columns of the sums.
  static constexpr Index max_columns = std::min<Index>(128, Pairs::wide_bytes / (rows * Index{sizeof(Sum)}));

  /// Returns the shared memory of a block.
  static constexpr std::size_t bytes(Index columns, bool relative) {
    return Pairs::bytes(relative) + TileQueries::bytes(num_queries) + shared_bytes<T>(rows * stride) +
           shared_bytes<Sum>(rows * columns);
  }
  /// Makes sums of zero, of so many columns.
  LACONIC_DEVICE AttendPairs(Block& block, const AttendGradientOperands<T>& operands, Index columns)
      : block_(block),
        of_(operands),
        tile_(block, operands.in.p != nullptr),
        queries_(block, num_queries),
        values_(block.shared<T>(rows * stride)),
        sums_(block.shared<Sum>(rows * columns)),
        columns_(columns) {
    block_.each([&](int t) {
      for (Index i = t; i < rows * columns_; i += threads) sums_[i] = Sum(0);
    });
  }

  /// Returns the queries that were set last.
  LACONIC_DEVICE const TileQueries& queries() const { return queries_; }
  /// Sets the queries of the next tiles: those of a head of sequence n from query `first` on.
  LACONIC_DEVICE void set_queries(Index n, Index head, Index first) {
    queries_.set(block_, of_.in, num_queries, n, first, head, 1);
  }
  /// Returns the value of element (r, c) that was computed last.
  LACONIC_DEVICE T value(int r, int c) const { return values_[r * stride + c]; }

  /// Computes the values of a tile.
  template <PairValue kind>
  LACONIC_DEVICE void compute(const PairPlace& place) {
    using Query = typename Shape::Query;
    using Key = typename Shape::Key;
    const AttendOperands<T>& in = of_.in;
    const Index n = place.sequence, head = place.head, first_key = place.first_key, num_keys = in.keys(n),
                kv_head = head / (in.num_heads / in.num_kv_heads);
    const Index* ids = queries_.id;
    tile_.clear();
    tile_.add_product(in.key_width,
                      by_width<Query>([&](int i, Index c) { return ids[i] < 0 ? T(0) : in.content(ids[i], head, c); }),
                      by_width<Key>([&](int j, Index c) {
                        const Index key = first_key + j;
                        return key < 0 || key >= num_keys ? T(0) : of_.k.load(n, key, kv_head * in.key_width + c);
                      }));
    if (in.p != nullptr)
      tile_.add_product(
          in.position_width,
          by_width<Query>([&](int i, Index c) { return ids[i] < 0 ? T(0) : in.positional(ids[i], head, c); }),
          by_width<typename Shape::Distance>(
              [&](int i, Index c) { return in.distance(place.first_distance + Shape::distance_step * i, head, c); }));
    tile_.each_sum([&](int r, int c, T score) {
      const int i = Query::at(r, c, rows);
      const Index key = first_key + Key::at(r, c, rows);
      T weight = queries_.sees(i, key) ? std::exp(score - of_.logsumexp[ids[i]]) : T(0);
      if (kind == PairValue::weight && weight != T(0)) weight *= in.dropout_factor(ids[i], key);
      values_[r * stride + c] = weight;
    });
    if constexpr (kind != PairValue::weight) {
      tile_.clear();
      tile_.add_product(in.value_width, by_width<Query>([&](int i, Index c) {
                          return ids[i] < 0 ? T(0) : of_.dout[ids[i] * in.value_width + c];
                        }),
                        by_width<Key>([&](int j, Index c) {
                          const Index key = first_key + j;
                          return key < 0 || key >= num_keys ? T(0) : of_.v.load(n, key, kv_head * in.value_width + c);
                        }));
      tile_.each_sum([&](int r, int c, T product) {
        const int i = Query::at(r, c, rows);
        const Index key = first_key + Key::at(r, c, rows);
        if (!queries_.sees(i, key)) return;
        T dweight = product * in.dropout_factor(ids[i], key);
        if (kind == PairValue::derivative) dweight -= of_.dots[ids[i]];
        values_[r * stride + c] *= dweight;
      });
    }
  }
  /// Adds sum_c value(r, c) load(c, i) to column i of each row r, for i below `columns`. `load` gives 0 where there is
  /// nothing.
  template <class Load>
  LACONIC_DEVICE void accumulate(const Load& load) {
    for (Index first = 0; first < columns_; first += cols) {
      tile_.clear();
      tile_.add_product(cols, by_width<OfRow>([&](int r, Index c) { return values_[r * stride + c]; }),
                        by_rows<OfColumn>([&](int i, Index c) {
                          return first + i < columns_ ? load(static_cast<int>(c), first + i) : T(0);
                        }));
      tile_.each_sum([&](int r, int i, T sum) {
        if (first + i < columns_) sums_[r * columns_ + first + i] += static_cast<Sum>(sum);
      });
    }
  }
  /// Calls visit(r, i, sum) for all sums; threads that are neighbours have columns that are neighbours.
  template <class Visit>
  LACONIC_DEVICE void each_total(const Visit& visit) {
    block_.each([&](int t) {
      for (Index i = t; i < rows * columns_; i += threads)
        visit(static_cast<int>(i / columns_), i % columns_, static_cast<T>(sums_[i]));
    });
  }

 private:
  Block& block_;
  const AttendGradientOperands<T>& of_;
  Pairs tile_;
  TileQueries queries_;
  T* values_;
  Sum* sums_;
  Index columns_;
};

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
