// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/nn/norm.hpp>
#include <laconic/nn/pass.hpp>

#include <cstddef>
#include <utility>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Runs blocks one after the other, and a norm after the last: (rows, d_model) to (rows, d_model). Models derive from
/// it, add the blocks, and name its parameters. A block has
///   attention()                          its self-attention, of the same policy in all blocks
///   operator()(context, x, pass, state)  what it computes, with `nullptr` for the state of whole sequences
///   State<Context>                       what a stream keeps: `attention`, clear, fill_zeros, convolution_bytes, and
///                                        fork where sequences are decoded by a beam
template <class Block_, class Norm>
class Stack {
 public:
  using Block = Block_;  ///< the type of the blocks

  /// Holds what streams keep, block by block. Takes memory at construction only.
  template <class Context>
  struct State {
    /// Makes the states of all blocks for `shape.slots` streams. Allocates.
    State(Context& context, const Stack& stack, const StateShape& shape) {
      layers.reserve(stack.layers.size());
      for (const Block& block : stack.layers) layers.emplace_back(context, block, shape);
    }
    /// Empties a slot for a new stream.
    void clear(Context& context, Index slot) {
      for (auto& layer : layers) layer.clear(context, slot);
    }
    /// Fills a slot as if frames of zeros had come before, as many as are kept.
    void fill_zeros(Context& context, Index slot) {
      for (auto& layer : layers) layer.fill_zeros(context, slot);
    }
    /// Makes slot `to` hold what slot `from` holds.
    void fork(Context& context, Index from, Index to) {
      for (auto& layer : layers) layer.fork(context, from, to);
    }
    /// Returns the bytes that the attention of all blocks holds, all slots.
    Index attention_bytes() const {
      Index sum = 0;
      for (const auto& layer : layers) sum += layer.attention.cache_bytes();
      return sum;
    }
    /// Returns the bytes that the convolutions of all blocks hold, all slots.
    Index convolution_bytes() const {
      Index sum = 0;
      for (const auto& layer : layers) sum += layer.convolution_bytes();
      return sum;
    }

    std::vector<typename Block::template State<Context>> layers;  ///< the state of each block
  };

  std::vector<Block> layers;  ///< the blocks, first to last
  Norm layer_norm;            ///< the norm after the last block

 protected:
  /// Makes a stack without blocks.
  explicit Stack(Norm norm) : layer_norm(std::move(norm)) {}

  /// Returns the rows after all blocks and the norm. `state` is a pointer to a State, or `nullptr` for whole sequences.
  /// Appends the output of each block to `pass.outputs` where that is given.
  template <class Context, class Tensor, class S>
  Tensor run(Context& context, Tensor x, Pass<Tensor> pass, S state) const {
    const auto& attention = layers.front().attention();
    x = attention.enter(context, std::move(x), pass);
    pass.table = attention.table(context, pass);
    for (std::size_t i = 0; i < layers.size(); ++i) {
      if constexpr (has_state<S>)
        x = layers[i](context, std::move(x), pass, &state->layers[i]);
      else
        x = whole_block(context, layers[i], std::move(x), pass);
      if (pass.outputs != nullptr) pass.outputs->push_back(x);
    }
    return layer_norm(context, x);
  }

 private:
  /// Runs a block over whole sequences, and keeps only its input on a tape that is to recompute blocks.
  template <class Context, class Tensor>
  static Tensor whole_block(Context& context, const Block& block, Tensor x, const Pass<Tensor>& pass) {
    if constexpr (requires { context.recompute_blocks; })
      if (context.recompute_blocks)
        return context.recompute(
            x, [&context, &block, sequences = pass.sequences, mask = pass.mask, table = pass.table](const Tensor& in) {
              return block(context, in, Pass<Tensor>{sequences, mask, table}, nullptr);
            });
    return block(context, std::move(x), pass, nullptr);
  }
};

}  // namespace LACONIC_ABI
}  // namespace laconic
