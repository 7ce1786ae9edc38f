// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <filesystem>
#include <laconic/core/error.hpp>
#include <laconic/speech/mp3.hpp>
#include <laconic/speech/sound_file.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

/// Returns a 32-bit number as bytes, the lowest first; larger ones as the largest, which stands for "not known".
inline std::string wav_size(std::int64_t size) {
  const auto value = static_cast<std::uint32_t>(std::min<std::int64_t>(size, 0xffffffff));
  std::string out;
  for (int i = 0; i < 4; ++i) out += static_cast<char>(value >> (8 * i) & 0xff);
  return out;
}

/// Says whether programs write this size of samples when they do not know it, to a pipe: 2^31 (arecord), 2^32 - 1
/// (ffmpeg), and what is less than a block below them (sox, espeak-ng: 0x7ffff000).
inline bool is_wav_placeholder(std::int64_t size) {
  return (size >= 0x7fffe000 && size <= 0x80000000) || size >= 0xffffe000;
}

/// Reads the chunks of a WAV file; nothing for other files. Samples whose size the header gives as 0, because the
/// recorder was killed, or as a placeholder, are heard to the end of the file, and several chunks of samples one after
/// the other. The format may come after the samples. Throws `Error` for a rate or a number of channels of 0, for a file
/// that is shorter than its header says, about all of which libsndfile is silent or speaks to programmers, and for more
/// than `max_sound_parts` chunks of samples.
inline std::optional<SoundPlan> read_wav(const std::filesystem::path& path, const SoundRange& range) {
  FileBytes file(range);
  if (file.at(0, 4) != "RIFF" || file.at(8, 4) != "WAVE") return std::nullopt;
  SoundPlan plan = whole_file(range);
  struct Chunk {
    std::int64_t begin, size;
  };
  std::vector<Chunk> samples;
  std::optional<Chunk> format;
  std::int64_t at = 12, first_samples = -1;  // where the first chunk of samples begins, empty or not
  bool only_chunks = false;                  // known once, for it reads to the end
  for (std::int64_t size = 0; at + 8 <= file.size(); at += 8 + size + size % 2) {  // 64-bit: 8 + size may be 2^32
    const std::string name(file.at(at, 4));
    size = static_cast<std::int64_t>(file.number(at + 4, 4));
    if (name == "fmt " && size >= 16) {
      const std::uint64_t channels = file.number(at + 10, 2), rate = file.number(at + 12, 4);
      require_channels(path, channels, rate);
      if (!format) format = Chunk{at, 8 + size + size % 2};
    }
    if (name != "data") {
      if (samples.empty() || could_be_chunk(file, at)) continue;
      break;  // what follows the samples is no chunk
    }
    const std::int64_t begin = at + 8, left = file.size() - begin;
    if (first_samples < 0) first_samples = begin;
    if (size > left && is_wav_placeholder(size)) size = left;
    require(size <= left, path.string(), ": cut short: the header says ", size, " bytes of samples, but ", left,
            " follow");
    only_chunks =
        only_chunks || (size == 0 && samples.empty() && left > 0 && end_of_chunks(file, begin) >= file.size());
    if (size == 0 && samples.empty() && left > 0 && !only_chunks) {
      plan.notes.push_back(note_of_no_size(left));
      size = left;
    }
    if (size == 0) continue;
    require_few_parts(path, samples.size());
    samples.push_back({begin, size});
  }
  for (const Chunk& chunk : samples) plan.sample_bytes += chunk.size;
  plan.rest_bytes = bytes_without_zeros(file, at);
  if (format && samples.size() == 1 && file.number(format->begin + 8, 2) == 0x55) {
    // MP3, whose length in a WAV file libsndfile estimates from the first frame, as in a file that does not tell it.
    const Chunk& frames = samples.front();
    if (auto mp3 = read_mp3(path, {range.descriptor, range.begin + frames.begin, frames.size})) {
      for (SoundBytes& one : mp3->streams.front().bytes)
        if (one.instead.empty()) one.begin += frames.begin;
      mp3->notes.insert(mp3->notes.begin(), plan.notes.begin(), plan.notes.end());
      mp3->sample_bytes = plan.sample_bytes;
      mp3->rest_bytes = plan.rest_bytes;
      return mp3;
    }
  }
  const bool is_late = format && format->begin > first_samples;
  const bool as_it_is = samples.size() == 1 && samples.front().begin == first_samples && plan.notes.empty() &&
                        !is_late && plan.rest_bytes == 0;
  if (samples.empty() || as_it_is) return plan;
  if (samples.size() > 1) plan.notes.push_back(note_of_parts(samples.size(), "parts of samples"));
  // The chunks before the samples without the name and the size of the file, then the name of the samples.
  const Chunk head = is_late ? *format : Chunk{12, first_samples - 8 - 12};
  std::vector<SoundBytes>& shown = plan.streams.front().bytes;
  shown = {SoundBytes::of("RIFF" + wav_size(12 + head.size + plan.sample_bytes) + "WAVE"),
           {head.begin, head.size, {}},
           SoundBytes::of("data" + wav_size(plan.sample_bytes))};
  for (const Chunk& chunk : samples) shown.push_back({chunk.begin, chunk.size, {}});
  return plan;
}

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
