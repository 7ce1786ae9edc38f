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
  static constexpr bool one_input = true;
  static constexpr Index num_parts = 1;

  static constexpr void set_ranks(const AttentionConfig& c, AttentionDims& d) { SharedLatent<R>::set_ranks(c, d); }
  static constexpr std::array<CachePart, 1> parts(const AttentionDims& d) { return {{{d.kv_lora_rank}}}; }
  static constexpr Index parameter_count(const AttentionDims& d) {
    return SharedLatent<R>::parameter_count(d) + 2 * d.kv_dim() * (d.head_dim + d.bias);
  }
  static constexpr Index remember_flops(const AttentionDims& d) { return SharedLatent<R>::remember_flops(d); }
  static constexpr Index expand_flops(const AttentionDims& d) {
    return 2 * 2 * d.kv_dim() * (d.kv_lora_rank + d.head_dim);
  }
  static constexpr Index absorb_flops(const AttentionDims& d) {
    return 2 * 2 * d.q_dim() * (d.kv_lora_rank + d.head_dim);
  }
  static constexpr AbsorbedShape absorbed(const AttentionDims& d) { return {1, d.kv_lora_rank, d.kv_lora_rank}; }

  /// Projects the input to the latent, and the latent to keys and values in two steps.
  template <class T>
  class Layer : public Module<Layer<T>>, public AbsorbingLayer<Layer<T>> {
   public:
    Layer(const AttentionDims& d, Seed seed)
        : AbsorbingLayer<Layer>({d.num_heads, d.num_kv_heads}),
          linear_kv_down(d.d_model, d.kv_lora_rank, seed / "linear_kv_down", bias_if(d.bias)),
          linear_k_a(d.kv_lora_rank, d.kv_dim(), seed / "linear_k_a", bias_if(d.bias)),
          linear_k_b(d.head_dim, d.kv_dim(), seed / "linear_k_b", bias_if(d.bias)),
          linear_v_a(d.kv_lora_rank, d.kv_dim(), seed / "linear_v_a", bias_if(d.bias)),
          linear_v_b(d.head_dim, d.kv_dim(), seed / "linear_v_b", bias_if(d.bias)) {
      this->use_by_heads();
    }

    template <class Context, class Tensor>
    std::array<Tensor, 1> remember(Context& context, const Tensor&, const Tensor& value_input) const {
      return {linear_kv_down(context, value_input)};
    }
    template <class Context, class Tensor>
    KeysAndValues<Tensor> expand(Context& context, const std::array<Tensor, 1>& memory) const {
      const HeadShape each{this->heads().num_blocks, this->heads().num_blocks};
      return {this->expand_heads(context, linear_k_a(context, memory[0]), std::array{&linear_k_b}, each),
              this->expand_heads(context, linear_v_a(context, memory[0]), std::array{&linear_v_b}, each)};
    }
    static auto key_up(auto& self) { return std::array{&self.linear_k_a, &self.linear_k_b}; }
    static auto value_up(auto& self) { return std::array{&self.linear_v_a, &self.linear_v_b}; }
    const Parameter<T>& value_weight() const { return linear_kv_down.weight; }

    static void each_parameter(auto& self, auto&& visit) {
      visit("linear_kv_down", self.linear_kv_down);
      visit("linear_k_a", self.linear_k_a);
      visit("linear_k_b", self.linear_k_b);
      visit("linear_v_a", self.linear_v_a);
      visit("linear_v_b", self.linear_v_b);
    }

    /// The weights of `_b` stack one (head_dim, head_dim) matrix for every key-value head.
    Linear<T> linear_kv_down, linear_k_a, linear_k_b, linear_v_a, linear_v_b;
  };
};

}  // namespace LACONIC_ABI
}  // namespace laconic
