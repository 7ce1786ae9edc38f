// Lesson 11: a GPT that samples. It learns a rhyme character by character with full attention and is converted to
// latents of half the size. Look at the texts: after some fine-tuning it goes on as before, from half the cache.
#include <laconic/convert/convert.hpp>
#include <laconic/decode/generate.hpp>
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
  train_language_model(cpu, model, tokens, tokens, training, [](const auto& p) {
    if (p.step % 100 == 0)
      std::printf("step %3td  validation loss %.3f nats a character\n", Index(p.step), p.valid_loss);
  });

  // All continue the same words. Their caches hold keys and values, or the latents that stand for them.
  const std::vector<std::vector<int>> prompt{characters.encode("the north")};
  const auto continuation = [&](const char* name, const auto& gpt, double temperature) {
    TokenDecoder decoder(cpu, gpt);
    const auto texts =
        generate(decoder, std::span(prompt), {.max_new_tokens = 40, .sampling = {.temperature = temperature}});
    std::printf("%-10s %6td bytes of cache: the north|%s\n", name, decoder.cache_bytes(),
                characters.decode(texts[0]).c_str());
  };
  continuation("full", model, 0);
  Small small = convert<Small>(model).model;
  continuation("converted", small, 0);
  train_language_model(cpu, small, tokens, tokens, {.steps = 60, .batch = 8, .learning_rate = 2e-3, .valid_steps = 60},
                       [](const auto&) {});
  continuation("fine-tuned", small, 0);
  continuation("sampled", small, 2);  // drawn from the probabilities; at 0 the most probable character is taken
}
// prints: ^full +32768 bytes of cache: the north\| wind and the sun were disputing which w$
// prints: ^converted +16384 bytes of cache: the north\|
// prints: ^fine-tuned +16384 bytes of cache: the north\| wind and the sun were disputing which w$
// prints: ^sampled +16384 bytes of cache: the north\|
