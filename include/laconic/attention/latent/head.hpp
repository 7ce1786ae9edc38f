// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/latent/absorbing.hpp>

namespace laconic {
inline namespace LACONIC_ABI {

/// Caches a latent of R elements for the keys and one of ValueRank elements for the values of every key-value head, and
/// expands all heads by the same matrices: K_i = c_K,i E_K^T with E_K (head_dim, R), V_i likewise. A ValueRank of 0 is
/// R. A low-rank expansion of a wider latent, V_i = c_i E_1^T E_2^T, would represent the same functions with more
/// parameters, because c_i E_1^T is linear in the input, too. Absorbed, it is multi-head attention whose heads have R
/// channels of keys and ValueRank of values.
template <Index R, Index ValueRank = 0>
struct HeadLatent : LatentPolicy {
  static_assert(R == dyn || R > 0, "laconic: the latent rank must be positive, or `dyn`");
  static_assert(ValueRank == dyn || ValueRank >= 0,
                "laconic: the rank of the values must be positive, 0 for that of the keys, or `dyn`");
  static constexpr bool one_input = false;  ///< keys and values may have different inputs
  static constexpr Index num_parts = 2;     ///< matrices in the cache

  /// Resolves the ranks into the dims. Throws Error where type and configuration contradict each other.
  static constexpr void set_ranks(const AttentionConfig& c, AttentionDims& d) {
    d.kv_lora_rank = resolve_rank<R>(c.kv_lora_rank, "kv_lora_rank", d.head_dim, "head_dim");
    const bool as_keys = ValueRank == 0 || (ValueRank == dyn && c.v_lora_rank == 0);
    require(ValueRank != 0 || c.v_lora_rank == 0 || c.v_lora_rank == d.kv_lora_rank, "v_lora_rank: ", c.v_lora_rank,
            " configured, but the type says that of the keys, ", d.kv_lora_rank);
    d.v_lora_rank =
        as_keys ? d.kv_lora_rank : resolve_rank<ValueRank>(c.v_lora_rank, "v_lora_rank", d.head_dim, "head_dim");
    require_no_rank(c.qk_rope_head_dim, "qk_rope_head_dim");
  }
  /// Returns the matrices in the cache.
  static constexpr std::array<CachePart, 2> parts(const AttentionDims& d) {
    return {{{d.num_kv_heads * d.kv_lora_rank}, {d.num_kv_heads * d.v_lora_rank}}};
  }
  /// Returns the trained parameters.
  static constexpr Index parameter_count(const AttentionDims& d) {
    return (d.kv_lora_rank + d.v_lora_rank) * (d.num_kv_heads * (d.d_model + d.bias) + d.head_dim);
  }
  /// Returns the operations that `remember` takes a frame.
  static constexpr Index remember_flops(const AttentionDims& d) {
    return 2 * d.num_kv_heads * (d.kv_lora_rank + d.v_lora_rank) * d.d_model;
  }
  /// Returns the operations that `expand` takes a frame.
  static constexpr Index expand_flops(const AttentionDims& d) {
    return 2 * (d.kv_lora_rank + d.v_lora_rank) * d.kv_dim();
  }
  /// Returns the operations that `absorb` and `release` take a query.
  static constexpr Index absorb_flops(const AttentionDims& d) {
    return 2 * (d.kv_lora_rank + d.v_lora_rank) * d.q_dim();
  }
  /// Returns the shape of attention over the latents.
  static constexpr AbsorbedShape absorbed(const AttentionDims& d) {
    return {d.num_kv_heads, d.kv_lora_rank, d.v_lora_rank};
  }

  /// Projects the inputs to the latents of every head, and these to keys and values.
  template <class T>
  class Layer : public Module<Layer<T>>, public AbsorbingLayer<Layer<T>> {
   public:
    /// Makes the layer with its initial parameters. Allocates.
    Layer(const AttentionDims& d, Seed seed)
        : AbsorbingLayer<Layer>({d.num_heads, 1}),
          linear_k_down(d.d_model, d.num_kv_heads * d.kv_lora_rank, seed / "linear_k_down", bias_if(d.bias)),
          linear_v_down(d.d_model, d.num_kv_heads * d.v_lora_rank, seed / "linear_v_down", bias_if(d.bias)),
          k_expand(d.kv_lora_rank, d.head_dim, seed / "k_expand", Bias::no),
          v_expand(d.v_lora_rank, d.head_dim, seed / "v_expand", Bias::no),
          num_kv_heads_(d.num_kv_heads) {
      this->use_by_heads();
    }

    /// Returns what is cached of the inputs (rows, d_model).
    template <class Context, class Tensor>
    std::array<Tensor, 2> remember(Context& context, const Tensor& key_input, const Tensor& value_input) const {
      return {linear_k_down(context, key_input), linear_v_down(context, value_input)};
    }
    /// Returns the keys and values of all key-value heads.
    template <class Context, class Tensor>
    KeysAndValues<Tensor> expand(Context& context, const std::array<Tensor, 2>& memory) const {
      const HeadShape each{num_kv_heads_, 1};
      return {this->expand_heads(context, memory[0], key_up(*this), each),
              this->expand_heads(context, memory[1], value_up(*this), each)};
    }
    /// Lists the linear layers from the latent to the keys (see AbsorbingLayer).
    static auto key_up(auto& self) { return std::array{&self.k_expand}; }
    /// Lists the linear layers from the latent to the values (see AbsorbingLayer).
    static auto value_up(auto& self) { return std::array{&self.v_expand}; }
    /// Returns the first weight that the value input is multiplied by.
    const Parameter<T>& value_weight() const { return linear_v_down.weight; }

    /// Visits the parameters with their names (see Module).
    static void each_parameter(auto& self, auto&& visit) {
      visit("linear_k_down", self.linear_k_down);
      visit("linear_v_down", self.linear_v_down);
      visit("k_expand", self.k_expand);
      visit("v_expand", self.v_expand);
    }

    Linear<T> linear_k_down;  ///< from d_model to the latents of all heads' keys
    Linear<T> linear_v_down;  ///< from d_model to the latents of all heads' values
    Linear<T> k_expand;       ///< from a head's latent to its keys
    Linear<T> v_expand;       ///< from a head's latent to its values

   private:
    Index num_kv_heads_;
  };
};

}  // namespace LACONIC_ABI
}  // namespace laconic
