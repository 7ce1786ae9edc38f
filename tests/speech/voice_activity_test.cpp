// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include <atomic>
#include <cstdlib>
#include <new>

namespace {

std::atomic<long> allocations{0};

}  // namespace

[[gnu::noinline]] void* operator new(std::size_t n) {
  ++allocations;
  if (void* block = std::malloc(n > 0 ? n : 1)) return block;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* block) noexcept { std::free(block); }
[[gnu::noinline]] void operator delete(void* block, std::size_t) noexcept { std::free(block); }

#include <laconic/core/random.hpp>
#include <laconic/speech/audio.hpp>
#include <laconic/speech/voice_activity.hpp>

#include "catch.hpp"
#include "message_of.hpp"
#include "recordings.hpp"

#include <array>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numbers>
#include <span>
#include <string>
#include <vector>

using namespace laconic;

namespace {

constexpr int rate = 8000;

/// A stretch of speech: its samples, and where it lies.
struct Stretch {
  Range place;
  std::vector<float> samples;
};

/// Pushes samples in blocks of this size.
std::vector<Stretch> stretches(std::span<const float> samples, std::size_t block,
                               const VoiceActivityConfig& config = {}, int sample_rate = rate) {
  std::vector<Stretch> out;
  bool open = false;
  const auto take = [&](Index begin, std::span<const float> part, bool ends) {
    if (!open) out.push_back({{begin, begin}, {}});
    open = !ends;
    Stretch& last = out.back();
    REQUIRE(begin == last.place.end);  // without a gap
    last.place.end += static_cast<Index>(part.size());
    last.samples.insert(last.samples.end(), part.begin(), part.end());
  };
  VoiceActivity gate(sample_rate, config);
  for (std::size_t i = 0; i < samples.size(); i += block)
    gate.push(samples.subspan(i, std::min(block, samples.size() - i)), take);
  gate.finish(take);
  REQUIRE_FALSE(open);
  Index speech = 0;
  for (const Stretch& one : out) speech += one.place.size();
  CHECK(gate.speech() == speech);
  CHECK(gate.samples() == static_cast<Index>(samples.size()));
  return out;
}

/// Syllables of 0.2 s, a vowel of five harmonics that swells and fades, from `begin` to `end` seconds, at -20 dB; noise
/// below them of this level in dB.
std::vector<float> speech_in(double seconds, const std::vector<std::array<double, 2>>& spoken, double noise) {
  std::vector<float> out(static_cast<std::size_t>(seconds * rate));
  const Random random(Seed(5), "noise");
  for (std::size_t i = 0; i < out.size(); ++i) {
    const double t = static_cast<double>(i) / rate;
    double x = std::pow(10, noise / 20) * std::sqrt(3.0) * (2 * random.uniform(i) - 1);
    for (const auto& [begin, end] : spoken)
      if (begin <= t && t < end) {
        const double swell = std::sin(std::numbers::pi * std::fmod(t - begin, 0.2) / 0.2);
        for (int k = 1; k <= 5; ++k) x += 0.09 * swell * std::sin(2 * std::numbers::pi * 130 * k * t) / std::sqrt(k);
      }
    out[i] = static_cast<float>(x);
  }
  return out;
}

}  // namespace

TEST_CASE("speech is found where it is, at any noise, in blocks of any size", "[voice]") {
  // Pauses of 0.3 s within a stretch, of 1 to 3 s between them.
  const std::vector<std::array<double, 2>> spoken{{3, 4}, {4.3, 5.1}, {6.5, 7.1}, {10, 12}};
  const double truth[3][2] = {{3, 5.1}, {6.5, 7.1}, {10, 12}};
  for (const double noise : {-70.0, -50.0, -40.0, -30.0, -25.0, -20.0}) {  // 50 to 0 dB below speech
    CAPTURE(noise);
    const std::vector<float> samples = speech_in(14, spoken, noise);
    const std::vector<Stretch> found = stretches(samples, samples.size());
    // What comes before the background is known may be heard.
    const std::size_t before = found.size() == 4 ? 1 : 0;
    REQUIRE(found.size() == 3 + before);
    if (before == 1) CHECK(found[0].place.end <= rate);
    for (std::size_t i = 0; i < 3; ++i) {
      const Stretch& one = found[i + before];
      CAPTURE(one.place.begin, one.place.end);
      const double begin = static_cast<double>(one.place.begin) / rate, end = static_cast<double>(one.place.end) / rate;
      CHECK(begin <= truth[i][0]);
      CHECK(begin >= truth[i][0] - 0.35);
      CHECK(end >= truth[i][1]);
      CHECK(end <= truth[i][1] + 0.35);
      for (Index k = 0; k < one.place.size(); ++k)
        REQUIRE(one.samples[static_cast<std::size_t>(k)] == samples[static_cast<std::size_t>(one.place.begin + k)]);
    }
    for (const std::size_t block : {1U, 37U, 80U, 4001U}) {
      const std::vector<Stretch> again = stretches(samples, block);
      REQUIRE(again.size() == found.size());
      for (std::size_t i = 0; i < found.size(); ++i) {
        CHECK(again[i].place.begin == found[i].place.begin);
        CHECK(again[i].samples == found[i].samples);
      }
    }
  }
}

