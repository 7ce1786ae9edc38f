// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/autodiff.hpp>
#include <laconic/backend/cpu.hpp>

#include "backends.hpp"
#include "catch.hpp"

#include <cmath>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace laconic {

/// Returns a matrix of standard normal values times `scale`.
template <class T = double>
Matrix<T> random_matrix(Index rows, Index cols, std::uint64_t seed, double scale = 1) {
  const Random random(Seed(seed), "random_matrix");
  Matrix<T> out(rows, cols);
  for (Index i = 0; i < out.size(); ++i)
    out.data()[i] = static_cast<T>(scale * random.normal(static_cast<std::uint64_t>(i)));
  return out;
}

/// Returns a parameter of standard normal values times `scale`.
template <class T = double>
Parameter<T> random_parameter(std::initializer_list<Index> shape, std::uint64_t seed, double scale = 1) {
  Parameter<T> out(shape);
  out.host() = random_matrix<T>(out.rows(), out.cols(), seed, scale);
  return out;
}

/// Moves every parameter off its initial value, so that none is zero or one; running variances stay positive.
template <class Model>
void randomize(Model& model, std::uint64_t seed) {
  model.parameters([&]<class T>(std::string_view name, Parameter<T>& p) {
    Matrix<T> noise = random_matrix<T>(p.host().rows(), p.host().cols(), ++seed, 0.2);
    if (name.ends_with("running_var")) noise = noise.cwiseAbs();
    p.host() += noise;
  });
}

/// Lists the parameters whose derivatives are checked, and others that the computation needs.
struct CheckedParameters {
  std::vector<Parameter<double>*> checked{}, others{};

  CheckedParameters() = default;
  CheckedParameters(std::initializer_list<Parameter<double>*> list) : checked(list) {}
  CheckedParameters(std::vector<Parameter<double>*> list) : checked(std::move(list)) {}
};

/// Returns the parameters of a model, of which those that gradients train are checked.
template <class Model>
CheckedParameters weights_of(Model& model) {
  CheckedParameters out;
  model.parameters([&](std::string_view, Parameter<double>& p) {
    (p.role() == Role::weight ? out.checked : out.others).push_back(&p);
  });
  return out;
}

/// Compares derivatives with central differences. build(tape, inputs) computes a value from the inputs; each difference
/// runs it on a fresh tape with the same seed, so dropout stays the same. A value of a shape other than (1, 1) is
/// reduced to one number such that each of its elements has another derivative.
struct GradientCheck {
  bool training = true;
  double step = 1e-5;
  Index samples = 40;  ///< elements of each tensor that are checked
  int threads = 1;

