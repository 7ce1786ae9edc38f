// laconic: attention for speech models. SPDX-License-Identifier: MIT
// Training of encoder-decoders: the joint loss, its derivative, and a task that is learnt.
#include <laconic/decode/generate.hpp>
#include <laconic/decode/source_decoder.hpp>
#include <laconic/model/conformer.hpp>
#include <laconic/model/encoder_decoder.hpp>
#include <laconic/model/patch_encoder.hpp>
#include <laconic/train/encoder_decoder.hpp>

#include "gradient_check.hpp"
#include "message_of.hpp"

using namespace laconic;

namespace {

using Full = Mha<2, NoPosition>;
template <class T>
using Speech = EncoderDecoder<Conformer<Mha<2>, T>, AttentionDecoder<Full, Full, T>>;
template <class T>
Speech<T> speech_model() {
  Speech<T> out({{.num_mels = 12, .d_model = 8, .num_layers = 1, .vocab_size = 5, .conv_kernel = 3},
                 {{.vocab_size = 5, .max_positions = 8, .d_model = 8, .num_layers = 1}, {}}},
                Seed(1));
  randomize(out, 3);
  return out;
}
template <class T>
EncoderDecoderBatch<T> speech_batch() {
  return {random_matrix(70, 12, 2).template cast<T>(), Sequences{38, 32}, {{1, 4, 4}, {2}}};
}

}  // namespace

TEST_CASE("the joint loss is that of both heads, by their weights") {
  const auto model = speech_model<double>();
  const auto batch = speech_batch<double>();
  Cpu<double> cpu;
  const auto loss = [&](double weight) {
    return cpu.number(joint_loss(cpu, model, batch, {.boundary = 0, .ctc_weight = weight}));
  };
  const double attention = loss(0), ctc = loss(1);
  CHECK(std::abs(loss(0.25) - (0.75 * attention + 0.25 * ctc)) < 1e-12);
  const auto logits = model.encoder(cpu, batch.input, batch.sequences);
  CHECK(std::abs(cpu.number(ctc_loss(cpu, logits, Labels{{1, 4, 4, 2}, Sequences{3, 1}})) - ctc) < 1e-12);
  const std::vector<int> ids{0, 1, 4, 4, 0, 2}, targets{1, 4, 4, 0, 2, 0};
  const auto written = model(cpu, batch.input, batch.sequences, {ids, Sequences{4, 2}});
  CHECK(std::abs(cpu.number(cross_entropy_loss(cpu, written, targets)) - attention) < 1e-12);
}

TEMPLATE_LIST_TEST_CASE("the derivative of the joint loss is that of finite differences", "", Backends<double>) {
  auto model = speech_model<double>();
  const auto batch = speech_batch<double>();
  CHECK(GradientCheck{.samples = 4}.operator()<TestType>({}, weights_of(model), [&](auto& tape, const auto&) {
    return joint_loss(tape, model, batch, {.boundary = 0, .ctc_weight = 0.3, .label_smoothing = 0.1});
  }) < 1e-6);
}

TEST_CASE("a decoder learns to read patches from left to right") {
  using Policy = MlaDecoupled<2, 8, 4>;
  using Model = EncoderDecoder<PatchEncoder<Policy>, AttentionDecoder<Policy, Policy>>;
  LanguageModelConfig blocks{
      .vocab_size = 5, .max_positions = 6, .d_model = 16, .num_layers = 1, .hidden_act = Activation::gelu};
  Model model({{4, blocks}, {blocks, {}}}, Seed(1));
  const Random random(Seed(3), "digits");
  const auto next = [&](std::int64_t step) {  // patch i shows token t as a one at place t - 1
    EncoderDecoderBatch<float> out{Matrix<float>::Zero(16 * 3, 4), Sequences(std::vector<Index>(16, 3)), {}};
    for (Index n = 0; n < 16; ++n) {
      out.tokens.emplace_back();
      for (Index i = 0; i < 3; ++i) {
        const Index token = random.below(4, static_cast<std::uint64_t>((step * 16 + n) * 3 + i));
        out.input(n * 3 + i, token) = 1;
        out.tokens.back().push_back(static_cast<int>(token) + 1);
      }
    }
    return out;
  };
  Cpu cpu(1);
  const auto unread = next(1000000);
  const auto errors = [&] {
    SourceDecoder decoder(cpu, model.decoder, {.slots = 16});
    const auto [rows, sources] = model.encoder.hidden(cpu, unread.input, unread.sequences);
    decoder.listen(rows, sources);
    const std::vector<std::vector<int>> prompts(16, std::vector<int>{0});
    auto written = generate(decoder, std::span(prompts), {.max_new_tokens = 4, .end_token = 0});
    double wrong = 0;
    for (std::size_t n = 0; n < 16; ++n) {
      if (!written[n].empty() && written[n].back() == 0) written[n].pop_back();
      wrong += written[n] != unread.tokens[n];
    }
    return wrong / 16;
  };
  CHECK(errors() > 0.5);
  std::vector<double> losses;
  const EncoderDecoderTraining training{.steps = 300, .batch = 16, .learning_rate = 1e-2, .valid_steps = 100};
  const TrainingResult result = train_encoder_decoder(cpu, model, training, next, errors,
                                                      [&](const TrainingProgress& p) { losses.push_back(p.loss); });
  CHECK(losses.size() == 300);
  CHECK(result.valid_loss == 0);
  CHECK(errors() == 0);
}

TEST_CASE("settings that make no sense are refused") {
  const auto model = speech_model<float>();
  Cpu cpu;
  auto batch = speech_batch<float>();
  CHECK(message_of([&] { joint_loss(cpu, model, batch, {.ctc_weight = 1.5}); }) ==
        "joint loss: ctc_weight 1.5 given, 0 to 1 expected");
  batch.tokens.pop_back();
  CHECK(message_of([&] { joint_loss(cpu, model, batch, {}); }) == "joint loss: tokens of 1 inputs given for 2 inputs");
  CHECK(message_of([] { EncoderDecoderTraining{.batch = 0}.check(); }) ==
        "train: batch 0 given, 1 to 1048576 expected");
  CHECK(message_of([] { EncoderDecoderTraining{.steps = 0}.check(); }).starts_with("train: steps 0 given, 1 to "));
}
