// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/shapes.hpp>
#include <laconic/core/random.hpp>

namespace laconic {
inline namespace LACONIC_ABI {

/// Returns a mask for one batch whose longest sequence has `longest` frames, as in WeNet's U2 (Zhang et al. 2020,
/// section 3.2). Half of the masks see whole sequences, the others chunks of 1 to 25 frames, so that one model serves
/// every latency. With `limit_left`, half of the chunked masks see a random number of chunks before their own;
/// otherwise they see all.
inline Mask dynamic_chunk_mask(Index longest, bool limit_left, const Random& random) {
  const auto draw = [&](std::uint64_t i, Index below) {
    return std::min(below - 1, static_cast<Index>(random.uniform(i) * static_cast<double>(below)));
  };
  const Index drawn = 1 + draw(0, std::max<Index>(1, longest));
  if (drawn > longest / 2) return Mask::bidirectional();
  const Index chunk = 1 + drawn % 25;
  if (!limit_left || draw(1, 2) == 0) return Mask::chunked(chunk, Mask::unlimited);
  return Mask::chunked(chunk, chunk * draw(2, std::max<Index>(1, longest / chunk)));
}

}  // namespace LACONIC_ABI
}  // namespace laconic
