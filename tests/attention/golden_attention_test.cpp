// laconic: attention for speech models. SPDX-License-Identifier: MIT
// Attention against what others have computed: Hugging Face's DeepSeek and Conformer, and linear attention as published
// (tests/golden: deepseek_mla.py, conformer_attention.py, linear_attention.py).
#include <laconic/attention/attention.hpp>

#include "golden.hpp"

using namespace laconic;

namespace {

template <class T>
Golden<T> golden_case(const SafetensorsFile& file, const std::string& prefix) {
  constexpr bool single = std::is_same_v<T, float>;
  return {file, prefix, single ? 1e-5 : 1e-10, single ? 1e-4 : 1e-10};
}

template <class Policy, class T>
void check_layer(const Golden<T>& golden, const AttentionConfig& config, const Mask& mask,
                 AttentionPath path = AttentionPath::by_cost) {
  AttentionLayer<Policy, T> layer(config, 0, Seed(1));
  load_parameters(layer, golden.file, golden.prefix + "param.");
  const Matrix<T> input = golden("input");
  const Sequences one{input.rows()};
  const auto apply = [&](auto& context, const auto& x) {
    Pass<std::remove_cvref_t<decltype(x)>> pass{one, mask};
    const auto entered = layer.enter(context, x, pass);
    pass.table = layer.table(context, pass);
    return layer(context, entered, pass, nullptr, path);
  };
  Cpu<T> cpu(1);
  golden.check_output(apply(cpu, cpu.input(input)).view());
  Autodiff<Cpu<T>> tape(cpu);
  const auto x = tape.variable(input);
  golden.check_backward(tape, apply(tape, x));
  golden.check_gradients(tape.gradient(x).view(), layer);
}

}  // namespace

TEMPLATE_TEST_CASE("a decoupled latent is DeepSeek's attention, on both paths", "[golden][latent]", float, double) {
  const auto file = golden_file("deepseek_mla.safetensors");
  const AttentionConfig config{.d_model = 48, .attention_bias = false};
  for (const AttentionPath path : {AttentionPath::by_cost, AttentionPath::expanded, AttentionPath::absorbed}) {
    INFO("path " << static_cast<int>(path));
    check_layer<MlaDecoupled<4, 20, 6, LowRankQuery<24>>, TestType>(golden_case<TestType>(file, "case0."), config,
                                                                    Mask::causal(), path);
    check_layer<MlaDecoupled<4, 20, 6>, TestType>(golden_case<TestType>(file, "case1."), config, Mask::causal(), path);
  }
}

TEMPLATE_TEST_CASE("attention is the Hugging Face Conformer's", "[golden]", float, double) {
  const auto file = golden_file("conformer_attention.safetensors");
  check_layer<Mha<4>, TestType>(golden_case<TestType>(file, "case0."), {24}, Mask::bidirectional());
  check_layer<Mha<4, InputRotary<>>, TestType>(golden_case<TestType>(file, "case1."), {24}, Mask::bidirectional());
}

TEMPLATE_TEST_CASE("linear attention is the published recurrence", "[golden]", float, double) {
  using T = TestType;
  const auto file = golden_file("linear_attention.safetensors");
  for (const bool causal : {true, false}) {
    const Golden<T> golden = golden_case<T>(file, causal ? "case0." : "case1.");
    const AttendShape shape{3, 3, 1, causal ? Mask::causal() : Mask::bidirectional()};
    const Sequences one{13};
    Cpu<T> cpu(1);
    Autodiff<Cpu<T>> tape(cpu);
    const auto q = tape.variable(golden("q")), k = tape.variable(golden("k")), v = tape.variable(golden("v"));
    golden.check_backward(tape, tape.linear_attend(q, k, v, shape, one));
    golden.check_gradient("q", tape.gradient(q).view());
    golden.check_gradient("k", tape.gradient(k).view());
    golden.check_gradient("v", tape.gradient(v).view());
    CHECK(golden.gradients() == 3);
    if (!causal) continue;
    // The same one row after the other, through a state.
    auto states = cpu.fill(1, 3 * 5 * (4 + 1), 0);
    const Sequences row{1};
    for (Index i = 0; i < 13; ++i) {
      const auto at = [&](const char* name) { return cpu.input(Matrix<T>(golden(name).row(i))); };
      const auto out = cpu.linear_attend(at("q"), at("k"), at("v"), shape, row, &states);
      CHECK(difference<T>(out.view(), golden("output").row(i)) < golden.tolerance);
    }
  }
}
