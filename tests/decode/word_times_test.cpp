// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include <laconic/core/random.hpp>
#include <laconic/decode/word_decoder.hpp>
#include <laconic/speech/speech_level.hpp>

#include "catch.hpp"
#include "saying.hpp"

#include <array>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <numbers>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

using namespace laconic;
using Catch::Matchers::WithinAbs;

namespace {

/// Samples at 1000 Hz: a tone where `loud` says so, for each 10 ms, and noise of the last bit elsewhere.
std::vector<float> sound(const std::vector<bool>& loud) {
  std::vector<float> out;
  for (const bool one : loud)
    for (int i = 0; i < 10; ++i) out.push_back((i % 2 == 0 ? 1.0f : -1.0f) * (one ? 0.2f : 3e-5f));
  return out;
}

/// Steps of 10 ms, of which those in the ranges are loud.
std::vector<bool> loud_in(std::size_t steps, const std::vector<Range>& ranges) {
  std::vector<bool> out(steps);
  for (const Range& one : ranges)
    for (Index i = one.begin; i < one.end; ++i) out[static_cast<std::size_t>(i)] = true;
  return out;
}

}  // namespace

TEST_CASE("words begin and end where speech does, and in blocks as at once", "[decode]") {
  // Frames of 40 ms; tokens peak within their words, and the third after its own.
  const auto vocabulary = Vocabulary::words(std::vector<std::string>{"one two"});
  const auto samples = sound(loud_in(200, {{20, 60}, {80, 120}, {130, 160}}));
  std::vector<int> best(50);
  best[10] = 1;  // 0.40 s
  best[22] = 2;  // 0.88 s
  best[41] = 1;  // 1.64 s: after the end of its speech
  const Matrix<float> logits = saying(best, 3);
  std::vector<Word> words;
  WordDecoder decoder(vocabulary, {0.04, 0}, 1000);
  decoder.hear(samples);
  decoder(view(logits), words);
  CHECK(words.size() == 2);
  decoder.finish(words);
  REQUIRE(words.size() == 3);
  const double truth[3][2] = {{0.2, 0.6}, {0.8, 1.2}, {1.3, 1.6}};
  for (std::size_t i = 0; i < 3; ++i) {
    CHECK_THAT(*words[i].begin, WithinAbs(truth[i][0], 0.011));
    CHECK_THAT(*words[i].end, WithinAbs(truth[i][1], 0.011));
  }

  std::vector<Word> live;
  WordDecoder stream(vocabulary, {0.04, 0}, 1000);
  for (Index t = 0; t < 50; ++t) {
    stream.hear(std::span(samples).subspan(static_cast<std::size_t>(40 * t), 40));
    stream(matrix_view(logits.row(t).data(), 1, 3), live);
  }
  stream.finish(live);
  REQUIRE(live.size() == 3);
  for (std::size_t i = 0; i < 3; ++i) {
    CHECK(live[i].text == words[i].text);
    CHECK_THAT(*live[i].begin, WithinAbs(truth[i][0], 0.011));
    CHECK_THAT(*live[i].end, WithinAbs(truth[i][1], 0.011));
  }
}

TEST_CASE("the first word of the next utterance begins after the silence", "[decode]") {
  const auto samples = sound(loud_in(200, {{20, 60}, {140, 180}}));
  WordTimes times(0, {0.04, 0}, 1000);
  times.hear(std::span(samples).first(1100));
  Word one{"one", 0.40, 0.44, {}}, two{"two", 1.52, 1.56, {}};
  times.correct(one, 1.08);
  times.end_utterance();  // after 0.5 s of silence, more of which is to come
  times.hear(std::span(samples).subspan(1100));
  times.correct(two, std::nullopt);
  CHECK_THAT(*one.begin, WithinAbs(0.2, 0.011));
  CHECK_THAT(*one.end, WithinAbs(0.6, 0.011));
  CHECK_THAT(*two.begin, WithinAbs(1.4, 0.011));
  CHECK_THAT(*two.end, WithinAbs(1.8, 0.011));
}

TEST_CASE("words have their times after minutes of silence, and where logits come minutes later", "[decode]") {
  const auto samples = sound(loud_in(15200, {{20, 60}, {15000, 15050}}));
  for (const bool late : {false, true}) {
    CAPTURE(late);
    WordTimes times(0, {0.04, 0}, 1000);
    times.hear(std::span(samples).first(late ? samples.size() : 15100 * 10));
    Word one{"one", 0.40, 0.44, {}}, two{"two", 150.2, 150.24, {}};
    times.correct(one, 150.2);
    times.correct(two, std::nullopt);
    CHECK_THAT(*one.begin, WithinAbs(0.2, 0.011));
    CHECK_THAT(*one.end, WithinAbs(0.6, 0.011));
    CHECK_THAT(*two.begin, WithinAbs(150, 0.011));
    CHECK_THAT(*two.end, WithinAbs(150.5, 0.011));
  }
}

