// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/shapes.hpp>
#include <laconic/core/parameter.hpp>

#include <cstddef>
#include <span>

// The checks of arguments of elementwise primitives and of those that move values, which all backends share. Each
// throws `Error` for sizes that do not fit.

namespace laconic {
inline namespace LACONIC_ABI {
namespace checks {

/// Checks the arguments of `read`.
template <class Tensor>
void read(const Tensor& x, std::size_t room) {
  require(static_cast<Index>(room) == x.size(), "read: room for ", room, " values given, (", x.rows(), ", ", x.cols(),
          ") expected");
}
/// Checks the arguments of `number`.
template <class Tensor>
void number(const Tensor& x) {
  require(x.size() == 1, "number: (", x.rows(), ", ", x.cols(), ") given, (1, 1) expected");
}
/// Checks the arguments of `argmax`.
template <class Tensor>
void argmax(const Tensor& x, std::size_t room) {
  require(static_cast<Index>(room) == x.rows() && x.cols() > 0, "argmax: room for ", room, " columns given for (",
          x.rows(), ", ", x.cols(), "), as many as rows expected, and at least one column");
}
/// Checks the arguments of `copy_rows`.
template <class Tensor>
void copy_rows(const Tensor& from, const Tensor& to, std::span<const RowRange> ranges) {
  for (const RowRange& range : ranges)
    require(range.from >= 0 && range.count >= 0 && range.to >= 0 && range.from <= from.rows() - range.count &&
                range.to <= to.rows() - range.count && from.cols() == to.cols(),
            "copy_rows: ", range.count, " rows from ", range.from, " of (", from.rows(), ", ", from.cols(), ") to ",
            range.to, " of (", to.rows(), ", ", to.cols(), ") given, rows that both have and equal columns expected");
}
/// Checks the arguments of `glu`.
template <class Tensor>
void glu(const Tensor& x) {
  require(x.cols() % 2 == 0, "glu: ", x.cols(), " channels given, an even number expected");
}
/// Checks that a primitive, which is named, has two arguments of the same shape.
template <class Tensor>
void equal_shapes(const char* who, const Tensor& x, const Tensor& y) {
  require(x.rows() == y.rows() && x.cols() == y.cols(), who, ": (", x.rows(), ", ", x.cols(), ") and (", y.rows(), ", ",
          y.cols(), ") given, equal shapes expected");
}
/// Checks the arguments of `add_row`.
template <class Tensor, class T>
void add_row(const Tensor& x, const Parameter<T>& row) {
  require(x.cols() == row.size(), "add_row: input has ", x.cols(), " channels, the row has ", row.size());
}
/// Checks the arguments of `columns`.
template <class Tensor>
void columns(const Tensor& x, Index first, Index count) {
  require(first >= 0 && count > 0 && first + count <= x.cols(), "columns: ", first, " to ", first + count, " of ",
          x.cols(), " wanted");
}
/// Checks the arguments of `mix`.
template <class Tensor>
void mix(const Tensor& x, const Tensor& y, const Tensor& gate, const Sequences& sequences) {
  require(x.rows() == y.rows() && x.cols() == y.cols() && x.rows() == sequences.rows() &&
              gate.rows() == sequences.size() && gate.cols() == 1,
          "mix: (", x.rows(), ", ", x.cols(), ") and (", y.rows(), ", ", y.cols(), ") with gates (", gate.rows(), ", ",
          gate.cols(), ") given, ", sequences.rows(), " rows of equal width and (", sequences.size(), ", 1) expected");
}
/// Checks the arguments of `rotate`.
template <class Tensor>
void rotate(const Tensor& x, const Tensor& table) {
  require(table.cols() > 0 && table.cols() % 2 == 0 && x.cols() % table.cols() == 0 && table.rows() == x.rows(),
          "rotate: (", x.rows(), ", ", x.cols(), ") given with a table of (", table.rows(), ", ", table.cols(),
          "), as many rows and a multiple of an even number of columns expected");
}
/// Checks the arguments of `concat`.
template <class Tensor>
void concat(const Tensor& a, const Tensor& b, Index num_heads, Index b_heads) {
  require(a.rows() == b.rows() && num_heads > 0 && a.cols() % num_heads == 0 &&
              (b_heads == num_heads || b_heads == 1) && b.cols() % b_heads == 0,
          "concat: (", a.rows(), ", ", a.cols(), ") and (", b.rows(), ", ", b.cols(), ") given for ", num_heads,
          " and ", b_heads, " heads");
}

}  // namespace checks
}  // namespace LACONIC_ABI
}  // namespace laconic
