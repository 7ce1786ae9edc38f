// laconic: attention for speech models. SPDX-License-Identifier: MIT
// The Conformer behind convolutions over samples, against Hugging Face's (tests/golden/wav2vec2_conformer.py) and
// itself.
#include <laconic/attention/any.hpp>
#include <laconic/convert/convert.hpp>
#include <laconic/io/hugging_face.hpp>
#include <laconic/model/wav2vec2_conformer.hpp>

#include "golden.hpp"

using namespace laconic;

namespace {

const SafetensorsFile& file() {
  static const SafetensorsFile out = golden_file("wav2vec2_conformer.safetensors");
  return out;
}

EncoderConfig config_of(const std::string& name) {
  return wav2vec2_conformer_config(parse_json(file().metadata().at(name + ".config"), name), name);
}

// The published large models, without the convolution that they never call (8,389,760 numbers).
constexpr EncoderConfig large(PositionEmbeddings positions) {
  return {.num_mels = 1,
          .d_model = 1024,
          .num_layers = 24,
          .vocab_size = 32,
          .attention = AttentionName::mha,
          .num_heads = 16,
          .position_embeddings_type = positions,
          .subsampling = 320,
          .waveform = {.conv_dim = {512, 512, 512, 512, 512, 512, 512},
                       .conv_kernel = {10, 3, 3, 3, 3, 2, 2},
                       .conv_stride = {5, 2, 2, 2, 2, 2, 2},
                       .conv_bias = true}};
}
using Large = Wav2Vec2Conformer<AnyAttention>;
static_assert(Large::parameter_count(large(PositionEmbeddings::relative)) == 618'591'904 - 8'389'760);
static_assert(Large::parameter_count(large(PositionEmbeddings::rotary)) == 593'376'928 - 8'389'760);
static_assert(large(PositionEmbeddings::relative).waveform.window() == 400);
static_assert(Large::out_length(large(PositionEmbeddings::relative), 93680) == 292);
static_assert(Large::out_length(large(PositionEmbeddings::relative), 399) == 0);

template <class T>
Wav2Vec2Conformer<AnyAttention, T> model_of(const std::string& name) {
  Wav2Vec2Conformer<AnyAttention, T> model(config_of(name), Seed(1));
  load_parameters(model, file(), name + ".param.");
  return model;
}

}  // namespace

TEMPLATE_TEST_CASE("a wav2vec2-conformer gives the logits and gradients of Hugging Face's", "[golden][wav2vec2]", float,
                   double) {
  using T = TestType;
  constexpr bool single = std::is_same_v<T, float>;
  const std::string name = GENERATE("case0", "case1", "case2", "case3");
  const Golden<T> golden{file(), name + ".", single ? 1e-4 : 1e-10, single ? 1e-3 : 1e-9};
  const auto model = model_of<T>(name);
  const Matrix<T> input = golden("input");
  const Sequences one{input.rows()};
  Cpu<T> cpu(2);
  golden.check_output(model(cpu, input, one).rows.view());
  Autodiff<Cpu<T>> tape(cpu, Seed(), false);
  const auto x = tape.variable(input);
  golden.check_backward(tape, model(tape, x, one).rows);
  golden.check_gradient("input", tape.gradient(x).view());
  Index compared = 1;
  model.parameters([&](std::string_view parameter, const Parameter<T>& p) {
    if (p.role() == Role::statistic) return;
    golden.check_gradient(std::string(parameter), p.gradient());
    ++compared;
  });
  CHECK(compared == golden.gradients());
  CHECK(model.count_parameters() == Wav2Vec2Conformer<AnyAttention, T>::parameter_count(model.config()));
}

