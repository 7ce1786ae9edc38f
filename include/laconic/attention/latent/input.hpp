// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/latent/absorbing.hpp>

namespace laconic {
inline namespace LACONIC_ABI {

/// Caches the layer's input, from which keys and values are computed as `FullRank` does: a lossless latent of d_model
/// elements a frame, and one that all layers with the same input share (the cross-attention of a decoder).
struct InputLatent : LatentPolicy {
  static constexpr bool one_input = true;  ///< keys and values need the same input
  static constexpr Index num_parts = 1;    ///< matrices in the cache

  /// Resolves the ranks into the dims. Throws Error where type and configuration contradict each other.
  static constexpr void set_ranks(const AttentionConfig& c, AttentionDims& d) { FullRank::set_ranks(c, d); }
  /// Returns the matrices in the cache.
  static constexpr std::array<CachePart, 1> parts(const AttentionDims& d) { return {{{d.d_model}}}; }
  /// Returns the trained parameters.
  static constexpr Index parameter_count(const AttentionDims& d) { return FullRank::parameter_count(d); }
  /// Returns the operations that `remember` takes a frame.
  static constexpr Index remember_flops(const AttentionDims&) { return 0; }
  /// Returns the operations that `expand` takes a frame.
  static constexpr Index expand_flops(const AttentionDims& d) { return FullRank::remember_flops(d); }
  /// Returns the operations that `absorb` and `release` take a query.
  static constexpr Index absorb_flops(const AttentionDims& d) { return 2 * 2 * d.q_dim() * d.d_model; }
  /// Returns the shape of attention over the latents.
  static constexpr AbsorbedShape absorbed(const AttentionDims& d) { return {1, d.d_model, d.d_model}; }

  /// Computes keys and values from the cached input.
  template <class T>
  class Layer : public FullRank::Layer<T>, public AbsorbingLayer<Layer<T>> {
   public:
    /// Makes the layer with its initial parameters. Allocates.
    Layer(const AttentionDims& d, Seed seed)
        : FullRank::Layer<T>(d, seed), AbsorbingLayer<Layer>({d.num_heads, d.num_kv_heads}) {
      this->use_by_heads();
    }

    /// Returns what is cached of the inputs (rows, d_model).
    template <class Context, class Tensor>
    std::array<Tensor, 1> remember(Context&, const Tensor&, const Tensor& value_input) const {
      return {value_input};
    }
    /// Returns the keys and values of all key-value heads.
    template <class Context, class Tensor>
    KeysAndValues<Tensor> expand(Context& context, const std::array<Tensor, 1>& memory) const {
      return {this->linear_k(context, memory[0]), this->linear_v(context, memory[0])};
    }
    /// Lists the linear layers from the latent to the keys (see AbsorbingLayer).
    static auto key_up(auto& self) { return std::array{&self.linear_k}; }
    /// Lists the linear layers from the latent to the values (see AbsorbingLayer).
    static auto value_up(auto& self) { return std::array{&self.linear_v}; }
  };
};

}  // namespace LACONIC_ABI
}  // namespace laconic
