// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/model/cgmlp.hpp>

namespace laconic {
inline namespace LACONIC_ABI {

/// Computes both branches of a Branchformer block, attention and cgMLP, each after a norm of the same rows.
template <class AttentionPolicy, class T>
class Branches : public Module<Branches<AttentionPolicy, T>> {
 public:
  using AttentionType = typename AttentionPolicy::template Layer<T>;  ///< the layer of the attention policy

  /// Makes the layer with its initial parameters. Allocates.
  Branches(const EncoderConfig& c, Seed seed)
      : norm_mha(c.d_model),
        attn(c.attention_config(), c.dropout, seed / "attn"),
        norm_mlp(c.d_model),
        cgmlp(c, seed / "cgmlp"),
        dropout_(c.dropout) {}

  /// Returns the trained parameters without those of the attention.
  static constexpr Index parameter_count(const EncoderConfig& c) {
    return 2 * 2 * c.d_model + ConvolutionalGatingMlp<T>::parameter_count(c);
  }

  /// Holds the output of both branches.
  template <class Tensor>
  struct Output {
    Tensor attention;  ///< (rows, d_model)
    Tensor cgmlp;      ///< (rows, d_model)
  };
  /// Returns the output of both branches. `state` is a pointer to the block's State, or `nullptr`.
  template <class Context, class Tensor, class S>
  Output<Tensor> operator()(Context& context, const Tensor& x, const Pass<Tensor>& pass, S state) const {
    const Tensor a = norm_mha(context, x), b = norm_mlp(context, x);
    Output<Tensor> out;
    if constexpr (has_state<S>)
      out = {attn(context, a, pass, &state->attention), cgmlp(context, b, pass, &state->conv)};
    else
      out = {attn(context, a, pass), cgmlp(context, b, pass)};
    out.attention = context.dropout(std::move(out.attention), dropout_);
    out.cgmlp = context.dropout(std::move(out.cgmlp), dropout_);
    return out;
  }

  /// Visits the parameters with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    visit("norm_mha", self.norm_mha);
    visit("attn", self.attn);
    visit("norm_mlp", self.norm_mlp);
    visit("cgmlp", self.cgmlp);
  }

  LayerNorm<T> norm_mha;            ///< the norm before attention
  AttentionType attn;               ///< the attention
  LayerNorm<T> norm_mlp;            ///< the norm before the cgMLP
  ConvolutionalGatingMlp<T> cgmlp;  ///< the cgMLP

 private:
  double dropout_;
};

}  // namespace LACONIC_ABI
}  // namespace laconic
