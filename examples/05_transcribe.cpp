// Lesson 5: a model folder, from a trained model to words. It holds all that is needed to use the model again; this is
// what `laconic train` writes and `laconic transcribe` reads, here with a model that was never trained.
#include <laconic/decode/greedy_ctc.hpp>
#include <laconic/io/folder.hpp>
#include <laconic/laconic.hpp>
#include <laconic/recognition/dataset.hpp>

#include <cmath>
#include <cstdio>

using namespace laconic;
namespace fs = std::filesystem;

using Model = Conformer<MlaSimple<4, 16>>;

void write_folder(const fs::path& folder) {
  const std::vector<std::string> texts{"one two three"};
  const Vocabulary vocabulary = Vocabulary::words(texts);
  FeatureConfig features;
  features.fbank.num_mels = 40;
  const Model model({.num_mels = 40, .d_model = 32, .num_layers = 2, .vocab_size = vocabulary.size()}, Seed(1));
  save_model_folder(folder, model,
                    {{"encoder", to_json(model.config())}, {"features", to_json(features)}, {"tokens", "words"}},
                    vocabulary.to_json());
}

std::string transcribe(const fs::path& folder, const fs::path& audio) {
  const std::string where = (folder / "config.json").string();  // for messages
  const nlohmann::json config = read_model_config(folder);
  const auto features = json_member<FeatureConfig>(config, "features", where);
  const auto vocabulary = Vocabulary::from_json(json_member<Tokens>(config, "tokens", where), read_model_vocab(folder));
  Model model(json_member<EncoderConfig>(config, "encoder", where), Seed());
  load_parameters(model, open_model_tensors(folder));

  const Audio sound = read_audio(audio, features.fbank.sample_rate);  // resampled if need be
  const Matrix<float> x = FeatureExtractor(features)(sound.samples);
  Cpu cpu;
  const auto logits = model(cpu, x, Sequences{x.rows()});
  return vocabulary.decode(greedy_ctc(logits.rows.view(), logits.sequences)[0]);
}

int main() {
  const fs::path folder = fs::temp_directory_path() / "laconic-lesson-5";
  write_folder(folder / "model");
  Audio tone{std::vector<float>(16000), 16000};
  for (std::size_t i = 0; i < tone.samples.size(); ++i) tone.samples[i] = 0.3F * std::sin(0.2F * static_cast<float>(i));
  write_wav(folder / "tone.wav", tone);
  std::printf("%s says: \"%s\" (it was never trained)\n", folder.c_str(),
              transcribe(folder / "model", folder / "tone.wav").c_str());
  fs::remove_all(folder);
}
