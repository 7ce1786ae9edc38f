// laconic: attention for speech models. SPDX-License-Identifier: MIT
// Conversions, calibration and Fisher information behind the fence: with the bits of the context that is behind it.
#include <laconic/convert/convert.hpp>
#include <laconic/model/conformer.hpp>
#include <laconic/train/fisher.hpp>

#include "backends.hpp"
#include "gradient_check.hpp"

using namespace laconic;

namespace {

using Full = Conformer<Mha<4>>;
using Small = Conformer<MlaSimple<4, 6>>;
using Grouped = Conformer<Gqa<4, 2>>;

Full full() {
  Full model({.num_mels = 12,
              .d_model = 16,
              .num_layers = 2,
              .vocab_size = 5,
              .ffn_expansion = 2,
              .conv_kernel = 5,
              .subsampling = 2,
              .subsampling_channels = 4},
             Seed(5));
  randomize(model, 9);
  return model;
}

/// The numbers of a converted model and of its report.
template <class Target, class Backend, class Method>
std::vector<Matrix<float>> converted(const Full& model, const Method& method) {
  const Matrix<float> features = random_matrix<float>(120, 12, 3);
  Recorder<Backend> context(2);
  const auto [small, report] = convert<Target>(context, model, method, ConversionConfig{}, features, Sequences{80, 40});
  std::vector<Matrix<float>> out;
  small.parameters([&](std::string_view, const Parameter<float>& p) { out.push_back(p.host()); });
  for (const double number : {report.predicted_error, report.key_value_error, report.output_error, report.logits_error})
    out.push_back(Matrix<float>::Constant(1, 1, static_cast<float>(number)));
  for (const LayerReport& layer : report.layers)
    out.push_back(Matrix<float>::Constant(1, 1, static_cast<float>(layer.output_error)));
  return out;
}
template <class Target, class Method>
void check_same(const Full& model, const Method& method) {
  const auto expected = converted<Target, Cpu<float>>(model, method),
             got = converted<Target, Fenced<Cpu<float>>>(model, method);
  REQUIRE(got.size() == expected.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    CAPTURE(i);
    REQUIRE(expected[i].allFinite());
    CHECK(got[i] == expected[i]);
  }
}

}  // namespace

TEST_CASE("conversions behind the fence have the same bits", "[fenced][convert]") {
  const Full model = full();
  const Calibration<float> speech{random_matrix<float>(200, 12, 4), Sequences{90, 110}};
  check_same<Small>(model, JointSvd{});
  check_same<Small>(model, ActivationPca<float>{.calibration = speech, .score_aware = true});
  check_same<Grouped>(model, ActivationPca<float>{.calibration = speech});
}

TEST_CASE("Fisher information behind the fence is the same", "[fenced][convert]") {
  const Full model = full();
  const Matrix<float> features = random_matrix<float>(160, 12, 3);
  const Sequences sequences{90, 70};
  const Labels labels{{1, 2, 3, 1}, Sequences{2, 2}};
  Cpu<float> cpu(1);
  Fenced<Cpu<float>> fenced(1);
  const auto expected = fisher_information(model, cpu, features, sequences, labels),
             got = fisher_information(model, fenced, features, sequences, labels);
  REQUIRE(got.size() == expected.size());
  for (std::size_t i = 0; i < got.size(); ++i) CHECK(got[i] == Approx(expected[i]).epsilon(1e-6));
}
