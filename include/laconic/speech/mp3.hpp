// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <laconic/core/error.hpp>
#include <laconic/speech/sound_file.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

// The frames of MP3 files (ISO 11172-3 and 13818-3, layer III). Where no frame tells how many there are, libsndfile
// estimates the length from the bit rate of the first one, and stops there.

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

/// Holds the header of a frame of MPEG layer III.
struct Mp3Frame {
  std::int64_t size = 0;      ///< bytes
  int rate = 0, samples = 0;  ///< in Hz; of each channel
  std::size_t side = 0;       ///< bytes of side information, which follow the header
};

/// Returns the header that four bytes are, or nothing.
inline std::optional<Mp3Frame> read_mp3_header(std::string_view bytes) {
  constexpr std::array<int, 15> kbps1{0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320},
      kbps2{0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160};
  constexpr std::array<int, 3> rates{44100, 48000, 32000};
  if (bytes.size() < 4) return std::nullopt;
  const auto byte = [&](std::size_t i) { return static_cast<unsigned>(static_cast<unsigned char>(bytes[i])); };
  const unsigned version = byte(1) >> 3 & 3, layer = byte(1) >> 1 & 3, bits = byte(2) >> 4, rate = byte(2) >> 2 & 3;
  if (byte(0) != 0xFF || byte(1) >> 5 != 7 || version == 1 || layer != 1) return std::nullopt;
  if (bits == 0 || bits == 15 || rate == 3) return std::nullopt;
  const bool first = version == 3, mono = byte(3) >> 6 == 3;
  Mp3Frame out;
  out.rate = rates[rate] >> (first ? 0 : version == 2 ? 1 : 2);
  out.samples = first ? 1152 : 576;
  out.size = out.samples / 8 * 1000 * (first ? kbps1 : kbps2)[bits] / out.rate + static_cast<int>(byte(2) >> 1 & 1);
  out.side = first ? (mono ? 17 : 32) : (mono ? 9 : 17);
  return out;
}

/// Returns the number of frames that the first frame tells ("Xing" and "Info" of most programs, "VBRI" of
/// Fraunhofer's), or nothing if it is a frame of sound.
inline std::optional<std::int64_t> told_mp3_frames(FileBytes& file, const Mp3Frame& frame) {
  const auto number = [&](std::string_view bytes) {
    std::int64_t out = 0;
    for (const char c : bytes) out = out << 8 | static_cast<unsigned char>(c);
    return out;
  };
  const std::string start(file.at(0, 4 + 32 + 18));
  const std::string xing = start.substr(std::min(start.size(), 4 + frame.side), 12),
                    vbri = start.substr(std::min<std::size_t>(start.size(), 36), 18);
  if (xing.size() == 12 && (xing.starts_with("Xing") || xing.starts_with("Info")))
    return (xing[7] & 1) != 0 ? number(xing.substr(8)) : 0;
  if (vbri.size() == 18 && vbri.starts_with("VBRI")) return number(vbri.substr(14));
  return std::nullopt;
}

/// Returns a frame without sound that tells how many frames follow it, as "Xing" frames do. `header` is that of another
/// frame.
inline std::string telling_mp3_frame(std::string_view header, std::int64_t frames) {
  // Without checksum and padding, and of the highest bit rate, so that there is room.
  std::string out{header[0], static_cast<char>(header[1] | 1), static_cast<char>((header[2] & 0x0C) | 0xE0), header[3]};
  const Mp3Frame frame = *read_mp3_header(out);
  out.append(frame.side, '\0');
  out += std::string("Xing\0\0\0\1", 8);  // what follows is the number of frames
  for (int shift = 24; shift >= 0; shift -= 8) out += static_cast<char>(frames >> shift & 0xff);
  out.resize(static_cast<std::size_t>(frame.size), '\0');
  return out;
}

