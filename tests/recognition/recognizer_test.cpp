// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include <laconic/recognition/dataset.hpp>
#include <laconic/recognition/encoder_costs.hpp>
#include <laconic/recognition/recognizer.hpp>
#include <laconic/speech/audio.hpp>
#include <laconic/speech/vocabulary.hpp>

#include "catch.hpp"
#include "message_of.hpp"
#include "temporary_folder.hpp"

#include <cmath>
#include <string>
#include <vector>

using namespace laconic;

namespace {

Recognizer small(EncoderName encoder = EncoderName::conformer) {
  RecognizerConfig config;
  config.model = encoder;
  config.encoder = {.num_mels = 20,
                    .d_model = 32,
                    .num_layers = 2,
                    .attention = AttentionName::mha,
                    .num_heads = 4,
                    .conv_kernel = 3,
                    .subsampling_channels = 4,
                    .convolution = ConvolutionContext::chunk,
                    .chunk = 4,
                    .left_context = 8};
  config.features.fbank.num_mels = 20;
  config.features.fbank.sample_rate = 8000;
  config.features.normalization = Normalization::global;
  config.features.statistics = {std::vector<float>(20, 0.0F), std::vector<float>(20, 1.0F)};
  const std::vector<std::string> texts{"one two three four"};
  return Recognizer::create(config, Vocabulary::words(texts), Seed(3));
}

std::vector<float> chirp(std::size_t count) {
  std::vector<float> out(count);
  for (std::size_t i = 0; i < count; ++i) {
    const double t = static_cast<double>(i) / 8000;
    out[i] = static_cast<float>(0.3 * std::sin(2 * 3.14159 * (200 + 600 * t) * t));
  }
  return out;
}

}  // namespace

TEST_CASE("a recogniser transcribes files and samples alike, before and after its folder", "[recognizer]") {
  const TemporaryFolder folder;
  const Recognizer made = small();
  made.save(folder / "model");
  const Recognizer loaded = Recognizer::load(folder / "model");
  CHECK(loaded.fingerprint() == made.fingerprint());
  CHECK(loaded.count_parameters() == EncoderCosts{loaded.config().model, loaded.config().encoder}.parameters());

  const std::vector<float> samples = chirp(16000);
  write_wav(folder / "chirp.wav", {samples, 8000});
  const Transcript of_file = loaded.transcribe(folder / "chirp.wav");
  const Audio read = read_audio(folder / "chirp.wav");
  Workspace one(1);
  const Transcript of_samples = made.transcribe(read.samples, 8000, one);
  CHECK(of_file.text == of_samples.text);
  CHECK(of_file.seconds == 2);
  CHECK(one.threads() == 1);
  CHECK(one.peak_bytes() > 0);

  REQUIRE(!of_file.words.empty());  // random weights say something
  std::string joined;
  for (const Word& word : of_file.words) {
    joined += (joined.empty() ? "" : " ") + word.text;
    CHECK(!word.begin);
    CHECK(!word.end);
    CHECK(!word.confidence);
  }
  CHECK(joined == of_file.text);
}

TEST_CASE("a recogniser hears a stream as the whole utterance", "[recognizer]") {
  const Recognizer recognizer = small();
  const std::vector<float> samples = chirp(20000);
  const std::string whole = recognizer.transcribe(samples, 8000).text;
  SpeechStream stream = recognizer.stream({.threads = 1});
  Index frames = 0;
  std::string before;
  for (std::size_t at = 0; at < samples.size(); at += 700) {
    frames += stream.push(std::span(samples).subspan(at, std::min<std::size_t>(700, samples.size() - at)));
    CHECK(stream.text().starts_with(before));
    before = stream.text();
  }
  frames += stream.finish();
  CHECK(stream.text() == whole);
  CHECK(frames == EncoderCosts{recognizer.config().model, recognizer.config().encoder}.frames_of(
                      FeatureExtractor(recognizer.config().features)(samples).rows()));
}

TEST_CASE("a conversion leaves its source alone and says what it cost", "[recognizer]") {
  for (const EncoderName encoder : {EncoderName::conformer, EncoderName::branchformer, EncoderName::e_branchformer}) {
    const Recognizer source = small(encoder);
    const std::string before = source.fingerprint();
    const auto [target, report] = source.convert({AttentionName::mla_simple, 0, 16});
    CHECK(source.fingerprint() == before);
    CHECK(target.config().encoder.attention == AttentionName::mla_simple);
    CHECK(target.config().encoder.kv_lora_rank == 16);
    CHECK(target.cache_bytes_per_second() == source.cache_bytes_per_second() / 4);
    CHECK(report.layers.size() == 2);
    CHECK(report.input == "white noise");
    CHECK(source.spectra().size() == 2);
  }
}

TEST_CASE("copies of a recogniser are independent", "[recognizer]") {
  const Recognizer first = small();
  Recognizer second = first;
  second.prepare(1);
  CHECK(first.count_parameters() == second.count_parameters());
  CHECK(!first.fingerprint().empty());  // a prepared model has none
  const std::vector<float> samples = chirp(8000);
  CHECK(first.transcribe(samples, 8000).text == second.transcribe(samples, 8000).text);
}

TEST_CASE("a recogniser refuses what does not fit", "[recognizer]") {
  const Recognizer recognizer = small();
  CHECK(message_of([&] { recognizer.convert({AttentionName::mla_simple, 0, 33}); }).find("33") != std::string::npos);
  CHECK(message_of([&] { recognizer.check_ranks({8}); }) ==
        "ranks: a model with mha given, which has no latent to cut");
  CHECK(message_of([&] {
          recognizer.convert({AttentionName::mla_simple, 0, 16}, {ConversionMethod::activation});
        }) == "convert: activation given without speech to calibrate on");
  CHECK(message_of([&] { small(EncoderName::branchformer).check_teacher(recognizer, false); }) ==
        "teacher: a conformer given, a branchformer expected");
}
