// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/kernels/tile.hpp>
#include <laconic/backend/shapes.hpp>

#include <cmath>

// Linear attention and its derivatives are all one sum over time: to_i = sum_j (x_i . y_j) z_j over the j that i sees.
// - The forward pass has x = phi(q), y = phi(k) and z = [v, 1], which gives numerators N and denominators D.
// - With g = [dN, dD], the derivative by phi(q) has x = g, y = [v, 1] and z = phi(k).
// - The other two run backwards in time, since a key is seen by the queries of its chunk and all later ones: that by
//   phi(k) has x = [v, 1], y = g and z = phi(q), and that by v has x = phi(k), y = phi(q) and z = dN.

namespace laconic {
inline namespace LACONIC_ABI {
namespace cuda {

/// Gives the addend of the denominators.
inline constexpr double linear_attend_eps = 1e-6;

/// Reads heads of rows (rows, heads * stride), `width` values of each.
template <class T>
struct HeadRows {
  const T* x;    ///< the values
  Index heads;   ///< heads of a row
  Index width;   ///< values that are read of a head
  Index stride;  ///< values of a head
  /// Returns value c of a head of a row.
  LACONIC_DEVICE T operator()(Index row, Index head, Index c) const { return x[(row * heads + head) * stride + c]; }
};
/// Reads the features of heads of rows (rows, heads * width), elu(x) + 1 (Katharopoulos et al. 2020, section 3.2.1).
/// They are always positive: elu is not formed, because exp(x) - 1 + 1 is 0 for small exp(x).
template <class T>
struct HeadFeatures {
  const T* x;   ///< the values
  Index heads;  ///< heads of a row
  Index width;  ///< features of a head
  /// Returns feature c of a head of a row.
  LACONIC_DEVICE T operator()(Index row, Index head, Index c) const {
    const T value = x[(row * heads + head) * width + c];
    return value < T(0) ? std::exp(value) : value + T(1);  // NaN stays NaN
  }
};
/// Reads heads of rows (rows, heads * (width - 1)), with a one after each.
template <class T>
struct HeadRowsAndOne {
  const T* x;   ///< the values
  Index heads;  ///< heads of a row
  Index width;  ///< values of a head, and one
  /// Returns value c of a head of a row.
  LACONIC_DEVICE T operator()(Index row, Index head, Index c) const {
    return c == width - 1 ? T(1) : x[(row * heads + head) * (width - 1) + c];
  }
};

/// Says which rows of a sequence see which, counted from its first row, or backwards from its last.
struct LinearOrder {
  Index chunk;     ///< rows that see each other, at least 1
  bool backwards;  ///< whether rows are counted from the last one, and see all rows of their chunk and later ones
  /// Returns the row of the sequence that has this number.
  constexpr Index row(Index i, Index length) const { return backwards ? length - 1 - i : i; }
  /// Returns the end of the rows that row i sees, as numbers. They begin at 0.
  constexpr Index end(Index i, Index length) const {
    if (backwards) return length - (length - 1 - i) / chunk * chunk;
    const Index chunks = i / chunk + 1;
    return chunks <= length / chunk ? chunks * chunk : length;
  }
};

/// Computes to_i = sum_j (x_i . y_j) z_j. A state y^T z (width of y, columns) holds the rows that all rows of a tile
/// see; the at most 64 others meet the tile one by one. A block is a key-value head of a sequence and a range of the
/// columns of z. Query heads of the group share y and z, unless `sums_group` says that y and z are those of all heads
/// of the group, whose sums are added.
template <class T, class X, class Y, class Z>
struct LinearSums {
  using Sums = Tile<T, 4>;
  static constexpr int threads = Sums::threads, rows = Sums::rows, cols = Sums::cols, stride = cols + 1;
  static constexpr Index max_state = 3072;  ///< values of a state in shared memory, or one column

  X x;
  Y y;
  Z z;
  const Index* offsets;
  LinearOrder order;
  Index kv_heads, group;
  bool sums_group;
  T* to;              ///< (rows, heads of x * width of z)
  T* states;          ///< states before and after, (sequences, kv_heads * width of y * width of z), or null
  const T* slope_at;  ///< if not null: the features whose arguments the result is the derivative by
  Index columns;      ///< columns of a block

  /// Returns the columns of a block for a state of so many rows and columns.
  static constexpr Index columns_for(Index y_width, Index z_width) {
    const Index most = max_state / y_width < 1 ? 1 : max_state / y_width < cols ? max_state / y_width : cols;
    return pieces(z_width, pieces(z_width, most));
  }
  /// Returns the shared memory of a block.
  static constexpr std::size_t bytes(Index y_width, Index columns) {
    return 2 * Sums::bytes(false) + shared_bytes<T>(rows * stride) + shared_bytes<T>(y_width * columns);
  }

  LACONIC_DEVICE void operator()(Block& block) const {
    const Index parts = pieces(z.width, columns), first_column = block.y() % parts * columns,
                kv_head = block.y() / parts, n = block.x(), first = offsets[n], length = offsets[n + 1] - first;
    if (length == 0) return;
    const Index width = z.width - first_column < columns ? z.width - first_column : columns;
    const Index x_heads = sums_group ? 1 : group, y_heads = sums_group ? group : 1;
    Sums tile(block, false), totals(block, false);
    T* scores = block.shared<T>(rows * stride);
    T* state = block.shared<T>(y.width * columns);
    T* states_here = states == nullptr ? nullptr : states + (n * kv_heads + kv_head) * y.width * z.width + first_column;
    block.each([&](int t) {
      for (Index i = t; i < y.width * width; i += threads)
        state[i] = states == nullptr ? T(0) : states_here[i / width * z.width + i % width];
    });
    const auto row_of = [&](Index i) { return first + order.row(i, length); };
    // Adds the rows [from, to) to the state.
    const auto advance = [&](Index from, Index until) {
      for (; from < until; from += cols) {
        const Index some = until - from < cols ? until - from : cols;
        for (Index place = 0; place < y.width; place += rows) {
          tile.clear();
          for (Index head = kv_head * y_heads; head < (kv_head + 1) * y_heads; ++head)
            tile.add_product(some, by_rows<OfRow>([&](int r, Index j) {
                               return place + r < y.width ? y(row_of(from + j), head, place + r) : T(0);
                             }),
                             by_rows<OfColumn>([&](int c, Index j) {
                               return c < width ? z(row_of(from + j), head, first_column + c) : T(0);
                             }));
          tile.each_sum([&](int r, int c, T sum) {
            if (place + r < y.width && c < width) state[(place + r) * width + c] += sum;
          });
        }
      }
    };

    Index base = 0;  // the rows in the state
    for (Index begin = 0, count; begin < length; begin += count) {
      // A tile has as many rows as see at most a tile more than the first one does.
      const Index base_here = order.end(begin, length);
      count = length - begin < rows ? length - begin : rows;
      for (Index least = 1; least < count;) {
        const Index middle = (least + count + 1) / 2;
        if (order.end(begin + middle - 1, length) - base_here <= cols)
          least = middle;
        else
          count = middle - 1;
      }
      const Index tail = order.end(begin + count - 1, length) - base_here;
      advance(base, base_here);
      base = base_here;
      for (Index x_head = kv_head * x_heads; x_head < (kv_head + 1) * x_heads; ++x_head) {
        const auto of_x =
            by_width<OfRow>([&](int r, Index c) { return r < count ? x(row_of(begin + r), x_head, c) : T(0); });
        totals.clear();
        totals.add_product(y.width, of_x, by_rows<OfColumn>([&](int c, Index place) {
                             return c < width ? state[place * width + c] : T(0);
                           }));
        for (Index y_head = kv_head * y_heads; tail > 0 && y_head < (kv_head + 1) * y_heads; ++y_head) {
          tile.clear();
          tile.add_product(x.width, of_x, by_width<OfColumn>([&](int j, Index c) {
                             return j < tail ? y(row_of(base + j), y_head, c) : T(0);
                           }));
          tile.each_sum([&](int r, int j, T score) {
            const bool seen = r < count && base + j < order.end(begin + r, length);
            scores[r * stride + j] = seen ? score : T(0);
          });
          totals.add_product(tail, by_width<OfRow>([&](int r, Index j) { return scores[r * stride + j]; }),
                             by_rows<OfColumn>([&](int c, Index j) {
                               return c < width ? z(row_of(base + j), y_head, first_column + c) : T(0);
                             }));
        }
        totals.each_sum([&](int r, int c, T sum) {
          if (r >= count || c >= width) return;
          const Index at = (row_of(begin + r) * x.heads + x_head) * z.width + first_column + c;
          to[at] = slope_at != nullptr && slope_at[at] < T(0) ? sum * std::exp(slope_at[at]) : sum;
        });
      }
    }
    if (states == nullptr) return;
    advance(base, length);
    block.each([&](int t) {
      for (Index i = t; i < y.width * width; i += threads) states_here[i / width * z.width + i % width] = state[i];
    });
  }
};

/// Computes out = N / (D + eps) of sums [N, D] (rows and heads, width + 1), one element.
template <class T>
struct LinearNormalize {
  const T* sums;
  T* out;
  Index width;
  LACONIC_DEVICE void operator()(Index i) const {
    const T* row = sums + i / width * (width + 1);
    out[i] = row[i % width] * (T(1) / (row[width] + static_cast<T>(linear_attend_eps)));
  }
};
/// Replaces sums [N, D] (rows and heads, width + 1) by their derivatives [dN, dD], from dout (rows and heads, width). A
/// block is a row of a head.
template <class T>
struct LinearNormalizeBackward {
  static constexpr int threads = warp_threads;
  const T* dout;
  T* sums;
  Index width;
  LACONIC_DEVICE void operator()(Block& block) const {
    T* row = sums + block.x() * (width + 1);
    const T* d = dout + block.x() * width;
    const T inverse = T(1) / (row[width] + static_cast<T>(linear_attend_eps));
    PerThread<T> part(block);
    block.each([&](int t) {
      part[t] = 0;
      for (Index c = t; c < width; c += threads) {
        part[t] += row[c] * d[c];
        row[c] = d[c] * inverse;
      }
    });
    const T dot = block.sum(part);
    block.one([&] { row[width] = -dot * inverse * inverse; });
  }
};

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
