// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/shapes.hpp>

#include <optional>

namespace laconic {
inline namespace LACONIC_ABI {

/// Holds the settings of streams. Chunk and left context are the model's own where none is given; a model trained with
/// chunks of many sizes takes others.
struct StreamConfig {
  Index capacity = 1;                   ///< streams at once
  std::optional<Index> chunk{};         ///< encoder frames that become final together
  std::optional<Index> left_context{};  ///< encoder frames kept before the chunk, or `Mask::unlimited`
  /// Max encoder frames of a stream; needed where all are kept. A larger chunk or left context takes no more memory.
  Index max_frames = 0;
  Storage storage = Storage::full;  ///< how keys, values and latents are stored
  int threads = 0;                  ///< 0: all that the machine offers
};

}  // namespace LACONIC_ABI
}  // namespace laconic