TEST_CASE("utterances of samples in a batch are those alone, on any number of threads", "[wav2vec2]") {
  const std::string name = GENERATE("case0", "case1", "case2", "case3");
  const auto model = model_of<float>(name);
  const Index lengths[] = {311, 12, 400};  // the second is too short for a frame
  const Sequences batch(lengths);
  const auto samples = random_matrix<float>(batch.rows(), 1, 3);
  Cpu<float> one(1), two(2);
  const auto together = model(two, samples, batch);
  for (Index n = 0; n < batch.size(); ++n) {
    const Matrix<float> own = samples.middleRows(batch.begin(n), batch.length(n));
    const auto alone = model(one, own, Sequences{own.rows()});
    REQUIRE(alone.rows.rows() == together.sequences.length(n));
    const Matrix<float> part =
        together.rows.view().middleRows(together.sequences.begin(n), together.sequences.length(n));
    CHECK(part == Matrix<float>(alone.rows.view()));
  }
}

TEST_CASE("a wav2vec2-conformer converts to latents that both its positions know", "[wav2vec2][convert]") {
  using Model = Wav2Vec2Conformer<AnyAttention, double>;
  const auto relative = model_of<double>("case0"), rotary = model_of<double>("case1"), none = model_of<double>("case3");
  const auto samples = random_matrix<double>(500, 1, 5);
  const auto error = [&](const Model& source, AttentionName attention, Index rank) {
    const auto made = convert<Model>(
        source, JointSvd{},
        {.kv_lora_rank = rank, .v_lora_rank = attention == AttentionName::mla_split ? rank : 0, .attention = attention},
        samples, Sequences{300, 200});
    return made.report.logits_error;
  };
  CHECK(error(relative, AttentionName::mla_simple, 16) < 1e-12);
  CHECK(error(relative, AttentionName::mla_simple, 4) > 1e-3);
  CHECK(error(rotary, AttentionName::mla_split, 24) < 1e-12);
  CHECK_THROWS_WITH(error(rotary, AttentionName::mla_simple, 24),
                    "attention: mla-simple with rotary positions given, one of mha, gqa, mqa, mla-split "
                    "expected with these positions");
  CHECK(error(none, AttentionName::mla_simple, 8) < 1e-12);
  CHECK_THROWS_WITH(error(none, AttentionName::mla_split, 8),
                    Catch::Matchers::Contains("mla-split with no positions given, one of "));
}

TEST_CASE("a model whose numbers overflow is not converted", "[wav2vec2][convert]") {
  using Model = Wav2Vec2Conformer<AnyAttention, double>;
  auto model = model_of<double>("case3");
  model.parameters([](std::string_view name, Parameter<double>& p) {
    if (name.find("ffn1") != std::string_view::npos) p.host().setConstant(1e200);
  });
  CHECK_THROWS_WITH(
      convert<Model>(model, JointSvd{}, {.kv_lora_rank = 8, .attention = AttentionName::mla_simple}),
      "convert: logits of the source that are not finite given: its weights are too large to compute with, "
      "smaller ones expected");
}

TEST_CASE("a convolution over time is its definition", "[wav2vec2]") {
  const Sequences from{9, 14}, to{3, 6};
  const Conv1dShape shape{3, 4, 4, 2};
  const auto weight = random_parameter({4, 3, 4}, 1), bias = random_parameter({4}, 2);
  Cpu<double> cpu(1);
  const auto x = random_matrix(23, 3, 5);
  const auto y = cpu.conv1d(cpu.input(x), weight, &bias, shape, from, to);
  for (Index n = 0; n < 2; ++n)
    for (Index t = 0; t < to.length(n); ++t)
      for (Index o = 0; o < 4; ++o) {
        double sum = bias.host()(0, o);
        for (Index i = 0; i < 3; ++i)
          for (Index k = 0; k < 4; ++k) sum += weight.host()(o, i * 4 + k) * x(from.begin(n) + 2 * t + k, i);
        CHECK(y.view()(to.begin(n) + t, o) == Approx(sum));
      }
  CHECK_THROWS_WITH(cpu.conv1d(cpu.input(x), weight, &bias, shape, from, Sequences{3, 5}),
                    "conv1d: length 5 out given for 14 in, 6 expected");
}

