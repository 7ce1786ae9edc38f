// laconic: attention for speech models. SPDX-License-Identifier: MIT
// A DeepSeek-V3 of transformers gives its logits and is written back as it was (tests/golden/deepseek.py), so that a
// Llama which became one runs there, too.
#include <laconic/convert/rotary.hpp>
#include <laconic/decode/token_decoder.hpp>
#include <laconic/io/deepseek.hpp>
#include <laconic/model/llama.hpp>

#include "golden.hpp"
#include "message_of.hpp"
#include "temporary_folder.hpp"

using namespace laconic;

namespace {

const std::filesystem::path golden = LACONIC_GOLDEN_DIR;
template <class T>
using Model = Llama<MlaDecoupled<dyn, dyn, dyn>, T>;
template <class T>
using LowRankModel = Llama<MlaDecoupled<dyn, dyn, dyn, LowRankQuery<dyn>>, T>;

}  // namespace

TEMPLATE_TEST_CASE("a DeepSeek-V3 gives the logits of transformers, and is written as it was read", "", Model<float>,
                   Model<double>, LowRankModel<float>, LowRankModel<double>) {
  using T = typename TestType::Scalar;
  const auto folder = golden / (detail::has_low_rank_queries<TestType> ? "deepseek_low_rank" : "deepseek");
  const SafetensorsFile expected(folder / "expected.safetensors");
  const auto model = load_deepseek<TestType>(folder);
  CHECK(model.count_parameters() == TestType::parameter_count(model.config()));
  const Matrix<double> ids = tensor<double>(expected, "ids");
  std::vector<int> tokens;
  for (Index i = 0; i < ids.size(); ++i) tokens.push_back(static_cast<int>(ids.data()[i]));
  Cpu<T> cpu;
  const Matrix<T> logits = cpu.output(model(cpu, {tokens, Sequences{9, 9}}));
  CHECK(difference<T>(logits, tensor<T>(expected, "logits")) < (std::is_same_v<T, double> ? 2e-6 : 1e-5));

  if constexpr (std::is_same_v<T, float>) {
    const TemporaryFolder temporary;
    save_deepseek(temporary / "again", model);
    const SafetensorsFile before(folder / "model.safetensors"), after(temporary / "again/model.safetensors");
    auto names = before.names(), again = after.names();
    std::sort(names.begin(), names.end());
    std::sort(again.begin(), again.end());
    CHECK(names == again);
    for (const std::string& name : names) {
      INFO(name);
      CHECK(before.info(name).shape == after.info(name).shape);
      CHECK(std::equal(before.info(name).bytes.begin(), before.info(name).bytes.end(), after.info(name).bytes.begin()));
    }
    const auto config = read_json(folder / "config.json"), written = read_json(temporary / "again/config.json");
    for (const auto& [key, value] : config.items()) CHECK(written.at(key) == value);
  }
}

TEST_CASE("a Llama that became a DeepSeek-V3 is saved as one") {
  const auto llama = load_llama<Llama<Gqa<dyn, dyn, Rotary<RotaryPairs::halves>>>>(golden / "llama");
  const std::vector<int> tokens{1, 7, 30, 2, 2, 15};
  const TokenRows rows{tokens, Sequences{6}};
  const TemporaryFolder temporary;
  const auto converted = decouple_rotary<Model<float>>(llama, JointSvd(), RotaryChoice::uniform,
                                                       {.kv_lora_rank = 24, .qk_rope_head_dim = 4}, rows)
                             .model;
  save_deepseek(temporary / "deepseek", converted);
  const auto loaded = load_deepseek<Model<float>>(temporary / "deepseek");
  Cpu cpu;
  const Matrix<float> logits = cpu.output(converted(cpu, rows));
  // The rates are powers of the same base, computed from other numbers.
  CHECK(difference<float>(cpu.output(loaded(cpu, rows)), logits) < 1e-5);
  TokenDecoder decoder(cpu, loaded);
  CHECK(decoder.cache_bytes() == 2 * 64 * (24 + 4) * 4);  // of 2 layers, 64 tokens, the latent and the rotary key

  const auto high = decouple_rotary<Model<float>>(llama, JointSvd(), RotaryChoice::high,
                                                  {.kv_lora_rank = 24, .qk_rope_head_dim = 4}, rows)
                        .model;
  CHECK(message_of([&] {
          save_deepseek(temporary / "no", high);
        }).starts_with("save_deepseek: pair 1 given as number 1, 2 expected"));
  CHECK(!std::filesystem::exists(temporary / "no"));
}

TEST_CASE("what a DeepSeek-V3 may say and laconic does not compute is refused") {
  const auto refusal = [](const char* key, const nlohmann::json& value) {
    auto config = read_json(golden / "deepseek/config.json");
    config[key] = value;
    return message_of([&] { deepseek_config(config, "c"); });
  };
  const auto file = (golden / "deepseek/config.json").string(),
             low_rank = (golden / "deepseek_low_rank/config.json").string();
  CHECK(message_of([] { load_deepseek<LowRankModel<float>>(golden / "deepseek"); }) ==
        file + ": 'q_lora_rank' is null, a number expected by a model with LowRankQuery");
  CHECK(message_of([] { load_deepseek<Model<float>>(golden / "deepseek_low_rank"); }) ==
        low_rank + ": 'q_lora_rank' is 10, null expected by a model with FullQuery");
  CHECK(refusal("first_k_dense_replace", 1) ==
        "c: 'first_k_dense_replace' is 1, at least all 2 layers expected: experts are not known");
  CHECK(refusal("v_head_dim", 16) == "c: 'v_head_dim' is 16, qk_nope_head_dim = 8 expected");
  CHECK(refusal("rope_interleave", false) == "c: 'rope_interleave' is false, true expected");
}
