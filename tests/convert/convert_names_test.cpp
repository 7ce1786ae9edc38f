// laconic: attention for speech models. SPDX-License-Identifier: MIT
// Conversions by name: what AnyAttention holds becomes every other attention.
#include "small_models.hpp"

#include <laconic/convert/convert.hpp>

using namespace laconic;
using namespace laconic::small;

namespace {

using Names = AttentionName;

EncoderConfig named(Names name, Index seed) {
  EncoderConfig c = config;
  c.attention = name;
  c.num_heads = heads;
  c.num_kv_heads = name == Names::gqa || (name == Names::input_latent && seed % 2 == 0) ? 2 : 0;
  const bool latent = to_name(name).starts_with("mla");
  c.kv_lora_rank = !latent ? 0 : name == Names::mla_head ? 5 : 9;
  c.v_lora_rank = name == Names::mla_split ? 7 : name == Names::mla_head ? 3 : 0;
  c.qk_rope_head_dim = name == Names::mla_decoupled ? 4 : 0;
  return c;
}
ConversionConfig full_rank(Names name) {
  const bool latent = to_name(name).starts_with("mla");
  return {.num_kv_heads = name == Names::gqa ? heads : 0,
          .kv_lora_rank = !latent                   ? 0
                          : name == Names::mla_head ? head_dim
                                                    : d_model,
          .v_lora_rank = 0,
          .attention = name};
}
constexpr Names linear_maps[] = {Names::mha,        Names::gqa,       Names::mqa,      Names::mla,
                                 Names::mla_simple, Names::mla_split, Names::mla_head, Names::input_latent};

}  // namespace

TEST_CASE("by name, every attention becomes every other", "[convert]") {
  using Any = Model<AnyAttention>;
  for (const Names from : linear_maps) {
    const auto source = random_model<Any>(12, named(from, 12));
    for (const Names to : linear_maps) {
      if (to == Names::mqa && from != Names::mqa) continue;  // loses something
      INFO(to_name(from) << " to " << to_name(to));
      const auto [model, report] = convert<Any>(source, JointSvd{}, full_rank(to));
      CHECK(difference(model, source) < 1e-12);
      CHECK(report.logits_error < 1e-12);
      CHECK(report.predicted_error < 1e-14);
      CHECK(model.config().attention == to);
    }
  }
}

TEST_CASE("by name and by type are the same conversion", "[convert]") {
  using Any = Model<AnyAttention>;
  const auto typed = random_model<Model<Mha<heads>>>(13);
  const auto open = random_model<Any>(13, named(Names::mha, 13));
  REQUIRE(same_parameters(typed, open));
  const auto check = [&]<class Target>(std::type_identity<Target>, const ConversionConfig& numbers) {
    INFO(to_name(numbers.attention));
    ConversionConfig unnamed = numbers;
    unnamed.attention = Names::by_type;
    const auto expected = convert<Target>(typed, JointSvd{}, unnamed);
    const auto check_same = [&](const auto& conversion) {
      CHECK(same_parameters(conversion.model, expected.model));
      CHECK(logits(conversion.model) == logits(expected.model));
      CHECK(conversion.report.predicted_error == expected.report.predicted_error);
      CHECK(conversion.report.key_value_error == expected.report.key_value_error);
      CHECK(conversion.report.output_error == expected.report.output_error);
      CHECK(conversion.report.logits_error == expected.report.logits_error);
    };
    check_same(convert<Any>(open, JointSvd{}, numbers));
    check_same(convert<Any>(typed, JointSvd{}, numbers));
    check_same(convert<Target>(open, JointSvd{}, unnamed));
  };
  check(std::type_identity<Model<Gqa<heads, dyn>>>(), {.num_kv_heads = 2, .attention = Names::gqa});
  check(std::type_identity<Model<Mqa<heads>>>(), {.attention = Names::mqa});
  check(std::type_identity<Model<MlaSimple<heads, dyn>>>(), {.kv_lora_rank = 9, .attention = Names::mla_simple});
  check(std::type_identity<Model<Mla<heads, dyn>>>(), {.kv_lora_rank = 9, .attention = Names::mla});
  check(std::type_identity<Model<MlaSplit<heads, dyn, dyn>>>(),
        {.kv_lora_rank = 9, .v_lora_rank = 5, .attention = Names::mla_split});
  check(std::type_identity<Model<MlaHead<heads, dyn, dyn>>>(),
        {.kv_lora_rank = 5, .v_lora_rank = 3, .attention = Names::mla_head});
  check(std::type_identity<Model<CachedInput<heads, dyn>>>(), {.num_kv_heads = 2, .attention = Names::input_latent});
}

TEST_CASE("conversions that are not known are refused by name, too", "[convert]") {
  using Any = Model<AnyAttention>;
  const auto unknown = [](Names source, Names target) {
    return text("convert: no conversion is known between these two attentions (", to_name(source), " to ",
                to_name(target), ")");
  };
  const ConversionConfig decoupled{.kv_lora_rank = 9, .attention = Names::mla_decoupled};
  for (const Names from : linear_maps) {
    const auto source = random_model<Any>(14, named(from, 14));
    CHECK_THROWS_WITH(convert<Any>(source, JointSvd{}, {.attention = Names::linear}), unknown(from, Names::linear));
    CHECK_THROWS_WITH(convert<Any>(source),
                      "attention: by-type with relative positions given, one of mha, gqa, mqa, mla, mla-simple, "
                      "mla-split, mla-head, mla-decoupled, input-latent, linear expected with these positions");
  }
  const auto from_decoupled = random_model<Any>(14, named(Names::mla_decoupled, 14)),
             from_linear = random_model<Any>(14, named(Names::linear, 14));
  CHECK_THROWS_WITH(convert<Any>(from_decoupled, JointSvd{}, decoupled),
                    unknown(Names::mla_decoupled, Names::mla_decoupled));
  CHECK_THROWS_WITH(convert<Any>(from_linear, JointSvd{}, {.attention = Names::mha}),
                    unknown(Names::linear, Names::mha));
  CHECK(same_parameters(convert<Any>(from_linear, JointSvd{}, {.attention = Names::linear}).model, from_linear));
  // Positions are kept: those of AnyAttention are relative.
  CHECK_THROWS_WITH(convert<Any>(random_model<Model<Mha<heads, Rotary<>>>>(14), JointSvd{}, {.attention = Names::mha}),
                    unknown(Names::by_type, Names::mha));
  CHECK_THROWS_WITH(
      convert<Any>(random_model<Model<Mha<heads, NoPosition>>>(14), JointSvd{}, {.attention = Names::mha}),
      unknown(Names::by_type, Names::mha));
  CHECK_THROWS_WITH(convert<Model<Mha<2>>>(random_model<Any>(14, named(Names::mha, 14))),
                    "num_heads: 4 configured, but the type says 2");
}
