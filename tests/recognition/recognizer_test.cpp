// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include <laconic/decode/ctc_beam_search.hpp>
#include <laconic/io/json.hpp>
#include <laconic/io/safetensors.hpp>
#include <laconic/recognition/beam_decoding.hpp>
#include <laconic/recognition/dataset.hpp>
#include <laconic/recognition/encoder_costs.hpp>
#include <laconic/recognition/listener.hpp>
#include <laconic/recognition/recognizer.hpp>
#include <laconic/speech/audio.hpp>
#include <laconic/speech/vocabulary.hpp>

#include "catch.hpp"
#include "message_of.hpp"
#include "temporary_folder.hpp"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
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
  double end = 0;
  for (const Word& word : of_file.words) {
    joined += (joined.empty() ? "" : " ") + word.text;
    CHECK(*word.begin >= end);
    CHECK(*word.end > *word.begin);
    CHECK((*word.confidence > 0 && *word.confidence <= 1));
    end = *word.end;
  }
  CHECK(joined == of_file.text);
  CHECK(end <= of_file.seconds + 0.1);
}

TEST_CASE("an encoder gets another head", "[recognizer]") {
  const TemporaryFolder folder;
  small().save(folder / "new");
  // Statistics that no new model has, and a config.json that knows another head, too large to be made.
  std::filesystem::copy(folder / "new", folder / "model");
  nlohmann::json config = read_json(folder / "new/config.json");
  config.at("encoder").at("vocab_size") = 1 << 24;
  write_json(folder / "model/config.json", config);
  const SafetensorsFile fresh(folder / "new/model.safetensors");
  SafetensorsWriter writer;
  std::list<std::vector<float>> kept;
  for (const std::string& name : fresh.names()) {
    std::vector<float>& values = kept.emplace_back(fresh.info(name).bytes.size() / sizeof(float));
    fresh.read(name, std::span<float>(values));
    if (name.find("running_") != std::string::npos) std::ranges::for_each(values, [](float& x) { x += 0.5F; });
    writer.add(name, fresh.info(name).shape, std::span<const float>(values));
  }
  writer.write(folder / "model/model.safetensors");
  const Vocabulary letters = Vocabulary::characters(std::vector<std::string>{"one two"});
  const Recognizer renewed = Recognizer::load_encoder(folder / "model", letters, Seed(1));
  CHECK(renewed.vocabulary() == letters);
  CHECK(renewed.config().tokens == Tokens::characters);
  renewed.save(folder / "renewed");
  CHECK(Recognizer::load(folder / "renewed").fingerprint() == renewed.fingerprint());
  const SafetensorsFile before(folder / "model/model.safetensors"), after(folder / "renewed/model.safetensors");
  REQUIRE(before.names() == after.names());
  for (const std::string& name : before.names()) {
    INFO(name);
    CHECK(std::ranges::equal(before.info(name).bytes, after.info(name).bytes) == !name.starts_with("lm_head."));
  }
  CHECK(after.info("lm_head.weight").shape == std::vector<Index>{letters.size(), 32});
  CHECK(Recognizer::load_encoder(folder / "model", letters, Seed(2)).fingerprint() != renewed.fingerprint());
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
  std::string words;
  for (const Word& one : stream.words()) words += (words.empty() ? "" : " ") + one.text;
  CHECK(words == whole);
  CHECK(stream.next_utterance() == whole);
  CHECK(stream.next_utterance().empty());
  CHECK(stream.is_endpoint({.silence_before_words = 0, .silence_after_words = 0, .longest = 20}));
  CHECK(frames == EncoderCosts{recognizer.config().model, recognizer.config().encoder}.frames_of(
                      FeatureExtractor(recognizer.config().features)(samples).rows()));
}

