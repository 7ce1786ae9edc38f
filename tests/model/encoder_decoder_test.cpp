// laconic: attention for speech models. SPDX-License-Identifier: MIT
// Encoder and decoder: derivatives, caches against none, sources side by side, beams, and what is counted.
#include <laconic/decode/beam_search.hpp>
#include <laconic/decode/generate.hpp>
#include <laconic/decode/source_decoder.hpp>
#include <laconic/model/conformer.hpp>
#include <laconic/model/encoder_decoder.hpp>
#include <laconic/model/patch_encoder.hpp>
#include <laconic/train/cross_entropy_loss.hpp>

#include "gradient_check.hpp"
#include "message_of.hpp"

using namespace laconic;

namespace {

using Full = Mha<4, NoPosition>;
using Latent = MlaDecoupled<4, dyn, 2, LowRankQuery<6>>;
template <class Self, class Cross, class T = float>
using Reader = EncoderDecoder<PatchEncoder<Self, T>, AttentionDecoder<Self, Cross, T>>;

constexpr int start = 10, vocab = 11;

LanguageModelConfig blocks(Index rank) {
  return {.vocab_size = vocab,
          .max_positions = 12,
          .d_model = 16,
          .num_layers = 2,
          .kv_lora_rank = rank,
          .hidden_act = Activation::gelu};
}
template <class Model>
Model model_of(bool latent) {
  Model out({{9, blocks(latent ? 8 : 0)}, {blocks(latent ? 5 : 0), {.kv_lora_rank = latent ? 4 : 0}}}, Seed(1));
  randomize(out, 3);
  return out;
}
template <class T>
Matrix<T> patches(Index rows) {
  return random_matrix(rows, 9, 5).template cast<T>();
}

/// Continues `tokens` by the most probable token of a pass over the whole sequence for each: decoding without a cache.
template <class Context, class Model>
std::vector<int> without_cache(Context& context, const Model& model, const Matrix<float>& image, Index count) {
  std::vector<int> tokens{start};
  for (Index i = 0; i < count; ++i) {
    const auto length = static_cast<Index>(tokens.size());
    const Matrix<float> logits =
        context.output(model(context, image, Sequences{image.rows()}, {tokens, Sequences{length}}));
    Index best = 0;
    logits.row(length - 1).maxCoeff(&best);
    tokens.push_back(static_cast<int>(best));
  }
  return {tokens.begin() + 1, tokens.end()};
}

}  // namespace

TEMPLATE_LIST_TEST_CASE("derivatives of an encoder-decoder are those of finite differences", "", Backends<double>) {
  const auto check = [](auto model) {
    const Matrix<double> x = patches<double>(14);
    const std::vector<int> tokens{10, 1, 5, 10, 3, 3, 9}, targets{1, 5, 10, 3, 3, -100, 2};
    return GradientCheck{.samples = 8}.operator()<TestType>({x}, weights_of(model), [&](auto& tape, const auto& in) {
      return cross_entropy_loss(tape, model(tape, in[0], Sequences{8, 6}, {tokens, Sequences{3, 4}}), targets);
    });
  };
  CHECK(check(model_of<Reader<Full, Full, double>>(false)) < 1e-6);
  CHECK(check(model_of<Reader<Latent, Latent, double>>(true)) < 1e-6);
  CHECK(check(model_of<Reader<Full, CachedInput<4, 4, NoPosition>, double>>(false)) < 1e-6);
}

TEMPLATE_TEST_CASE("sources side by side are decoded as each alone and as without a cache", "", Cpu<float>,
                   Fenced<Cpu<float>>) {
  const auto check = [](auto model) {
    TestType context;
    context.prepare(model);
    const Matrix<float> images = patches<float>(23);
    const Sequences sequences{9, 2, 12};
    SourceDecoder decoder(context, model.decoder, {.slots = 3});
    const auto [rows, sources] = model.encoder.hidden(context, images, sequences);
    decoder.listen(rows, sources);
    const std::vector<std::vector<int>> prompts(3, std::vector<int>{start});
    const GenerationConfig config{.max_new_tokens = 10};
    const auto together = generate(decoder, std::span(prompts), config);
    SourceDecoder one(context, model.decoder);
    for (Index n = 0; n < 3; ++n) {
      const Matrix<float> image = images.middleRows(sequences.begin(n), sequences.length(n));
      const auto [own, source] = model.encoder.hidden(context, image, Sequences{image.rows()});
      one.listen(own, source);
      CHECK(generate(one, std::span(prompts).first(1), config)[0] == together[static_cast<std::size_t>(n)]);
      CHECK(without_cache(context, model, image, 10) == together[static_cast<std::size_t>(n)]);
    }
    // Fewer slots than sources: a slot that is free goes on with the next source.
    SourceDecoder two(context, model.decoder, {.slots = 2});
    two.listen(rows, sources);
    GenerationConfig ended = config;
    ended.end_token = together[0][3];
    const auto some = generate(two, std::span(prompts), ended);
    for (std::size_t n = 0; n < 3; ++n) CHECK(std::equal(some[n].begin(), some[n].end(), together[n].begin()));
    CHECK(some[0].size() <= 4);
  };
  check(model_of<Reader<Full, Full>>(false));
  check(model_of<Reader<Latent, Latent>>(true));
  check(model_of<Reader<Full, CachedInput<4, 4, NoPosition>>>(false));
}

