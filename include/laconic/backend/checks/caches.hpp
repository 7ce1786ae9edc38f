// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/sequences.hpp>

#include <span>

// The checks of arguments of caches, which all backends share. Each throws `Error` for sizes that do not fit.

namespace laconic {
inline namespace LACONIC_ABI {
namespace checks {

/// Checks that a cache has these slots.
template <class Cache>
void slots(const Cache& cache, std::span<const Index> slots) {
  for (const Index slot : slots)
    require(slot >= 0 && slot < cache.slots(), "cache: slot ", slot, " given, 0 to ", cache.slots() - 1, " expected");
}
/// Checks the rows of sequences that belong to slots of a cache.
template <class Cache, class Tensor>
void cached_rows(const Cache& cache, std::span<const Index> slots, const Tensor& x, const Sequences& sequences) {
  require(
      static_cast<Index>(slots.size()) == sequences.size() && x.cols() == cache.width() && x.rows() == sequences.rows(),
      "cache: (", x.rows(), ", ", x.cols(), ") in ", sequences.size(), " sequences given, (", sequences.rows(), ", ",
      cache.width(), ") in ", slots.size(), " expected");
  checks::slots(cache, slots);
}

}  // namespace checks
}  // namespace LACONIC_ABI
}  // namespace laconic