TEST_CASE("a listener hears the stretches of speech only, each by itself", "[recognizer]") {
  const Recognizer recognizer = small();
  const auto open = [&] { return recognizer.stream({.threads = 1}); };
  std::vector<float> samples(16000, 0.0F);
  for (const std::size_t count : {12000u, 9000u, 15000u}) {
    const std::vector<float> sound = chirp(count);
    samples.insert(samples.end(), sound.begin(), sound.end());
    samples.resize(samples.size() + 16000, 0.0F);
  }
  // What the gate lets pass, in streams made by hand.
  std::string text;
  std::vector<Word> words;
  std::vector<SpeechStretch> stretches;
  std::optional<SpeechStream> stream;
  Index begin = 0, frames = 0;
  VoiceActivity gate(8000);
  const auto take = [&](Index at, std::span<const float> part, bool ends) {
    if (!stream) {
      stream.emplace(open());
      begin = at;
    }
    frames += stream->push(part);
    if (!ends) return;
    frames += stream->finish();
    text += (text.empty() || stream->text().empty() ? "" : " ") + stream->text();
    append_words(words, stream->words(), static_cast<double>(begin) / 8000);
    stretches.push_back({stream->text(), static_cast<double>(begin) / 8000, static_cast<double>(at) / 8000});
    stream.reset();
  };
  gate.push(samples, take);
  gate.finish(take);
  REQUIRE(stretches.size() == 3);
  REQUIRE(words.size() > 3);

  for (const std::size_t block : {std::size_t{333}, std::size_t{8000}, samples.size()}) {
    std::vector<SpeechStretch> ended;
    std::vector<std::string> utterances;
    Listener listener(open, 8000, VoiceActivityConfig(), [&](const SpeechStretch& one) {
      ended.push_back(one);
      CHECK(listener.text().ends_with(one.text));
    });
    CHECK_FALSE(listener.is_endpoint());
    Index got = 0;
    for (std::size_t at = 0; at < samples.size(); at += block) {
      got += listener.push(std::span(samples).subspan(at, std::min(block, samples.size() - at)));
      while (listener.is_endpoint()) utterances.push_back(listener.next_utterance());
    }
    got += listener.finish();
    CHECK(listener.text() == text);
    CHECK(got == frames);
    CHECK(listener.silence() == Approx(static_cast<double>(gate.samples() - gate.speech()) / 8000));
    REQUIRE(listener.words().size() == words.size());
    for (std::size_t i = 0; i < words.size(); ++i) {
      CHECK(listener.words()[i].text == words[i].text);
      CHECK(*listener.words()[i].begin == Approx(*words[i].begin));
      CHECK(*listener.words()[i].end == Approx(*words[i].end));
    }
    REQUIRE(ended.size() == stretches.size());
    for (std::size_t i = 0; i < ended.size(); ++i) {
      CHECK(ended[i].text == stretches[i].text);
      CHECK(ended[i].begin == stretches[i].begin);
      CHECK(ended[i].end == stretches[i].end);
    }
    REQUIRE(utterances.size() == 3);  // also where one push had the ends of several
    for (std::size_t i = 0; i < 3; ++i) CHECK(utterances[i] == stretches[i].text);
    CHECK(listener.next_utterance().empty());
  }

  // Without a gate it is a stream.
  SpeechStream whole = open();
  Listener listener(open, 8000);
  CHECK(listener.push(samples) == whole.push(samples));
  CHECK(listener.finish() == whole.finish());
  CHECK(listener.text() == whole.text());
  CHECK(listener.words().size() == whole.words().size());
  CHECK(listener.silence() == 0);
  CHECK(listener.is_endpoint() == whole.is_endpoint());
  CHECK(listener.next_utterance() == whole.next_utterance());
}

TEST_CASE("a long recording is heard in windows, and by a beam search", "[recognizer]") {
  const Recognizer recognizer = small();
  const std::vector<float> samples = chirp(8000 * 20);
  Workspace workspace(1);
  Index frames = 0;
  const auto count = [&](MatrixView<const float> rows) { frames += rows.rows(); };
  const Transcript whole = recognizer.transcribe(samples, 8000, workspace, {.logits = count});
  const Index all = std::exchange(frames, 0);
  const Transcript in_windows = recognizer.transcribe(samples, 8000, workspace, {.window_seconds = 4, .logits = count});
  CHECK(frames == all);  // each once
  CHECK(in_windows.seconds == whole.seconds);
  CHECK(message_of([&] {
          recognizer.transcribe(samples, 8000, workspace, {.window_seconds = 0.2});
        }).starts_with("windows of 0.2 s given, at least "));

  const auto beam = std::make_shared<BeamDecoding>();
  beam->alternatives = 3;
  const Transcript found = recognizer.transcribe(std::span(samples).first(16000), 8000, workspace, {.beam = beam});
  REQUIRE(found.alternatives.size() == 3);
  CHECK(found.alternatives[0].text == found.text);
  CHECK(found.alternatives[0].score >= found.alternatives[1].score);
  SpeechStream stream = recognizer.stream({.threads = 1}, {.beam = beam});
  stream.push(std::span(samples).first(16000));
  stream.finish();
  CHECK(stream.text() == found.text);

  const TemporaryFolder folder;
  write_wav(folder / "chirp.wav", {chirp(16000), 8000});
  AudioReader audio(folder / "chirp.wav", 8000);
  const AlignedText aligned = recognizer.align(audio, std::vector<std::string>{"one two", "seven four"}, workspace);
  REQUIRE(aligned.words.size() == 4);
  CHECK(aligned.not_written == std::vector<std::string>{"seven"});
  CHECK(!aligned.words[2].begin);
  CHECK(*aligned.words[3].begin >= *aligned.words[1].end);
  CHECK((aligned.lines[1].begin == aligned.words[3].begin && aligned.lines[1].words.size() == 2));
  CHECK(*aligned.lines[0].score < 0);
}

