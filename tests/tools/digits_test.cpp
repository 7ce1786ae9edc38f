// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include "common/digits.hpp"
#include "catch.hpp"
#include "common/speak.hpp"
#include "temporary_folder.hpp"

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <map>
#include <set>
#include <string>
#include <vector>

using namespace laconic;
namespace fs = std::filesystem;

namespace {

const std::vector<std::string> speakers{"anna", "ben_2", "carl"};
constexpr int recordings_each = 11;

/// A recording that says which it is: 20 ms of silence, then 60 ms of one amplitude.
int amplitude_of(int speaker, int digit, int index) {
  return 1024 + 16 * ((speaker * 10 + digit) * recordings_each + index);
}

void put_recording(const fs::path& folder, int speaker, int digit, int index) {
  std::vector<float> samples(640);
  for (std::size_t i = 160; i < samples.size(); ++i)
    samples[i] = static_cast<float>(amplitude_of(speaker, digit, index)) / 32768;
  write_wav(folder / text(digit, '_', speakers[static_cast<std::size_t>(speaker)], '_', index, ".wav"),
            Audio{samples, 8000});
}

void put_recordings(const fs::path& folder) {
  fs::create_directories(folder);
  for (int speaker = 0; speaker < 3; ++speaker)
    for (int digit = 0; digit < 10; ++digit)
      for (int index = 0; index < recordings_each; ++index) put_recording(folder, speaker, digit, index);
}

struct Heard {
  int speaker, digit, index;
};

/// Returns the recordings in an utterance, which their amplitudes identify, and checks the gaps between them.
std::vector<Heard> listen(const fs::path& file, double max_gap_ms) {
  const Audio audio = read_audio(file);
  REQUIRE(audio.sample_rate == 8000);
  std::vector<Heard> out;
  std::size_t quiet = 0;
  for (std::size_t i = 0; i < audio.samples.size(); ++i) {
    const float value = audio.samples[i] * 32768;
    if (std::abs(value) < 512) {
      ++quiet;
      continue;
    }
    // The recording's own 160 quiet samples belong to what came before; the first gap has no recording before it.
    CHECK(quiet >= 150);
    CHECK(static_cast<double>(quiet) / 8 <= max_gap_ms + 30);
    quiet = 0;
    const std::size_t middle = i + 200;
    REQUIRE(middle < audio.samples.size());
    const int code = static_cast<int>(std::lround((audio.samples[middle] * 32768 - 1024) / 16));
    out.push_back({code / (10 * recordings_each), code / recordings_each % 10, code % recordings_each});
    while (i + 1 < audio.samples.size() && std::abs(audio.samples[i + 1] * 32768) >= 512) ++i;
  }
  return out;
}

std::string bytes_of(const fs::path& path) { return read_file(path, std::size_t{1} << 24); }

/// All files of a folder, by their paths below it.
std::map<std::string, std::string> contents(const fs::path& folder) {
  std::map<std::string, std::string> out;
  for (const auto& entry : fs::recursive_directory_iterator(folder))
    if (entry.is_regular_file()) out[fs::relative(entry.path(), folder).string()] = bytes_of(entry.path());
  return out;
}

DigitsConfig small_config(const TemporaryFolder& folder) {
  DigitsConfig config;
  config.recordings = folder / "recordings";
  config.out = folder / "out";
  config.train_utterances = 60;
  config.valid_utterances = 21;
  config.test_utterances = 30;
  return config;
}

}  // namespace

TEST_CASE("connected digits are what their texts say, from the recordings of their part", "[digits]") {
  TemporaryFolder folder;
  put_recordings(folder / "recordings");
  std::ofstream(folder / "recordings/README.md") << "not a recording";
  DigitsConfig config = small_config(folder);
  config.seed = Seed(5);
  config.holdout_speaker = "ben_2";
  Index calls = 0;
  make_digits_corpus(config, [&](std::string_view, Index done, Index total) {
    CHECK(done == ++calls);
    CHECK(total == 60 + 21 + 30 + 30);
  });
  CHECK(calls == 141);
  CHECK(folder.names() == std::vector<std::string>{"out", "recordings"});

  const std::map<std::string, std::array<int, 3>> expected{
      {"train", {60, 8, 10}}, {"valid", {21, 5, 7}}, {"test", {30, 0, 4}}, {"holdout", {30, 0, 10}}};
  for (const auto& [name, part] : expected) {
    CAPTURE(name);
    const auto utterances = read_manifest(folder / ("out/" + name + ".jsonl"));
    REQUIRE(utterances.size() == static_cast<std::size_t>(part[0]));
    std::array<int, 10> count{};
    std::map<std::string, int> by_speaker;
    std::set<int> indices;
    std::set<std::size_t> lengths;
    for (const Utterance& one : utterances) {
      std::string said;
      const auto heard = listen(one.audio_filepath, 200);
      lengths.insert(heard.size());
      for (const Heard& h : heard) {
        said += (said.empty() ? "" : " ") + std::string(digit_words[static_cast<std::size_t>(h.digit)]);
        CHECK(speakers[static_cast<std::size_t>(h.speaker)] == one.speaker);
        CHECK(h.index >= part[1]);
        CHECK(h.index <= part[2]);
        indices.insert(h.index);
        ++count[static_cast<std::size_t>(h.digit)];
      }
      CHECK(said == one.text);
      CHECK(one.duration == Approx(detail::audio_duration(one.audio_filepath)));
      ++by_speaker[one.speaker];
    }
    CHECK(lengths == std::set<std::size_t>{3, 4, 5, 6, 7});
    CHECK(indices.size() == static_cast<std::size_t>(part[2] - part[1] + 1));
    CHECK(*std::ranges::max_element(count) - *std::ranges::min_element(count) <= 2);  // one a speaker
    if (name == "holdout") {
      CHECK(by_speaker == std::map<std::string, int>{{"ben_2", 30}});
    } else {
      REQUIRE(by_speaker.size() == 2);
      CHECK(std::abs(by_speaker.at("anna") - by_speaker.at("carl")) <= 1);
    }
  }

  const auto made = read_json(folder / "out/corpus.json");
  CHECK(made.at("seed") == 5);
  CHECK(made.at("tokens") == "words");
  CHECK(made.at("holdout_speaker") == "ben_2");
  CHECK(made.at("splits").at("test").at("utterances") == 30);
}