TEST_CASE("what is no speech is silence", "[voice]") {
  CHECK(stretches(std::vector<float>(10 * rate), 100).empty());  // digital silence
  for (const double noise : {-85.0, -60.0, -30.0}) {
    const std::vector<Stretch> found = stretches(speech_in(30, {}, noise), 1000);
    REQUIRE(found.size() <= 1);  // until the background is known
    if (!found.empty()) CHECK(found[0].place.end <= rate);
  }
  // Noise that grows by 20 dB is sound for 20 s, and then the background.
  std::vector<float> grows = speech_in(40, {}, -60);
  for (std::size_t i = 10 * rate; i < grows.size(); ++i) grows[i] *= 10;
  const std::vector<Stretch> grown = stretches(grows, 1000);
  REQUIRE(!grown.empty());
  CHECK(grown.back().place.end > 25 * rate);
  CHECK(grown.back().place.end < 31 * rate);
  // A click is shorter than speech.
  std::vector<float> clicks = speech_in(10, {}, -85);
  for (std::size_t i = 3 * rate; i < 3 * rate + 200; ++i) clicks[i] = i % 2 == 0 ? 0.5f : -0.5f;
  CHECK(stretches(clicks, 1000).empty());
}

TEST_CASE("a sample that is not finite is no sound, and what follows is heard", "[voice]") {
  std::vector<float> samples = speech_in(8, {{4, 5}}, -60);
  samples[2 * rate] = std::numeric_limits<float>::quiet_NaN();
  samples[2 * rate + 400] = std::numeric_limits<float>::infinity();
  VoiceActivity gate(rate);
  Index begin = -1, end = 0;
  const auto take = [&](Index at, std::span<const float> part, bool) {
    if (at < rate) return;  // the background is not known yet
    if (begin < 0) begin = at;
    end = at + static_cast<Index>(part.size());
  };
  gate.push(samples, take);
  gate.finish(take);
  CHECK(std::abs(static_cast<double>(begin) / rate - 3.75) <= 0.1);
  CHECK(std::abs(static_cast<double>(end) / rate - 5.25) <= 0.1);
}

TEST_CASE("a stretch has what precedes and follows its sound, and ends after silence", "[voice]") {
  const std::vector<float> samples = speech_in(8, {{2, 3}, {3.6, 4.6}}, -80);
  CHECK(stretches(samples, 100).size() == 2);
  CHECK(stretches(samples, 100, {.min_silence = 0.7}).size() == 1);
  const std::vector<Stretch> tight = stretches(samples, 100, {.padding = 0});
  REQUIRE(tight.size() == 2);
  CHECK(std::abs(static_cast<double>(tight[0].place.begin) / rate - 2) <= 0.03);
  CHECK(std::abs(static_cast<double>(tight[0].place.end) / rate - 3) <= 0.03);
  CHECK(stretches(samples, 100, {.min_speech = 1.5}).empty());
  // Samples may end in speech, and within its padding.
  CHECK(stretches(std::span(samples).first(2 * rate + rate / 2), 100).back().place.end == 2 * rate + rate / 2);
  CHECK(stretches(std::span(samples).first(3 * rate + rate / 10), 100).back().place.end == 3 * rate + rate / 10);
}

TEST_CASE("a gate allocates nothing once it is made", "[voice]") {
  const std::vector<float> samples = speech_in(20, {{2, 3}, {3.6, 8}, {9, 12}}, -50);
  VoiceActivity gate(rate);
  Index given = 0;
  const auto take = [&](Index, std::span<const float> part, bool) { given += static_cast<Index>(part.size()); };
  const long before = allocations;
  for (std::size_t i = 0; i < samples.size(); i += 160) gate.push(std::span(samples).subspan(i, 160), take);
  gate.finish(take);
  CHECK(allocations == before);
  CHECK(given > 8 * rate);
  CHECK(given == gate.speech());
}

TEST_CASE("a real recording between silences is heard", "[voice]") {
  const Audio audio =
      read_audio(recordings / "librispeech" / "test-clean" / "1089" / "134691" / "1089-134691-0000.flac");
  const std::size_t pause = static_cast<std::size_t>(3 * audio.sample_rate);
  std::vector<float> samples(pause);
  samples.insert(samples.end(), audio.samples.begin(), audio.samples.end());
  samples.insert(samples.end(), pause, 0.0f);
  const Random random(Seed(1), "room");
  for (std::size_t i = 0; i < samples.size(); ++i) samples[i] += 1e-3f * static_cast<float>(random.normal(i));
  const std::vector<Stretch> found = stretches(samples, 100, {}, audio.sample_rate);
  REQUIRE_FALSE(found.empty());
  // "He could wait no longer": one stretch, apart from the first second.
  CHECK(found.size() <= 2);
  const double begin = static_cast<double>(found.back().place.begin) / audio.sample_rate,
               end = static_cast<double>(found.back().place.end) / audio.sample_rate;
  CHECK(begin > 2.7);
  CHECK(begin < 3.6);
  CHECK(end < 3.3 + static_cast<double>(audio.samples.size()) / audio.sample_rate);
  CHECK(end - begin > 1.2);
}

TEST_CASE("voice activity: settings that make no sense", "[voice]") {
  CHECK(message_of([] { VoiceActivity(499); }) ==
        "voice activity: a sample rate of 499 Hz given, at least 500 Hz expected");
  CHECK(message_of([] { VoiceActivity(rate, {.padding = 0.6}); }) ==
        "voice activity: padding of 0.6 s given, 0 to min_silence (0.5 s) expected");
  CHECK(message_of([] { VoiceActivity(rate, {.min_speech = 0}); }) ==
        "voice activity: min_speech of 0 s given, more than 0 and at most 10 s expected");
  CHECK(message_of([] { VoiceActivity(rate, {.min_silence = std::nan("")}); }) ==
        "voice activity: min_silence of nan s given, more than 0 and at most 10 s expected");
}
