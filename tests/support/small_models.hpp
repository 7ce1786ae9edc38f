// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

// Small models of double, which tests of conversions convert and compare.

#include "gradient_check.hpp"

#include <laconic/backend/cpu.hpp>
#include <laconic/convert/convert.hpp>
#include <laconic/model/conformer.hpp>

#include <string>
#include <utility>
#include <vector>

namespace laconic {
namespace small {

// 4 heads of 12 channels: no two sizes that could be mixed up are equal.
constexpr Index d_model = 48, heads = 4, head_dim = 12;
constexpr EncoderConfig config{.num_mels = 20,
                               .d_model = d_model,
                               .num_layers = 2,
                               .vocab_size = 7,
                               .ffn_expansion = 2,
                               .conv_kernel = 5,
                               .cgmlp_expansion = 2,
                               .subsampling_channels = 3};

/// Names a Conformer of double.
template <class Policy>
using Model = Conformer<Policy, double>;
/// Names an attention whose number of key-value heads is open.
template <class KeyValue, class Position = RelativePosition>
using Open = Attention<Heads<heads, dyn>, KeyValue, Position>;

/// Returns a model of random parameters.
template <class M>
M random_model(Index seed, const EncoderConfig& numbers = config) {
  M model(numbers, Seed() / seed);
  randomize(model, static_cast<std::uint64_t>(100 * seed));
  return model;
}

/// Returns the logits of three random sequences.
template <class M>
Matrix<double> logits(const M& model) {
  Cpu<double> cpu(1);
  const Matrix<double> features = random_matrix(106, config.num_mels, 1);
  return model(cpu, features, {61, 7, 38}).rows.view();
}
/// Returns the largest difference between the logits of two models, relative to the largest logit of `b`.
template <class A, class B>
double difference(const A& a, const B& b) {
  const Matrix<double> x = logits(a), y = logits(b);
  REQUIRE((x.rows() == y.rows() && x.allFinite()));
  return (x - y).cwiseAbs().maxCoeff() / y.cwiseAbs().maxCoeff();
}

/// Returns whether two models have parameters of the same names and bits, in the same order.
template <class A, class B>
bool same_parameters(const A& a, const B& b) {
  const auto list = [](const auto& model) {
    std::vector<std::pair<std::string, std::vector<double>>> out;
    model.parameters([&](std::string_view name, const auto& p) {
      out.push_back({std::string(name), {p.host().data(), p.host().data() + p.size()}});
    });
    return out;
  };
  return list(a) == list(b);
}

/// Checks that the predicted error is that of keys and values on inputs whose Gram matrix is the identity, and on much
/// white noise.
template <class Target, class Source>
void check_prediction(const Conversion<Target>& conversion, const Source& source) {
  Cpu<double> cpu(1);
  for (std::size_t i = 0; i < source.layers.size(); ++i) {
    const auto error = [&](const Matrix<double>& x) {
      return key_value_deviation(cpu, conversion.model.layers[i].attention(), source.layers[i].attention(), x)
          .relative();
    };
    const LayerReport& layer = conversion.report.layers[i];
    CHECK(error(Matrix<double>::Identity(d_model, d_model)) == Approx(layer.predicted_error).epsilon(1e-10));
    CHECK(error(random_matrix(8000, d_model, 1)) == Approx(layer.predicted_error).epsilon(0.03));
    CHECK(layer.key_value_error == Approx(layer.predicted_error).epsilon(0.3));
    CHECK(layer.predicted_error > 1e-2);
  }
}

/// Checks that a conversion loses nothing, and that the way back is exact, too.
template <class Target, class Source>
void check_lossless(const Source& source, const ConversionConfig& numbers = {}) {
  const auto [model, report] = convert<Target>(source, JointSvd{}, numbers);
  CHECK(difference(model, source) < 1e-12);
  CHECK(report.predicted_error < 1e-14);
  CHECK(std::max({report.key_value_error, report.output_error, report.logits_error}) < 1e-12);
  const auto back = convert<Source>(model, JointSvd{}, {.num_kv_heads = source.config().num_kv_heads});
  CHECK(difference(back.model, source) < 1e-12);
}

}  // namespace small
}  // namespace laconic
