// laconic: attention for speech models. SPDX-License-Identifier: MIT
// Rotary models as decoupled latents: lossless where that can be, and what is kept is what was chosen.
#include "gradient_check.hpp"

#include <laconic/convert/rotary.hpp>
#include <laconic/model/conformer.hpp>

using namespace laconic;

namespace {

constexpr Index heads = 4, head_dim = 8, d_model = heads * head_dim;
constexpr EncoderConfig config{.num_mels = 20,
                               .d_model = d_model,
                               .num_layers = 2,
                               .vocab_size = 7,
                               .ffn_expansion = 2,
                               .conv_kernel = 5,
                               .subsampling_channels = 3};
template <RotaryPairs Pairs, Index G>
using Turned = Conformer<Attention<Heads<heads, G>, FullRank, Rotary<Pairs>>, double>;
template <template <class> class Norm = NoNorm>
using Decoupled = Conformer<MlaDecoupled<heads, dyn, dyn, FullQuery, Norm>, double>;

const Matrix<double> features = random_matrix(206, 20, 1);
const Sequences sequences{61, 7, 138};
const Calibration<double> speech{features, sequences};

template <class Model>
Model random_model() {
  Model model(config, Seed(1));
  randomize(model, 7);
  return model;
}
template <class Model>
Matrix<double> logits(const Model& model) {
  Cpu<double> cpu(1);
  return model(cpu, features, sequences).rows.view();
}
template <class A, class B>
double difference(const A& a, const B& b) {
  const Matrix<double> x = logits(a), y = logits(b);
  return (x - y).cwiseAbs().maxCoeff() / y.cwiseAbs().maxCoeff();
}

/// Every head's keys are those of the first, each pair times a complex number of the head's own.
template <RotaryPairs Pairs>
Turned<Pairs, heads> alike() {
  auto model = random_model<Turned<Pairs, heads>>();
  const Matrix<double> c = random_matrix(heads, head_dim, 9);
  for (auto& block : model.layers) {
    auto& linear = block.self_attn.key_value.linear_k;
    for (Index h = 1; h < heads; ++h)
      for (Index p = 0; p < head_dim / 2; ++p) {
        const Index a = Pairs == RotaryPairs::interleaved ? 2 * p : p,
                    b = Pairs == RotaryPairs::interleaved ? a + 1 : p + head_dim / 2;
        const auto turn = [&](auto&& to_a, auto&& to_b, const auto& from_a, const auto& from_b) {
          to_a = c(h, 2 * p) * from_a - c(h, 2 * p + 1) * from_b;
          to_b = c(h, 2 * p) * from_b + c(h, 2 * p + 1) * from_a;
        };
        auto& w = linear.weight.host();
        turn(w.row(h * head_dim + a), w.row(h * head_dim + b), w.row(a).eval(), w.row(b).eval());
        auto& bias = linear.bias.host();
        turn(bias(0, h * head_dim + a), bias(0, h * head_dim + b), bias(0, a), bias(0, b));
      }
  }
  return model;
}

}  // namespace

TEMPLATE_TEST_CASE("heads that share their keys up to complex factors lose nothing", "[convert][rotary]",
                   (Turned<RotaryPairs::interleaved, 1>), (Turned<RotaryPairs::halves, 1>)) {
  // One key-value head: a rotary key of the same width holds the key, a latent of a head's width the value.
  const auto model = random_model<TestType>();
  const auto [decoupled, report] =
      decouple_rotary<Decoupled<>>(model, JointSvd(), RotaryChoice::high, {head_dim, head_dim}, features, sequences);
  CHECK(difference(decoupled, model) < 1e-9);
  CHECK(report.output_error < 1e-9);
}

TEST_CASE("heads that differ by complex factors lose nothing", "[convert][rotary]") {
  const auto check = [](const auto& model) {
    CHECK(difference(decouple_rotary<Decoupled<>>(model, JointSvd(), RotaryChoice::norm, {d_model, head_dim}, features,
                                                  sequences)
                         .model,
                     model) < 1e-8);
    CHECK(difference(decouple_rotary<Decoupled<>>(model, ActivationPca<double>{speech}, RotaryChoice::low,
                                                  {d_model, head_dim}, features, sequences)
                         .model,
                     model) < 1e-8);
  };
  check(alike<RotaryPairs::interleaved>());
  check(alike<RotaryPairs::halves>());
}

TEST_CASE("the chosen pairs are those that were asked for", "[convert][rotary]") {
  auto model = random_model<Turned<RotaryPairs::interleaved, heads>>();
  for (auto& block : model.layers)  // pairs 2 and 0 are the longest
    for (Index h = 0; h < heads; ++h) {
      block.self_attn.key_value.linear_k.weight.host().middleRows(h * head_dim + 4, 2) *= 9;
      block.self_attn.query.linear_q.weight.host().middleRows(h * head_dim, 2) *= 5;
    }
  const auto pairs = [&](RotaryChoice choice) {
    return decouple_rotary<Decoupled<>>(model, JointSvd(), choice, {16, 4}, features, sequences)
        .model.config()
        .rope_pairs;
  };
  CHECK(pairs(RotaryChoice::high) == IndexList{0, 1});
  CHECK(pairs(RotaryChoice::low) == IndexList{2, 3});
  CHECK(pairs(RotaryChoice::uniform) == IndexList{0, 2});
  CHECK(pairs(RotaryChoice::norm) == IndexList{0, 2});
  CHECK_THROWS_WITH(decouple_rotary<Decoupled<>>(model, JointSvd(), RotaryChoice::high, {16, 10}, features, sequences),
                    "decouple_rotary: qk_rope_head_dim 10 given, at most head_dim = 8 expected");
}

TEST_CASE("keys without energy in other pairs need no others", "[convert][rotary]") {
  auto model = alike<RotaryPairs::interleaved>();
  for (auto& block : model.layers)
    for (Index h = 0; h < heads; ++h)
      for (const Index pair : {0, 3}) {
        block.self_attn.key_value.linear_k.weight.host().middleRows(h * head_dim + 2 * pair, 2).setZero();
        block.self_attn.key_value.linear_k.bias.host().middleCols(h * head_dim + 2 * pair, 2).setZero();
      }
  const auto decoupled =
      decouple_rotary<Decoupled<>>(model, JointSvd(), RotaryChoice::norm, {d_model, 4}, features, sequences).model;
  CHECK(decoupled.config().rope_pairs == IndexList{1, 2});
  CHECK(difference(decoupled, model) < 1e-8);
}

TEST_CASE("a norm on the latent keeps its mean square", "[convert][rotary]") {
  const auto model = alike<RotaryPairs::interleaved>();
  const auto plain = decouple_rotary<Decoupled<>>(model, ActivationPca<double>{speech}, RotaryChoice::high,
                                                  {16, head_dim}, features, sequences);
  const auto normed = decouple_rotary<Decoupled<RmsNorm>>(model, ActivationPca<double>{speech}, RotaryChoice::high,
                                                          {16, head_dim}, features, sequences);
  CHECK(plain.report.output_error < normed.report.output_error);
  CHECK(normed.report.output_error < 0.6);  // without the gain it is far above 1
}
