// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/key_value.hpp>
#include <laconic/nn/norm.hpp>

namespace laconic {
inline namespace LACONIC_ABI {

/// Holds queries, and their part that a decoupled rotary position rotates.
template <class Tensor>
struct Queries {
  Tensor content;  ///< (rows, num_heads * head_dim)
  Tensor rope;     ///< (rows, num_heads * qk_rope_head_dim), or empty
};

/// Projects `in` channels to the queries of all heads. Both query policies end in it.
template <class T>
class QueryExpansion : public Module<QueryExpansion<T>> {
 public:
  /// Makes the layer with its initial parameters. Allocates.
  QueryExpansion(const AttentionDims& d, Index in, Seed seed)
      : linear_q(in, d.q_dim(), seed / "linear_q", bias_if(d.bias)) {
    if (d.qk_rope_head_dim > 0)
      linear_q_rope = Linear<T>(in, d.num_heads * d.qk_rope_head_dim, seed / "linear_q_rope", bias_if(d.bias));
  }
  /// Returns the queries of all heads.
  template <class Context, class Tensor>
  Queries<Tensor> operator()(Context& context, const Tensor& x) const {
    return {linear_q(context, x), linear_q_rope.out() > 0 ? linear_q_rope(context, x) : Tensor()};
  }

  /// Visits the parameters with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    visit("linear_q", self.linear_q);
    if (self.linear_q_rope.out() > 0) visit("linear_q_rope", self.linear_q_rope);
  }

  Linear<T> linear_q;       ///< to num_heads * head_dim
  Linear<T> linear_q_rope;  ///< to num_heads * qk_rope_head_dim, or empty
};

/// Returns the trained parameters of a `QueryExpansion` of `in` channels.
constexpr Index query_expansion_parameters(const AttentionDims& d, Index in) {
  return d.num_heads * (d.head_dim + d.qk_rope_head_dim) * (in + d.bias);
}

/// Says how queries are computed. Everything is constexpr except `Layer<T>`, a Module constructed from (dims, seed),
/// which has
///   operator()(context, x) -> Queries<Tensor>   the queries of rows x (rows, d_model)
///   input_weight() -> const Parameter<T>&       the first matrix that x is multiplied by
template <class P>
concept QueryPolicy = LayerOfPolicy<P> && requires(const AttentionConfig& config, AttentionDims& dims) {
  P::set_ranks(config, dims);  // throws Error where type and configuration contradict each other
  { P::parameter_count(dims) } -> std::convertible_to<Index>;
  { P::flops(dims) } -> std::convertible_to<Index>;  // a frame
};

/// Projects queries in one step: q = x W_Q^T + b_Q.
struct FullQuery {
  /// Resolves the ranks into the dims. Throws Error where type and configuration contradict each other.
  static constexpr void set_ranks(const AttentionConfig& c, AttentionDims&) {
    require_no_rank(c.q_lora_rank, "q_lora_rank");
  }
  /// Returns the trained parameters.
  static constexpr Index parameter_count(const AttentionDims& d) { return query_expansion_parameters(d, d.d_model); }
  /// Returns the operations a frame.
  static constexpr Index flops(const AttentionDims& d) {
    return 2 * d.num_heads * (d.head_dim + d.qk_rope_head_dim) * d.d_model;
  }

  /// Projects the input to the queries.
  template <class T>
  class Layer : public QueryExpansion<T> {
   public:
    /// Makes the layer with its initial parameters. Allocates.
    Layer(const AttentionDims& d, Seed seed) : QueryExpansion<T>(d, d.d_model, seed) {}
    /// Returns the first weight that the input is multiplied by.
    const Parameter<T>& input_weight() const { return this->linear_q.weight; }
  };
};

/// Projects queries through a latent of R elements: q = norm(x W_DQ^T) W_UQ^T (DeepSeek-V2 2024, equations 12 and 13).
template <Index R, template <class> class Norm = RmsNorm>
struct LowRankQuery {
  static_assert(R == dyn || R > 0, "laconic: the rank of the queries must be positive, or `dyn`");
  /// Resolves the ranks into the dims. Throws Error where type and configuration contradict each other.
  static constexpr void set_ranks(const AttentionConfig& c, AttentionDims& d) {
    d.q_lora_rank = resolve<R>(c.q_lora_rank, "q_lora_rank");
  }
  /// Returns the trained parameters.
  static constexpr Index parameter_count(const AttentionDims& d) {
    return d.q_lora_rank * d.d_model + Norm<float>::parameter_count(d.q_lora_rank) +
           query_expansion_parameters(d, d.q_lora_rank);
  }
  /// Returns the operations a frame.
  static constexpr Index flops(const AttentionDims& d) {
    return 2 * d.q_lora_rank * (d.d_model + d.num_heads * (d.head_dim + d.qk_rope_head_dim));
  }

  /// Projects the input to the latent, and the latent to the queries.
  template <class T>
  class Layer : public Module<Layer<T>> {
   public:
    /// Makes the layer with its initial parameters. Allocates.
    Layer(const AttentionDims& d, Seed seed)
        : linear_q_down(d.d_model, d.q_lora_rank, seed / "linear_q_down", Bias::no),
          q_norm(d.q_lora_rank),
          up(d, d.q_lora_rank, seed) {}

    /// Returns the queries of all heads.
    template <class Context, class Tensor>
    Queries<Tensor> operator()(Context& context, const Tensor& x) const {
      return up(context, q_norm(context, linear_q_down(context, x)));
    }
    /// Returns the first weight that the input is multiplied by.
    const Parameter<T>& input_weight() const { return linear_q_down.weight; }

    /// Visits the parameters with their names (see Module).
    static void each_parameter(auto& self, auto&& visit) {
      visit("linear_q_down", self.linear_q_down);
      visit("q_norm", self.q_norm);
      QueryExpansion<T>::each_parameter(self.up, visit);
    }

    Linear<T> linear_q_down;  ///< from d_model to the latent
    Norm<T> q_norm;           ///< the norm of the latent
    QueryExpansion<T> up;     ///< from the latent to the queries
  };
};

}  // namespace LACONIC_ABI
}  // namespace laconic
