// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/shapes.hpp>
#include <laconic/core/parameter.hpp>

namespace laconic {
inline namespace LACONIC_ABI {

/// Each row to mean 0 and variance 1, then scaled and shifted by channel (Ba et al. 2016).
template <class T>
class LayerNorm : public Module<LayerNorm<T>> {
 public:
  static constexpr Index parameter_count(Index channels) { return 2 * channels; }

  explicit LayerNorm(Index channels, double eps = 1e-5) : weight({channels}), bias({channels}), eps_(eps) {
    weight.host().setOnes();
  }

  template <class Context, class Tensor>
  auto operator()(Context& context, const Tensor& x) const {
    return context.layer_norm(x, weight, bias, eps_);
  }

  static void each_parameter(auto& self, auto&& visit) {
    visit("weight", self.weight);
    visit("bias", self.bias);
  }

  Parameter<T> weight, bias;

 private:
  double eps_;
};

/// Each row divided by the root of its mean square, then scaled by channel (Zhang and Sennrich 2019).
template <class T>
class RmsNorm : public Module<RmsNorm<T>> {
 public:
  static constexpr Index parameter_count(Index channels) { return channels; }

  explicit RmsNorm(Index channels, double eps = 1e-6) : weight({channels}), eps_(eps) { weight.host().setOnes(); }

  template <class Context, class Tensor>
  auto operator()(Context& context, const Tensor& x) const {
    return context.rms_norm(x, weight, eps_);
  }

  static void each_parameter(auto& self, auto&& visit) { visit("weight", self.weight); }

  Parameter<T> weight;

 private:
  double eps_;
};

/// No norm, where one can be chosen.
template <class T>
class NoNorm : public Module<NoNorm<T>> {
 public:
  static constexpr Index parameter_count(Index) { return 0; }
  explicit NoNorm(Index) {}
  template <class Context, class Tensor>
  Tensor operator()(Context&, const Tensor& x) const {
    return x;
  }
  static void each_parameter(auto&, auto&&) {}
};

/// Each channel to mean 0 and variance 1 over the rows of its sequence, then scaled and shifted: group norm (Wu and He
/// 2018) with a group for every channel. Needs whole sequences.
template <class T>
class SequenceNorm : public Module<SequenceNorm<T>> {
 public:
  explicit SequenceNorm(Index channels, double eps = 1e-5) : weight({channels}), bias({channels}), eps_(eps) {
    weight.host().setOnes();
  }

  template <class Context, class Tensor>
  auto operator()(Context& context, const Tensor& x, const Sequences& sequences) const {
    return context.sequence_norm(x, weight, bias, eps_, sequences);
  }

  static void each_parameter(auto& self, auto&& visit) {
    visit("weight", self.weight);
    visit("bias", self.bias);
  }

  Parameter<T> weight, bias;

 private:
  double eps_;
};

/// Each channel to mean 0 and variance 1 over the rows of the batch in training, by the running statistics otherwise
/// (Ioffe and Szegedy 2015). Rows are packed, so padding cannot enter the statistics.
template <class T>
class BatchNorm : public Module<BatchNorm<T>> {
 public:
  explicit BatchNorm(Index channels, double eps = 1e-5, double momentum = 0.1)
      : weight({channels}),
        bias({channels}),
        running_mean({channels}, Role::statistic),
        running_var({channels}, Role::statistic),
        eps_(eps),
        momentum_(momentum) {
    weight.host().setOnes();
    running_var.host().setOnes();
  }

  template <class Context, class Tensor>
  auto operator()(Context& context, const Tensor& x) const {
    return context.batch_norm(x, BatchNormParameters<T>{weight, bias, running_mean, running_var, eps_, momentum_});
  }

  static void each_parameter(auto& self, auto&& visit) {
    visit("weight", self.weight);
    visit("bias", self.bias);
    visit("running_mean", self.running_mean);
    visit("running_var", self.running_var);
  }

  Parameter<T> weight, bias, running_mean, running_var;

 private:
  double eps_, momentum_;
};

}  // namespace LACONIC_ABI
}  // namespace laconic
