// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/shapes.hpp>
#include <laconic/core/sequences.hpp>

#include <span>
#include <type_traits>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// What all layers of one forward pass share. A pass over whole sequences has no slots; in a stream, rows are those
/// that came now, and slots say for each sequence where the layers' states have what came before.
template <class Tensor>
struct Pass {
  const Sequences& sequences;
  Mask mask{};
  Tensor table{};  ///< of the position policy
  std::span<const Index> slots{};
  std::span<const Index> firsts{};         ///< the place of each sequence's first row in its stream; empty: 0
  std::vector<Tensor>* outputs = nullptr;  ///< if given, what each block gives is added to it

  Index first(Index n) const { return firsts.empty() ? 0 : firsts[static_cast<std::size_t>(n)]; }
};

/// What the states of a model's layers are made for.
struct StateShape {
  Index slots;         ///< streams
  Index left_context;  ///< frames that attention keeps
  Index chunk;         ///< the most frames of one stream in a pass
  Storage storage = Storage::full;
};

/// Layers that look back take a pointer to their state, or `nullptr` where a sequence is whole: no state, then, and no
/// cost.
template <class State>
inline constexpr bool has_state = !std::is_null_pointer_v<State>;

}  // namespace LACONIC_ABI
}  // namespace laconic
