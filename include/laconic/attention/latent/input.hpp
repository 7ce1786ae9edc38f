// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/latent/absorbing.hpp>

namespace laconic {
inline namespace LACONIC_ABI {

/// Caches the layer's input, from which keys and values are computed as `FullRank` does: a lossless latent of d_model
/// elements a frame, and one that all layers with the same input share (the cross-attention of a decoder).
struct InputLatent : LatentPolicy {
  static constexpr bool one_input = true;
  static constexpr Index num_parts = 1;

  static constexpr void set_ranks(const AttentionConfig& c, AttentionDims& d) { FullRank::set_ranks(c, d); }
  static constexpr std::array<CachePart, 1> parts(const AttentionDims& d) { return {{{d.d_model}}}; }
  static constexpr Index parameter_count(const AttentionDims& d) { return FullRank::parameter_count(d); }
  static constexpr Index remember_flops(const AttentionDims&) { return 0; }
  static constexpr Index expand_flops(const AttentionDims& d) { return FullRank::remember_flops(d); }
  static constexpr Index absorb_flops(const AttentionDims& d) { return 2 * 2 * d.q_dim() * d.d_model; }
  static constexpr AbsorbedShape absorbed(const AttentionDims& d) { return {1, d.d_model, d.d_model}; }

  /// Computes keys and values from the cached input.
  template <class T>
  class Layer : public FullRank::Layer<T>, public AbsorbingLayer<Layer<T>> {
   public:
    Layer(const AttentionDims& d, Seed seed)
        : FullRank::Layer<T>(d, seed), AbsorbingLayer<Layer>({d.num_heads, d.num_kv_heads}) {
      this->use_by_heads();
    }

    template <class Context, class Tensor>
    std::array<Tensor, 1> remember(Context&, const Tensor&, const Tensor& value_input) const {
      return {value_input};
    }
    template <class Context, class Tensor>
    KeysAndValues<Tensor> expand(Context& context, const std::array<Tensor, 1>& memory) const {
      return {this->linear_k(context, memory[0]), this->linear_v(context, memory[0])};
    }
    static auto key_up(auto& self) { return std::array{&self.linear_k}; }
    static auto value_up(auto& self) { return std::array{&self.linear_v}; }
  };
};

}  // namespace LACONIC_ABI
}  // namespace laconic
