// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/shapes.hpp>
#include <laconic/core/parameter.hpp>

namespace laconic {
inline namespace LACONIC_ABI {

/// Normalises each row to mean 0 and variance 1, then scales and shifts each channel (Ba et al. 2016): (rows, channels)
/// to (rows, channels).
template <class T>
class LayerNorm : public Module<LayerNorm<T>> {
 public:
  /// Returns the trained parameters.
  static constexpr Index parameter_count(Index channels) { return 2 * channels; }

  /// Makes the layer with its initial parameters. Allocates.
  explicit LayerNorm(Index channels, double eps = 1e-5) : weight({channels}), bias({channels}), eps_(eps) {
    weight.host().setOnes();
  }

  /// Returns the normalised rows.
  template <class Context, class Tensor>
  auto operator()(Context& context, const Tensor& x) const {
    return context.layer_norm(x, weight, bias, eps_);
  }

  /// Visits the parameters with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    visit("weight", self.weight);
    visit("bias", self.bias);
  }

  Parameter<T> weight;  ///< scale (channels)
  Parameter<T> bias;    ///< shift (channels)

 private:
  double eps_;
};

/// Divides each row by the root of its mean square, then scales each channel (Zhang and Sennrich 2019): (rows,
/// channels) to (rows, channels).
template <class T>
class RmsNorm : public Module<RmsNorm<T>> {
 public:
  /// Returns the trained parameters.
  static constexpr Index parameter_count(Index channels) { return channels; }

  /// Makes the layer with its initial parameters. Allocates.
  explicit RmsNorm(Index channels, double eps = 1e-6) : weight({channels}), eps_(eps) { weight.host().setOnes(); }

  /// Returns the normalised rows.
  template <class Context, class Tensor>
  auto operator()(Context& context, const Tensor& x) const {
    return context.rms_norm(x, weight, eps_);
  }

  /// Visits the parameters with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) { visit("weight", self.weight); }

  Parameter<T> weight;  ///< scale (channels)

 private:
  double eps_;
};

/// Stands for no norm where one can be chosen.
template <class T>
class NoNorm : public Module<NoNorm<T>> {
 public:
  /// Returns 0.
  static constexpr Index parameter_count(Index) { return 0; }
  /// Makes nothing.
  explicit NoNorm(Index) {}
  /// Returns x.
  template <class Context, class Tensor>
  Tensor operator()(Context&, const Tensor& x) const {
    return x;
  }
  /// Visits the parameters with their names (see Module).
  static void each_parameter(auto&, auto&&) {}
};

/// Normalises each channel to mean 0 and variance 1 over the rows of its sequence, then scales and shifts it: group
/// norm (Wu and He 2018) with a group for every channel. Needs whole sequences.
template <class T>
class SequenceNorm : public Module<SequenceNorm<T>> {
 public:
  /// Makes the layer with its initial parameters. Allocates.
  explicit SequenceNorm(Index channels, double eps = 1e-5) : weight({channels}), bias({channels}), eps_(eps) {
    weight.host().setOnes();
  }

  /// Returns the normalised rows.
  template <class Context, class Tensor>
  auto operator()(Context& context, const Tensor& x, const Sequences& sequences) const {
    return context.sequence_norm(x, weight, bias, eps_, sequences);
  }

  /// Visits the parameters with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    visit("weight", self.weight);
    visit("bias", self.bias);
  }

  Parameter<T> weight;  ///< scale (channels)
  Parameter<T> bias;    ///< shift (channels)

 private:
  double eps_;
};

/// Normalises each channel to mean 0 and variance 1, then scales and shifts it (Ioffe and Szegedy 2015): by the
/// statistics of the batch's rows in training, by the running statistics otherwise. Rows are packed, so padding cannot
/// enter the statistics.
template <class T>
class BatchNorm : public Module<BatchNorm<T>> {
 public:
  /// Makes the layer with its initial parameters. Allocates.
  explicit BatchNorm(Index channels, double eps = 1e-5, double momentum = 0.1)
      : weight({channels}),
        bias({channels}),
        running_mean({channels}, Role::statistic),
        running_var({channels}, Role::statistic),
        eps_(eps) {
    weight.host().setOnes();
    running_var.host().setOnes();
    running_mean.momentum = running_var.momentum = momentum;
  }

  /// Returns the normalised rows.
  template <class Context, class Tensor>
  auto operator()(Context& context, const Tensor& x) const {
    return context.batch_norm(x, BatchNormParameters<T>{weight, bias, running_mean, running_var, eps_});
  }

  /// Visits the parameters with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    visit("weight", self.weight);
    visit("bias", self.bias);
    visit("running_mean", self.running_mean);
    visit("running_var", self.running_var);
  }

  Parameter<T> weight;        ///< scale (channels)
  Parameter<T> bias;          ///< shift (channels)
  Parameter<T> running_mean;  ///< running mean (channels), a statistic
  Parameter<T> running_var;   ///< running variance (channels), a statistic

 private:
  double eps_;
};

}  // namespace LACONIC_ABI
}  // namespace laconic
