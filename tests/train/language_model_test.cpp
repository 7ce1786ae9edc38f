// laconic: attention for speech models. SPDX-License-Identifier: MIT
// Language models over characters learn, on every backend with the same bits, and are measured as they should.
#include <laconic/model/gpt.hpp>
#include <laconic/speech/characters.hpp>
#include <laconic/train/language_model.hpp>

#include "gradient_check.hpp"
#include "message_of.hpp"

using namespace laconic;

namespace {

using Model = Gpt<MlaHead<2, 4, 0, NoPosition>>;

std::string some_text() {
  std::string out;
  for (int i = 0; i < 60; ++i) out += i % 3 == 0 ? "one two " : "three\n";
  return out;
}
const Characters characters = Characters::of(some_text());
const std::vector<int> tokens = characters.encode(some_text());
LanguageModelConfig config() {
  return {.vocab_size = characters.size(), .max_positions = 16, .d_model = 16, .num_layers = 2, .dropout = 0.1};
}

template <class Context>
std::pair<TrainingResult, Matrix<float>> trained() {
  Context context;
  Model model(config(), Seed(1));
  LanguageModelTraining training{.steps = 60, .batch = 8, .learning_rate = 1e-2, .valid_steps = 20, .seed = Seed(2)};
  std::vector<double> losses;
  const auto valid = std::span(tokens).last(60);
  const auto result = train_language_model(context, model, std::span(tokens), valid, training,
                                           [&](const TrainingProgress& p) { losses.push_back(p.loss); });
  CHECK(losses.size() == 60);
  CHECK(losses.front() > 2);  // ln 11 is 2.4
  CHECK(result.valid_loss < 0.7);
  Cpu cpu;  // the model is on the host, and the one that was best
  CHECK(std::abs(evaluate_language_model(cpu, model, valid) - result.valid_loss) < 1e-5);
  return {result, model.wte.weight.host()};
}

}  // namespace

TEST_CASE("a GPT learns a text, on a fenced backend with the same bits") {
  const auto [plain, weights] = trained<Cpu<>>();
  const auto [fenced, fenced_weights] = trained<Fenced<Cpu<>>>();
  CHECK(plain.valid_loss == fenced.valid_loss);
  CHECK(weights == fenced_weights);
}

TEST_CASE("a loss is the mean over windows that overlap by one token") {
  const Model model(config(), Seed(1));
  Cpu cpu;
  const std::vector<int> some(tokens.begin(), tokens.begin() + 40);
  double sum = 0;
  for (const Index begin : {0, 16, 32}) {
    const Index length = std::min<Index>(16, 39 - begin);
    const auto ids = std::span(some).subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(length));
    const Matrix<float> log_probs = cpu.output(cpu.log_softmax(model(cpu, {ids, Sequences{length}})));
    for (Index i = 0; i < length; ++i)
      sum -= static_cast<double>(log_probs(i, some[static_cast<std::size_t>(begin + i + 1)]));
  }
  CHECK(std::abs(evaluate_language_model(cpu, model, some) - sum / 39) < 1e-5);
}

TEST_CASE("mistakes of a training are said") {
  Model model(config(), Seed(1));
  Cpu cpu;
  const auto train = [&](std::span<const int> text, const LanguageModelTraining& training) {
    return message_of([&] { train_language_model(cpu, model, text, text, training, [](const auto&) {}); });
  };
  CHECK(train(std::span(tokens).first(16), {}) ==
        "train: a text of 16 tokens given, more than a window of 16 expected");
  CHECK(train(tokens, {.steps = 0}) == "train: steps 0 given, 1 to 1099511627776 expected");
  CHECK(train(tokens, {.window = 17}) == "train: window 17 given, at most max_positions = 16 expected");
  const auto none = std::span(tokens).first(1);
  CHECK(message_of([&] {
          train_language_model(cpu, model, std::span(tokens), none, LanguageModelTraining(), [](const auto&) {});
        }) == "train: 1 tokens to validate on given, at least two expected");
  CHECK(message_of([&] { evaluate_language_model(cpu, model, tokens, -5); }) ==
        "evaluate: window -5 given, 1 to max_positions = 16 expected, or 0 for these");
  // A loss that is not a number: the training says so, and the model is on the host.
  Model broken = model;
  broken.wte.weight.host()(0, 0) = std::numeric_limits<float>::quiet_NaN();
  CHECK(message_of([&] {
          train_language_model(cpu, broken, std::span(tokens), std::span(tokens),
                               LanguageModelTraining{.steps = 2, .batch = 2}, [](const auto&) {});
        }) == "train: no validation loss was finite in 2 steps; a lower learning rate may help");
  CHECK(!broken.wte.weight.is_resident());
  CHECK(message_of([&] { evaluate_language_model(cpu, model, std::span(tokens).first(1)); }) ==
        "evaluate: 1 tokens given, at least two expected");
}

TEST_CASE("characters keep a text as it is") {
  const std::string text = "caf\xc3\xa9 |\n\t two  spaces";
  const Characters all = Characters::of(text);
  CHECK(all.decode(all.encode(text)) == text);
  CHECK(all.size() == 14);
  const Characters read = Characters::from_json(all.to_json(), "vocab.json");
  CHECK(read.encode(text) == all.encode(text));
  CHECK(message_of([&] { all.encode("cab"); }) ==
        "characters: 'b' given after 2 characters, one of the model's 14 expected");
  CHECK(message_of([&] { Characters::of("\xff"); }) == "text: byte 0 is not UTF-8");
  CHECK(message_of([&] { Characters::from_json({{"a", 0}, {"b", 0}}, "v"); }) == "v: 'a' and 'b' have the same number");
  CHECK(message_of([&] {
          Characters::from_json({{"a", 0}, {"b", 2}}, "v");
        }) == "v: 'b' has the number 2, 0 to 1 expected");
  CHECK(message_of([&] { Characters::from_json({{"ab", 0}}, "v"); }) == "v: 'ab' given, one character expected");
}
