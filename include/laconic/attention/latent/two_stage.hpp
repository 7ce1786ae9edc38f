// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/latent/shared.hpp>

namespace laconic {
inline namespace LACONIC_ABI {

/// Caches one latent for all heads, as `SharedLatent` does, and expands it in two steps for each:
/// K_i = (c W_KA,i + b) W_KB,i + b, V likewise. It represents the functions of `SharedLatent`; training takes another
/// way to them.
template <Index R>
struct TwoStageLatent : LatentPolicy {
  static_assert(R == dyn || R > 0, "laconic: the latent rank must be positive, or `dyn`");
  static constexpr bool one_input = true;  ///< keys and values need the same input
  static constexpr Index num_parts = 1;    ///< matrices in the cache

  /// Resolves the ranks into the dims. Throws Error where type and configuration contradict each other.
  static constexpr void set_ranks(const AttentionConfig& c, AttentionDims& d) { SharedLatent<R>::set_ranks(c, d); }
  /// Returns the matrices in the cache.
  static constexpr std::array<CachePart, 1> parts(const AttentionDims& d) { return {{{d.kv_lora_rank}}}; }
  /// Returns the trained parameters.
  static constexpr Index parameter_count(const AttentionDims& d) {
    return SharedLatent<R>::parameter_count(d) + 2 * d.kv_dim() * (d.head_dim + d.bias);
  }
  /// Returns the operations that `remember` takes a frame.
  static constexpr Index remember_flops(const AttentionDims& d) { return SharedLatent<R>::remember_flops(d); }
  /// Returns the operations that `expand` takes a frame.
  static constexpr Index expand_flops(const AttentionDims& d) {
    return 2 * 2 * d.kv_dim() * (d.kv_lora_rank + d.head_dim);
  }
  /// Returns the operations that `absorb` and `release` take a query.
  static constexpr Index absorb_flops(const AttentionDims& d) {
    return 2 * 2 * d.q_dim() * (d.kv_lora_rank + d.head_dim);
  }
  /// Returns the shape of attention over the latents.
  static constexpr AbsorbedShape absorbed(const AttentionDims& d) { return {1, d.kv_lora_rank, d.kv_lora_rank}; }

  /// Projects the input to the latent, and the latent to keys and values in two steps.
  template <class T>
  class Layer : public Module<Layer<T>>, public AbsorbingLayer<Layer<T>> {
   public:
    /// Makes the layer with its initial parameters. Allocates.
    Layer(const AttentionDims& d, Seed seed)
        : AbsorbingLayer<Layer>({d.num_heads, d.num_kv_heads}),
          linear_kv_down(d.d_model, d.kv_lora_rank, seed / "linear_kv_down", bias_if(d.bias)),
          linear_k_a(d.kv_lora_rank, d.kv_dim(), seed / "linear_k_a", bias_if(d.bias)),
          linear_k_b(d.head_dim, d.kv_dim(), seed / "linear_k_b", bias_if(d.bias)),
          linear_v_a(d.kv_lora_rank, d.kv_dim(), seed / "linear_v_a", bias_if(d.bias)),
          linear_v_b(d.head_dim, d.kv_dim(), seed / "linear_v_b", bias_if(d.bias)) {
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
      const HeadShape each{this->heads().num_blocks, this->heads().num_blocks};
      return {this->expand_heads(context, linear_k_a(context, memory[0]), std::array{&linear_k_b}, each),
              this->expand_heads(context, linear_v_a(context, memory[0]), std::array{&linear_v_b}, each)};
    }
    /// Lists the linear layers from the latent to the keys (see AbsorbingLayer).
    static auto key_up(auto& self) { return std::array{&self.linear_k_a, &self.linear_k_b}; }
    /// Lists the linear layers from the latent to the values (see AbsorbingLayer).
    static auto value_up(auto& self) { return std::array{&self.linear_v_a, &self.linear_v_b}; }
    /// Returns the first weight that the value input is multiplied by.
    const Parameter<T>& value_weight() const { return linear_kv_down.weight; }

    /// Visits the parameters with their names (see Module).
    static void each_parameter(auto& self, auto&& visit) {
      visit("linear_kv_down", self.linear_kv_down);
      visit("linear_k_a", self.linear_k_a);
      visit("linear_k_b", self.linear_k_b);
      visit("linear_v_a", self.linear_v_a);
      visit("linear_v_b", self.linear_v_b);
    }

    Linear<T> linear_kv_down;  ///< from d_model to the latent
    Linear<T> linear_k_a;      ///< from the latent to all heads
    Linear<T> linear_k_b;      ///< from a head to its keys; the weight stacks (head_dim, head_dim) of every head
    Linear<T> linear_v_a;      ///< from the latent to all heads
    Linear<T> linear_v_b;      ///< from a head to its values; the weight stacks (head_dim, head_dim) of every head
  };
};

}  // namespace LACONIC_ABI
}  // namespace laconic
