// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/heads.hpp>
#include <laconic/nn/linear.hpp>

namespace laconic::inline LACONIC_ABI {

// A key-value policy says what is kept of each frame and how keys and values come from it. It has
//   cache_floats(dims), parameter_count(dims), flops(dims)   constexpr, a frame and layer
//   resolved_rank(config)                                     its latent rank, 0 where it has none
//   Layer<T>, a Module with a constructor (dims, seed):
//     remember(context, x) -> Memory, expand(context, memory) -> KeysAndValues

template <class Tensor>
struct KeysAndValues {
  Tensor k, v;  ///< (rows, num_kv_heads * head_dim) each
};

/// Keys and values as they are: K = x W_K^T + b_K, V = x W_V^T + b_V; both are cached.
struct FullRank {
  static constexpr Index resolved_rank(const AttentionConfig& config) {
    require(config.kv_lora_rank == 0, "kv_lora_rank: ", config.kv_lora_rank, " configured for an attention without a latent");
    return 0;
  }
  static constexpr Index cache_floats(const AttentionDims& d) { return 2 * d.kv_dim(); }
  static constexpr Index parameter_count(const AttentionDims& d) { return 2 * d.kv_dim() * (d.d_model + 1); }
  static constexpr Index flops(const AttentionDims& d) { return 2 * 2 * d.kv_dim() * d.d_model; }

  template <class T>
  class Layer : public Module<Layer<T>> {
   public:
    Layer(const AttentionDims& d, Seed seed)
        : linear_k(d.d_model, d.kv_dim(), seed / "linear_k"), linear_v(d.d_model, d.kv_dim(), seed / "linear_v") {}

    template <class Context, class Tensor>
    KeysAndValues<Tensor> remember(Context& context, const Tensor& x) const {
      return {linear_k(context, x), linear_v(context, x)};
    }
    template <class Context, class Tensor>
    KeysAndValues<Tensor> expand(Context&, KeysAndValues<Tensor> memory) const {
      return memory;
    }

    static void each_parameter(auto& self, auto&& visit) {
      visit("linear_k", self.linear_k);
      visit("linear_v", self.linear_v);
    }

    Linear<T> linear_k, linear_v;
  };
};

/// One latent of R numbers a frame, from which all heads' keys and values are expanded: c = x A^T + b_c is cached,
/// K = c B_K^T + b_K, V = c B_V^T + b_V (DeepSeek-V2 2024, equations 9 to 11, without the decoupled rotary key).
template <Index R>
struct SharedLatent {
  static_assert(R == dyn || R > 0, "laconic: the latent rank must be positive, or `dyn`");

  static constexpr Index resolved_rank(const AttentionConfig& config) {
    const Index rank = resolve<R>(config.kv_lora_rank, "kv_lora_rank");
    require(rank <= config.d_model, "kv_lora_rank: ", rank, " given, at most d_model = ", config.d_model,
            " expected (a larger latent holds nothing more)");
    return rank;
  }
  static constexpr Index cache_floats(const AttentionDims& d) { return d.kv_lora_rank; }
  static constexpr Index parameter_count(const AttentionDims& d) {
    return d.kv_lora_rank * (d.d_model + 1) + 2 * d.kv_dim() * (d.kv_lora_rank + 1);
  }
  static constexpr Index flops(const AttentionDims& d) { return 2 * d.kv_lora_rank * (d.d_model + 2 * d.kv_dim()); }

  template <class T>
  class Layer : public Module<Layer<T>> {
   public:
    Layer(const AttentionDims& d, Seed seed)
        : linear_kv_down(d.d_model, d.kv_lora_rank, seed / "linear_kv_down"),
          linear_k_up(d.kv_lora_rank, d.kv_dim(), seed / "linear_k_up"),
          linear_v_up(d.kv_lora_rank, d.kv_dim(), seed / "linear_v_up") {}

    template <class Context, class Tensor>
    Tensor remember(Context& context, const Tensor& x) const {
      return linear_kv_down(context, x);
    }
    template <class Context, class Tensor>
    KeysAndValues<Tensor> expand(Context& context, const Tensor& latent) const {
      return {linear_k_up(context, latent), linear_v_up(context, latent)};
    }

    static void each_parameter(auto& self, auto&& visit) {
      visit("linear_kv_down", self.linear_kv_down);
      visit("linear_k_up", self.linear_k_up);
      visit("linear_v_up", self.linear_v_up);
    }

    Linear<T> linear_kv_down, linear_k_up, linear_v_up;
  };
};

}  // namespace laconic
