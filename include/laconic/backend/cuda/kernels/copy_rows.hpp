// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/kernels/row_sums.hpp>

#include <cstdint>

namespace laconic {
inline namespace LACONIC_ABI {
namespace cuda {

/// Says where a range of rows is: `packed` among the rows of all ranges, `from` in the source, `to` in the target.
struct RowsPlace {
  Index packed;  ///< the first row, counting those of the earlier ranges
  Index from;    ///< its first row in the source
  Index to;      ///< its first row in the target
};
/// Refers to ranges of rows, none of which is empty.
struct RowPlaces {
  const RowsPlace* places;  ///< the ranges, on the device
  Index count;              ///< how many there are
};

/// Is what a thread copies at a time, in one instruction.
struct [[gnu::may_alias]] alignas(16) Bytes16 {
  std::uint32_t words[4];
};

/// Copies element i of the rows of all ranges, each of which has `units` elements of type V.
template <class V>
struct CopyRowUnits {
  const V* from;
  V* to;
  RowPlaces ranges;
  bool from_packed, to_packed;  // rows lie one after the other there
  Index units;
  LACONIC_DEVICE void operator()(Index i) const {
    const Index row = i / units, unit = i % units;
    const RowsPlace range =
        ranges.places[last_at_most(ranges.count, row, [&](Index n) { return ranges.places[n].packed; })];
    const Index source = from_packed ? row : range.from + row - range.packed,
                target = to_packed ? row : range.to + row - range.packed;
    to[target * units + unit] = from[source * units + unit];
  }
};

/// Describes a copy of ranges of rows.
template <class T>
struct CopyRows {
  const T* from;
  T* to;
  RowPlaces ranges;
  bool from_packed, to_packed;  ///< rows lie one after the other there
  /// Returns what copies it in elements of type V, of which a row has so many.
  template <class V>
  CopyRowUnits<V> in(Index units) const {
    return {reinterpret_cast<const V*>(from), reinterpret_cast<V*>(to), ranges, from_packed, to_packed, units};
  }
};

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
