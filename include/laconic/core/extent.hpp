// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/error.hpp>

#include <cstddef>

namespace laconic {
inline namespace LACONIC_ABI {

/// Counts and positions; signed, as in Eigen.
using Index = std::ptrdiff_t;

/// Selects consecutive rows, columns or other numbered things: begin .. end - 1.
struct Range {
  Index begin,  ///< the first index
      end;      ///< one past the last
  /// Returns the number of indices.
  Index size() const { return end - begin; }
};

/// Stands in a type for a number that is known only at run time: `Mha<dyn>`.
inline constexpr Index dyn = -1;

/// Holds a number in its type, or in the object where the type says `dyn` (as `std::extents` does). A static extent
/// takes no storage with `[[no_unique_address]]` and converts implicitly to `Extent<dyn>`. The other way is explicit
/// and checked.
template <Index N>
class Extent {
  static_assert(N >= 0, "laconic: an extent is at least 0, or `dyn` for a number known at run time");

 public:
  /// Makes the extent N.
  constexpr Extent() = default;
  /// Throws `Error` unless `value` is N.
  constexpr explicit Extent(Index value) { require(value == N, "extent: ", value, " given where the type says ", N); }
  /// Returns the number.
  constexpr operator Index() const { return N; }
  static constexpr bool is_static = true;  ///< whether the type says the number
};

/// Holds a number of at least 0 that is known only at run time.
template <>
class Extent<dyn> {
 public:
  /// Throws `Error` for a negative number.
  constexpr Extent(Index value) : value_(value) {
    require(value >= 0, "extent: ", value, " given, at least 0 expected");
  }
  /// Converts a static extent.
  template <Index N>
  constexpr Extent(Extent<N>) : value_(N) {}
  /// Returns the number.
  constexpr operator Index() const { return value_; }
  static constexpr bool is_static = false;  ///< whether the type says the number

 private:
  Index value_;
};

/// Returns the extent that type and configuration say together. A configured 0 means "as the type says". Throws
/// `Error`, which calls the extent `name`, if they contradict each other or neither says anything.
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
