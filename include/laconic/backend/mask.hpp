// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/extent.hpp>

#include <algorithm>

namespace laconic::inline LACONIC_ABI {

/// Which keys a query sees. Every mask of a speech model lets each query see one run of keys, so a mask is that run.
struct Mask {
  struct Keys {
    Index begin, end;
  };

  static constexpr Index unlimited = -1;
  Index chunk = unlimited;         ///< frames that are seen together; 1 is causal
  Index left_context = unlimited;  ///< frames seen before the own chunk; unlimited where there are no chunks

  static constexpr Mask bidirectional() { return {}; }
  static constexpr Mask causal() { return {1, unlimited}; }
  static constexpr Mask chunked(Index chunk, Index left_context) { return {chunk, left_context}; }

  constexpr bool is_valid() const {
    if (chunk == unlimited) return left_context == unlimited;
    return chunk > 0 && (left_context == unlimited || left_context >= 0);
  }

  /// The keys that the query at `position` sees, among `num_keys`. A position before the first key is negative.
  constexpr Keys keys(Index position, Index num_keys) const {
    if (chunk == unlimited) return {0, num_keys};
    const Index start = (position < 0 ? (position + 1) / chunk - 1 : position / chunk) * chunk;
    return {left_context == unlimited ? 0 : std::max<Index>(0, start - left_context), std::min(num_keys, start + chunk)};
  }
};

}  // namespace laconic