TEST_CASE("connected digits follow from the seed", "[digits]") {
  TemporaryFolder folder;
  put_recordings(folder / "recordings");
  DigitsConfig config = small_config(folder);
  config.tokens = Tokens::characters;
  make_digits_corpus(config);
  const auto first = contents(config.out);
  CHECK_FALSE(first.contains("holdout.jsonl"));
  CHECK(first.size() == 111 + 4 + 3);  // audio; manifests and corpus.json; times of words
  CHECK(read_json(config.out / "corpus.json").at("tokens") == "characters");

  fs::create_directory(folder / "again");  // an empty folder may be there
  config.out = folder / "again";
  config.threads = config.threads == 1 ? 3 : 1;  // nor does it depend on the threads
  make_digits_corpus(config);
  CHECK(contents(config.out) == first);

  config.out = folder / "other";
  config.seed = Seed(1);
  make_digits_corpus(config);
  CHECK(contents(config.out).at("train.jsonl") != first.at("train.jsonl"));
}

TEST_CASE("gaps are as quiet as the room and never digital silence", "[digits]") {
  ConnectedDigitsConfig config;
  config.max_gap_ms = 200;
  const auto joined = [&](std::vector<float> samples) {
    const DigitClip clip = detail::make_clip(std::move(samples), 8000);
    const DigitClip* clips[] = {&clip, &clip, &clip};
    return detail::join_clips(clips, config, Random(Seed(3), "gaps")).samples;
  };
  const auto rms = [](std::span<const float> x) {
    double sum = 0;
    for (const float value : x) sum += static_cast<double>(value) * static_cast<double>(value);
    return std::sqrt(sum / static_cast<double>(x.size()));
  };
  std::vector<float> loud(1600);
  for (std::size_t i = 0; i < 1600; ++i) loud[i] = (i < 800 ? 0.3f : 0.01f) * (i % 2 == 0 ? 1.0f : -1.0f);
  const auto noisy = joined(loud);
  const std::size_t gaps = noisy.size() - 3 * 1600;
  CHECK(gaps > 100);
  CHECK(gaps < 4 * 1600);
  const auto first_loud = static_cast<std::size_t>(
      std::ranges::find_if(noisy, [](float x) { return std::abs(x) > 0.03f; }) - noisy.begin());
  REQUIRE(first_loud > 100);
  CHECK(rms(std::span(noisy).first(first_loud - 20)) == Approx(0.01).epsilon(0.15));

  const auto silent = joined(std::vector<float>(1600, 0.0f));
  CHECK(rms(silent) * 32768 == Approx(1).epsilon(0.1));
  for (std::size_t i = 0; i + 80 <= silent.size(); i += 80) CHECK(rms(std::span(silent).subspan(i, 80)) * 32768 > 0.5);
}

