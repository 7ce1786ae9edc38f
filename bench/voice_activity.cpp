// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// Measures what `VoiceActivity` keeps of speech and drops of silence, in noise.
//   usage: voice_activity FILES...   recordings of speech at one rate of 500 Hz or more
//
// The recordings are joined with pauses of 1 to 3.5 s, and noise is added: none (-70 dB), white noise, and eight voices
// that speak without pauses, from the same files. Speech is the steps of 10 ms of a recording within 30 dB of the level
// that 5% of its steps exceed; silence is what is more than 0.3 s away from speech. Levels of noise are below the mean
// power of speech.
#include <laconic/core/error.hpp>
#include <laconic/core/random.hpp>
#include <laconic/speech/audio.hpp>
#include <laconic/speech/voice_activity.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <iostream>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace {

using namespace laconic;

/// A recording and which of its steps are speech.
struct Recording {
  std::vector<float> samples;
  std::vector<bool> speech;
};

double power(std::span<const float> samples) {
  return std::accumulate(samples.begin(), samples.end(), 0.0,
                         [](double sum, float x) { return sum + static_cast<double>(x) * x; }) /
         static_cast<double>(samples.size());
}

/// Cuts the samples to whole steps of this size and labels them.
Recording label(std::vector<float> samples, std::size_t step) {
  samples.resize(samples.size() / step * step);
  std::vector<double> powers;
  for (std::size_t i = 0; i < samples.size(); i += step) powers.push_back(power(std::span(samples).subspan(i, step)));
  std::vector<double> sorted = powers;
  std::sort(sorted.begin(), sorted.end());
  const double least = sorted[sorted.size() * 19 / 20] / 1000;
  Recording out{std::move(samples), {}};
  for (const double one : powers) out.speech.push_back(one > least);
  return out;
}

/// Joins recordings with pauses.
Recording join(const std::vector<Recording>& parts, std::size_t step) {
  const Random random(Seed(1), "pauses");
  Recording out;
  const auto pause = [&](double seconds) {
    out.speech.resize(out.speech.size() + static_cast<std::size_t>(100 * seconds));
    out.samples.resize(out.speech.size() * step);
  };
  pause(3);
  for (std::size_t i = 0; i < parts.size(); ++i) {
    out.samples.insert(out.samples.end(), parts[i].samples.begin(), parts[i].samples.end());
    out.speech.insert(out.speech.end(), parts[i].speech.begin(), parts[i].speech.end());
    pause(1 + 2.5 * random.uniform(i));
  }
  return out;
}

/// Returns eight voices, each of which speaks one recording after the other, without pauses and at the same level.
std::vector<float> voices(const std::vector<Recording>& parts, std::size_t count) {
  std::vector<float> out(count);
  for (std::uint64_t voice = 0; voice < 8; ++voice) {
    const Random random(Seed(voice), "voices");
    std::uint64_t drawn = 0;
    for (std::size_t at = 0; at < count;) {
      const Recording& one = parts[static_cast<std::size_t>(random.below(static_cast<Index>(parts.size()), drawn++))];
      const std::size_t step = one.samples.size() / one.speech.size();
      const auto first = static_cast<std::size_t>(std::find(one.speech.begin(), one.speech.end(), true) -
                                                  one.speech.begin()),
                 after = static_cast<std::size_t>(one.speech.rend() -
                                                  std::find(one.speech.rbegin(), one.speech.rend(), true));
      const auto said = std::span(one.samples).subspan(first * step, (after - first) * step);
      const auto gain = static_cast<float>(1 / std::sqrt(power(said)));
      for (std::size_t i = 0; i < std::min(said.size(), count - at); ++i) out[at + i] += gain * said[i];
      at += said.size();
    }
  }
  return out;
}

/// Prints what the gate does with the recording and this noise, whose power becomes `noise_power`.
void measure(const std::string& name, const Recording& clean, std::span<const float> noise, double noise_power,
             std::size_t step, int rate) {
  const auto gain = static_cast<float>(std::sqrt(noise_power / power(noise)));
  std::vector<float> samples = clean.samples;
  for (std::size_t i = 0; i < samples.size(); ++i) samples[i] += gain * noise[i];
  std::vector<bool> heard(samples.size());
  const auto take = [&](Index begin, std::span<const float> part, bool) {
    std::fill_n(heard.begin() + begin, part.size(), true);
  };
  VoiceActivity gate(rate);
  gate.push(samples, take);
  gate.finish(take);
  double speech = 0, silence = 0, kept = 0, dropped = 0;
  for (std::size_t i = 0; i < clean.speech.size(); ++i) {
    const double part =
        static_cast<double>(std::count(heard.begin() + static_cast<std::ptrdiff_t>(i * step),
                                       heard.begin() + static_cast<std::ptrdiff_t>((i + 1) * step), true)) /
        static_cast<double>(step);
    const std::size_t begin = i - std::min<std::size_t>(i, 30), end = std::min(i + 31, clean.speech.size());
    if (clean.speech[i]) {
      ++speech;
      kept += part;
    } else if (std::find(clean.speech.begin() + static_cast<std::ptrdiff_t>(begin),
                         clean.speech.begin() + static_cast<std::ptrdiff_t>(end),
                         true) == clean.speech.begin() + static_cast<std::ptrdiff_t>(end)) {
      ++silence;
      dropped += 1 - part;
    }
  }
  std::printf("%-14s  %5.1f %% of speech kept  %5.1f %% of silence dropped\n", name.c_str(), 100 * kept / speech,
              100 * dropped / silence);
}

void run(std::span<char*> files) {
  require(!files.empty(), "voice_activity: 0 files given, at least 1 expected");
  std::vector<Recording> parts;
  int rate = 0;
  std::size_t step = 0;
  for (const char* file : files) {
    Audio audio = read_audio(file);
    if (rate == 0) rate = audio.sample_rate;
    step = static_cast<std::size_t>(rate / 100);
    require(audio.sample_rate == rate, file, ": ", audio.sample_rate, " Hz given, ", rate, " Hz expected");
    require(audio.samples.size() >= step, file, ": ", audio.samples.size(), " samples given, at least ", step,
            " expected");
    parts.push_back(label(std::move(audio.samples), step));
  }
  const Recording clean = join(parts, step);
  double speech_power = 0, steps = 0;
  for (std::size_t i = 0; i < clean.speech.size(); ++i)
    if (clean.speech[i]) {
      speech_power += power(std::span(clean.samples).subspan(i * step, step));
      ++steps;
    }
  speech_power /= steps;
  std::printf("%zu recordings, %.0f s, of which %.0f s are speech\n", parts.size(),
              static_cast<double>(clean.speech.size()) / 100, steps / 100);
  const Random random(Seed(2), "white");
  std::vector<float> white(clean.samples.size());
  for (std::size_t i = 0; i < white.size(); ++i) white[i] = static_cast<float>(random.normal(i));
  const std::vector<float> babble = voices(parts, white.size());
  measure("none", clean, white, 1e-7, step, rate);
  for (const int below : {20, 10, 5}) {
    const double noise_power = speech_power * std::pow(10, -below / 10.0);
    measure("white, " + std::to_string(below) + " dB", clean, white, noise_power, step, rate);
    measure("voices, " + std::to_string(below) + " dB", clean, babble, noise_power, step, rate);
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    run({argv + 1, static_cast<std::size_t>(argc - 1)});
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
