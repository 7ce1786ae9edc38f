// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/heads.hpp>
#include <laconic/backend/shapes.hpp>
#include <laconic/nn/linear.hpp>
#include <laconic/nn/norm.hpp>

#include <array>
#include <concepts>

namespace laconic {
inline namespace LACONIC_ABI {

/// One matrix of what a key-value policy caches: numbers a frame, and whether they say where the frame is, in which
/// case they are always stored in full.
struct CachePart {
  Index width;
  bool positional = false;
};

/// Keys (rows, num_kv_heads * key width) and values (rows, num_kv_heads * value width).
template <class Tensor>
struct KeysAndValues {
  Tensor k, v;
};

/// Keys and values of an attention whose expansion was moved into its queries and its output.
struct AbsorbedShape {
  Index num_kv_heads, key_width, value_width;
};

/// A key-value policy says what is kept of each frame, and how keys and values come from it. All of it is constexpr but
/// `Layer<T>`, a Module made from (dims, seed), which has
///   remember(context, key_input, value_input) -> std::array<Tensor, num_parts>   what is cached
///   expand(context, memory) -> KeysAndValues   keys and values of every key-value head
///   value_weight() -> const Parameter<T>&      the first matrix that meets the value input
/// and, if `is_latent`, the same attention without expanding (DeepSeek-V2 2024, section 2.1.2):
///   absorb(context, q)     queries (rows, num_heads * head_dim) that meet the memory itself
///   latents(context, memory) -> KeysAndValues   which is that of AbsorbedShape; with `latents_are_memory` parts of the
///                                               memory as they are, which may lie in caches
///   release(context, out)  what attention over latents gave, to (rows, num_heads * head_dim)
template <class P>
concept KeyValuePolicy = requires(const AttentionConfig& config, AttentionDims& dims) {
  { P::is_latent } -> std::convertible_to<bool>;
  { P::one_input } -> std::convertible_to<bool>;  // keys and values need the same input
  { P::num_parts } -> std::convertible_to<Index>;
  { P::rotary_part } -> std::convertible_to<Index>;  // the part that a rotary position turns; -1: none
  P::set_ranks(config, dims);                        // throws where type and configuration contradict each other
  { P::parts(dims)[0] } -> std::convertible_to<CachePart>;
  { P::parameter_count(dims) } -> std::convertible_to<Index>;
  { P::remember_flops(dims) } -> std::convertible_to<Index>;  // a frame
  { P::expand_flops(dims) } -> std::convertible_to<Index>;    // a frame
  typename P::template Layer<float>;
};

/// Checks that nothing is configured that the policy does not have.
constexpr void require_no_rank(Index configured, const char* name) {
  require(configured == 0, name, ": ", configured, " configured for an attention that has none");
}
constexpr Bias bias_if(bool has) { return has ? Bias::yes : Bias::no; }

/// Keys and values as they are: K = x W_K^T + b_K, V = x W_V^T + b_V; both are cached.
struct FullRank {
  static constexpr bool is_latent = false, one_input = false;
  static constexpr Index num_parts = 2, rotary_part = 0;
  static constexpr void set_ranks(const AttentionConfig& c, AttentionDims&) {
    require_no_rank(c.kv_lora_rank, "kv_lora_rank");
    require_no_rank(c.v_lora_rank, "v_lora_rank");
    require_no_rank(c.qk_rope_head_dim, "qk_rope_head_dim");
  }
  static constexpr std::array<CachePart, 2> parts(const AttentionDims& d) { return {{{d.kv_dim()}, {d.kv_dim()}}}; }
  static constexpr Index parameter_count(const AttentionDims& d) { return 2 * d.kv_dim() * (d.d_model + d.bias); }
  static constexpr Index remember_flops(const AttentionDims& d) { return 2 * 2 * d.kv_dim() * d.d_model; }
  static constexpr Index expand_flops(const AttentionDims&) { return 0; }

  template <class T>
  class Layer : public Module<Layer<T>> {
   public:
    Layer(const AttentionDims& d, Seed seed)
        : linear_k(d.d_model, d.kv_dim(), seed / "linear_k", bias_if(d.bias)),
          linear_v(d.d_model, d.kv_dim(), seed / "linear_v", bias_if(d.bias)) {}

    template <class Context, class Tensor>
    std::array<Tensor, 2> remember(Context& context, const Tensor& key_input, const Tensor& value_input) const {
      return {linear_k(context, key_input), linear_v(context, value_input)};
    }
    template <class Context, class Tensor>
    KeysAndValues<Tensor> expand(Context&, const std::array<Tensor, 2>& memory) const {
      return {memory[0], memory[1]};
    }
    const Parameter<T>& value_weight() const { return linear_v.weight; }

    static void each_parameter(auto& self, auto&& visit) {
      visit("linear_k", self.linear_k);
      visit("linear_v", self.linear_v);
    }

    Linear<T> linear_k, linear_v;
  };
};

/// Keys and values as `FullRank` has them, but what is cached is the layer's input: a latent of d_model numbers that
/// loses nothing, and one that all layers share which read the same input (the cross-attention of a decoder).
struct InputLatent {
  static constexpr bool is_latent = true, one_input = true, latents_are_memory = true;
  static constexpr Index num_parts = 1, rotary_part = -1;
  static constexpr void set_ranks(const AttentionConfig& c, AttentionDims& d) { FullRank::set_ranks(c, d); }
  static constexpr std::array<CachePart, 1> parts(const AttentionDims& d) { return {{{d.d_model}}}; }
  static constexpr Index parameter_count(const AttentionDims& d) { return FullRank::parameter_count(d); }
  static constexpr Index remember_flops(const AttentionDims&) { return 0; }
  static constexpr Index expand_flops(const AttentionDims& d) { return FullRank::remember_flops(d); }
  static constexpr Index absorb_flops(const AttentionDims& d) { return 2 * 2 * d.q_dim() * d.d_model; }
  static constexpr AbsorbedShape absorbed(const AttentionDims& d) { return {1, d.d_model, d.d_model}; }

  template <class T>
  class Layer : public FullRank::Layer<T> {
   public:
    Layer(const AttentionDims& d, Seed seed) : FullRank::Layer<T>(d, seed), heads_{d.num_heads, d.num_kv_heads} {
      used_by_heads(this->linear_k, this->linear_v);
    }

    template <class Context, class Tensor>
    std::array<Tensor, 1> remember(Context&, const Tensor&, const Tensor& value_input) const {
      return {value_input};
    }
    template <class Context, class Tensor>
    KeysAndValues<Tensor> expand(Context& context, const std::array<Tensor, 1>& memory) const {
      return {this->linear_k(context, memory[0]), this->linear_v(context, memory[0])};
    }
    template <class Context, class Tensor>
    Tensor absorb(Context& context, const Tensor& q) const {
      return context.head_linear(q, this->linear_k.weight, nullptr, {heads_.num_heads, heads_.num_blocks, true});
    }
    template <class Context, class Tensor>
    KeysAndValues<Tensor> latents(Context&, const std::array<Tensor, 1>& memory) const {
      return {memory[0], memory[0]};
    }
    template <class Context, class Tensor>
    Tensor release(Context& context, const Tensor& out) const {
      return context.head_linear(out, this->linear_v.weight, this->linear_v.bias_or_null(), heads_);
    }

   private:
    HeadShape heads_;
  };
};

}  // namespace LACONIC_ABI
}  // namespace laconic