TEST_CASE("a config.json of Hugging Face is written as it was understood", "[wav2vec2]") {
  for (const char* name : {"case0", "case1", "case2", "case3"}) {
    const EncoderConfig config = config_of(name);
    const EncoderConfig again = wav2vec2_conformer_config(hugging_face_config(config), "config.json");
    CHECK(to_json(again) == to_json(config));
  }
  EncoderConfig latent = config_of("case0");
  latent.attention = AttentionName::mla_simple;
  CHECK_THROWS_WITH(hugging_face_config(latent), Catch::Matchers::Contains("mla-simple given"));
}

TEST_CASE("feed-forward layers are as wide as intermediate_size says, a multiple of hidden_size or not", "[wav2vec2]") {
  auto json = parse_json(file().metadata().at("case0.config"), "config.json");
  json["intermediate_size"] = 33;
  const EncoderConfig config = wav2vec2_conformer_config(json, "config.json");
  CHECK(config.feed_forward_width() == 33);
  CHECK(hugging_face_config(config).at("intermediate_size") == 33);
  const Wav2Vec2Conformer<AnyAttention> model(config, Seed(1));
  CHECK(model.layers[0].ffn1.intermediate_dense.out() == 33);
  CHECK(model.layers[0].ffn2.output_dense.in() == 33);
  CHECK(model.count_parameters() == Wav2Vec2Conformer<AnyAttention>::parameter_count(config));
  // Files of earlier versions have no intermediate_size: ffn_expansion decides.
  auto own = to_json(config);
  CHECK(json_value<EncoderConfig>(own, "config.json").feed_forward_width() == 33);
  own.erase("intermediate_size");
  own["ffn_expansion"] = 2;
  CHECK(json_value<EncoderConfig>(own, "config.json").feed_forward_width() == 2 * config.d_model);
}

TEST_CASE("a norm over time is no norm for streams", "[wav2vec2][errors]") {
  EncoderConfig chunked = config_of("case2");
  chunked.convolution = ConvolutionContext::causal;
  chunked.chunk = 4;
  CHECK_THROWS_WITH((Wav2Vec2Conformer<AnyAttention>(chunked, Seed(1))),
                    Catch::Matchers::StartsWith("wav2vec2: a norm over time"));
  chunked.waveform.feat_extract_norm = WaveformNorm::layer;
  CHECK_NOTHROW(Wav2Vec2Conformer<AnyAttention>(chunked, Seed(1)));
}

TEST_CASE("a config.json of Hugging Face that is not understood is refused", "[wav2vec2][errors]") {
  const auto good = parse_json(file().metadata().at("case0.config"), "config.json");
  const auto refused = [&](const char* key, const nlohmann::json& value, const char* why) {
    auto bad = good;
    bad[key] = value;
    CHECK_THROWS_WITH(wav2vec2_conformer_config(bad, "config.json"),
                      Catch::Matchers::Contains("config.json: ") && Catch::Matchers::Contains(why));
  };
  refused("model_type", "wav2vec2", "'model_type' is 'wav2vec2'");
  refused("position_embeddings_type", 1, "'position_embeddings_type'");
  refused("position_embeddings_type", "learned", "position_embeddings_type learned given");
  refused("hidden_act", "mish", "'hidden_act'");
  refused("intermediate_size", 0, "'intermediate_size' is 0, at least 1 expected");
  refused("intermediate_size", (1 << 22) + 1, "intermediate_size 4194305 given, 0 to 4194304 expected");
  refused("rotary_embedding_base", 500, "rotary_embedding_base");
  refused("add_adapter", true, "add_adapter");
  refused("conv_stride", nlohmann::json{5, 2}, "conv_stride");
  refused("num_hidden_layers", -1, "num_layers");
  refused("hidden_size", 1e300, "'hidden_size'");
  refused("layerdrop", "0.1", "'layerdrop' is '0.1', a number expected");
  refused("mask_time_length", nullptr, "'mask_time_length' is null, an integer from");
  refused("ctc_zero_infinity", "no", "'ctc_zero_infinity' is 'no', true or false expected");
  refused("ctc_loss_reduction", 1, "'ctc_loss_reduction' is 1, a string expected");
  refused("conv_dim", std::vector<int>(65, 8), "'conv_dim' is an array of 65, an array of at most 64 expected");
}
