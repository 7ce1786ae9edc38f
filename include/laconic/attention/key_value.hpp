// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/config.hpp>
#include <laconic/backend/shapes.hpp>
#include <laconic/core/extent.hpp>
#include <laconic/nn/linear.hpp>

#include <array>
#include <concepts>
#include <optional>
#include <type_traits>

namespace laconic {
inline namespace LACONIC_ABI {

/// Describes one matrix that a key-value policy caches.
struct CachePart {
  Index width;              ///< elements a frame
  bool positional = false;  ///< whether it is stored as computed, also where the cache is rounded
};

/// Holds keys (rows, num_kv_heads * key width) and values (rows, num_kv_heads * value width).
template <class Tensor>
struct KeysAndValues {
  Tensor k;  ///< keys
  Tensor v;  ///< values
};

/// Holds the shape of attention over latents: "keys" and "values" after the up-projections were absorbed into queries
/// and output.
struct AbsorbedShape {
  Index num_kv_heads;  ///< heads of the latents
  Index key_width;     ///< channels of a head's keys
  Index value_width;   ///< channels of a head's values
};

namespace detail {

/// Accepts every child of a module. A lambda would do, but not for nvcc 13 within a concept.
struct AcceptsChildren {
  template <class Child>
  void operator()(const char*, Child&) const {}
};

}  // namespace detail

/// Requires the layer that every policy but `Heads` and the score has: a Module constructed from (dims, seed).
template <class P>
concept LayerOfPolicy = std::is_constructible_v < typename P::template Layer<float>,
const AttentionDims&, Seed > &&requires(typename P::template Layer<float>& layer, detail::AcceptsChildren visit) {
  P::template Layer<float>::each_parameter(layer, visit);
};

/// Requires what the absorbed evaluation order costs (DeepSeek-V2 2024, section 2.1.2), of a policy with `is_latent`.
template <class P>
concept AbsorbedCosts = requires(const AttentionDims& dims) {
  { P::latents_are_memory } -> std::convertible_to<bool>;   // `latents` returns parts of the memory unchanged
  { P::absorb_flops(dims) } -> std::convertible_to<Index>;  // of absorb and release together, a query
  { P::absorbed(dims) } -> std::convertible_to<AbsorbedShape>;
};

/// Says what is kept of each frame, and how keys and values are computed from it. Everything is constexpr except
/// `Layer<T>`, a Module constructed from (dims, seed), which has
///   remember(context, key_input, value_input) -> std::array<Tensor, num_parts>   what is cached
///   expand(context, memory) -> KeysAndValues   keys and values of every key-value head
///   value_weight() -> const Parameter<T>&      the first matrix that the value input is multiplied by
/// and, if `is_latent`, the same attention without expanding (DeepSeek-V2 2024, section 2.1.2), most of which
/// `AbsorbingLayer` (latent/absorbing.hpp) provides:
///   absorb(context, q)     queries (rows, num_heads * head_dim), made to be compared with the memory itself
///   latents(context, memory) -> KeysAndValues   memory in the shape of AbsorbedShape; with `latents_are_memory` these
///                                               are parts of the memory, which may lie in caches
///   release(context, out)  from the output of attention over latents to (rows, num_heads * head_dim)
template <class P>
concept KeyValuePolicy = LayerOfPolicy<P> && requires(const AttentionConfig& config, AttentionDims& dims) {
  { P::is_latent } -> std::convertible_to<bool>;
  { P::one_input } -> std::convertible_to<bool>;  // keys and values need the same input
  { P::num_parts } -> std::convertible_to<Index>;
  { P::rotary_part } -> std::convertible_to<std::optional<Index>>;  // the part that a rotary position rotates
  P::set_ranks(config, dims);  // throws Error where type and configuration contradict each other
  { P::parts(dims)[0] } -> std::convertible_to<CachePart>;
  { P::parameter_count(dims) } -> std::convertible_to<Index>;
  { P::remember_flops(dims) } -> std::convertible_to<Index>;  // a frame
  { P::expand_flops(dims) } -> std::convertible_to<Index>;    // a frame
} &&(!P::is_latent || AbsorbedCosts<P>);

/// Throws Error where a rank is configured for a policy that has none.
constexpr void require_no_rank(Index configured, const char* name) {
  require(configured == 0, name, ": ", configured, " configured for an attention that has none");
}
/// Returns Bias::yes if `has`.
constexpr Bias bias_if(bool has) { return has ? Bias::yes : Bias::no; }

/// Caches keys and values themselves: K = x W_K^T + b_K, V = x W_V^T + b_V.
struct FullRank {
  static constexpr bool is_latent = false;                ///< there is no absorbed path
  static constexpr bool one_input = false;                ///< keys and values may have different inputs
  static constexpr Index num_parts = 2;                   ///< matrices in the cache
  static constexpr std::optional<Index> rotary_part = 0;  ///< the keys

  /// Resolves the ranks into the dims. Throws Error where type and configuration contradict each other.
  static constexpr void set_ranks(const AttentionConfig& c, AttentionDims&) {
    require_no_rank(c.kv_lora_rank, "kv_lora_rank");
    require_no_rank(c.v_lora_rank, "v_lora_rank");
    require_no_rank(c.qk_rope_head_dim, "qk_rope_head_dim");
  }
  /// Returns the matrices in the cache.
  static constexpr std::array<CachePart, 2> parts(const AttentionDims& d) { return {{{d.kv_dim()}, {d.kv_dim()}}}; }
  /// Returns the trained parameters.
  static constexpr Index parameter_count(const AttentionDims& d) { return 2 * d.kv_dim() * (d.d_model + d.bias); }
  /// Returns the operations that `remember` takes a frame.
  static constexpr Index remember_flops(const AttentionDims& d) { return 2 * 2 * d.kv_dim() * d.d_model; }
  /// Returns the operations that `expand` takes a frame.
  static constexpr Index expand_flops(const AttentionDims&) { return 0; }

  /// Projects the input to keys and values. Allocates its parameters at construction only.
  template <class T>
  class Layer : public Module<Layer<T>> {
   public:
    /// Makes the layer with its initial parameters. Allocates.
    Layer(const AttentionDims& d, Seed seed)
        : linear_k(d.d_model, d.kv_dim(), seed / "linear_k", bias_if(d.bias)),
          linear_v(d.d_model, d.kv_dim(), seed / "linear_v", bias_if(d.bias)) {}

    /// Returns what is cached of the inputs (rows, d_model).
    template <class Context, class Tensor>
    std::array<Tensor, 2> remember(Context& context, const Tensor& key_input, const Tensor& value_input) const {
      return {linear_k(context, key_input), linear_v(context, value_input)};
    }
    /// Returns the keys and values of all key-value heads.
    template <class Context, class Tensor>
    KeysAndValues<Tensor> expand(Context&, const std::array<Tensor, 2>& memory) const {
      return {memory[0], memory[1]};
    }
    /// Returns the first weight that the value input is multiplied by.
    const Parameter<T>& value_weight() const { return linear_v.weight; }

    /// Visits the parameters with their names (see Module).
    static void each_parameter(auto& self, auto&& visit) {
      visit("linear_k", self.linear_k);
      visit("linear_v", self.linear_v);
    }

    Linear<T> linear_k;  ///< from d_model to the keys of all heads
    Linear<T> linear_v;  ///< from d_model to the values of all heads
  };
};

}  // namespace LACONIC_ABI
}  // namespace laconic