TEST_CASE("an endpoint ends one beam search and begins another one", "[recognizer]") {
  const Recognizer recognizer = small();
  const std::vector<float> samples = chirp(8000 * 8);
  const auto beam = std::make_shared<BeamDecoding>();
  beam->hotwords = {"three"};  // of each utterance
  Matrix<float> logits;
  const auto keep = [&](MatrixView<const float> rows) {
    logits.conservativeResize(logits.rows() + rows.rows(), rows.cols());
    logits.bottomRows(rows.rows()) = rows;
  };
  Workspace workspace(1);
  recognizer.transcribe(samples, 8000, workspace, {.logits = keep});

  SpeechStream stream = recognizer.stream({.threads = 1}, {.beam = beam});
  CtcBeamSearch search(CtcClasses::of(recognizer.vocabulary()), beam->config, nullptr, beam->hotwords);
  const EndpointRules rules{.silence_before_words = 9, .silence_after_words = 9, .longest = 2};
  const double frame = recognizer.frame_times().shift;
  std::string all;
  Index begin = 0, frames = 0;
  std::vector<std::string> utterances;
  const auto end_utterance = [&] {
    search.push(logits.middleRows(begin, frames - begin));
    const std::string expected = search.finish().front().text;
    const std::string said = stream.next_utterance();
    CHECK(said == expected);
    if (!said.empty()) all += (all.empty() ? "" : " ") + said;
    CHECK(stream.text() == all);
    utterances.push_back(said);
    begin = frames;
  };
  for (std::size_t at = 0; at < samples.size(); at += 800) {
    frames += stream.push(std::span(samples).subspan(at, 800));
    CHECK(stream.text().starts_with(all));
    CHECK(stream.is_endpoint(rules) == (static_cast<double>(frames - begin) * frame >= rules.longest));
    if (stream.is_endpoint(rules)) end_utterance();
  }
  frames += stream.finish();
  CHECK(frames == logits.rows());
  end_utterance();
  CHECK(stream.next_utterance().empty());
  CHECK(utterances.size() == 4);
  CHECK(all.find("three") != std::string::npos);
  double before = 0;
  std::string joined;
  for (const Word& word : stream.words()) {
    joined += (joined.empty() ? "" : " ") + word.text;
    CHECK((*word.begin >= before && *word.end > *word.begin));
    before = *word.end;
    if (word.confidence) CHECK((*word.confidence > 0 && *word.confidence <= 1 + 1e-9));
  }
  CHECK(joined == all);
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

TEST_CASE("devices have names", "[recognizer]") {
  CHECK(Device::named("cpu") == Device{});
  CHECK(Device{}.name() == "cpu");
  CHECK(Device{2}.name() == "cuda:2");
  CHECK(Device{1, ProductPrecision::bf16}.name() == "cuda:1,bf16");
  CHECK(devices().front().device == Device{});
  CHECK_THROWS_WITH(Device::named("gpu"), "device: 'gpu' given, cpu, cuda, cuda:N or auto expected");
  CHECK_THROWS_WITH(Device::named("cuda:one"), "device: 'cuda:one' given, cuda and a number expected: cuda:0");
  CHECK_THROWS_WITH(Device::named("cpu,bf16"),
                    "device: 'cpu,bf16' given, cpu expected: the processor does not round products");
  CHECK_THROWS_WITH(Device::named("cuda,half"),
                    "device: 'cuda,half' given, one of float, tf32, bf16 expected after the comma");
  if (has_cuda()) return;
  CHECK(Device::named("auto,bf16") == Device{});
  CHECK_THROWS_WITH(Device::named("cuda"),
                    "device: cuda given to a library that was built without CUDA (-DLACONIC_CUDA=ON builds it in)");
}
