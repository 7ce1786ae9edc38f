// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <laconic/core/error.hpp>
#include <laconic/speech/sound_file.hpp>
#include <optional>
#include <string>
#include <string_view>

// Headers of files with plain samples but WAV (wav.hpp): AU, AIFF, RF64 and Wave64. libsndfile hears what there is of
// one that was cut off, without a word.

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

/// Throws `Error` if a file ends before the samples that its header tells of.
inline void require_samples(const std::filesystem::path& path, std::uint64_t size, std::int64_t left) {
  require(size <= static_cast<std::uint64_t>(std::max<std::int64_t>(left, 0)), path.string(),
          ": cut short: the header says ", size, " bytes of samples, but ", std::max<std::int64_t>(left, 0), " follow");
}

/// Returns the unsigned number that four bytes are, the highest first; 0 beyond the end of the file.
inline std::uint64_t big_endian_32(FileBytes& file, std::int64_t at) {
  std::uint64_t out = 0;
  for (const char c : file.at(at, 4)) out = out << 8 | static_cast<unsigned char>(c);
  return out;
}

/// Returns the plan of a file in which another size stands at a place of four bytes, and a note why.
inline SoundPlan with_size_at(const OpenFile& opened, std::int64_t at, std::uint64_t size, std::int64_t left) {
  std::string bytes;
  for (int shift = 24; shift >= 0; shift -= 8) bytes += static_cast<char>(size >> shift & 0xff);
  SoundPlan plan = whole_file(opened);
  plan.streams.front().bytes = {{0, at, {}}, SoundBytes::of(bytes), {at + 4, opened.size - at - 4, {}}};
  plan.notes.push_back(text("the header says 0 bytes of samples; all ", left, " that follow are heard"));
  return plan;
}

/// Reads the header of an AU file; nothing for other files. Samples whose size it gives as 0 are heard to the end.
inline std::optional<SoundPlan> read_au(const std::filesystem::path& path, const OpenFile& opened) {
  FileBytes file(opened);
  if (file.at(0, 4) != ".snd" || file.size() < 24) return std::nullopt;
  const std::uint64_t size = big_endian_32(file, 8), rate = big_endian_32(file, 16), channels = big_endian_32(file, 20);
  require_channels(path, channels, rate);
  const std::int64_t left = file.size() - static_cast<std::int64_t>(big_endian_32(file, 4));
  if (size == 0 && left > 0) return with_size_at(opened, 8, 0xffffffff, left);
  if (size != 0xffffffff) require_samples(path, size, left);  // which stands for "not known"
  return whole_file(opened);
}

/// Reads the chunks of an AIFF file; nothing for other files. Samples whose size they give as 0 are heard to the end.
inline std::optional<SoundPlan> read_aiff(const std::filesystem::path& path, const OpenFile& opened) {
  FileBytes file(opened);
  const std::string kind(file.at(8, 4));
  if (file.at(0, 4) != "FORM" || (kind != "AIFF" && kind != "AIFC")) return std::nullopt;
  for (std::int64_t at = 12; at + 8 <= file.size();) {
    const std::uint64_t size = big_endian_32(file, at + 4);
    if (file.at(at, 4) == "SSND") {
      const std::int64_t left = file.size() - at - 8;
      if (size <= 8 && left > 16) return with_size_at(opened, at + 4, static_cast<std::uint64_t>(left), left - 8);
      require_samples(path, size, left);
      break;
    }
    at += 8 + static_cast<std::int64_t>(size + size % 2);
  }
  return whole_file(opened);
}

/// Reads the chunks of an RF64 or a Wave64 file; nothing for other files.
inline std::optional<SoundPlan> read_wav64(const std::filesystem::path& path, const OpenFile& opened) {
  FileBytes file(opened);
  if (file.at(0, 4) == "RF64") {
    const std::uint64_t size = file.at(12, 4) == "ds64" ? file.number(28, 8) : 0;
    for (std::int64_t at = 12; at + 8 <= file.size();) {
      const auto chunk = static_cast<std::int64_t>(file.number(at + 4, 4));
      if (file.at(at, 4) == "data") {
        require_samples(path, size, file.size() - at - 8);
        break;
      }
      at += 8 + chunk + chunk % 2;
    }
    return whole_file(opened);
  }
  if (file.at(0, 4) != "riff" || file.at(24, 4) != "wave") return std::nullopt;
  for (std::int64_t at = 40; at + 24 <= file.size();) {  // names of 16 bytes, sizes with names and sizes
    const std::uint64_t size = file.number(at + 16, 8);
    if (size < 24 || size > std::uint64_t{1} << 60) break;
    if (file.at(at, 4) == "data") {
      require_samples(path, size - 24, file.size() - at - 24);
      break;
    }
    at += static_cast<std::int64_t>((size + 7) / 8 * 8);
  }
  return whole_file(opened);
}

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
