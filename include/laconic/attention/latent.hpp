// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/key_value.hpp>

namespace laconic {
inline namespace LACONIC_ABI {

// Key-value policies that cache less than d_model numbers a frame. A bias on the keys moves all scores of a query alike
// and so needs no absorbing; one on the values is added once, since probabilities sum to 1.

/// A latent rank from type and configuration, at most `most`, which holds everything.
template <Index R>
constexpr Index resolve_rank(Index configured, const char* name, Index most, const char* most_name) {
  const Index rank = resolve<R>(configured, name);
  require(rank <= most, name, ": ", rank, " given, at most ", most_name, " = ", most,
          " expected (a larger latent holds nothing more)");
  return rank;
}

/// One latent of R numbers a frame, from which all heads' keys and values are expanded: c = x A^T + b_c is cached,
/// K = c B_K^T + b_K, V = c B_V^T + b_V (DeepSeek-V2 2024, equations 9 to 11, without the decoupled rotary key).
template <Index R>
struct SharedLatent {
  static_assert(R == dyn || R > 0, "laconic: the latent rank must be positive, or `dyn`");
  static constexpr bool is_latent = true, one_input = true, latents_are_memory = true;
  static constexpr Index num_parts = 1, rotary_part = -1;

  static constexpr void set_ranks(const AttentionConfig& c, AttentionDims& d) {
    d.kv_lora_rank = resolve_rank<R>(c.kv_lora_rank, "kv_lora_rank", c.d_model, "d_model");
    require_no_rank(c.v_lora_rank, "v_lora_rank");
    require_no_rank(c.qk_rope_head_dim, "qk_rope_head_dim");
  }
  static constexpr std::array<CachePart, 1> parts(const AttentionDims& d) { return {{{d.kv_lora_rank}}}; }
  static constexpr Index parameter_count(const AttentionDims& d) {
    return d.kv_lora_rank * (d.d_model + d.bias) + 2 * d.kv_dim() * (d.kv_lora_rank + d.bias);
  }
  static constexpr Index remember_flops(const AttentionDims& d) { return 2 * d.kv_lora_rank * d.d_model; }
  static constexpr Index expand_flops(const AttentionDims& d) { return 2 * d.kv_lora_rank * 2 * d.kv_dim(); }
  static constexpr Index absorb_flops(const AttentionDims& d) { return 2 * 2 * d.q_dim() * d.kv_lora_rank; }
  static constexpr AbsorbedShape absorbed(const AttentionDims& d) { return {1, d.kv_lora_rank, d.kv_lora_rank}; }

  template <class T>
  class Layer : public Module<Layer<T>> {
   public:
    Layer(const AttentionDims& d, Seed seed)
        : linear_kv_down(d.d_model, d.kv_lora_rank, seed / "linear_kv_down", bias_if(d.bias)),
          linear_k_up(d.kv_lora_rank, d.kv_dim(), seed / "linear_k_up", bias_if(d.bias)),
          linear_v_up(d.kv_lora_rank, d.kv_dim(), seed / "linear_v_up", bias_if(d.bias)),
          heads_{d.num_heads, d.num_kv_heads} {
      used_by_heads(linear_k_up, linear_v_up);
    }

    template <class Context, class Tensor>
    std::array<Tensor, 1> remember(Context& context, const Tensor&, const Tensor& value_input) const {
      return {linear_kv_down(context, value_input)};
    }
    template <class Context, class Tensor>
    KeysAndValues<Tensor> expand(Context& context, const std::array<Tensor, 1>& memory) const {
      return {linear_k_up(context, memory[0]), linear_v_up(context, memory[0])};
    }
    template <class Context, class Tensor>
    Tensor absorb(Context& context, const Tensor& q) const {
      return context.head_linear(q, linear_k_up.weight, nullptr, {heads_.num_heads, heads_.num_blocks, true});
    }
    template <class Context, class Tensor>
    KeysAndValues<Tensor> latents(Context&, const std::array<Tensor, 1>& memory) const {
      return {memory[0], memory[0]};
    }
    template <class Context, class Tensor>
    Tensor release(Context& context, const Tensor& out) const {
      return context.head_linear(out, linear_v_up.weight, linear_v_up.bias_or_null(), heads_);
    }
    const Parameter<T>& value_weight() const { return linear_kv_down.weight; }

    static void each_parameter(auto& self, auto&& visit) {
      visit("linear_kv_down", self.linear_kv_down);
      visit("linear_k_up", self.linear_k_up);
      visit("linear_v_up", self.linear_v_up);
    }

    Linear<T> linear_kv_down, linear_k_up, linear_v_up;

   private:
    HeadShape heads_;
  };
};

/// One latent for all heads, and two steps from it to each: K_i = (c W_KA,i + b) W_KB,i + b, V likewise. The same
/// functions as `SharedLatent` has, with other ways for training to find them.
template <Index R>
struct TwoStageLatent {
  static_assert(R == dyn || R > 0, "laconic: the latent rank must be positive, or `dyn`");
  static constexpr bool is_latent = true, one_input = true, latents_are_memory = true;
  static constexpr Index num_parts = 1, rotary_part = -1;

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

  template <class T>
  class Layer : public Module<Layer<T>> {
   public:
    Layer(const AttentionDims& d, Seed seed)
        : linear_kv_down(d.d_model, d.kv_lora_rank, seed / "linear_kv_down", bias_if(d.bias)),
          linear_k_a(d.kv_lora_rank, d.kv_dim(), seed / "linear_k_a", bias_if(d.bias)),
          linear_k_b(d.head_dim, d.kv_dim(), seed / "linear_k_b", bias_if(d.bias)),
          linear_v_a(d.kv_lora_rank, d.kv_dim(), seed / "linear_v_a", bias_if(d.bias)),
          linear_v_b(d.head_dim, d.kv_dim(), seed / "linear_v_b", bias_if(d.bias)),
          heads_{d.num_heads, d.num_kv_heads} {
      used_by_heads(linear_k_a, linear_k_b, linear_v_a, linear_v_b);
    }

    template <class Context, class Tensor>
    std::array<Tensor, 1> remember(Context& context, const Tensor&, const Tensor& value_input) const {
      return {linear_kv_down(context, value_input)};
    }
    template <class Context, class Tensor>
    KeysAndValues<Tensor> expand(Context& context, const std::array<Tensor, 1>& memory) const {
      const HeadShape each{heads_.num_blocks, heads_.num_blocks};
      return {context.head_linear(linear_k_a(context, memory[0]), linear_k_b.weight, linear_k_b.bias_or_null(), each),
              context.head_linear(linear_v_a(context, memory[0]), linear_v_b.weight, linear_v_b.bias_or_null(), each)};
    }
    template <class Context, class Tensor>
    Tensor absorb(Context& context, const Tensor& q) const {
      const HeadShape transposed{heads_.num_heads, heads_.num_blocks, true};
      return context.head_linear(context.head_linear(q, linear_k_b.weight, nullptr, transposed), linear_k_a.weight,
                                 nullptr, transposed);
    }
    template <class Context, class Tensor>
    KeysAndValues<Tensor> latents(Context&, const std::array<Tensor, 1>& memory) const {
      return {memory[0], memory[0]};
    }
    template <class Context, class Tensor>
    Tensor release(Context& context, const Tensor& out) const {
      return context.head_linear(context.head_linear(out, linear_v_a.weight, linear_v_a.bias_or_null(), heads_),
                                 linear_v_b.weight, linear_v_b.bias_or_null(), heads_);
    }
    const Parameter<T>& value_weight() const { return linear_kv_down.weight; }

    static void each_parameter(auto& self, auto&& visit) {
      visit("linear_kv_down", self.linear_kv_down);
      visit("linear_k_a", self.linear_k_a);
      visit("linear_k_b", self.linear_k_b);
      visit("linear_v_a", self.linear_v_a);
      visit("linear_v_b", self.linear_v_b);
    }

    /// The `_b` ones hold a (head_dim, head_dim) matrix for every key-value head, one below the other.
    Linear<T> linear_kv_down, linear_k_a, linear_k_b, linear_v_a, linear_v_b;

   private:
    HeadShape heads_;
  };
};

/// A latent for the keys and one for the values: c_K = x A_K^T + b, K = c_K B_K^T, V likewise (Palu, Chang et al.
/// 2024). Keys and values may so come from different inputs.
template <Index RK, Index RV = RK>
struct SplitLatent {
  static_assert((RK == dyn || RK > 0) && (RV == dyn || RV > 0), "laconic: the latent rank must be positive, or `dyn`");
  static constexpr bool is_latent = true, one_input = false, latents_are_memory = true;
  static constexpr Index num_parts = 2, rotary_part = -1;

  static constexpr void set_ranks(const AttentionConfig& c, AttentionDims& d) {
    d.kv_lora_rank = resolve_rank<RK>(c.kv_lora_rank, "kv_lora_rank", c.d_model, "d_model");
    d.v_lora_rank = resolve_rank<RV>(RV == dyn && c.v_lora_rank == 0 ? d.kv_lora_rank : c.v_lora_rank, "v_lora_rank",
                                     c.d_model, "d_model");
    require_no_rank(c.qk_rope_head_dim, "qk_rope_head_dim");
  }
  static constexpr std::array<CachePart, 2> parts(const AttentionDims& d) {
    return {{{d.kv_lora_rank}, {d.v_lora_rank}}};
  }
  static constexpr Index parameter_count(const AttentionDims& d) {
    return (d.kv_lora_rank + d.v_lora_rank) * (d.d_model + d.bias + d.kv_dim());
  }
  static constexpr Index remember_flops(const AttentionDims& d) {
    return 2 * (d.kv_lora_rank + d.v_lora_rank) * d.d_model;
  }
  static constexpr Index expand_flops(const AttentionDims& d) {
    return 2 * (d.kv_lora_rank + d.v_lora_rank) * d.kv_dim();
  }
  static constexpr Index absorb_flops(const AttentionDims& d) {
    return 2 * (d.kv_lora_rank + d.v_lora_rank) * d.q_dim();
  }
  static constexpr AbsorbedShape absorbed(const AttentionDims& d) { return {1, d.kv_lora_rank, d.v_lora_rank}; }

  template <class T>
  class Layer : public Module<Layer<T>> {
   public:
    Layer(const AttentionDims& d, Seed seed)
        : linear_k_down(d.d_model, d.kv_lora_rank, seed / "linear_k_down", bias_if(d.bias)),
          linear_v_down(d.d_model, d.v_lora_rank, seed / "linear_v_down", bias_if(d.bias)),
          linear_k_up(d.kv_lora_rank, d.kv_dim(), seed / "linear_k_up", Bias::no),
          linear_v_up(d.v_lora_rank, d.kv_dim(), seed / "linear_v_up", Bias::no),
          heads_{d.num_heads, d.num_kv_heads} {
      used_by_heads(linear_k_up, linear_v_up);
    }

    template <class Context, class Tensor>
    std::array<Tensor, 2> remember(Context& context, const Tensor& key_input, const Tensor& value_input) const {
      return {linear_k_down(context, key_input), linear_v_down(context, value_input)};
    }
    template <class Context, class Tensor>
    KeysAndValues<Tensor> expand(Context& context, const std::array<Tensor, 2>& memory) const {
      return {linear_k_up(context, memory[0]), linear_v_up(context, memory[1])};
    }
    template <class Context, class Tensor>
    Tensor absorb(Context& context, const Tensor& q) const {
      return context.head_linear(q, linear_k_up.weight, nullptr, {heads_.num_heads, heads_.num_blocks, true});
    }
    template <class Context, class Tensor>
    KeysAndValues<Tensor> latents(Context&, const std::array<Tensor, 2>& memory) const {
      return {memory[0], memory[1]};
    }
    template <class Context, class Tensor>
    Tensor release(Context& context, const Tensor& out) const {
      return context.head_linear(out, linear_v_up.weight, nullptr, heads_);
    }
    const Parameter<T>& value_weight() const { return linear_v_down.weight; }

    static void each_parameter(auto& self, auto&& visit) {
      visit("linear_k_down", self.linear_k_down);
      visit("linear_v_down", self.linear_v_down);
      visit("linear_k_up", self.linear_k_up);
      visit("linear_v_up", self.linear_v_up);
    }

    Linear<T> linear_k_down, linear_v_down, linear_k_up, linear_v_up;

   private:
    HeadShape heads_;
  };
};

/// Latents of R numbers for the keys and for the values of every key-value head, and expansions that all heads share:
/// K_i = c_K,i E_K^T with E_K (head_dim, R), V_i likewise. With a ValueRank, that of the values goes through so many
/// numbers: V_i = c_V,i E_V1^T E_V2^T. Absorbed, it is multi-head attention of head width R.
template <Index R, Index ValueRank = 0>
struct HeadLatent {
  static_assert(R == dyn || R > 0, "laconic: the latent rank must be positive, or `dyn`");
  static_assert(ValueRank >= 0, "laconic: the rank of the value expansion must be positive, or 0 for a full one");
  static constexpr bool is_latent = true, one_input = false, latents_are_memory = true;
  static constexpr Index num_parts = 2, rotary_part = -1;

  static constexpr void set_ranks(const AttentionConfig& c, AttentionDims& d) {
    d.kv_lora_rank = resolve_rank<R>(c.kv_lora_rank, "kv_lora_rank", d.head_dim, "head_dim");
    require(ValueRank <= d.kv_lora_rank, "the rank of the value expansion: ", ValueRank,
            " given, at most kv_lora_rank = ", d.kv_lora_rank, " expected");
    require_no_rank(c.v_lora_rank, "v_lora_rank");
    require_no_rank(c.qk_rope_head_dim, "qk_rope_head_dim");
  }
  static constexpr Index latent_dim(const AttentionDims& d) { return d.num_kv_heads * d.kv_lora_rank; }
  static constexpr std::array<CachePart, 2> parts(const AttentionDims& d) {
    return {{{latent_dim(d)}, {latent_dim(d)}}};
  }
  static constexpr Index parameter_count(const AttentionDims& d) {
    return 2 * latent_dim(d) * (d.d_model + d.bias) + d.kv_lora_rank * d.head_dim + value_expansion(d);
  }
  static constexpr Index remember_flops(const AttentionDims& d) { return 2 * 2 * latent_dim(d) * d.d_model; }
  static constexpr Index expand_flops(const AttentionDims& d) {
    return 2 * d.num_kv_heads * (d.kv_lora_rank * d.head_dim + value_expansion(d));
  }
  static constexpr Index absorb_flops(const AttentionDims& d) {
    return 2 * d.num_heads * (d.kv_lora_rank * d.head_dim + value_expansion(d));
  }
  static constexpr AbsorbedShape absorbed(const AttentionDims& d) {
    return {d.num_kv_heads, d.kv_lora_rank, d.kv_lora_rank};
  }

  template <class T>
  class Layer : public Module<Layer<T>> {
   public:
    Layer(const AttentionDims& d, Seed seed)
        : linear_k_down(d.d_model, latent_dim(d), seed / "linear_k_down", bias_if(d.bias)),
          linear_v_down(d.d_model, latent_dim(d), seed / "linear_v_down", bias_if(d.bias)),
          k_expand(d.kv_lora_rank, d.head_dim, seed / "k_expand", Bias::no),
          v_expand(ValueRank > 0 ? ValueRank : d.kv_lora_rank, d.head_dim, seed / "v_expand", Bias::no),
          num_heads_(d.num_heads),
          num_kv_heads_(d.num_kv_heads) {
      if constexpr (ValueRank > 0) v_reduce = Linear<T>(d.kv_lora_rank, ValueRank, seed / "v_reduce", Bias::no);
      used_by_heads(k_expand, v_reduce, v_expand);
    }

    template <class Context, class Tensor>
    std::array<Tensor, 2> remember(Context& context, const Tensor& key_input, const Tensor& value_input) const {
      return {linear_k_down(context, key_input), linear_v_down(context, value_input)};
    }
    template <class Context, class Tensor>
    KeysAndValues<Tensor> expand(Context& context, const std::array<Tensor, 2>& memory) const {
      return {context.head_linear(memory[0], k_expand.weight, nullptr, {num_kv_heads_, 1}),
              value(context, memory[1], num_kv_heads_)};
    }
    template <class Context, class Tensor>
    Tensor absorb(Context& context, const Tensor& q) const {
      return context.head_linear(q, k_expand.weight, nullptr, {num_heads_, 1, true});
    }
    template <class Context, class Tensor>
    KeysAndValues<Tensor> latents(Context&, const std::array<Tensor, 2>& memory) const {
      return {memory[0], memory[1]};
    }
    template <class Context, class Tensor>
    Tensor release(Context& context, const Tensor& out) const {
      return value(context, out, num_heads_);
    }
    const Parameter<T>& value_weight() const { return linear_v_down.weight; }

    static void each_parameter(auto& self, auto&& visit) {
      visit("linear_k_down", self.linear_k_down);
      visit("linear_v_down", self.linear_v_down);
      visit("k_expand", self.k_expand);
      if constexpr (ValueRank > 0) visit("v_reduce", self.v_reduce);
      visit("v_expand", self.v_expand);
    }

    Linear<T> linear_k_down, linear_v_down, k_expand, v_reduce, v_expand;

   private:
    template <class Context, class Tensor>
    Tensor value(Context& context, const Tensor& latent, Index heads) const {
      if constexpr (ValueRank > 0)
        return context.head_linear(context.head_linear(latent, v_reduce.weight, nullptr, {heads, 1}), v_expand.weight,
                                   nullptr, {heads, 1});
      else
        return context.head_linear(latent, v_expand.weight, nullptr, {heads, 1});
    }

    Index num_heads_, num_kv_heads_;
  };

 private:
  static constexpr Index value_expansion(const AttentionDims& d) {
    return ValueRank > 0 ? ValueRank * (d.kv_lora_rank + d.head_dim) : d.kv_lora_rank * d.head_dim;
  }
};

/// The attention of DeepSeek-V2 (2024, section 2.1): one latent of R numbers with a norm on it, and one rotary key of
/// RopeDim numbers a frame that all heads share, c = norm(x A^T), k_R = rotary(x W_KR^T + b_KR): both are cached. Keys
/// are [c B_K^T, k_R], so position never stands between latent and key. Biases, where configured, on the rotary key and
/// the expansions.
template <Index R, Index RopeDim, template <class> class Norm = RmsNorm>
struct DecoupledLatent {
  static_assert(R == dyn || R > 0, "laconic: the latent rank must be positive, or `dyn`");
  static_assert(RopeDim == dyn || (RopeDim > 0 && RopeDim % 2 == 0),
                "laconic: a rotary key turns pairs, so its width must be even, or `dyn`");
  static constexpr bool is_latent = true, one_input = true, latents_are_memory = false;
  static constexpr Index num_parts = 2, rotary_part = 1;

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
  static constexpr std::array<CachePart, 2> parts(const AttentionDims& d) {
    return {{{d.kv_lora_rank}, {d.qk_rope_head_dim, true}}};
  }
  static constexpr Index parameter_count(const AttentionDims& d) {
    return (d.kv_lora_rank + d.qk_rope_head_dim) * d.d_model + d.bias * d.qk_rope_head_dim +
           Norm<float>::parameter_count(d.kv_lora_rank) + 2 * d.kv_dim() * (d.kv_lora_rank + d.bias);
  }
  static constexpr Index remember_flops(const AttentionDims& d) {
    return 2 * (d.kv_lora_rank + d.qk_rope_head_dim) * d.d_model;
  }
  static constexpr Index expand_flops(const AttentionDims& d) { return SharedLatent<R>::expand_flops(d); }
  static constexpr Index absorb_flops(const AttentionDims& d) { return SharedLatent<R>::absorb_flops(d); }
  static constexpr AbsorbedShape absorbed(const AttentionDims& d) {
    return {1, d.kv_lora_rank + d.qk_rope_head_dim, d.kv_lora_rank};
  }

  template <class T>
  class Layer : public Module<Layer<T>> {
   public:
    Layer(const AttentionDims& d, Seed seed)
        : linear_kv_down(d.d_model, d.kv_lora_rank, seed / "linear_kv_down", Bias::no),
          kv_norm(d.kv_lora_rank),
          linear_k_rope(d.d_model, d.qk_rope_head_dim, seed / "linear_k_rope", bias_if(d.bias)),
          linear_k_up(d.kv_lora_rank, d.kv_dim(), seed / "linear_k_up", bias_if(d.bias)),
          linear_v_up(d.kv_lora_rank, d.kv_dim(), seed / "linear_v_up", bias_if(d.bias)),
          heads_{d.num_heads, d.num_kv_heads} {
      used_by_heads(linear_k_up, linear_v_up);
    }

    template <class Context, class Tensor>
    std::array<Tensor, 2> remember(Context& context, const Tensor&, const Tensor& value_input) const {
      return {kv_norm(context, linear_kv_down(context, value_input)), linear_k_rope(context, value_input)};
    }
    template <class Context, class Tensor>
    KeysAndValues<Tensor> expand(Context& context, const std::array<Tensor, 2>& memory) const {
      return {context.concat(linear_k_up(context, memory[0]), memory[1], heads_.num_blocks, 1),
              linear_v_up(context, memory[0])};
    }
    template <class Context, class Tensor>
    Tensor absorb(Context& context, const Tensor& q) const {
      return context.head_linear(q, linear_k_up.weight, nullptr, {heads_.num_heads, heads_.num_blocks, true});
    }
    template <class Context, class Tensor>
    KeysAndValues<Tensor> latents(Context& context, const std::array<Tensor, 2>& memory) const {
      return {context.concat(memory[0], memory[1]), memory[0]};
    }
    template <class Context, class Tensor>
    Tensor release(Context& context, const Tensor& out) const {
      return context.head_linear(out, linear_v_up.weight, linear_v_up.bias_or_null(), heads_);
    }
    const Parameter<T>& value_weight() const { return linear_kv_down.weight; }

    static void each_parameter(auto& self, auto&& visit) {
      visit("linear_kv_down", self.linear_kv_down);
      visit("kv_norm", self.kv_norm);
      visit("linear_k_rope", self.linear_k_rope);
      visit("linear_k_up", self.linear_k_up);
      visit("linear_v_up", self.linear_v_up);
    }

    Linear<T> linear_kv_down;
    Norm<T> kv_norm;
    Linear<T> linear_k_rope, linear_k_up, linear_v_up;

   private:
    HeadShape heads_;
  };
};

}  // namespace LACONIC_ABI
}  // namespace laconic
