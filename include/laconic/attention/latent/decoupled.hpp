// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/latent/shared.hpp>
#include <laconic/nn/norm.hpp>

namespace laconic {
inline namespace LACONIC_ABI {

/// Caches what DeepSeek-V2 does (2024, section 2.1): one latent of R elements with a norm on it, and one rotary key of
/// RopeDim elements a frame that all heads share: c = norm(x A^T), k_R = rotary(x W_KR^T + b_KR). Keys are
/// [c B_K^T, k_R], so no rotation stands between latent and key. If configured, the rotary key and the expansions have
/// biases.
template <Index R, Index RopeDim, template <class> class Norm = RmsNorm>
struct DecoupledLatent : LatentPolicy {
  static_assert(R == dyn || R > 0, "laconic: the latent rank must be positive, or `dyn`");
  static_assert(RopeDim == dyn || (RopeDim > 0 && RopeDim % 2 == 0),
                "laconic: a rotary key rotates pairs, so its width must be even, or `dyn`");
  static constexpr bool one_input = true;                 ///< keys and values need the same input
  static constexpr bool latents_are_memory = false;       ///< they are computed from the memory
  static constexpr Index num_parts = 2;                   ///< matrices in the cache
  static constexpr std::optional<Index> rotary_part = 1;  ///< the rotary key

  /// Resolves the ranks into the dims. Throws Error where type and configuration contradict each other.
  static constexpr void set_ranks(const AttentionConfig& c, AttentionDims& d) {
    d.kv_lora_rank = resolve_rank<R>(c.kv_lora_rank, "kv_lora_rank", c.d_model, "d_model");
    d.qk_rope_head_dim = resolve<RopeDim>(c.qk_rope_head_dim, "qk_rope_head_dim");
    require(d.qk_rope_head_dim % 2 == 0, "qk_rope_head_dim: ", d.qk_rope_head_dim, " given, an even number expected");
    d.rope_pairs = c.rope_pairs;
    require(d.rope_pairs.size() == 0 || 2 * d.rope_pairs.size() == d.qk_rope_head_dim,
            "rope_pairs: ", d.rope_pairs.size(), " given, half of qk_rope_head_dim = ", d.qk_rope_head_dim,
            " expected");
    for (const Index pair : d.rope_pairs)
      require(pair >= 0 && 2 * pair < d.head_dim, "rope_pairs: ", pair,
              " given, 0 to less than half of head_dim = ", d.head_dim, " expected");
    require_no_rank(c.v_lora_rank, "v_lora_rank");
  }
  /// Returns the matrices in the cache.
  static constexpr std::array<CachePart, 2> parts(const AttentionDims& d) {
    return {{{d.kv_lora_rank}, {d.qk_rope_head_dim, true}}};
  }
  /// Returns the trained parameters.
  static constexpr Index parameter_count(const AttentionDims& d) {
    return (d.kv_lora_rank + d.qk_rope_head_dim) * d.d_model + d.bias * d.qk_rope_head_dim +
           Norm<float>::parameter_count(d.kv_lora_rank) + 2 * d.kv_dim() * (d.kv_lora_rank + d.bias);
  }
  /// Returns the operations that `remember` takes a frame.
  static constexpr Index remember_flops(const AttentionDims& d) {
    return 2 * (d.kv_lora_rank + d.qk_rope_head_dim) * d.d_model;
  }
  /// Returns the operations that `expand` takes a frame.
  static constexpr Index expand_flops(const AttentionDims& d) { return SharedLatent<R>::expand_flops(d); }
  /// Returns the operations that `absorb` and `release` take a query.
  static constexpr Index absorb_flops(const AttentionDims& d) { return SharedLatent<R>::absorb_flops(d); }
  /// Returns the shape of attention over the latents.
  static constexpr AbsorbedShape absorbed(const AttentionDims& d) {
    return {1, d.kv_lora_rank + d.qk_rope_head_dim, d.kv_lora_rank};
  }

  /// Projects the input to the latent and to the rotary key, and the latent to keys and values.
  template <class T>
  class Layer : public Module<Layer<T>>, public AbsorbingLayer<Layer<T>> {
   public:
    /// Makes the layer with its initial parameters. Allocates.
    Layer(const AttentionDims& d, Seed seed)
        : AbsorbingLayer<Layer>({d.num_heads, d.num_kv_heads}),
          linear_kv_down(d.d_model, d.kv_lora_rank, seed / "linear_kv_down", Bias::no),
          kv_norm(d.kv_lora_rank),
          linear_k_rope(d.d_model, d.qk_rope_head_dim, seed / "linear_k_rope", bias_if(d.bias)),
          linear_k_up(d.kv_lora_rank, d.kv_dim(), seed / "linear_k_up", bias_if(d.bias)),
          linear_v_up(d.kv_lora_rank, d.kv_dim(), seed / "linear_v_up", bias_if(d.bias)) {
      this->use_by_heads();
    }

    /// Returns what is cached of the inputs (rows, d_model).
    template <class Context, class Tensor>
    std::array<Tensor, 2> remember(Context& context, const Tensor&, const Tensor& value_input) const {
      return {kv_norm(context, linear_kv_down(context, value_input)), linear_k_rope(context, value_input)};
    }
    /// Returns the keys and values of all key-value heads.
    template <class Context, class Tensor>
    KeysAndValues<Tensor> expand(Context& context, const std::array<Tensor, 2>& memory) const {
      return {context.concat(linear_k_up(context, memory[0]), memory[1], this->heads().num_blocks, 1),
              linear_v_up(context, memory[0])};
    }
    /// Returns keys (rows, latent and rotary key) and values (rows, latent), one head of each.
    template <class Context, class Tensor>
    KeysAndValues<Tensor> latents(Context& context, const std::array<Tensor, 2>& memory) const {
      return {context.concat(memory[0], memory[1]), memory[0]};
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
      visit("kv_norm", self.kv_norm);
      visit("linear_k_rope", self.linear_k_rope);
      visit("linear_k_up", self.linear_k_up);
      visit("linear_v_up", self.linear_v_up);
    }

    Linear<T> linear_kv_down;  ///< from d_model to the latent
    Norm<T> kv_norm;           ///< the norm of the latent
    Linear<T> linear_k_rope;   ///< from d_model to the rotary key
    Linear<T> linear_k_up;     ///< from the latent to keys
    Linear<T> linear_v_up;     ///< from the latent to values
  };
};

}  // namespace LACONIC_ABI
}  // namespace laconic
