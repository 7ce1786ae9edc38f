// laconic: attention for speech models. SPDX-License-Identifier: MIT
// A GPT keeps what it computes when its attention is converted without loss, and loses what is predicted otherwise.
#include <laconic/convert/convert.hpp>
#include <laconic/model/gpt.hpp>

#include "gradient_check.hpp"
#include "message_of.hpp"

using namespace laconic;

namespace {

constexpr LanguageModelConfig config{
    .vocab_size = 13, .max_positions = 40, .d_model = 16, .num_layers = 2, .num_heads = 4};
using Full = Gpt<Mha<4, NoPosition>, double>;
template <Index R>
using Simple = Gpt<MlaSimple<4, R, NoPosition>, double>;
using PerHead = Gpt<MlaHead<4, dyn, dyn, NoPosition>, double>;

Full source() {
  Full out(config, Seed(1));
  randomize(out, 3);
  return out;
}
/// Tokens of which a few are much more frequent, so that inputs have directions of more and of less energy.
CalibrationTokens some_text(std::uint64_t seed) {
  CalibrationTokens out{{}, Sequences{40, 40, 9}};
  const Random random(Seed(seed), "text");
  for (Index i = 0; i < 89; ++i) {
    const Index token = random.below(39, static_cast<std::uint64_t>(i));
    out.ids.push_back(static_cast<int>(token < 13 ? token : token % 3));
  }
  return out;
}

}  // namespace

TEST_CASE("a GPT with a latent as wide as the model computes the same") {
  const Full model = source();
  const auto [small, report] = convert<Simple<16>>(model);
  CHECK(report.logits_error < 1e-12);
  CHECK(report.input == "white noise");
  const auto [heads, report_of_heads] = convert<PerHead>(model, JointSvd{}, {.kv_lora_rank = 4});
  CHECK(report_of_heads.logits_error < 1e-12);
  Cpu<double> cpu;
  const CalibrationTokens text = some_text(1);
  CHECK((cpu.output(small(cpu, {text.ids, text.sequences})) - cpu.output(model(cpu, {text.ids, text.sequences})))
            .cwiseAbs()
            .maxCoeff() < 1e-10);
}

TEST_CASE("a GPT that is calibrated on a text loses less of such a text") {
  const Full model = source();
  const CalibrationTokens seen = some_text(1), other = some_text(2);
  const TokenRows measured{other.ids, other.sequences};
  const auto plain = convert<Simple<6>>(model, JointSvd{}, {}, measured).report;
  const auto calibrated =
      convert<Simple<6>>(model, ActivationPca<double, CalibrationTokens>{seen}, {}, measured).report;
  CHECK(plain.input == "tokens");
  CHECK(calibrated.key_value_error < plain.key_value_error);
  // On the text that it was calibrated on, the error is the one that was predicted.
  const auto same =
      convert<Simple<6>>(model, ActivationPca<double, CalibrationTokens>{seen}, {}, TokenRows{seen.ids, seen.sequences})
          .report;
  CHECK(std::abs(same.key_value_error - same.predicted_error) < 1e-6);
}

TEST_CASE("values of a higher rank lose less, by every method") {
  const Full model = source();
  const CalibrationTokens seen = some_text(1);
  const auto check = [&](const auto& method) {
    double before = 2;
    for (Index rank = 1; rank <= 4; ++rank) {
      const auto [small, report] = convert<PerHead>(model, method, {.kv_lora_rank = 4, .v_lora_rank = rank},
                                                    TokenRows{seen.ids, seen.sequences});
      CHECK(small.config().v_lora_rank == rank);
      CHECK(report.key_value_error < before);
      before = report.key_value_error;
      for (const LayerReport& layer : report.layers) {
        CHECK((layer.kv_lora_rank == 4 && layer.v_lora_rank == rank));
        CHECK(layer.k_factor_error < 1e-10);
        CHECK((layer.v_factor_error < 1e-10) == (rank == 4));
      }
    }
    CHECK(before < 1e-10);
  };
  check(JointSvd{});
  check(RandomizedSvd{});
  check(ActivationPca<double, CalibrationTokens>{seen});
  check(ActivationPca<double, CalibrationTokens>{seen, true});
}

TEST_CASE("a conversion without tokens is refused") {
  CHECK(message_of([&] {
          convert<Simple<6>>(source(), JointSvd{}, {}, TokenRows{{}, {}});
        }) == "convert: 0 tokens given in 0 sequences, at least one expected");
}

TEST_CASE("an open GPT converts by name") {
  LanguageModelConfig open = config;
  open.attention = AttentionName::mha;
  Gpt<AnyCausalAttention, double> model(open, Seed(1));
  randomize(model, 3);
  const auto grouped =
      convert<Gpt<AnyCausalAttention, double>>(model, JointSvd{}, {.num_kv_heads = 2, .attention = AttentionName::gqa});
  CHECK(grouped.model.config().num_kv_heads == 2);
  CHECK(grouped.report.logits_error > 0);
  const auto latent = convert<Gpt<AnyCausalAttention, double>>(
      model, JointSvd{}, {.kv_lora_rank = 16, .attention = AttentionName::mla_simple});
  CHECK(latent.report.logits_error < 1e-12);
  const auto heads = convert<Gpt<AnyCausalAttention, double>>(
      model, JointSvd{}, {.kv_lora_rank = 3, .v_lora_rank = 2, .attention = AttentionName::mla_head});
  CHECK(heads.model.config().v_lora_rank == 2);
  CHECK(heads.report.logits_error == convert<Gpt<AnyCausalAttention, double>>(
                                         convert<Full>(model).model, JointSvd{},
                                         {.kv_lora_rank = 3, .v_lora_rank = 2, .attention = AttentionName::mla_head})
                                         .report.logits_error);
  CHECK(message_of([&] {
          convert<Gpt<AnyCausalAttention, double>>(model, JointSvd{},
                                                   {.attention = AttentionName::mla_simple, .kv_lora_ranks = {4, 5}});
        }) == "convert: ranks of each layer given for a model whose layers have equal ranks");
}
