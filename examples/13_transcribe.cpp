// Lesson 13: from a model folder to words. `laconic train` writes such folders, and Hugging Face's wav2vec2-conformer
// is one, too. Here the model was never trained, so what it hears in a tone is nonsense.
#include <laconic/recognition/recognizer.hpp>
#include <laconic/speech/audio.hpp>
#include <laconic/speech/vocabulary.hpp>

#include <cmath>
#include <cstdio>

using namespace laconic;
namespace fs = std::filesystem;

/// Writes a model with random weights, and a second of a tone.
void write_files(const fs::path& folder) {
  RecognizerConfig config;
  config.encoder = {.num_mels = 40, .d_model = 32, .num_layers = 2, .num_heads = 4};
  config.encoder = with_attention(config.encoder, {AttentionName::mla_simple, 0, 16});
  config.features.fbank.num_mels = 40;
  const std::vector<std::string> texts{"one two three"};
  Recognizer::create(config, Vocabulary::words(texts), Seed(1)).save(folder / "model");
  Audio tone{std::vector<float>(16000), 16000};
  for (std::size_t i = 0; i < tone.samples.size(); ++i) tone.samples[i] = 0.3F * std::sin(0.2F * static_cast<float>(i));
  write_wav(folder / "tone.wav", tone);
}

int main() {
  const fs::path folder = fs::temp_directory_path() / "laconic-lesson-13";
  write_files(folder);

  const Recognizer recognizer = Recognizer::load(folder / "model");
  for (const Word& word : recognizer.transcribe(folder / "tone.wav").words) std::printf("%s ", word.text.c_str());
  std::printf("(the model was never trained)\n");

  fs::remove_all(folder);
}
// prints: \(the model was never trained\)$