/// Reads the frames of an MP3 file; nothing for other files. If no frame tells how many there are, or what it tells is
/// not there, libsndfile is shown one that does. What is no frame, it is not shown. A tag between frames, of one of
/// several files in a row, is one only if a frame, another tag or the end follows it. Throws `Error` for frames in more
/// than `max_sound_parts` parts.
inline std::optional<SoundPlan> read_mp3(const std::filesystem::path& path, const SoundRange& range) {
  FileBytes file(range);
  const std::string header(file.at(0, 4));
  const std::optional<Mp3Frame> first = read_mp3_header(header);
  const auto is_frame = [&](std::int64_t at) {
    const std::optional<Mp3Frame> frame = read_mp3_header(file.at(at, 4));
    return frame && frame->rate == first->rate ? frame->size : 0;
  };
  if (!first || (first->size < file.size() && is_frame(first->size) == 0)) return std::nullopt;
  const auto begins_frames = [&](std::int64_t at) {  // after other bytes, where a single header may be chance
    const std::int64_t size = is_frame(at);
    return size > 0 && (at + size >= file.size() || is_frame(at + size) > 0);
  };
  const std::int64_t end = end_without_zeros(file);
  const std::optional<std::int64_t> told = told_mp3_frames(file, *first);
  std::vector<SoundBytes> stretches(1);  // the first of which is for a frame that tells their number
  std::int64_t count = 0, at = told ? first->size : 0, known_end = at, lost_bytes = 0;
  bool is_cut = false, in_step = true;
  while (at + 4 <= file.size()) {
    const std::int64_t size = is_frame(at);
    if (in_step ? size > 0 : begins_frames(at)) {
      is_cut = at + size > file.size();
      if (is_cut) break;
      if (!in_step || count == 0) {
        require_few_parts(path, stretches.size() - 1);
        stretches.push_back({at, 0, {}});
      }
      stretches.back().size += size;
      in_step = true;
      ++count;
      known_end = at += size;
      continue;
    }
    in_step = false;
    const std::int64_t tag = at == known_end ? tag_size(file, at) : 0, after = at + tag;
    if (tag > 0 && ((after >= end && after <= file.size()) || begins_frames(after) || tag_size(file, after) > 0)) {
      known_end = at = after;
      continue;
    }
    ++lost_bytes;
    ++at;
  }
  SoundPlan plan = whole_file(range);
  if (!in_step && !is_cut) {
    lost_bytes += file.size() - at;                                             // fewer than a header has
    const std::int64_t zeros = end <= known_end ? file.size() - known_end : 0;  // nothing but zeros after the frames
    if (zeros > 0 && told.value_or(0) == 0)
      plan.notes.push_back(text("it ends with ", zeros, " zeros, in whose place there may have been sound"));
    lost_bytes -= zeros;
  }
  SoundStream& stream = plan.streams.front();
  // Decoders believe it only if nothing but zeros is before its name.
  const std::string side(file.at(4, first->side));
  const bool is_believed = side.find_first_not_of('\0') == std::string::npos;
  const bool as_told = told && count == *told && lost_bytes == 0 && !is_cut && is_believed;
  if (as_told || count == 0) return plan;
  stretches.front() = SoundBytes::of(telling_mp3_frame(header, count));
  stream.bytes = std::move(stretches);
  stream.seconds = static_cast<double>(std::max(count, told.value_or(0))) * first->samples / first->rate;
  if (told && *told > 0 && count > *told + 1)
    plan.notes.push_back(text("its first frame tells of ", *told, " frames; all ", count, " are heard"));
  if (lost_bytes > 0) plan.notes.push_back(text(lost_bytes, " bytes are no frames of MP3"));
  if (is_cut) plan.notes.push_back("it ends within a frame, so that more may be missing");
  plan.is_whole = lost_bytes == 0 && !is_cut;
  return plan;
}

/// Returns the place of the first of three frames in a row near the beginning of a file, or nothing.
inline std::optional<std::int64_t> find_mp3(const SoundRange& range) {
  FileBytes file(range);
  for (std::int64_t begin = 0; begin < std::min<std::int64_t>(range.size, 1 << 16); ++begin) {
    std::int64_t at = begin;
    int frames = 0, rate = 0;
    for (; frames < 3; ++frames) {
      const std::optional<Mp3Frame> frame = read_mp3_header(file.at(at, 4));
      if (!frame || (frames > 0 && frame->rate != rate)) break;
      rate = frame->rate;
      at += frame->size;
    }
    if (frames == 3) return begin;
  }
  return std::nullopt;
}

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
