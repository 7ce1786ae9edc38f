// laconic: attention for speech models. SPDX-License-Identifier: MIT
// A GPT-2 of transformers: its logits, and its continuations by greedy decoding and beam search (tests/golden/gpt2.py).
#include <laconic/decode/beam_search.hpp>
#include <laconic/decode/generate.hpp>
#include <laconic/io/gpt2.hpp>
#include <laconic/model/gpt.hpp>

#include "golden.hpp"
#include "message_of.hpp"
#include "temporary_folder.hpp"

using namespace laconic;

namespace {

const std::filesystem::path folder = std::filesystem::path(LACONIC_GOLDEN_DIR) / "gpt2";

nlohmann::json config_json() { return read_json(folder / "config.json"); }
template <class T>
Gpt<Mha<dyn, NoPosition>, T> loaded() {
  return load_gpt2<Gpt<Mha<dyn, NoPosition>, T>>(folder);
}
std::vector<int> row(const Matrix<double>& m, Index r) {
  std::vector<int> out;
  for (Index c = 0; c < m.cols(); ++c) out.push_back(static_cast<int>(m(r, c)));
  return out;
}

}  // namespace

TEMPLATE_TEST_CASE("a GPT-2 gives the logits of transformers", "", float, double) {
  const SafetensorsFile expected(folder / "expected.safetensors");
  const auto model = loaded<TestType>();
  const Matrix<double> ids = tensor<double>(expected, "ids");
  std::vector<int> tokens = row(ids, 0);
  for (const int id : row(ids, 1)) tokens.push_back(id);
  Cpu<TestType> cpu;
  const Matrix<TestType> logits = cpu.output(model(cpu, {tokens, Sequences{9, 9}}));
  CHECK(difference<TestType>(logits, tensor<TestType>(expected, "logits")) <
        (std::is_same_v<TestType, double> ? 1e-12 : 1e-5));
}

TEST_CASE("a GPT-2 continues texts as transformers does") {
  const SafetensorsFile expected(folder / "expected.safetensors");
  auto model = loaded<float>();
  Cpu cpu;
  cpu.prepare(model);
  TokenDecoder decoder(cpu, model, {.slots = 4});
  const Matrix<double> ids = tensor<double>(expected, "ids"), greedy = tensor<double>(expected, "greedy"),
                       beam = tensor<double>(expected, "beam"), end = tensor<double>(expected, "penalty.end");
  const std::vector<std::vector<int>> prompts{row(ids, 0), row(ids, 1)};
  const auto texts = generate(decoder, std::span(prompts), {.max_new_tokens = 12});
  for (Index n = 0; n < 2; ++n) {
    const std::vector<int>& prompt = prompts[static_cast<std::size_t>(n)];
    CHECK(texts[static_cast<std::size_t>(n)] == row(greedy, n));
    CHECK(beam_search(decoder, prompt, {.beams = 4, .max_new_tokens = 12})[0].tokens == row(beam, n));
    const BeamConfig ending{
        .beams = 3, .max_new_tokens = 12, .end_token = static_cast<int>(end(0, n)), .length_penalty = 2};
    CHECK(beam_search(decoder, prompt, ending)[0].tokens == row(tensor<double>(expected, text("beam.", n)), 0));
  }
}

TEST_CASE("a GPT-2 loads as others have saved it") {
  const SafetensorsFile file(folder / "model.safetensors");
  const TemporaryFolder temporary;
  std::vector<std::vector<float>> values;
  values.reserve(200);
  const auto copy = [&](SafetensorsWriter& writer, const std::string& name, const std::string& as, float added) {
    std::vector<float>& copied = values.emplace_back(file.info(name).bytes.size() / sizeof(float));
    file.read(name, std::span(copied));
    copied[0] += added;
    writer.add(as, file.info(name).shape, std::span<const float>(copied));
  };
  // Without the prefix, with a mask of old files, and with a copy of the tied embeddings.
  SafetensorsWriter old;
  for (const std::string& name : file.names()) copy(old, name, name.substr(std::string("transformer.").size()), 0);
  copy(old, "transformer.wte.weight", "lm_head.weight", 0);
  copy(old, "transformer.ln_f.bias", "h.0.attn.masked_bias", 0);
  old.write(temporary / "model.safetensors");
  Gpt<Mha<dyn, NoPosition>> model(gpt2_config(config_json(), "c"), Seed());
  load_gpt2_parameters(model, SafetensorsFile(temporary / "model.safetensors"));
  CHECK(model.wte.weight.host() == loaded<float>().wte.weight.host());

  // A number that is not finite changes nothing.
  SafetensorsWriter infinite;
  for (const std::string& name : file.names())
    copy(infinite, name, name, name == "transformer.h.2.ln_1.bias" ? std::numeric_limits<float>::infinity() : 0);
  infinite.write(temporary / "model.safetensors");
  Gpt<Mha<dyn, NoPosition>> fresh(gpt2_config(config_json(), "c"), Seed());
  const Matrix<float> before = fresh.wte.weight.host();
  CHECK(message_of([&] {
          load_gpt2_parameters(fresh, SafetensorsFile(temporary / "model.safetensors"));
        }).ends_with("tensor 'transformer.h.2.ln_1.bias' holds numbers that are not finite"));
  CHECK(fresh.wte.weight.host() == before);

  // A config.json that describes more than the files hold takes no memory.
  auto config = config_json();
  config["n_layer"] = 4000;
  config["n_embd"] = 60000;
  write_json(temporary / "config.json", config);
  CHECK(message_of([&] { load_gpt2<Gpt<Mha<dyn, NoPosition>>>(temporary.path); }).find("describes a model of") !=
        std::string::npos);
}

TEST_CASE("what a GPT-2 may say and laconic does not compute is refused") {
  auto config = config_json();
  config["scale_attn_by_inverse_layer_idx"] = true;
  CHECK(message_of([&] { gpt2_config(config, "c.json"); }) ==
        "c.json: 'scale_attn_by_inverse_layer_idx' is true, false expected");
  config = config_json();
  config["activation_function"] = "mish";
  CHECK(message_of([&] { gpt2_config(config, "c.json"); }) ==
        "c.json: 'activation_function' is 'mish', one of swish, relu, silu, gelu, gelu_new expected");
  config = config_json();
  config["model_type"] = "gpt_neo";
  CHECK(message_of([&] { gpt2_config(config, "c.json"); }) == "c.json: 'model_type' is 'gpt_neo', 'gpt2' expected");
  config = config_json();
  config["n_layer"] = 4;
  Gpt<Mha<dyn, NoPosition>> longer(gpt2_config(config, "c.json"), Seed());
  CHECK(message_of([&] {
          load_gpt2_parameters(longer, SafetensorsFile(folder / "model.safetensors"));
        }).ends_with("model.safetensors: no tensor 'transformer.h.3.ln_1.weight', which the model needs"));
  config["n_layer"] = 2;
  Gpt<Mha<dyn, NoPosition>> shorter(gpt2_config(config, "c.json"), Seed());
  CHECK(message_of([&] {
          load_gpt2_parameters(shorter, SafetensorsFile(folder / "model.safetensors"));
        }).find("12 tensors that the model does not have") != std::string::npos);
  config = config_json();
  config["n_embd"] = 20;
  Gpt<Mha<dyn, NoPosition>> narrow(gpt2_config(config, "c.json"), Seed());
  CHECK(message_of([&] {
          load_gpt2_parameters(narrow, SafetensorsFile(folder / "model.safetensors"));
        }).ends_with("tensor 'transformer.wte.weight' has shape (37, 24), (37, 20) expected"));
}
