// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/latent/absorbing.hpp>

namespace laconic {
inline namespace LACONIC_ABI {

/// Caches one latent of R elements a frame, from which the keys and values of all heads are expanded:
/// c = x A^T + b_c, K = c B_K^T + b_K, V = c B_V^T + b_V (DeepSeek-V2 2024, equations 9 to 11, without the decoupled
/// rotary key).
template <Index R>
struct SharedLatent : LatentPolicy {
  static_assert(R == dyn || R > 0, "laconic: the latent rank must be positive, or `dyn`");
  static constexpr bool one_input = true;  ///< keys and values need the same input
  static constexpr Index num_parts = 1;    ///< matrices in the cache

  /// Resolves the ranks into the dims. Throws Error where type and configuration contradict each other.
  static constexpr void set_ranks(const AttentionConfig& c, AttentionDims& d) {
    d.kv_lora_rank = resolve_rank<R>(c.kv_lora_rank, "kv_lora_rank", c.d_model, "d_model");
    require_no_rank(c.v_lora_rank, "v_lora_rank");
    require_no_rank(c.qk_rope_head_dim, "qk_rope_head_dim");
  }
  /// Returns the matrices in the cache.
  static constexpr std::array<CachePart, 1> parts(const AttentionDims& d) { return {{{d.kv_lora_rank}}}; }
  /// Returns the trained parameters.
  static constexpr Index parameter_count(const AttentionDims& d) {
    return d.kv_lora_rank * (d.d_model + d.bias) + 2 * d.kv_dim() * (d.kv_lora_rank + d.bias);
  }
  /// Returns the operations that `remember` takes a frame.
  static constexpr Index remember_flops(const AttentionDims& d) { return 2 * d.kv_lora_rank * d.d_model; }
  /// Returns the operations that `expand` takes a frame.
  static constexpr Index expand_flops(const AttentionDims& d) { return 2 * d.kv_lora_rank * 2 * d.kv_dim(); }
  /// Returns the operations that `absorb` and `release` take a query.
  static constexpr Index absorb_flops(const AttentionDims& d) { return 2 * 2 * d.q_dim() * d.kv_lora_rank; }
  /// Returns the shape of attention over the latents.
  static constexpr AbsorbedShape absorbed(const AttentionDims& d) { return {1, d.kv_lora_rank, d.kv_lora_rank}; }

  /// Projects the input to the latent, and the latent to keys and values.
  template <class T>
  class Layer : public Module<Layer<T>>, public AbsorbingLayer<Layer<T>> {
   public:
    /// Makes the layer with its initial parameters. Allocates.
    Layer(const AttentionDims& d, Seed seed)
        : AbsorbingLayer<Layer>({d.num_heads, d.num_kv_heads}),
          linear_kv_down(d.d_model, d.kv_lora_rank, seed / "linear_kv_down", bias_if(d.bias)),
          linear_k_up(d.kv_lora_rank, d.kv_dim(), seed / "linear_k_up", bias_if(d.bias)),
          linear_v_up(d.kv_lora_rank, d.kv_dim(), seed / "linear_v_up", bias_if(d.bias)) {
      this->use_by_heads();
    }

    /// Returns what is cached of the inputs (rows, d_model).
    template <class Context, class Tensor>
    std::array<Tensor, 1> remember(Context& context, const Tensor&, const Tensor& value_input) const {
      return {linear_kv_down(context, value_input)};
    }
    /// Returns the keys and values of all key-value heads.
    template <class Context, class Tensor>
    KeysAndValues<Tensor> expand(Context& context, const std::array<Tensor, 1>& memory) const {
      return {linear_k_up(context, memory[0]), linear_v_up(context, memory[0])};
    }
    /// Lists the linear layers from the latent to the keys (see AbsorbingLayer).
    static auto key_up(auto& self) { return std::array{&self.linear_k_up}; }
    /// Lists the linear layers from the latent to the values (see AbsorbingLayer).
    static auto value_up(auto& self) { return std::array{&self.linear_v_up}; }
    /// Returns the first weight that the value input is multiplied by.
    const Parameter<T>& value_weight() const { return linear_kv_down.weight; }

    /// Visits the parameters with their names (see Module).
    static void each_parameter(auto& self, auto&& visit) {
      visit("linear_kv_down", self.linear_kv_down);
      visit("linear_k_up", self.linear_k_up);
      visit("linear_v_up", self.linear_v_up);
    }

    Linear<T> linear_kv_down;  ///< from d_model to the latent
    Linear<T> linear_k_up;     ///< from the latent to keys
    Linear<T> linear_v_up;     ///< from the latent to values
  };
};

}  // namespace LACONIC_ABI
}  // namespace laconic
