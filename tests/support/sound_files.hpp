// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/speech/audio.hpp>

#include "catch.hpp"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <numbers>
#include <string>
#include <vector>

// What tests of audio files share.

namespace laconic {

/// Returns a sine.
inline std::vector<float> tone(double hz, int rate, double seconds, double amplitude = 0.5) {
  std::vector<float> out;
  for (int i = 0; i < static_cast<int>(seconds * rate); ++i)
    out.push_back(static_cast<float>(amplitude * std::sin(2 * std::numbers::pi * hz * i / rate)));
  return out;
}

/// Writes interleaved samples through libsndfile, in any format it writes.
inline void put(const std::filesystem::path& path, int format, int channels, int rate,
                const std::vector<float>& samples) {
  SF_INFO info{};
  info.channels = channels;
  info.samplerate = rate;
  info.format = format;
  const detail::SoundFile file(sf_open(path.c_str(), SFM_WRITE, &info), sf_close);
  REQUIRE(file != nullptr);
  const auto count = static_cast<sf_count_t>(samples.size());
  REQUIRE(sf_write_float(file.get(), samples.data(), count) == count);
}

/// Returns the whole file.
inline std::string bytes_of(const std::filesystem::path& path) { return read_file(path, std::size_t{1} << 26); }

/// Returns why a file cannot be read as audio, or "no error".
inline std::string error_of(const std::filesystem::path& path, int rate = 0) {
  try {
    read_audio(path, rate);
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

/// Holds what is heard of a file, and what its reader says afterwards.
struct Heard {
  explicit Heard(const std::filesystem::path& path) {
    AudioReader reader(path);
    std::vector<float> block(10000);
    std::size_t count = block.size();
    while (count == block.size()) {
      count = reader.read(block);
      seconds += static_cast<double>(count) / reader.sample_rate();
    }
    note = reader.note();
    whole = reader.is_whole();
    missing = reader.missing_seconds();
    CHECK(read_audio(path).is_whole == whole);
  }
  double seconds = 0, missing = 0;
  std::string note;
  bool whole = true;
};

/// Says whether a text has a part; a failing test shows both.
inline bool contains(const std::string& all, const std::string& part) {
  if (all.find(part) != std::string::npos) return true;
  UNSCOPED_INFO("\"" << part << "\" is not in \"" << all << '"');
  return false;
}

/// Returns the largest difference, the first and last `edge` samples aside.
inline float difference(const std::vector<float>& a, const std::vector<float>& b, std::size_t edge = 0) {
  REQUIRE(a.size() == b.size());
  float most = 0;
  for (std::size_t i = edge; i + edge < a.size(); ++i) most = std::max(most, std::abs(a[i] - b[i]));
  return most;
}

inline constexpr int wav16 = SF_FORMAT_WAV | SF_FORMAT_PCM_16, mp3 = SF_FORMAT_MPEG | SF_FORMAT_MPEG_LAYER_III;

/// Says whether libsndfile writes MP3; older ones do not.
inline bool writes_mp3() {
  SF_INFO info{};
  info.samplerate = 16000;
  info.channels = 1;
  info.format = mp3;
  return sf_format_check(&info) != 0;
}

}  // namespace laconic
