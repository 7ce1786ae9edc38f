// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <filesystem>
#include <laconic/core/error.hpp>
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

/// Says whether a chunk of a WAV file could begin at `at`: a name of four printable characters, and a size that fits.
inline bool could_be_chunk(FileBytes& file, std::int64_t at) {
  const std::string name(file.at(at, 4));
  for (const char c : name)
    if (c < ' ' || c > '~') return false;
  return name.size() == 4 && at + 8 + static_cast<std::int64_t>(file.number(at + 4, 4)) <= file.size() + 1;
}

/// Says whether the rest of a WAV file is nothing but chunks.
inline bool only_chunks_from(FileBytes& file, std::int64_t at) {
  while (at + 8 <= file.size()) {
    if (!could_be_chunk(file, at)) return false;
    const auto size = static_cast<std::int64_t>(file.number(at + 4, 4));
    at += 8 + size + size % 2;
  }
  return at >= file.size();
}

/// Reads the chunks of a WAV file; nothing for other files. Samples whose size the header gives as 0, because the
/// recorder was killed, are heard to the end of the file, and several chunks of samples one after the other. Throws
/// `Error` for a rate or a number of channels of 0 and for a file that is shorter than its header says, about all of
/// which libsndfile is silent or speaks to programmers. Sizes near 2^31 and 2^32 pass: programs write them that do not
/// know the size (to a pipe).
inline std::optional<SoundPlan> read_wav(const std::filesystem::path& path, const OpenFile& opened) {
  FileBytes file(opened);
  if (file.at(0, 4) != "RIFF" || file.at(8, 4) != "WAVE") return std::nullopt;
  SoundPlan plan = whole_file(opened);
  struct Chunk {
    std::int64_t begin, size;
  };
  std::vector<Chunk> samples;
  std::int64_t at = 12, bytes_a_second = 0;
  bool only_chunks = false;  // known once, for it reads to the end
  for (std::int64_t size = 0; at + 8 <= file.size(); at += 8 + size + size % 2) {  // 64-bit: 8 + size may be 2^32
    const std::string name(file.at(at, 4));
    size = static_cast<std::int64_t>(file.number(at + 4, 4));
    if (name == "fmt " && size >= 16) {
      const std::uint64_t channels = file.number(at + 10, 2), rate = file.number(at + 12, 4);
      require_channels(path, channels, rate);
      bytes_a_second = static_cast<std::int64_t>(file.number(at + 16, 4));
    }
    if (name != "data") {
      if (samples.empty() || could_be_chunk(file, at)) continue;
      break;  // what follows the samples is no chunk
    }
    const std::int64_t begin = at + 8, left = file.size() - begin;
    if (size >= 0x7fff0000) return plan;
    require(size <= left, path.string(), ": cut short: the header says ", size, " bytes of samples, but ", left,
            " follow");
    only_chunks = only_chunks || (size == 0 && samples.empty() && left > 0 && only_chunks_from(file, begin));
    if (size == 0 && samples.empty() && left > 0 && !only_chunks) {
      plan.notes.push_back(text("the header says 0 bytes of samples; all ", left, " that follow are heard"));
      size = left;
    }
    if (size > 0) samples.push_back({begin, size});
  }
  if (!samples.empty() && at < file.size() && !could_be_chunk(file, at) && is_filled_from(file, at)) {
    const auto more = static_cast<double>(file.size() - at);
    if (bytes_a_second > 0 && more > 0.05 * static_cast<double>(bytes_a_second)) {
      plan.is_whole = false;
      plan.notes.push_back(text("after the samples that the header tells of follow ", file.size() - at,
                                " bytes that are not heard (",
                                shown_seconds(more / static_cast<double>(bytes_a_second)), " if they are samples)"));
    }
  }
  const bool as_it_is = samples.empty() || (samples.size() == 1 && plan.notes.empty());
  if (as_it_is || (samples.size() == 1 && !plan.is_whole)) return plan;
  if (samples.size() > 1) plan.notes.push_back(text(samples.size(), " parts of samples are heard one after the other"));
  std::int64_t size = 0;
  for (const Chunk& chunk : samples) size += chunk.size;
  const std::int64_t head = samples.front().begin;
  std::vector<SoundBytes>& shown = plan.streams.front().bytes;
  shown = {{0, 4, {}}, SoundBytes::of(wav_size(head - 8 + size)), {8, head - 12, {}}, SoundBytes::of(wav_size(size))};
  for (const Chunk& chunk : samples) shown.push_back({chunk.begin, chunk.size, {}});
  return plan;
}

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