TEST_CASE("slots in any order give the logits of the whole pass") {
  const auto model = model_of<Reader<Latent, Latent>>(true);
  Cpu cpu;
  const Matrix<float> images = patches<float>(12);
  const Sequences sequences{7, 5};
  SourceDecoder decoder(cpu, model.decoder, {.slots = 3});
  const auto [rows, sources] = model.encoder.hidden(cpu, images, sequences);
  decoder.listen(rows, sources);
  decoder.begin(0, 1);
  decoder.begin(1, 0);
  decoder.begin(2, 1);
  const std::vector<int> tokens{10, 4, 7, 10, 10, 2};
  const Matrix<float> got =
      cpu.output(decoder.append({tokens, Sequences{3, 1, 2}}, std::array<Index, 3>{0, 1, 2}));  // 1, 0, 1 as sources
  const Matrix<float> both = images.bottomRows(5);
  const auto whole = [&](const Matrix<float>& image, std::vector<int> ids) -> Matrix<float> {
    const auto length = static_cast<Index>(ids.size());
    return cpu.output(model(cpu, image, Sequences{image.rows()}, {ids, Sequences{length}})).bottomRows(1);
  };
  CHECK((got.row(0) - whole(both, {10, 4, 7})).cwiseAbs().maxCoeff() < 1e-5f);
  CHECK((got.row(1) - whole(images.topRows(7), {10})).cwiseAbs().maxCoeff() < 1e-5f);
  CHECK((got.row(2) - whole(both, {10, 2})).cwiseAbs().maxCoeff() < 1e-5f);

  decoder.fork(0, 1);  // a copy reads the source of its original
  const std::vector<int> next{3, 3};
  const Matrix<float> copies = cpu.output(decoder.append({next, Sequences{1, 1}}, std::array<Index, 2>{0, 1}));
  CHECK(copies.row(0) == copies.row(1));
}

TEST_CASE("beams share a source, and one beam is greedy") {
  const auto model = model_of<Reader<Full, Full>>(false);
  Cpu cpu;
  const Matrix<float> images = patches<float>(12);
  SourceDecoder decoder(cpu, model.decoder, {.slots = 4});
  const auto [rows, sources] = model.encoder.hidden(cpu, images, Sequences{7, 5});
  decoder.listen(rows, sources);
  for (const Index n : {0, 1}) {
    const Matrix<float> image = images.middleRows(sources.begin(n), sources.length(n));
    const auto greedy = beam_search(decoder, std::array{start}, {.beams = 1, .max_new_tokens = 8}, n);
    CHECK(greedy[0].tokens == without_cache(cpu, model, image, 8));
    const auto beams = beam_search(decoder, std::array{start}, {.beams = 4, .max_new_tokens = 8}, n);
    REQUIRE(beams.size() == 4);
    CHECK(beams[0].score >= greedy[0].score);
    // The score is the mean log probability of the tokens, from a pass over the whole sequence.
    std::vector<int> ids{start};
    ids.insert(ids.end(), beams[0].tokens.begin(), beams[0].tokens.end() - 1);
    const Matrix<float> log_probs =
        cpu.output(cpu.log_softmax(model(cpu, image, Sequences{image.rows()}, {ids, Sequences{8}})));
    double sum = 0;
    for (Index i = 0; i < 8; ++i)
      sum += static_cast<double>(log_probs(i, beams[0].tokens[static_cast<std::size_t>(i)]));
    CHECK(std::abs(beams[0].score - sum / 8) < 1e-5);
  }
}

TEST_CASE("a decoder holds and caches what it says") {
  const auto check = [](auto model) {
    using Model = decltype(model);
    const auto config = model.config();
    CHECK(model.encoder.count_parameters() == Model::Encoder::parameter_count(config.encoder));
    CHECK(model.decoder.count_parameters() == Model::Decoder::parameter_count(config.decoder));
    Cpu cpu;
    SourceDecoder decoder(cpu, model.decoder, {.slots = 3});
    CHECK(decoder.cache_bytes() == 3 * Model::Decoder::cache_bytes(config.decoder, frames(12)));
    const auto [rows, sources] = model.encoder.hidden(cpu, patches<float>(8), Sequences{8});
    Index elements = 0;
    const void* last = nullptr;
    for (const auto& layer : model.decoder.remember(cpu, rows, sources))
      for (const auto& part : layer) {
        if (part.data() != last) elements += part.rows() * part.cols();
        last = part.data();
      }
    CHECK(elements * 4 == Model::Decoder::memory_bytes(config.decoder, frames(8)));
  };
  check(model_of<Reader<Full, Full>>(false));
  check(model_of<Reader<Latent, Latent>>(true));
  check(model_of<Reader<Full, CachedInput<4, 4, NoPosition>>>(false));
}

