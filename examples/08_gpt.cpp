// Lesson 8: a GPT that samples. It learns a rhyme character by character with full attention, is converted to latents
// of half the size, and continues the rhyme from a cache of half as many bytes.
#include <laconic/laconic.hpp>
#include <laconic/speech/characters.hpp>
#include <laconic/train/language_model.hpp>

#include <cstdio>

using namespace laconic;

int main() {
  const std::string rhyme =
      "the north wind and the sun were disputing which was the stronger,\n"
      "when a traveller came along wrapped in a warm cloak.\n";
  const Characters characters = Characters::of(rhyme);
  const std::vector<int> tokens = characters.encode(rhyme + rhyme + rhyme);

  using Full = Gpt<Mha<4, NoPosition>>;
  using Small = Gpt<MlaHead<4, 4, 0, NoPosition>>;  // latents of 4 elements for the keys and values of each head, not 8
  const LanguageModelConfig config{
      .vocab_size = characters.size(), .max_positions = 64, .d_model = 32, .num_layers = 2, .num_heads = 4};

  // A window of 64 characters is drawn from the text; the model learns to predict each next one.
  Cpu cpu;
  Full model(config, Seed(1));
  const LanguageModelTraining training{.steps = 300, .batch = 8, .learning_rate = 1e-2, .valid_steps = 100};
  train_language_model(cpu, model, tokens, tokens, training, [](const LanguageModelProgress& p) {
    if (p.step % 100 == 0)
      std::printf("step %3td  validation loss %.3f nats a character\n", Index(p.step), p.valid_loss);
  });

  // Both continue the same words. Their caches hold keys and values, or the latents that stand for them.
  const auto [small, report] = convert<Small>(model);
  const std::vector<std::vector<int>> prompt{characters.encode("the north")};
  const auto continuation = [&](const auto& gpt) {
    TokenDecoder decoder(cpu, gpt);
    const std::string text = characters.decode(generate(decoder, std::span(prompt), {.max_new_tokens = 40})[0]);
    std::printf("%6td bytes of cache: the north|%s\n", decoder.cache_bytes(), text.c_str());
    return text;
  };
  const std::string full_text = continuation(model), small_text = continuation(small);
  std::printf("directly after conversion, keys and values are off by %.0f%%\n", 100 * report.key_value_error);
  const auto tuned = [&] {
    Small out = small;
    train_language_model(cpu, out, tokens, tokens, {.steps = 60, .batch = 8, .learning_rate = 2e-3, .valid_steps = 60},
                         [](const auto&) {});
    return out;
  }();
  const std::string tuned_text = continuation(tuned);
  return full_text == rhyme.substr(9, 40) && tuned_text == full_text ? 0 : 1;
}
