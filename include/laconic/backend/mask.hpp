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

  /// The keys that query number `query` sees among `num_keys`, the first `past` of which come before the first query.
  /// Chunks are counted from the first query.
  constexpr Keys keys(Index query, Index past, Index num_keys) const {
    if (chunk == unlimited) return {0, num_keys};
    const Index start = past + query / chunk * chunk;
    return {left_context == unlimited ? 0 : std::max<Index>(0, start - left_context),
            std::clamp<Index>(start + chunk, 0, num_keys)};
  }
};

}  // namespace laconic