TEST_CASE("of several silences between words the logits choose one that is long enough", "[decode]") {
  // The first word has a silence inside, from 0.60 to 0.75 s, that is longer than the pause after it.
  const auto vocabulary = Vocabulary::words(std::vector<std::string>{"one two"});
  const auto samples = sound(loud_in(160, {{20, 60}, {75, 90}, {102, 140}}));
  std::vector<int> best(40);
  best[10] = 1;  // 0.40 s
  best[30] = 2;  // 1.20 s
  Matrix<float> logits = saying(best, 3);
  const auto heard = [&] {
    std::vector<Word> words;
    WordDecoder decoder(vocabulary, {0.04, 0}, 1000);
    decoder.hear(samples);
    decoder(view(std::as_const(logits)), words);
    decoder.finish(words);
    REQUIRE(words.size() == 2);
    return words;
  };
  const auto likelier = [&](Index begin, Index end, Index token) {
    for (Index t = begin; t < end; ++t) logits(t, token) += 1;
  };
  likelier(11, 24, 1);  // until 0.96 s: the part after the silence is the first word's
  likelier(24, 30, 2);
  std::vector<Word> words = heard();
  CHECK_THAT(*words[0].end, WithinAbs(0.9, 0.011));
  CHECK_THAT(*words[1].begin, WithinAbs(1.02, 0.011));

  likelier(17, 24, 2);  // or it is the second word's
  likelier(17, 24, 2);
  words = heard();
  CHECK_THAT(*words[0].end, WithinAbs(0.6, 0.011));
  CHECK_THAT(*words[1].begin, WithinAbs(0.75, 0.011));
}

TEST_CASE("steady noise that is louder than the quietest places is silence", "[decode]") {
  // Speech of falling and rising level, quiet places, and between them steady noise 10 dB above these.
  SpeechLevel level(1000);
  const auto push = [&](int steps, auto&& decibels) {
    for (int i = 0; i < steps; ++i)
      for (int k = 0; k < 10; ++k)
        level.push(std::array{(k % 2 == 0 ? 1.0f : -1.0f) * static_cast<float>(std::pow(10.0, decibels(i) / 20))});
  };
  const auto speech = [](int i) { return -20.0 - 3 * std::abs(i % 10 - 5); };  // -20 to -35 dB
  push(60, [](int) { return -60.0; });
  push(60, speech);
  push(40, [](int i) { return i % 2 == 0 ? -50.0 : -49.5; });
  push(60, speech);
  const auto count_silent = [&](Index begin, Index end) {
    Index out = 0;
    for (Index i = begin; i < end; ++i) out += level.is_silent(i) ? 1 : 0;
    return out;
  };
  CHECK(count_silent(0, 60) == 60);
  CHECK(count_silent(60, 120) == 0);
  CHECK(count_silent(120, 160) == 40);
  CHECK(count_silent(160, 220) == 0);
}

TEST_CASE("a weak fricative that a hum hides from the level belongs to its word", "[decode]") {
  // At 8 kHz: a hum of -45 dB, noise far below it, words of -15 dB, and fricatives of -57 dB in the octave of 3.2 kHz,
  // which change the level by 0.3 dB: 0.15 s after the first word, 0.1 s before the second one.
  const Random random(Seed(3), "fricative");
  const auto samples = [&](double fricative) {
    std::vector<float> out(16000);
    double last = 0;
    for (std::size_t i = 0; i < out.size(); ++i) {
      const double t = static_cast<double>(i) / 8000, w = 2 * std::numbers::pi * t, white = random.normal(i);
      const double high = (white - last) / std::sqrt(2.0);  // mostly above 2 kHz
      last = white;
      double x = 8e-3 * std::sin(50 * w) + 1e-4 * white;
      if ((t >= 0.3 && t < 0.6) || (t >= 1.1 && t < 1.5)) x += 0.25 * std::sin(500 * w);
      if ((t >= 0.6 && t < 0.75) || (t >= 1.0 && t < 1.1)) x += fricative * high;
      out[i] = static_cast<float>(x);
    }
    return out;
  };
  const auto heard = [&](double fricative) {
    WordTimes times(0, {0.04, 0}, 8000);
    times.hear(samples(fricative));
    std::array words{Word{"six", 0.40, 0.44, {}}, Word{"six", 1.32, 1.36, {}}};
    times.correct(words[0], 1.32);
    times.correct(words[1], std::nullopt);
    return words;
  };
  for (const bool weak : {false, true}) {
    CAPTURE(weak);
    const auto words = heard(weak ? 1.4e-3 : 0);
    CHECK_THAT(*words[0].begin, WithinAbs(0.3, 0.021));
    CHECK_THAT(*words[0].end, WithinAbs(weak ? 0.75 : 0.6, 0.021));
    CHECK_THAT(*words[1].begin, WithinAbs(weak ? 1.0 : 1.1, 0.021));
    CHECK_THAT(*words[1].end, WithinAbs(1.5, 0.021));
  }
}

