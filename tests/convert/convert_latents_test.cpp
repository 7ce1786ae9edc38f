// laconic: attention for speech models. SPDX-License-Identifier: MIT
// Conversions between all ways to keep keys and values, of all encoders, in types and by name.
#include "convert_factors.hpp"

#include <laconic/convert/convert.hpp>
#include <laconic/model/branchformer.hpp>
#include <laconic/model/conformer.hpp>
#include <laconic/model/e_branchformer.hpp>

using namespace laconic;

namespace {

using Names = AttentionName;

// 4 heads of 12 channels: no two sizes that could be mixed up are equal.
constexpr Index d_model = 48, heads = 4, head_dim = 12;
constexpr EncoderConfig config{.num_mels = 20,
                               .d_model = d_model,
                               .num_layers = 2,
                               .vocab_size = 7,
                               .ffn_expansion = 2,
                               .conv_kernel = 5,
                               .cgmlp_expansion = 2,
                               .subsampling_channels = 3};

template <class Policy>
using Model = Conformer<Policy, double>;
template <class KeyValue, class Position = RelativePosition>
using Open = Attention<Heads<heads, dyn>, KeyValue, Position>;

template <class M>
M random_model(Index seed, const EncoderConfig& numbers = config) {
  M model(numbers, Seed() / seed);
  randomize(model, static_cast<std::uint64_t>(100 * seed));
  return model;
}

template <class M>
Matrix<double> logits(const M& model) {
  Cpu<double> cpu(1);
  const Matrix<double> features = random_matrix(106, config.num_mels, 1);
  return model(cpu, features, {61, 7, 38}).rows.view();
}
template <class A, class B>
double difference(const A& a, const B& b) {
  const Matrix<double> x = logits(a), y = logits(b);
  REQUIRE((x.rows() == y.rows() && x.allFinite()));
  return (x - y).cwiseAbs().maxCoeff() / y.cwiseAbs().maxCoeff();
}

/// Names and numbers, in the same order, bit for bit.
template <class A, class B>
bool same_parameters(const A& a, const B& b) {
  const auto list = [](const auto& model) {
    std::vector<std::pair<std::string, std::vector<double>>> out;
    model.parameters([&](std::string_view name, const auto& p) {
      out.push_back({std::string(name), {p.host().data(), p.host().data() + p.size()}});
    });
    return out;
  };
  return list(a) == list(b);
}

/// The heads' rows side by side: (head_dim, heads * d_model).
Matrix<double> side_by_side(const Matrix<double>& weight) {
  Matrix<double> out(head_dim, heads * d_model);
  for (Index h = 0; h < heads; ++h) out.middleCols(h * d_model, d_model) = weight.middleRows(h * head_dim, head_dim);
  return out;
}

/// The prediction is the error of keys and values on inputs whose Gram matrix is the identity, and on endless white
/// noise.
template <class Target, class Source>
void check_prediction(const Conversion<Target>& conversion, const Source& source) {
  Cpu<double> cpu(1);
  for (std::size_t i = 0; i < source.layers.size(); ++i) {
    const auto error = [&](const Matrix<double>& x) {
      return key_value_deviation(cpu, conversion.model.layers[i].attention(), source.layers[i].attention(), x)
          .relative();
    };
    const LayerReport& layer = conversion.report.layers[i];
    CHECK(error(Matrix<double>::Identity(d_model, d_model)) == Approx(layer.predicted_error).epsilon(1e-10));
    CHECK(error(random_matrix(8000, d_model, 1)) == Approx(layer.predicted_error).epsilon(0.03));
    CHECK(layer.key_value_error == Approx(layer.predicted_error).epsilon(0.3));
    CHECK(layer.predicted_error > 1e-2);
  }
}

/// Nothing is lost, and the way back is exact too.
template <class Target, class Source>
void check_lossless(const Source& source, const ConversionConfig& numbers = {}) {
  const auto [model, report] = convert<Target>(source, JointSvd{}, numbers);
  CHECK(difference(model, source) < 1e-12);
  CHECK(report.predicted_error < 1e-14);
  CHECK(std::max({report.key_value_error, report.output_error, report.logits_error}) < 1e-12);
  const auto back = convert<Source>(model, JointSvd{}, {.num_kv_heads = source.config().num_kv_heads});
  CHECK(difference(back.model, source) < 1e-12);
}

/// Back to keys and values, from a latent of any rank.
template <class Latent>
void check_back() {
  const auto model = random_model<Model<Latent>>(3);
  const auto full = convert<Model<Attention<Heads<heads, heads>, FullRank, typename Latent::Position>>>(model);
  CHECK(difference(full.model, model) < 1e-12);
  CHECK(full.report.predicted_error == 0);
  CHECK(full.report.logits_error < 1e-12);
}

EncoderConfig named(Names name, Index seed) {
  EncoderConfig c = config;
  c.attention = name;
  c.num_heads = heads;
  c.num_kv_heads = name == Names::gqa || (name == Names::input_latent && seed % 2 == 0) ? 2 : 0;
  const bool latent = to_name(name).starts_with("mla");
  c.kv_lora_rank = !latent ? 0 : name == Names::mla_head ? 5 : 9;
  c.v_lora_rank = name == Names::mla_split ? 7 : 0;
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

TEMPLATE_TEST_CASE("every latent that holds all loses nothing", "[convert]", NoPosition, RelativePosition) {
  using P = TestType;
  const auto full = random_model<Model<Mha<heads, P>>>(1);
  check_lossless<Model<CachedInput<heads, heads, P>>>(full);
  check_lossless<Model<MlaHead<heads, head_dim, 0, P>>>(full);
  // Two key-value heads: half of d_model is enough for each of two latents, and all of it for one.
  const auto grouped = random_model<Model<Gqa<heads, 2, P>>>(2);
  check_lossless<Model<Mla<heads, d_model, P>>>(grouped);
  check_lossless<Model<MlaSplit<heads, 24, 24, P>>>(grouped);
}

TEST_CASE("latents of fewer heads that hold all lose nothing", "[convert]") {
  const auto grouped = random_model<Model<Gqa<heads, 2>>>(2);
  check_lossless<Model<CachedInput<heads, 2>>>(grouped);
  check_lossless<Model<Open<SplitLatent<dyn>>>>(grouped, {.num_kv_heads = 2, .kv_lora_rank = 24});
  check_lossless<Model<Open<HeadLatent<dyn>>>>(grouped, {.num_kv_heads = 2, .kv_lora_rank = head_dim});
  check_lossless<Model<Open<TwoStageLatent<dyn>>>>(grouped, {.num_kv_heads = 2, .kv_lora_rank = d_model});
}

TEST_CASE("where positions turn the input, keys and values keep latents of their own", "[convert]") {
  const auto full = random_model<Model<Mha<heads, InputRotary<>>>>(1);
  check_lossless<Model<MlaSplit<heads, d_model, d_model, InputRotary<>>>>(full);
  check_lossless<Model<MlaHead<heads, head_dim, 0, InputRotary<>>>>(full);
  check_back<MlaSplit<heads, 7, 9, InputRotary<>>>();
  const auto grouped = random_model<Model<Gqa<heads, 2, InputRotary<>>>>(2);
  check_lossless<Model<MlaSplit<heads, 24, 24, InputRotary<>>>>(grouped);
  // Under rotary positions the heads may become fewer; as many are the same model.
  const auto rotary = random_model<Model<Mha<heads, Rotary<>>>>(3);
  CHECK(same_parameters(convert<Model<Gqa<heads, dyn, Rotary<>>>>(rotary).model, rotary));
  check_prediction(convert<Model<Gqa<heads, dyn, Rotary<>>>>(rotary, JointSvd{}, {.num_kv_heads = 2}), rotary);
}

TEST_CASE("keys and values come back from every latent", "[convert]") {
  check_back<CachedInput<heads>>();
  check_back<MlaSimple<heads, 9>>();
  check_back<Mla<heads, 9>>();
  check_back<MlaSplit<heads, 9, 5>>();
  check_back<MlaHead<heads, 5>>();
  check_back<MlaHead<heads, 1, 0, NoPosition>>();
  check_back<Attention<Heads<heads, 2>, HeadLatent<5>>>();
  check_back<Attention<Heads<heads, 1>, SplitLatent<5, 3>, Sinusoidal>>();
}

TEST_CASE("the predicted error is that of the weights' singular values", "[convert]") {
  const auto source = random_model<Model<Mha<heads>>>(4);
  const auto check = [&](const auto& conversion, auto discarded) {
    for (std::size_t i = 0; i < 2; ++i) {
      const Matrix<double>&k = source.layers[i].self_attn.key_value.linear_k.weight.host(),
            &v = source.layers[i].self_attn.key_value.linear_v.weight.host();
      const double expected = std::sqrt(discarded(k, v) / (k.squaredNorm() + v.squaredNorm()));
      CHECK(conversion.report.layers[i].predicted_error == Approx(expected).epsilon(1e-11));
    }
    check_prediction(conversion, source);
  };
  const auto joint = [](const Matrix<double>& k, const Matrix<double>& v, Index rank) {
    Matrix<double> both(2 * d_model, d_model);
    both << k, v;
    return tail(both, rank);
  };
  for (const Index rank : {1, 8, 30}) {
    INFO("rank " << rank);
    const ConversionConfig of_rank{.kv_lora_rank = rank};
    check(convert<Model<Open<SharedLatent<dyn>>>>(source, JointSvd{}, of_rank),
          [&](const auto& k, const auto& v) { return joint(k, v, rank); });
    check(convert<Model<Open<TwoStageLatent<dyn>>>>(source, JointSvd{}, of_rank),
          [&](const auto& k, const auto& v) { return joint(k, v, rank); });
    check(convert<Model<Open<SplitLatent<dyn>>>>(source, JointSvd{}, {.kv_lora_rank = rank, .v_lora_rank = 40 - rank}),
          [&](const auto& k, const auto& v) { return tail(k, rank) + tail(v, 40 - rank); });
  }
  for (const Index rank : {1, 4, 11})
    check(convert<Model<Open<HeadLatent<dyn>>>>(source, JointSvd{}, {.kv_lora_rank = rank}),
          [&](const auto& k, const auto& v) { return tail(side_by_side(k), rank) + tail(side_by_side(v), rank); });
  // Fewer heads and a latent at once.
  check_prediction(convert<Model<Open<SplitLatent<dyn>>>>(source, JointSvd{},
                                                          {.num_kv_heads = 2, .kv_lora_rank = 9, .v_lora_rank = 5}),
                   source);
  check_prediction(convert<Model<Open<HeadLatent<dyn>>>>(source, JointSvd{}, {.num_kv_heads = 2, .kv_lora_rank = 5}),
                   source);
  check_prediction(
      convert<Model<Open<TwoStageLatent<dyn>>>>(source, JointSvd{}, {.num_kv_heads = 1, .kv_lora_rank = 7}), source);
  check_prediction(convert<Model<Open<InputLatent>>>(source, JointSvd{}, {.num_kv_heads = 2}), source);
}

TEST_CASE("a latent of heads that were turned to agree", "[convert]") {
  const auto source = random_model<Model<Mha<heads>>>(4);
  const Calibration<double> speech{random_matrix(306, config.num_mels, 1), {161, 7, 138}};
  using Latent = Model<Open<SplitLatent<dyn>>>;
  for (const bool score_aware : {false, true}) {
    const ActivationPca<double> method{speech, score_aware};
    const auto small =
        convert<Latent>(source, method, {.num_kv_heads = 2, .kv_lora_rank = 15}, speech.features, speech.sequences);
    CHECK(small.report.predicted_error == Approx(small.report.key_value_error).epsilon(1e-6));
    const auto all = convert<Latent>(source, method, {.num_kv_heads = 2, .kv_lora_rank = 24});
    CHECK(difference(all.model, convert<Model<Gqa<heads, dyn>>>(source, method, {.num_kv_heads = 2}).model) < 1e-8);
  }
  const auto same = convert<Model<Gqa<heads, dyn>>>(source, ActivationPca<double>{speech}, {.num_kv_heads = heads});
  CHECK(difference(same.model, source) < 1e-13);
}

TEST_CASE("latents of one kind and size are copied, others fitted", "[convert]") {
  const auto two_stage = random_model<Model<Mla<heads, 9>>>(5);
  CHECK(same_parameters(convert<Model<Open<TwoStageLatent<dyn>>>>(two_stage, JointSvd{}, {.kv_lora_rank = 9}).model,
                        two_stage));
  const auto simple = convert<Model<MlaSimple<heads, 9>>>(two_stage);  // the same functions in other parameters
  CHECK(difference(simple.model, two_stage) < 1e-12);
  CHECK(difference(convert<Model<Mla<heads, 9>>>(simple.model).model, two_stage) < 1e-12);
  const auto split = random_model<Model<MlaSplit<heads, 9, 5>>>(6);
  CHECK(same_parameters(
      convert<Model<Open<SplitLatent<dyn>>>>(split, JointSvd{}, {.kv_lora_rank = 9, .v_lora_rank = 5}).model, split));
  CHECK(difference(convert<Model<MlaSplit<heads, 9, 9>>>(split).model, split) < 1e-12);
  check_prediction(convert<Model<MlaSplit<heads, 9, 3>>>(split), split);
  const auto each = random_model<Model<MlaHead<heads, 5>>>(7);
  CHECK(same_parameters(convert<Model<Open<HeadLatent<dyn>>>>(each, JointSvd{}, {.kv_lora_rank = 5}).model, each));
  check_prediction(convert<Model<MlaHead<heads, 3>>>(each), each);
}

TEST_CASE("Branchformers convert like Conformers", "[convert]") {
  const auto branch = random_model<Branchformer<Mha<heads>, double>>(8);
  check_lossless<Branchformer<MlaSimple<heads, d_model>, double>>(branch);
  check_lossless<Branchformer<MlaHead<heads, head_dim>, double>>(branch);
  check_prediction(convert<Branchformer<MlaSplit<heads, 9, 5>, double>>(branch), branch);
  EncoderConfig chunked = config;
  chunked.merge = BranchMerge::learned_average;
  check_lossless<Branchformer<CachedInput<heads>, double>>(random_model<Branchformer<Mha<heads>, double>>(9, chunked));
  chunked.convolution = ConvolutionContext::causal;
  chunked.chunk = 4;
  chunked.left_context = 3;
  const auto e_branch = random_model<EBranchformer<Gqa<heads, 2>, double>>(10, chunked);
  check_lossless<EBranchformer<Mla<heads, d_model>, double>>(e_branch);
  check_lossless<EBranchformer<MlaSplit<heads, 24, 24>, double>>(e_branch);
  const auto small = convert<EBranchformer<MlaHead<heads, 5>, double>>(e_branch);
  check_prediction(small, e_branch);
  CHECK(small.report.layers[1].layer == "layers.1.attn");
  CHECK((small.model.config().chunk == 4 && small.model.config().left_context == 3));
}

TEST_CASE("queries of low rank stay as they are", "[convert]") {
  using Query = LowRankQuery<6>;
  const auto source = random_model<Model<Attention<Heads<heads, heads>, FullRank, RelativePosition, Query>>>(11);
  check_lossless<Model<Attention<Heads<heads, heads>, SharedLatent<d_model>, RelativePosition, Query>>>(source);
  CHECK_THROWS_WITH((convert<Model<MlaSimple<heads, 9>>>(source)),
                    "q_lora_rank: 6 configured for an attention that has none");
}

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
  check(std::type_identity<Model<MlaHead<heads, dyn>>>(), {.kv_lora_rank = 5, .attention = Names::mla_head});
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
                      "attention: by-type with relative positions given; the type leaves it open, so the "
                      "configuration must name one that it knows");
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
