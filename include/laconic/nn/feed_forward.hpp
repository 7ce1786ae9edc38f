// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/shapes.hpp>
#include <laconic/core/parameter.hpp>
#include <laconic/nn/linear.hpp>

namespace laconic {
inline namespace LACONIC_ABI {

/// Computes the Conformer's feed-forward module without its norm (Gulati et al. 2020, section 2.3), (rows, d_model) to
/// (rows, d_model): linear, activation (SiLU in the paper), dropout, linear, dropout.
template <class T>
class FeedForward : public Module<FeedForward<T>> {
 public:
  /// Returns the trained parameters.
  static constexpr Index parameter_count(Index d_model, Index hidden) {
    return 2 * d_model * hidden + hidden + d_model;
  }

  /// Makes the layer with its initial parameters. Allocates.
  FeedForward(Index d_model, Index hidden, Activation activation, double dropout, Seed seed)
      : intermediate_dense(d_model, hidden, seed / "intermediate_dense"),
        output_dense(hidden, d_model, seed / "output_dense"),
        activation_(activation),
        dropout_(dropout) {}

  /// Returns the output of the module.
  template <class Context, class Tensor>
  auto operator()(Context& context, const Tensor& x) const {
    auto hidden = intermediate_dense(context, x, activation_);
    return context.dropout(output_dense(context, context.dropout(std::move(hidden), dropout_)), dropout_);
  }

  /// Visits the parameters with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    visit("intermediate_dense", self.intermediate_dense);
    visit("output_dense", self.output_dense);
  }

  Linear<T> intermediate_dense;  ///< from d_model to the hidden width
  Linear<T> output_dense;        ///< from the hidden width to d_model

 private:
  Activation activation_;
  double dropout_;
};

/// Computes a gated feed-forward module (Shazeer 2020, "GLU variants"; SwiGLU with SiLU), (rows, d_model) to (rows,
/// d_model): down(activation(gate(x)) * up(x)), without biases. Parameter names are Llama's.
template <class T>
class GatedFeedForward : public Module<GatedFeedForward<T>> {
 public:
  /// Returns the trained parameters.
  static constexpr Index parameter_count(Index d_model, Index hidden) { return 3 * d_model * hidden; }

  /// Makes the layer with its initial parameters. Allocates.
  GatedFeedForward(Index d_model, Index hidden, Activation activation, double dropout, Seed seed)
      : gate_proj(d_model, hidden, seed / "gate_proj", Bias::no),
        up_proj(d_model, hidden, seed / "up_proj", Bias::no),
        down_proj(hidden, d_model, seed / "down_proj", Bias::no),
        activation_(activation),
        dropout_(dropout) {}

  /// Returns the output of the module.
  template <class Context, class Tensor>
  auto operator()(Context& context, const Tensor& x) const {
    const auto gate = gate_proj(context, x, activation_);
    return context.dropout(down_proj(context, context.multiply(gate, up_proj(context, x))), dropout_);
  }

  /// Visits the parameters with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    visit("gate_proj", self.gate_proj);
    visit("up_proj", self.up_proj);
    visit("down_proj", self.down_proj);
  }

  Linear<T> gate_proj;  ///< from d_model to the hidden width, before the activation
  Linear<T> up_proj;    ///< from d_model to the hidden width
  Linear<T> down_proj;  ///< from the hidden width to d_model

 private:
  Activation activation_;
  double dropout_;
};

}  // namespace LACONIC_ABI
}  // namespace laconic
