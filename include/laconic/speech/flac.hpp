// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/error.hpp>
#include <laconic/speech/sound_file.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

// The frames of FLAC files (RFC 9639). libsndfile hears the first of several streams, and libFLAC puts silence where
// frames are missing, both without a word.

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

/// Holds what the header of a FLAC frame says, in samples of each channel.
struct FlacFrame {
  std::int64_t begin = 0, size = 0;
};

/// Reads the header of a frame, or nothing if these bytes are none. `block` is the size of all frames but the last, if
/// that is fixed.
inline std::optional<FlacFrame> read_flac_header(std::string_view bytes, std::int64_t block) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned>(static_cast<unsigned char>(bytes[i])); };
  if (bytes.size() < 5 || byte(0) != 0xFF || (byte(1) & 0xFE) != 0xF8 || (byte(3) & 1) != 0) return std::nullopt;
  const unsigned sizes = byte(2) >> 4, rates = byte(2) & 15;
  if (sizes == 0 || rates == 15 || byte(3) >> 4 > 10) return std::nullopt;
  // The number of the frame, or of its first sample, is coded as a character of UTF-8 that may have 36 bits.
  std::size_t at = 5, more = 0;
  auto number = static_cast<std::int64_t>(byte(4));
  if (number >= 0x80) {
    while (more < 7 && (byte(4) << more & 0x40) != 0) ++more;
    if (more == 0 || more == 7) return std::nullopt;
    number &= 0x3F >> more;
  }
  // The size and the rate may follow the number. A checksum ends the header.
  const std::size_t length = 5 + more + (sizes == 6 ? 1 : sizes == 7 ? 2 : 0) + (rates == 12 ? 1 : rates > 12 ? 2 : 0);
  if (bytes.size() <= length) return std::nullopt;
  for (; at < 5 + more; ++at) {
    if (byte(at) >> 6 != 2) return std::nullopt;
    number = number << 6 | static_cast<std::int64_t>(byte(at) & 0x3F);
  }
  FlacFrame out;
  if (sizes == 6)
    out.size = byte(at) + 1;
  else if (sizes == 7)
    out.size = (byte(at) << 8 | byte(at + 1)) + 1;
  else
    out.size = sizes == 1 ? 192 : sizes < 6 ? 576 << (sizes - 2) : 256 << (sizes - 8);
  unsigned checksum = 0;  // polynomial 0x07, highest bit first
  for (std::size_t i = 0; i < length; ++i) {
    checksum ^= byte(i);
    for (int bit = 0; bit < 8; ++bit) checksum = (checksum << 1 ^ ((checksum & 0x80) != 0 ? 0x07U : 0U)) & 0xFF;
  }
  if (checksum != byte(length)) return std::nullopt;
  out.begin = (byte(1) & 1) != 0 ? number : number * block;
  return out;
}

/// Follows the frames of a stream.
class FlacStream {
 public:
  /// Begins with the block STREAMINFO of the stream at `begin`.
  FlacStream(FileBytes& file, std::int64_t begin) : begin_(begin) {
    const std::string info(file.at(begin + 8, 34));
    const auto number = [&](std::size_t at, std::size_t width) {
      std::int64_t out = 0;
      for (std::size_t i = at; i < std::min(at + width, info.size()); ++i)
        out = out << 8 | static_cast<unsigned char>(info[i]);
      return out;
    };
    block_ = number(2, 2);
    max_bytes_ = number(7, 3);
    rate_ = number(10, 3) >> 4;
    told_ = number(13, 5) & 0xfffffffff;
    // Blocks of metadata, pictures among them, may hold what looks like a frame. If their lengths lead out of the file,
    // or nowhere for long, they are damaged.
    constexpr int max_blocks = 1000;
    std::int64_t at = begin + 4;
    bool is_last = false;
    for (int blocks = 0; !is_last && blocks < max_blocks && at + 4 <= file.size(); ++blocks) {
      const std::uint64_t head = file.big_endian_32(at);
      is_last = head >> 31 != 0;
      at += 4 + static_cast<std::int64_t>(head & 0xffffff);
    }
    frames_ = is_last && at <= file.size() ? at : begin + 42;
  }
  /// Returns where the frames begin, in bytes.
  std::int64_t frames() const { return frames_; }
  /// Returns the size of all frames but the last, if that is fixed.
  std::int64_t block() const { return block_; }

