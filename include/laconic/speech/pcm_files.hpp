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

// Headers of files with plain samples but WAV (wav.hpp): AU, AIFF, RF64, Wave64 and CAF. libsndfile hears what there is
// of one that was cut off, without a word.

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

/// Throws `Error` if a file ends before the samples that its header tells of.
inline void require_samples(const std::filesystem::path& path, std::uint64_t size, std::int64_t left) {
  require(size <= static_cast<std::uint64_t>(std::max<std::int64_t>(left, 0)), path.string(),
          ": cut short: the header says ", size, " bytes of samples, but ", std::max<std::int64_t>(left, 0), " follow");
}

/// Returns the plan of a file in which another size stands at a place of four bytes, the highest first, and a note that
/// `left` bytes follow it.
inline SoundPlan with_size_at(const SoundRange& range, std::int64_t at, std::uint64_t size, std::int64_t left) {
  std::string bytes;
  for (int shift = 24; shift >= 0; shift -= 8) bytes += static_cast<char>(size >> shift & 0xff);
  SoundPlan plan = with_bytes_at(range, at, bytes);
  plan.notes.push_back(note_of_no_size(left));
  return plan;
}

/// Returns the plan of a file with so many bytes of samples, after which nothing but zeros is expected from `at` on.
inline SoundPlan with_rest(const SoundRange& range, std::uint64_t size, std::int64_t at) {
  SoundPlan plan = whole_file(range);
  FileBytes file(range);
  plan.sample_bytes = static_cast<std::int64_t>(size);
  plan.rest_bytes = bytes_without_zeros(file, at);
  if (plan.rest_bytes > 0) plan.streams.front().bytes = {{0, at, {}}};
  return plan;
}

/// Reads the header of an AU file; nothing for other files. Samples whose size it gives as 0 are heard to the end.
inline std::optional<SoundPlan> read_au(const std::filesystem::path& path, const SoundRange& range) {
  FileBytes file(range);
  if (file.at(0, 4) != ".snd" || file.size() < 24) return std::nullopt;
  const std::uint64_t size = file.big_endian_32(8), rate = file.big_endian_32(16), channels = file.big_endian_32(20);
  require_channels(path, channels, rate);
  const std::int64_t left = file.size() - static_cast<std::int64_t>(file.big_endian_32(4));
  if (size == 0 && left > 0) return with_size_at(range, 8, 0xffffffff, left);
  if (size == 0xffffffff) return whole_file(range);  // which stands for "not known"
  require_samples(path, size, left);
  return with_rest(range, size, file.size() - left + static_cast<std::int64_t>(size));
}

/// Reads the chunks of an AIFF file; nothing for other files. Samples whose size they give as 0 are heard to the end.
inline std::optional<SoundPlan> read_aiff(const std::filesystem::path& path, const SoundRange& range) {
  FileBytes file(range);
  const std::string kind(file.at(8, 4));
  if (file.at(0, 4) != "FORM" || (kind != "AIFF" && kind != "AIFC")) return std::nullopt;
  for (std::int64_t at = 12; at + 8 <= file.size();) {
    const std::uint64_t size = file.big_endian_32(at + 4);
    if (file.at(at, 4) == "SSND") {
      const std::int64_t left = file.size() - at - 8;
      const std::int64_t end = at + 8 + static_cast<std::int64_t>(size + size % 2);
      if (size <= 8 && end_of_chunks(file, end, true) >= file.size()) break;
      if (size <= 8 && left > 16) return with_size_at(range, at + 4, static_cast<std::uint64_t>(left), left - 8);
      require_samples(path, size, left);
      return with_rest(range, size, end_of_chunks(file, end, true));
    }
    at += 8 + static_cast<std::int64_t>(size + size % 2);
  }
  throw Error(text(path.string(), ": holds no samples"));
}

