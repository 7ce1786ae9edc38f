// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/error.hpp>

#include <cstddef>

namespace laconic {
inline namespace LACONIC_ABI {

/// Sizes and positions; signed, as in Eigen.
using Index = std::ptrdiff_t;

/// Rows, columns or anything numbered: begin .. end - 1.
struct Range {
  Index begin, end;
  Index size() const { return end - begin; }
};

/// Stands in a type for a number that is known only at run time: `Mha<dyn>`.
inline constexpr Index dyn = -1;

/// A number in a type, or in the object where the type says `dyn` (as `std::extents` does it).
/// A static extent takes no storage with `[[no_unique_address]]` and converts silently to `Extent<dyn>`;
/// the other way is explicit and checked.
template <Index N>
class Extent {
  static_assert(N >= 0, "laconic: an extent is at least 0, or `dyn` for a number known at run time");

 public:
  constexpr Extent() = default;
  constexpr explicit Extent(Index value) { require(value == N, "extent: ", value, " given where the type says ", N); }
  constexpr operator Index() const { return N; }
  static constexpr bool is_static = true;
};

template <>
class Extent<dyn> {
 public:
  constexpr Extent(Index value) : value_(value) {
    require(value >= 0, "extent: ", value, " given, at least 0 expected");
  }
  template <Index N>
  constexpr Extent(Extent<N>) : value_(N) {}
  constexpr operator Index() const { return value_; }
  static constexpr bool is_static = false;

 private:
  Index value_;
};

/// The extent that type and configuration together say: a configured 0 means "as the type says".
/// Throws where they contradict each other, or where neither says anything.
template <Index N>
constexpr Extent<N> resolve(Index configured, const char* name) {
  if constexpr (N == dyn) {
    require(configured > 0, name, ": the type says `dyn`, so the configuration must say it: ", configured, " given");
    return Extent<dyn>(configured);
  } else {
    require(configured == 0 || configured == N, name, ": ", configured, " configured, but the type says ", N);
    return Extent<N>();
  }
}

}  // namespace LACONIC_ABI
}  // namespace laconic