  /// Returns the max difference relative to the max derivative of the same tensor, or to a thousandth of the max of all
  /// tensors if that is larger.
  template <class Backend = Cpu<double>, class Build>
  double operator()(std::vector<Matrix<double>> inputs, const CheckedParameters& parameters, Build&& build) const {
    using Tape = Autodiff<Backend>;
    using Tensor = typename Tape::Tensor;
    Backend backend(threads);
    std::optional<Parameter<double>> mix;
    const auto loss = [&](Tape& tape, std::vector<Tensor>& variables) {
      for (const auto& x : inputs) variables.push_back(tape.variable(x));
      const Tensor y = build(tape, variables);
      if (y.rows() == 1 && y.cols() == 1) return y;
      if (!mix) {
        mix = random_parameter({3, y.cols()}, 77, 1 / std::sqrt(static_cast<double>(y.cols())));
        mix->trainable = false;
        ParameterList<double> alone({&*mix});
        if constexpr (!Backend::computes_on_host) backend.prepare_training(alone);
      }
      const Random random(Seed(5), "offset");
      Matrix<double> offset(y.rows(), y.cols());
      for (Index i = 0; i < offset.size(); ++i) offset.data()[i] = random.normal(static_cast<std::uint64_t>(i));
      return tape.mean_finite(
          tape.activation(Activation::silu, tape.linear(tape.add(y, tape.input(std::move(offset))), *mix, nullptr)));
    };
    std::vector<Parameter<double>*> used = parameters.checked;
    used.insert(used.end(), parameters.others.begin(), parameters.others.end());
    ParameterList<double> list(used);
    const auto evaluate = [&] {
      const TrainedOn there(backend, list);
      Tape tape(backend, Seed(9), training);
      std::vector<Tensor> variables;
      return tape.number(loss(tape, variables));
    };

    struct Checked {
      std::string name;
      Matrix<double>* value;
      Matrix<double> derivative;
    };
    std::vector<Checked> all;
    {
      for (const auto* p : parameters.checked) p->gradient().setZero();
      std::optional<TrainedOn<Backend, ParameterList<double>>> there(std::in_place, backend, list);
      Tape tape(backend, Seed(9), training);
      std::vector<Tensor> variables;
      const Tensor y = loss(tape, variables);
      tape.backward(y);
      for (std::size_t i = 0; i < inputs.size(); ++i) {
        const auto& got = tape.gradient(variables[i]);
        Matrix<double> derivative = Matrix<double>::Zero(inputs[i].rows(), inputs[i].cols());
        if (!got.empty()) {
          REQUIRE(got.rows() == derivative.rows());
          REQUIRE(got.cols() == derivative.cols());
          derivative = backend.output(got);
        }
        all.push_back({text("input ", i), &inputs[i], derivative});
      }
      there.reset();
      for (std::size_t i = 0; i < parameters.checked.size(); ++i)
        all.push_back({text("parameter ", i), &parameters.checked[i]->host(), parameters.checked[i]->gradient()});
    }

    struct Worst {
      double difference, scale;
      std::string where;
    };
    std::vector<Worst> worsts;
    double greatest = 0;
    for (std::size_t n = 0; n < all.size(); ++n) {
      Matrix<double>& x = *all[n].value;
      std::vector<Index> entries(static_cast<std::size_t>(x.size()));
      for (std::size_t i = 0; i < entries.size(); ++i) entries[i] = static_cast<Index>(i);
      shuffle(entries, Random(Seed(n), "entries"));
      if (x.size() > samples) entries.resize(static_cast<std::size_t>(samples));
      Worst worst{0, 0, {}};
      for (const Index i : entries) {
        const double kept = x.data()[i];
        x.data()[i] = kept + step;
        const double above = evaluate();
        x.data()[i] = kept - step;
        const double below = evaluate();
        x.data()[i] = kept;
        const double numeric = (above - below) / (2 * step), given = all[n].derivative.data()[i];
        worst.scale = std::max({worst.scale, std::abs(numeric), std::abs(given)});
        if (!(std::abs(numeric - given) <= worst.difference)) {
          worst.difference = std::isnan(numeric - given) ? 1e300 : std::abs(numeric - given);
          worst.where = text(all[n].name, " (", x.rows(), ", ", x.cols(), ") at (", i / x.cols(), ", ", i % x.cols(),
                             "): ", given, " given, ", numeric, " by differences");
        }
      }
      greatest = std::max(greatest, worst.scale);
      worsts.push_back(worst);
    }
    std::string where;
    if (greatest == 0) return 1e300;  // derivatives that are all zero check nothing
    double error = 0;
    for (const Worst& worst : worsts) {
      const double relative = worst.difference / std::max(worst.scale, 1e-3 * greatest);
      if (!(relative <= error)) {
        error = relative;
        where = worst.where;
      }
    }
    UNSCOPED_INFO("worst derivative: " << where);
    return error;
  }
};

/// Compares derivatives with central differences on one backend.
template <class Backend>
struct GradientCheckOn : GradientCheck {
  template <class Build>
  double operator()(std::vector<Matrix<double>> inputs, const CheckedParameters& parameters, Build&& build) const {
    return GradientCheck::operator()<Backend>(std::move(inputs), parameters, std::forward<Build>(build));
  }
};

}  // namespace laconic
