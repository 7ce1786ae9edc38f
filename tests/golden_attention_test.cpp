// laconic: attention for speech models. SPDX-License-Identifier: MIT
// Attention against what others have computed: Hugging Face's DeepSeek and Conformer, and linear attention as published
// (tests/golden: deepseek_mla.py, conformer_attention.py, linear_attention.py).
#include <laconic/attention/attention.hpp>
#include <laconic/io/parameters.hpp>

#include "gradient_check.hpp"

using namespace laconic;

namespace {

SafetensorsFile golden_file(const std::string& name) { return SafetensorsFile(std::filesystem::path(LACONIC_GOLDEN_DIR) / name); }

template <class T>
Matrix<T> tensor(const SafetensorsFile& file, const std::string& name) {
  const auto& shape = file.info(name).shape;
  Matrix<T> out = shape.size() == 1 ? Matrix<T>(1, shape[0]) : Matrix<T>(shape[0], shape[1]);
  file.read(name, std::span<T>(out.data(), static_cast<std::size_t>(out.size())));
  return out;
}

/// The greatest difference, relative to the greatest number expected, or to `least` where all are smaller.
template <class T>
double difference(const Matrix<T>& got, const Matrix<T>& expected, double least = 0) {
  REQUIRE((got.rows() == expected.rows() && got.cols() == expected.cols()));
  if (!got.allFinite()) return 1e300;
  return static_cast<double>((got - expected).cwiseAbs().maxCoeff()) / std::max(least, static_cast<double>(expected.cwiseAbs().maxCoeff()));
}

template <class T>
constexpr double tolerance = std::is_same_v<T, float> ? 1e-5 : 1e-10;  // of outputs
template <class T>
constexpr double gradient_tolerance = std::is_same_v<T, float> ? 1e-4 : 1e-10;

/// The tensors of one case of a file.
template <class T>
struct Golden {
  const SafetensorsFile& file;
  std::string prefix;  // "case0."

  Matrix<T> operator()(const std::string& name) const { return tensor<T>(file, prefix + name); }

  /// From y on the tape: its numbers, then the gradients of sum(y * mix) by the tensors that the file names so.
  template <class Tape, class Tensor>
  void check_output(Tape& tape, const Tensor& y) const {
    CHECK(difference<T>(y.value.view(), (*this)("output")) < tolerance<T>);
    tape.backward(tape.mean_finite(tape.multiply(y, tape.input((*this)("mix")))), static_cast<double>(y.rows() * y.cols()));
  }
  /// Gradients that cancel (the bias of the keys) are measured beside the others.
  void check_gradient(const std::string& name, const Matrix<T>& got) const {
    double greatest = 0;
    for (const std::string& one : file.names())
      if (one.starts_with(prefix + "grad.")) greatest = std::max(greatest, static_cast<double>(tensor<T>(file, one).cwiseAbs().maxCoeff()));
    INFO(prefix << name);
    CHECK(difference<T>(got, (*this)("grad." + name), 1e-2 * greatest) < gradient_tolerance<T>);
  }
  Index gradients() const {
    Index count = 0;
    for (const std::string& one : file.names()) count += one.starts_with(prefix + "grad.") ? 1 : 0;
    return count;
  }
};

template <class Policy, class T>
void check_layer(const Golden<T>& golden, const AttentionConfig& config, const Mask& mask, AttentionPath path = AttentionPath::by_cost) {
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
  CHECK(difference<T>(apply(cpu, cpu.input(input)).view(), golden("output")) < tolerance<T>);
  Autodiff<Cpu<T>> tape(cpu);
  const auto x = tape.variable(input);
  golden.check_output(tape, apply(tape, x));
  golden.check_gradient("input", tape.gradient(x).view());
  Index compared = 1;
  layer.parameters([&](std::string_view name, const Parameter<T>& p) {
    golden.check_gradient(std::string(name), p.gradient());
    ++compared;
  });
  CHECK(compared == golden.gradients());
}

}  // namespace

TEMPLATE_TEST_CASE("a decoupled latent is DeepSeek's attention, on both paths", "[golden][latent]", float, double) {
  const auto file = golden_file("deepseek_mla.safetensors");
  const AttentionConfig config{.d_model = 48, .attention_bias = false};
  for (const AttentionPath path : {AttentionPath::by_cost, AttentionPath::expanded, AttentionPath::absorbed}) {
    INFO("path " << static_cast<int>(path));
    check_layer<MlaDecoupled<4, 20, 6, LowRankQuery<24>>, TestType>({file, "case0."}, config, Mask::causal(), path);
    check_layer<MlaDecoupled<4, 20, 6>, TestType>({file, "case1."}, config, Mask::causal(), path);
  }
}

TEMPLATE_TEST_CASE("attention is the Hugging Face Conformer's", "[golden]", float, double) {
  const auto file = golden_file("conformer_attention.safetensors");
  check_layer<Mha<4>, TestType>({file, "case0."}, {24}, Mask::bidirectional());
  check_layer<Mha<4, InputRotary<>>, TestType>({file, "case1."}, {24}, Mask::bidirectional());
}

TEMPLATE_TEST_CASE("linear attention is the published recurrence", "[golden]", float, double) {
  using T = TestType;
  const auto file = golden_file("linear_attention.safetensors");
  for (const bool causal : {true, false}) {
    const Golden<T> golden{file, causal ? "case0." : "case1."};
    const AttendShape shape{3, 3, 1, causal ? Mask::causal() : Mask::bidirectional()};
    const Sequences one{13};
    Cpu<T> cpu(1);
    Autodiff<Cpu<T>> tape(cpu);
    const auto q = tape.variable(golden("q")), k = tape.variable(golden("k")), v = tape.variable(golden("v"));
    golden.check_output(tape, tape.linear_attend(q, k, v, shape, one));
    golden.check_gradient("q", tape.gradient(q).view());
    golden.check_gradient("k", tape.gradient(k).view());
    golden.check_gradient("v", tape.gradient(v).view());
    CHECK(golden.gradients() == 3);
    if (!causal) continue;
    // The same one row after the other, through a state.
    auto states = cpu.constant(1, 3 * 5 * (4 + 1), [](Index, Index) { return T(0); });
    const Sequences row{1};
    for (Index i = 0; i < 13; ++i) {
      const auto at = [&](const char* name) { return cpu.input(Matrix<T>(golden(name).row(i))); };
      const auto out = cpu.linear_attend(at("q"), at("k"), at("v"), shape, row, &states);
      CHECK(difference<T>(out.view(), golden("output").row(i)) < tolerance<T>);
    }
  }
}