TEST_CASE("a corpus of digits that cannot be made leaves nothing", "[digits]") {
  TemporaryFolder folder;
  const fs::path recordings = folder / "recordings";
  put_recordings(recordings);
  DigitsConfig config = small_config(folder);
  const std::string out = config.out.string();
  const auto message = [&] {
    try {
      make_digits_corpus(config);
    } catch (const Error& e) {
      CHECK(folder.names() == std::vector<std::string>{"recordings"});
      return std::string(e.what());
    }
    return std::string("made");
  };
  SECTION("an unknown speaker") {
    config.holdout_speaker = "dora";
    CHECK(message() == recordings.string() + ": no speaker \"dora\" to hold out; known: anna, ben_2, carl");
  }
  SECTION("a recording that is none") {
    std::ofstream(recordings / "3_anna_4.wav") << "no audio";
    CHECK(message().find("3_anna_4.wav") != std::string::npos);
  }
  SECTION("an empty recording") {
    std::ofstream(recordings / "3_anna_4.wav", std::ios::trunc);
    CHECK(message().find("3_anna_4.wav") != std::string::npos);
  }
  SECTION("a missing digit") {
    for (int index = 5; index <= 7; ++index) fs::remove(recordings / text("6_carl_", index, ".wav"));
    CHECK(message() == "recordings of carl: no digit 6 with an index from 5 to 7");
  }
  SECTION("misnamed recordings") {
    for (const char* name :
         {"x_anna_1.wav", "12_anna_1.wav", "1_anna.wav", "1__1.wav", "1_anna_b.wav", "1_anna_-1.wav"}) {
      fs::copy_file(recordings / "1_anna_1.wav", recordings / name);
      CHECK(message() == (recordings / name).string() + ": the name of a recording is {digit}_{speaker}_{index}.wav");
      fs::remove(recordings / name);
    }
  }
  SECTION("a recording twice") {
    fs::copy_file(recordings / "1_anna_1.wav", recordings / "1_anna_01.wav");
    CHECK(message() == (recordings / "1_anna_1.wav").string() + ": the same digit, speaker and index as " +
                           (recordings / "1_anna_01.wav").string());
  }
  SECTION("no recordings") {
    config.recordings = folder / "none";
    CHECK(message() == (folder / "none").string() + ": no such folder");
  }
  SECTION("numbers that make no sense") {
    config.max_digits = 2;
    CHECK(message() == out + ": 3 to 2 digits given, 1 to 1000 expected");
    config.max_digits = 3;
    config.test_utterances = 0;
    CHECK(message() == out + ": 60 training, 21 validation and 0 test utterances given, at least 1 of each expected");
    config.test_utterances = 1;
    config.max_gap_ms = -1;
    CHECK(message() == out + ": gaps to -1 ms given, 0 to 10000 expected");
  }
  SECTION("a folder that is not empty stays as it is") {
    fs::create_directory(config.out);
    std::ofstream(config.out / "precious") << "x";
    CHECK_THROWS_WITH(make_digits_corpus(config),
                      out + ": exists and is not an empty folder; give another or remove it");
    CHECK(fs::exists(config.out / "precious"));
  }
}

TEST_CASE("espeak-ng speaks a corpus", "[digits][speak]") {
  TemporaryFolder folder;
  SpeakConfig config;
  config.out = folder / "out";
  config.train_utterances = 12;
  config.valid_utterances = config.test_utterances = 6;
  config.voices = {"en-us", "en-gb+f2"};
  config.held_out_voices = {"en-gb-scotland+m3"};
  config.train_styles = 2;
  config.valid_styles = config.test_styles = 1;

  const char* path = std::getenv("PATH");
  const std::string usual = path == nullptr ? "" : path;
  ::setenv("PATH", folder.path.c_str(), 1);
  CHECK_THROWS_WITH(make_spoken_corpus(config),
                    "espeak-ng: program not found on PATH (Debian, Ubuntu: apt-get install espeak-ng)");
  ::setenv("PATH", usual.c_str(), 1);
  CHECK(folder.names().empty());

  try {
    make_spoken_corpus(config);
  } catch (const Error& e) {
    if (std::string(e.what()).find("program not found") == std::string::npos) throw;
    std::cout << "skipped: no program espeak-ng on PATH\n";
    return;
  }
  CHECK(folder.names() == std::vector<std::string>{"out"});
  std::map<std::string, std::set<std::string>> voices;
  for (const char* part : {"train", "valid", "test", "holdout"})
    for (const Utterance& one : read_manifest(config.out / (std::string(part) + ".jsonl"))) {
      voices[part].insert(one.speaker);
      const Audio audio = read_audio(one.audio_filepath);
      CHECK(audio.sample_rate == 8000);
      const auto digits = static_cast<double>(detail::split_words(one.text).size());
      CHECK(one.duration > 0.15 * digits);  // 200 words a minute, and no gaps
      CHECK(one.duration < 0.2 + 1.0 * digits);
      float peak = 0;
      for (const float value : audio.samples) peak = std::max(peak, std::abs(value));
      CHECK(peak > 0.1f);
      CHECK(peak <= 1.0f);
    }
  CHECK(voices["train"] == std::set<std::string>{"en-us", "en-gb+f2"});
  CHECK(voices["test"] == voices["train"]);
  CHECK(voices["holdout"] == std::set<std::string>{"en-gb-scotland+m3"});

  config.out = folder / "again";
  config.voices = {"nonsense"};
  CHECK_THROWS_WITH(
      make_spoken_corpus(config),
      Catch::Matchers::StartsWith("espeak-ng: failed to say the digits with the voice nonsense (exit code 1): "));
  CHECK(folder.names() == std::vector<std::string>{"out"});
}