TEST_CASE("a silence is what remains between weak speech at its ends, and no more than 0.3 s are taken", "[decode]") {
  // A tone of 440 Hz in steps of 10 ms at 8 kHz, of these levels in dB.
  const auto level_of = [](const std::vector<double>& steps) {
    SpeechLevel out(8000);
    std::vector<float> samples;
    for (const double one : steps)
      for (int k = 0; k < 80; ++k) {
        const double t = static_cast<double>(samples.size()) / 8000;
        samples.push_back(
            static_cast<float>(std::sqrt(2.0) * std::pow(10, one / 20) * std::sin(2 * std::numbers::pi * 440 * t)));
      }
    out.push(samples);
    return out;
  };
  const auto steps = [](std::initializer_list<std::pair<int, double>> parts) {
    std::vector<double> out;
    for (const auto& [count, level] : parts) out.insert(out.end(), static_cast<std::size_t>(count), level);
    return out;
  };
  const auto is = [](Range got, Index begin, Index end) { return got.begin == begin && got.end == end; };
  CHECK(is(level_of(steps({{100, -60}})).without_weak_speech({0, 100}), 0, 100));
  CHECK(is(level_of(steps({{100, -60}})).without_weak_speech({20, 30}), 20, 30));
  const Range both = level_of(steps({{10, -50}, {60, -60}, {20, -50}})).without_weak_speech({0, 90});
  CHECK(std::abs(both.begin - 10) <= 1);
  CHECK(std::abs(both.end - 70) <= 1);
  CHECK(is(level_of(steps({{90, -50}, {200, -60}, {90, -50}})).without_weak_speech({50, 330}), 80, 300));
  CHECK(is(level_of(steps({{100, -60}})).without_weak_speech({98, 100}), 98, 100));  // too short to judge
  CHECK(is(level_of({}).without_weak_speech({0, 10}), 0, 10));                       // steps to come
}

TEST_CASE("octaves have the level of a tone within them", "[decode]") {
  for (const int rate : {1000, 8000, 16000}) {
    std::size_t known = 0;
    for (double tone = 200; tone <= 6400; tone *= 2) {
      detail::BandSteps bands(rate);
      detail::BandSteps::Levels levels{};
      for (int i = 0; i < rate / 2; ++i) {
        bands.push(static_cast<float>(0.1 * std::sqrt(2.0) * std::sin(2 * std::numbers::pi * tone * i / rate)));
        if ((i + 1) % (rate / 100) == 0) levels = bands.end_step(0);
      }
      if (tone > 0.4 * rate) continue;
      const std::size_t own = known++;
      CAPTURE(rate, tone);
      CHECK_THAT(levels[own], WithinAbs(-20, 0.5));
      for (std::size_t other = 0; other < levels.size(); ++other) {
        if (other + 1 < own || other > own + 1) CHECK(levels[other] < -30);
      }
    }
    CHECK(known == (rate == 1000 ? 2U : rate == 8000 ? 5U : 6U));
  }
  detail::BandSteps ends(8000);
  for (int i = 0; i < 80; ++i) ends.push(i % 4 < 2 ? 0.5f : -0.5f);
  CHECK(ends.end_step(-6)[3] > -20);
  for (int i = 0; i < 80; ++i) ends.push(0);
  for (const float one : ends.end_step(-90)) CHECK(one == -90);  // what a filter still rings is no sound
  for (const float broken : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    ends.push(broken);
    for (const float one : ends.end_step(-90)) CHECK(one == -90);
    for (int i = 0; i < 80; ++i) ends.push(i % 4 < 2 ? 0.5f : -0.5f);
    CHECK(ends.end_step(-6)[3] > -20);  // later steps are as before
  }
}
