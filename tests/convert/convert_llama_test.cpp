// laconic: attention for speech models. SPDX-License-Identifier: MIT
// A Llama becomes DeepSeek's form: without loss where nothing is cut, and with the rates and amplitude of its scaling.
#include <laconic/convert/rotary.hpp>
#include <laconic/model/llama.hpp>

#include "gradient_check.hpp"

using namespace laconic;

namespace {

using One = Llama<Mqa<4, Rotary<RotaryPairs::halves>>, double>;
using Decoupled = Llama<MlaDecoupled<4, dyn, dyn, FullQuery, NoNorm>, double>;

LanguageModelConfig config_of(RotaryRates rope) {
  return {.vocab_size = 13,
          .max_positions = 40,
          .d_model = 32,
          .num_layers = 2,
          .rope = rope,
          .position_embeddings_type = PositionEmbeddings::rotary,
          .attention_bias = false,
          .hidden_act = Activation::silu,
          .intermediate_size = 24};
}
std::vector<int> some_tokens() {
  const Random random(Seed(3), "tokens");
  std::vector<int> out;
  for (std::uint64_t i = 0; i < 40; ++i) out.push_back(static_cast<int>(random.below(13, i)));
  return out;
}

}  // namespace

TEST_CASE("a Llama with one key-value head is decoupled without loss") {
  const std::vector<int> ids = some_tokens();
  const TokenRows tokens{ids, Sequences{25, 15}};
  for (const RotaryRates& rope :
       {RotaryRates{.base = 500},
        RotaryRates{.scaling = RotaryScaling::llama3, .factor = 4, .original_max_positions = 16},
        RotaryRates{.scaling = RotaryScaling::yarn, .factor = 4, .original_max_positions = 16}}) {
    INFO(to_name(rope.scaling));
    One model(config_of(rope), Seed(1));
    randomize(model, 3);
    const DecouplingConfig all{.kv_lora_rank = 8, .qk_rope_head_dim = 8};
    const auto [small, report] = decouple_rotary<Decoupled>(model, JointSvd(), RotaryChoice::high, all, tokens);
    CHECK(report.logits_error < 1e-10);
    CHECK(report.input == "tokens");
    CHECK(small.config().rope == rope);
    // Half of the pairs lose their position: another model, still near.
    const DecouplingConfig half{.kv_lora_rank = 16, .qk_rope_head_dim = 4};
    const double error =
        decouple_rotary<Decoupled>(model, JointSvd(), RotaryChoice::uniform, half, tokens).report.logits_error;
    CHECK(error > 1e-6);
    CHECK(error < 1);
  }
}
