// laconic: attention for speech models. SPDX-License-Identifier: MIT
// Heads that are turned to agree before they become one.
#include "gradient_check.hpp"

#include <laconic/convert/convert.hpp>
#include <laconic/model/conformer.hpp>

using namespace laconic;

namespace {

using Names = AttentionName;
using Full = Conformer<Mha<4>, double>;
using FullRotary = Conformer<Mha<4, InputRotary<>>, double>;
template <class KeyValue>
using Grouped = Conformer<Attention<Heads<4, dyn>, KeyValue, RelativePosition>, double>;

constexpr Index heads = 4, head_dim = 8, groups = 2;
constexpr EncoderConfig numbers{.num_mels = 20, .d_model = heads * head_dim, .num_layers = 2, .vocab_size = 7, .ffn_expansion = 2,
                                .conv_kernel = 5, .subsampling_channels = 3};
const Calibration<double> speech{random_matrix(206, 20, 1), {61, 7, 138}};

template <class Model>
Model random_model() {
  Model model(numbers, Seed(1));
  randomize(model, 7);
  return model;
}
template <class Model>
Matrix<double> logits(const Model& model) {
  Cpu<double> cpu(1);
  return model(cpu, speech.features, speech.sequences).rows.view();
}
template <class A, class B>
double difference(const A& a, const B& b) {
  const Matrix<double> x = logits(a), y = logits(b);
  return (x - y).cwiseAbs().maxCoeff() / y.cwiseAbs().maxCoeff();
}

Matrix<double> rotation(std::uint64_t seed) { return detail::orthonormal(random_matrix(head_dim, head_dim, seed)); }

/// Every head's keys are those of its group's first one turned, its values those of that one in other units.
template <class Model>
Model alike_in_groups() {
  Model model = random_model<Model>();
  std::uint64_t seed = 50;
  for (auto& block : model.layers)
    for (Index h = 0; h < heads; ++h) {
      auto& k = block.self_attn.key_value.linear_k.weight.value;
      auto& v = block.self_attn.key_value.linear_v.weight.value;
      const Index first = h / groups * groups * head_dim;
      if (h * head_dim == first) continue;
      k.middleRows(h * head_dim, head_dim) = (rotation(++seed) * k.middleRows(first, head_dim)).eval();
      v.middleRows(h * head_dim, head_dim) = (random_matrix(head_dim, head_dim, ++seed) * v.middleRows(first, head_dim)).eval();
    }
  return model;
}

}  // namespace

TEST_CASE("heads that differ by a turn become one without loss", "[convert][merge]") {
  const ConversionConfig two{.num_kv_heads = groups};
  const Full model = alike_in_groups<Full>();
  const auto aligned = convert<Grouped<FullRank>>(model, ActivationPca<double>{speech}, two, speech.features, speech.sequences);
  CHECK(difference(aligned.model, model) < 1e-8);
  CHECK(aligned.report.key_value_error < 1e-8);
  CHECK(difference(convert<Grouped<FullRank>>(model, JointSvd(), two).model, model) > 1e-2);

  const FullRotary rotary = alike_in_groups<FullRotary>();
  using Target = Conformer<Gqa<4, dyn, InputRotary<>>, double>;
  CHECK(difference(convert<Target>(rotary, ActivationPca<double>{speech}, two).model, rotary) < 1e-8);
}

TEST_CASE("turned heads lose less than their mean, and what is said", "[convert][merge]") {
  const Full model = random_model<Full>();
  for (const Index kv_heads : {1, 2}) {
    CAPTURE(kv_heads);
    const ConversionConfig fewer{.num_kv_heads = kv_heads};
    const auto aligned = convert<Grouped<FullRank>>(model, ActivationPca<double>{speech}, fewer, speech.features, speech.sequences);
    const auto mean = convert<Grouped<FullRank>>(model, JointSvd(), fewer, speech.features, speech.sequences);
    CHECK(aligned.report.predicted_error == Approx(aligned.report.key_value_error).epsilon(1e-6));
    CHECK(aligned.report.key_value_error < 0.9 * mean.report.key_value_error);
    CHECK(aligned.report.output_error < 0.9 * mean.report.output_error);
  }
  const auto same = convert<Grouped<FullRank>>(model, ActivationPca<double>{speech}, {.num_kv_heads = heads});
  CHECK(difference(same.model, model) < 1e-13);
}

TEST_CASE("a latent of turned heads", "[convert][merge]") {
  const Full model = random_model<Full>();
  for (const bool score_aware : {false, true}) {
    const ActivationPca<double> method{speech, score_aware};
    const auto latent = convert<Grouped<SharedLatent<dyn>>>(model, method, {.num_kv_heads = 2, .kv_lora_rank = 20}, speech.features, speech.sequences);
    CHECK(latent.report.predicted_error == Approx(latent.report.key_value_error).epsilon(1e-6));
    const auto all = convert<Grouped<SharedLatent<dyn>>>(model, method, {.num_kv_heads = 2, .kv_lora_rank = numbers.d_model});
    CHECK(difference(all.model, convert<Grouped<FullRank>>(model, method, {.num_kv_heads = 2}).model) < 1e-8);
  }
}
