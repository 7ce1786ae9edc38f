// laconic: attention for speech models. SPDX-License-Identifier: MIT
// A Llama of transformers: its logits with every scaling of rotary positions, and its continuations
// (tests/golden/llama.py).
#include <laconic/decode/generate.hpp>
#include <laconic/io/llama.hpp>
#include <laconic/model/llama.hpp>

#include "golden.hpp"
#include "message_of.hpp"

using namespace laconic;

namespace {

const std::filesystem::path folder = std::filesystem::path(LACONIC_GOLDEN_DIR) / "llama";
template <class T>
using Model = Llama<Gqa<dyn, dyn, Rotary<RotaryPairs::halves>>, T>;

nlohmann::json config_json() { return read_json(folder / "config.json"); }
template <class T>
Model<T> loaded(const nlohmann::json& config) {
  Model<T> out(llama_config(config, "config.json"), Seed());
  load_llama_parameters(out, SafetensorsFile(folder / "model.safetensors"));
  return out;
}
std::vector<int> row(const Matrix<double>& m, Index r) {
  std::vector<int> out;
  for (Index c = 0; c < m.cols(); ++c) out.push_back(static_cast<int>(m(r, c)));
  return out;
}

}  // namespace

TEMPLATE_TEST_CASE("a Llama gives the logits of transformers", "", float, double) {
  const SafetensorsFile expected(folder / "expected.safetensors");
  const auto model = load_llama<Model<TestType>>(folder);
  CHECK(model.count_parameters() == Model<TestType>::parameter_count(model.config()));
  const Matrix<double> ids = tensor<double>(expected, "ids");
  std::vector<int> tokens = row(ids, 0);
  for (const int id : row(ids, 1)) tokens.push_back(id);
  Cpu<TestType> cpu;
  const Matrix<TestType> logits = cpu.output(model(cpu, {tokens, Sequences{9, 9}}));
  // transformers computes rates and angles in single precision, whatever the weights are.
  const double tolerance = std::is_same_v<TestType, double> ? 2e-6 : 1e-5;
  CHECK(difference<TestType>(logits, tensor<TestType>(expected, "logits")) < tolerance);

  const std::vector<int> whole = row(tensor<double>(expected, "long"), 0);
  for (const char* scaling : {"linear", "llama3", "yarn"}) {
    INFO(scaling);
    auto config = config_json();
    config["rope_parameters"] = nlohmann::json::parse(expected.metadata().at(scaling));
    const auto scaled = loaded<TestType>(config);
    const Matrix<TestType> long_logits = cpu.output(scaled(cpu, {whole, Sequences{60}}));
    CHECK(difference<TestType>(long_logits.bottomRows(18), tensor<TestType>(expected, scaling)) < 4 * tolerance);
    // As transformers 4 wrote it.
    auto old = config_json();
    old.erase("rope_parameters");
    old["rope_scaling"] = config["rope_parameters"];
    old["rope_theta"] = old["rope_scaling"]["rope_theta"];
    old["rope_scaling"].erase("rope_theta");
    CHECK(llama_config(old, "c").rope == scaled.config().rope);
  }
}

TEST_CASE("a Llama continues texts as transformers does") {
  const SafetensorsFile expected(folder / "expected.safetensors");
  auto model = loaded<float>(config_json());
  Cpu cpu;
  cpu.prepare(model);
  TokenDecoder decoder(cpu, model, {.slots = 2});
  const Matrix<double> ids = tensor<double>(expected, "ids"), greedy = tensor<double>(expected, "greedy");
  const std::vector<std::vector<int>> prompts{row(ids, 0), row(ids, 1)};
  const auto texts = generate(decoder, std::span(prompts), {.max_new_tokens = 12});
  for (Index n = 0; n < 2; ++n) CHECK(texts[static_cast<std::size_t>(n)] == row(greedy, n));
}

TEMPLATE_LIST_TEST_CASE("derivatives of a Llama are those of finite differences", "[llama]", Backends<double>) {
  Model<double> model({.vocab_size = 7,
                       .max_positions = 16,
                       .d_model = 12,
                       .num_layers = 2,
                       .num_heads = 4,
                       .num_kv_heads = 2,
                       .head_dim = 4,
                       .rope = {.scaling = RotaryScaling::yarn, .factor = 2, .original_max_positions = 8},
                       .position_embeddings_type = PositionEmbeddings::rotary,
                       .attention_bias = false,
                       .hidden_act = Activation::silu,
                       .tied_embeddings = false},
                      Seed(1));
  randomize(model, 3);
  const std::vector<int> tokens{1, 3, 2, 2, 0, 6, 5}, targets{3, 2, 2, 5, 6, 5, 1};
  CHECK(GradientCheck{.samples = 15}.operator()<TestType>({}, weights_of(model), [&](auto& tape, const auto&) {
    return tape.cross_entropy(model(tape, {tokens, Sequences{4, 3}}), targets, {});
  }) < 1e-6);
}

TEST_CASE("what a Llama may say and laconic does not compute is refused") {
  const auto refusal = [](const char* key, const nlohmann::json& value) {
    auto config = config_json();
    config[key] = value;
    return message_of([&] { llama_config(config, "c"); });
  };
  CHECK(refusal("mlp_bias", true) == "c: 'mlp_bias' is true, false expected");
  CHECK(refusal("sliding_window", 64) == "c: 'sliding_window' is given, null expected");
  CHECK(refusal("model_type", "mistral") == "c: 'sliding_window' is missing (4096), null expected");
  CHECK(refusal("partial_rotary_factor", 0.5) == "c: 'partial_rotary_factor' is 0.5, 1 expected");
  CHECK(refusal("rope_parameters", {{"rope_type", "yarn"}, {"truncate", false}}) ==
        "c: 'rope_parameters': 'truncate' is false, true expected");
  CHECK(refusal("rope_parameters", {{"rope_type", "dynamic"}, {"factor", 2.0}}) ==
        "c: 'rope_parameters': 'rope_type' is 'dynamic', one of default, linear, llama3, yarn expected");
  CHECK(refusal("rope_parameters", {{"rope_type", "linear"}, {"factor", 0.5}}) ==
        "c: rotary: factor 0.5 given, 1 to 1e6 expected");
  CHECK(refusal("model_type", "qwen2") == "c: 'model_type' is 'qwen2', 'llama' or 'mistral' expected");
}