  /// Takes what may be the next frame. One that is not expected counts if another follows it: bytes of a frame may look
  /// like the header of one.
  void add(const FlacFrame& frame, std::int64_t at) {
    const std::int64_t end = frame.begin + frame.size;
    if (frame.begin != end_) {
      if (frame.begin != next_) {
        if (frame.begin > end_) gap_ = frame.begin - end_, next_ = end, candidate_ = at;
        return;
      }
      add_gap();
    }
    next_ = -1;
    end_ = end;
    last_ = at;
  }
  /// Adds the stream, which ends at `end`, to a plan.
  void add_to(SoundPlan& plan, std::int64_t end) {
    if (next_ > 0 && next_ == told_) {
      add_gap();
      last_ = candidate_;
      end_ = std::exchange(next_, -1);
    }
    SoundStream& out = plan.streams.emplace_back();
    out.bytes = {{begin_, end - begin_, {}}};
    if (late_ > 0 && rate_ > 0) {  // no decoder puts silence there
      plan.is_whole = false;
      plan.notes.push_back("its first frames are missing");
      out.seconds = static_cast<double>(std::max(told_, end_)) / static_cast<double>(rate_);
    }
    if (missing_ > 0 && rate_ > 0) {
      plan.is_whole = false;
      plan.notes.push_back("frames are missing; " +
                           shown_seconds(static_cast<double>(missing_) / static_cast<double>(rate_)) +
                           " of what is heard may be silence in their place");
    }
    if (told_ > 0 && told_ < end_ && next_ < 0) {
      std::string bytes;  // the low 32 of 36 bits
      for (int shift = 24; shift >= 0; shift -= 8) bytes += static_cast<char>(end_ >> shift & 0xff);
      if (end_ >> 32 == told_ >> 32) {
        out.bytes = {{begin_, 22, {}}, SoundBytes::of(bytes), {begin_ + 26, end - begin_ - 26, {}}};
        plan.notes.push_back(text("the header says ", told_, " samples; all ", end_, " are heard"));
      }
    }
    if (max_bytes_ > 0 && last_ >= 0 && end - last_ > max_bytes_) {
      plan.sample_bytes = last_ + max_bytes_ - begin_;
      plan.rest_bytes = end - last_ - max_bytes_;
    }
  }

 private:
  /// Counts the samples before a frame that was not expected.
  void add_gap() { (end_ == 0 ? late_ : missing_) += gap_; }

  std::int64_t begin_, block_ = 0, max_bytes_ = 0, rate_ = 0, told_ = 0;  // told_ in samples
  std::int64_t frames_ = 0, last_ = -1, candidate_ = -1;                  // places of frames in the file
  std::int64_t end_ = 0, next_ = -1, gap_ = 0, missing_ = 0, late_ = 0;   // samples
};

/// Reads the frames of a FLAC file; nothing for other files. A stream begins with its name and a block of 34 bytes
/// (STREAMINFO), which do not come by chance; those that follow each other are heard one after the other. Missing
/// frames are noted, for decoders put silence in their place or begin later, and a header that tells of too few
/// samples. Throws `Error` for more than `max_sound_parts` streams.
inline std::optional<SoundPlan> read_flac(const std::filesystem::path& path, const SoundRange& range) {
  FileBytes file(range);
  if (file.at(0, 4) != "fLaC") return std::nullopt;
  SoundPlan plan;
  constexpr std::size_t look = 4096;  // short, so that most of it lies in the window that the file has in memory
  FlacStream stream(file, 0);
  for (std::int64_t at = stream.frames(); at < file.size();) {
    const std::string_view bytes = file.at(at, look);
    if (bytes.empty()) break;  // the file has become shorter
    std::size_t next = 0;      // what frames and streams begin with
    while (next < bytes.size() && bytes[next] != '\xFF' && bytes[next] != 'f') ++next;
    at += static_cast<std::int64_t>(next);
    if (next == bytes.size()) continue;
    const std::string_view start = file.at(at, 16);
    if (const auto frame = read_flac_header(start, stream.block())) {
      stream.add(*frame, at);
    } else if (start.starts_with("fLaC") && (FileBytes::little_endian(start.substr(4), 4) & 0xffffff7f) == 0x22000000) {
      require_few_parts(path, plan.streams.size() + 1);
      stream.add_to(plan, at);
      stream = FlacStream(file, at);
      at = stream.frames();
      continue;
    }
    ++at;
  }
  stream.add_to(plan, file.size());
  if (plan.streams.size() > 1) plan.notes.push_back(note_of_parts(plan.streams.size(), "streams"));
  return plan;
}

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