TEST_CASE("a Conformer with a decoder: both heads from one encoder") {
  using Model = EncoderDecoder<Conformer<MlaSimple<2, 8>>, AttentionDecoder<MlaDecoupled<2, 8, 4>, Mha<2, NoPosition>>>;
  LanguageModelConfig text = blocks(0);
  Model model({{.num_mels = 20, .d_model = 16, .num_layers = 1, .vocab_size = vocab}, {text, {}}}, Seed(1));
  randomize(model, 3);
  Cpu cpu;
  const Matrix<float> features = random_matrix(70, 20, 1).cast<float>();
  const Sequences sequences{40, 30};
  const auto [rows, sources] = model.encoder.hidden(cpu, features, sequences);
  const auto ctc = model.encoder(cpu, features, sequences);
  CHECK(cpu.output(model.encoder.lm_head(cpu, rows)) == cpu.output(ctc.rows));
  CHECK(sources == ctc.sequences);
  const std::vector<int> tokens{10, 2, 3, 10, 4};
  const Matrix<float> both = cpu.output(model(cpu, features, sequences, {tokens, Sequences{3, 2}})),
                      second = cpu.output(model(cpu, features.bottomRows(30).eval(), Sequences{30},
                                                {std::span(tokens).subspan(3), Sequences{2}}));
  CHECK((both.bottomRows(2) - second).cwiseAbs().maxCoeff() < 1e-5f);
}

TEST_CASE("sizes and sources that do not fit are refused") {
  CHECK(message_of([] {
          Reader<Full, Full>({{9, blocks(0)}, {{.vocab_size = 3, .d_model = 8}, {}}}, Seed(1));
        }) == "encoder-decoder: an encoder of d_model 16 and a decoder of d_model 8 given, equal ones expected");
  const auto model = model_of<Reader<Full, Full>>(false);
  Cpu cpu;
  CHECK(message_of([&] { model.encoder.hidden(cpu, patches<float>(13), Sequences{13}); }) ==
        "patch encoder: an image of 13 patches given, at most max_positions = 12 expected");
  SourceDecoder decoder(cpu, model.decoder);
  const std::vector<std::vector<int>> prompts(1, std::vector<int>{start});
  CHECK(message_of([&] { generate(decoder, std::span(prompts)); }) ==
        "source decoder: source 0 given, 0 sources are there");
  const auto heard = model.encoder.hidden(cpu, patches<float>(8), Sequences{8});
  const auto& rows = heard.first;  // a lambda cannot capture a structured binding (clang 14)
  const auto& sources = heard.second;
  CHECK(message_of([&] {
          decoder.listen(rows, Sequences{8, 0});
        }) == "source decoder: source 1 has no rows, at least one expected");
  decoder.listen(rows, sources);
  CHECK(message_of([&] {
          decoder.append({prompts[0], Sequences{1}}, std::array{Index{0}});
        }) == "source decoder: slot 0 given, one that has begun to read a source expected");
  CHECK(message_of([&] {
          model.decoder(cpu, {prompts[0], Sequences{1}}, model.decoder.remember(cpu, rows, sources), Sequences{4, 4});
        }) == "attention decoder: 1 rows for 1 sources given, 1 rows for 2 sources expected");
  const auto memory = model.decoder.remember(cpu, rows, sources);
  CHECK(message_of([&] {
          model.decoder(cpu, {prompts[0], Sequences{1}}, std::span(memory).first(1), sources);
        }) == "attention decoder: memory of 1 blocks given, 2 expected");
  AttentionDecoderConfig wild{blocks(0), {.q_lora_rank = Index{1} << 58}};
  CHECK(message_of([&] { Reader<Latent, Latent>::Decoder::parameter_count(wild); }) ==
        "attention decoder: q_lora_rank 288230376151711744 given for the cross-attention, 0 to 65536 expected");
  CHECK(message_of([&] {
          SourceDecoder(cpu, model.decoder, {.slots = Index{1} << 60});
        }).starts_with("token decoder: 1152921504606846976 slots given, 1 to "));
  SourceDecoder two(cpu, model.decoder, {.slots = 2});
  two.listen(rows, Sequences{4, 4});
  two.begin(0, 1);
  two.begin(1, 0);
  CHECK(message_of([&] {
          two.append({prompts[0], Sequences{1, 1}}, std::array<Index, 2>{0, 1});
        }) == "source decoder: 1 tokens given, their sequences have 2");
}
