// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/shapes.hpp>
#include <laconic/core/sequences.hpp>

#include <optional>
#include <span>
#include <type_traits>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Holds what all layers of one forward pass share. A pass over whole sequences has no slots. In a stream, rows are the
/// new ones, and `slots` says for each sequence where the layers' states hold the earlier ones.
template <class Tensor>
struct Pass {
  const Sequences& sequences;              ///< the sequences of the rows
  Mask mask{};                             ///< the frames that each frame sees
  Tensor table{};                          ///< the table of positions that layers share
  std::span<const Index> slots{};          ///< the slot of each sequence in the states; empty: whole sequences
  std::span<const Index> firsts{};         ///< the position of each sequence's first row in its stream; empty: 0
  std::vector<Tensor>* outputs = nullptr;  ///< receives the output of each block, if not null

  /// Returns the position of the first row of sequence n in its stream.
  Index first(Index n) const { return firsts.empty() ? 0 : firsts[static_cast<std::size_t>(n)]; }
};

/// Describes what the states of a model's layers must hold.
struct StateShape {
  Index slots;                      ///< streams
  Index left_context;               ///< frames that attention keeps
  std::optional<Index> chunk;       ///< max frames of one stream in a pass; none: each pass has its own number
  Storage storage = Storage::full;  ///< how keys, values and latents are stored
};

/// Says whether S is a pointer to a state. Layers with a state take a pointer to it, or `nullptr` where sequences are
/// whole: then there is no state, and no cost.
template <class State>
inline constexpr bool has_state = !std::is_null_pointer_v<State>;

}  // namespace LACONIC_ABI
}  // namespace laconic