/// Reads the chunks of an RF64 file; nothing for other files. If its chunk of sizes (ds64) gives that of the samples as
/// 0, that of the samples themselves counts; if that is 0 or 2^32 - 1, they are heard to the end.
inline std::optional<SoundPlan> read_rf64(const std::filesystem::path& path, const SoundRange& range) {
  FileBytes file(range);
  if (file.at(0, 4) != "RF64") return std::nullopt;
  constexpr std::int64_t place = 28;  // of the size in ds64
  const bool has_sizes = file.at(12, 4) == "ds64";
  const std::uint64_t told = has_sizes ? file.number(place, 8) : 0;
  for (std::int64_t at = 12; at + 8 <= file.size();) {
    const auto chunk = static_cast<std::int64_t>(file.number(at + 4, 4));
    if (file.at(at, 4) != "data") {
      at += 8 + chunk + chunk % 2;
      continue;
    }
    const std::int64_t begin = at + 8, left = file.size() - begin;
    const bool to_end = told == 0 && (chunk == 0xffffffff || (chunk == 0 && end_of_chunks(file, begin) < file.size()));
    const std::uint64_t size = told != 0 ? told : static_cast<std::uint64_t>(to_end ? left : chunk);
    require_samples(path, size, left);
    const std::int64_t end = end_of_chunks(file, begin + static_cast<std::int64_t>(size + size % 2));
    SoundPlan plan = with_rest(range, size, end);
    if (told != 0 || size == 0 || !has_sizes) return plan;
    std::string bytes;
    for (int shift = 0; shift < 64; shift += 8) bytes += static_cast<char>(size >> shift & 0xff);
    const std::int64_t shown = plan.rest_bytes > 0 ? end : file.size();
    plan.streams = with_bytes_at({range.descriptor, range.begin, shown}, place, bytes).streams;
    if (to_end) plan.notes.push_back(note_of_no_size(left));
    return plan;
  }
  return whole_file(range);
}

/// Reads the chunks of a Wave64 file; nothing for other files.
inline std::optional<SoundPlan> read_wav64(const std::filesystem::path& path, const SoundRange& range) {
  FileBytes file(range);
  if (file.at(0, 4) != "riff" || file.at(24, 4) != "wave") return std::nullopt;
  for (std::int64_t at = 40; at + 24 <= file.size();) {  // names of 16 bytes, sizes with names and sizes
    const std::uint64_t size = file.number(at + 16, 8);
    if (size < 24 || size > std::uint64_t{1} << 60) break;
    if (file.at(at, 4) == "data") {
      require_samples(path, size - 24, file.size() - at - 24);
      std::int64_t end = at;
      std::uint64_t next = size;
      do end += static_cast<std::int64_t>((next + 7) / 8 * 8);
      while (file.at(end, 4) != "riff" && (next = file.number(end + 16, 8)) >= 24 &&
             next <= static_cast<std::uint64_t>(file.size() - end));
      return with_rest(range, size - 24, end);
    }
    at += static_cast<std::int64_t>((size + 7) / 8 * 8);
  }
  return whole_file(range);
}

/// Reads the chunks of a CAF file; nothing for other files. Samples whose size they give as -1 go to the end.
inline std::optional<SoundPlan> read_caf(const std::filesystem::path& path, const SoundRange& range) {
  FileBytes file(range);
  if (file.at(0, 4) != "caff") return std::nullopt;
  const auto size_at = [&](std::int64_t at) { return file.big_endian_32(at + 4) << 32 | file.big_endian_32(at + 8); };
  const auto is_name = [&](std::int64_t at) {
    const std::string name(file.at(at, 4));
    return name.size() == 4 && name != "caff" && std::all_of(name.begin(), name.end(), [](char c) { return c >= ' '; });
  };
  std::optional<std::uint64_t> samples;
  std::int64_t at = 8;
  for (; at + 12 <= file.size() && is_name(at);) {
    const std::uint64_t size = size_at(at);
    const std::int64_t left = file.size() - at - 12;
    if (file.at(at, 4) == "data") {
      if (size == ~std::uint64_t{0}) return whole_file(range);
      require_samples(path, size, left);
      samples = size;
    }
    if (size > static_cast<std::uint64_t>(left)) break;
    at += 12 + static_cast<std::int64_t>(size);
  }
  return samples ? with_rest(range, *samples, at) : whole_file(range);
}

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
