// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include "setup.hpp"

#include "common/cli.hpp"
#include "common/digits.hpp"
#include "common/speak.hpp"

#include <laconic/recognition/dataset.hpp>

using namespace laconic;

namespace {

constexpr Index num_mels = 40;

}  // namespace

Preset study_preset(const std::string& name) {
  Preset p;
  p.name = name;
  p.encoder = {.num_mels = num_mels, .attention = AttentionName::mha, .num_heads = study_heads, .conv_kernel = 15};
  // Digits are short: wide time masks would hide whole words.
  p.baseline.spec_augment = {
      .num_time_masks = 2, .max_time_width = 12, .max_time_fraction = 0.1, .num_freq_masks = 2, .max_freq_width = 6};
  if (name == "quick") {
    p.seeds = 1;
    p.train_utterances = 1200, p.valid_utterances = 100, p.test_utterances = 200;
    p.encoder.d_model = 96, p.encoder.num_layers = 3, p.encoder.subsampling_channels = 16;
    p.baseline.epochs = 8;
    p.baseline.batch_frames = 3000;
  } else {
    p.seeds = 3;
    p.train_utterances = 2500, p.valid_utterances = 200, p.test_utterances = 500;
    p.encoder.d_model = 128, p.encoder.num_layers = 4, p.encoder.subsampling_channels = 32;
    p.baseline.epochs = 10;
    p.baseline.batch_frames = 4000;
  }
  p.finetune = p.baseline;
  p.finetune.epochs = name == "quick" ? 1 : 2;
  p.finetune.learning_rate = p.baseline.learning_rate / 10;  // more makes unseen speakers worse
  return p;
}

std::filesystem::path find_corpus(const CorpusSource& source, const std::filesystem::path& made, const Preset& preset) {
  const std::filesystem::path data = source.data;
  if (!data.empty() && detail::is_there(data / "train.jsonl")) {
    require(source.holdout_speaker.empty(), "--holdout-speaker: ", source.data,
            " is a finished corpus; its own held-out speaker is used if it has one");
    return data;
  }
  if (detail::is_there(made / "corpus.json")) return made;
  const auto set = [&](ConnectedDigitsConfig& config) {
    config.out = made;
    config.threads = source.threads;
    config.seed = Seed(static_cast<std::uint64_t>(source.seed));
    config.train_utterances = preset.train_utterances;
    config.valid_utterances = preset.valid_utterances;
    config.test_utterances = preset.test_utterances;
  };
  if (data.empty()) {
    require(source.holdout_speaker.empty(), "--holdout-speaker: the spoken corpus holds out voices of its own");
    say("making a corpus of connected digits with espeak-ng ...");
    SpeakConfig config;
    set(config);
    make_spoken_corpus(config);
  } else {
    say("making a corpus of connected digits from the recordings in ", source.data, " ...");
    DigitsConfig config;
    set(config);
    config.recordings = data;
    config.holdout_speaker = source.holdout_speaker;
    say_notes(make_digits_corpus(config));
  }
  return made;
}

Recognizer new_recognizer(const std::filesystem::path& corpus, EncoderName encoder, const EncoderConfig& encoder_config,
                          std::int64_t seed, int threads) {
  const auto utterances = read_corpus(corpus / "train.jsonl");
  RecognizerConfig config;
  config.model = encoder;
  config.encoder = encoder_config;
  config.features.fbank.num_mels = num_mels;
  config.features.fbank.sample_rate = AudioReader(utterances.at(0).audio_filepath).sample_rate();
  if (encoder_config.chunk > 0) {
    config.features.normalization = Normalization::global;
    fit_normalization(utterances, config.features, threads);
  }
  config.tokens = corpus_tokens(corpus);
  std::vector<std::string> texts;
  for (const Utterance& u : utterances) texts.push_back(u.text);
  return Recognizer::create(config, Vocabulary::of(config.tokens, texts), Seed(static_cast<std::uint64_t>(seed)));
}

Recognizer ready(const Recognizer& model, const Device& device, int threads) {
  Recognizer out = model;
  if (device.gpu) out.prepare(threads, device);
  return out;
}
