// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <sndfile.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <laconic/core/error.hpp>
#include <laconic/io/descriptor.hpp>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

// What libsndfile is shown of a file. It trusts headers that recorders have left unfinished, hears only the first of
// several streams, and does not say that a part is missing, so that the containers are read here first: wav.hpp,
// ogg.hpp, mp3.hpp.

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

/// Owns a file of libsndfile and closes it.
using SoundFile = std::unique_ptr<SNDFILE, int (*)(SNDFILE*)>;

/// Names bytes of an open file, which must stay open. Places in them are counted from their first.
struct SoundRange {
  int descriptor = -1;               ///< descriptor of the file
  std::int64_t begin = 0, size = 0;  ///< place in the file, in bytes
};

/// Reads bytes of a file at any place, through a window that moves on.
class FileBytes {
 public:
  /// Reads these bytes.
  explicit FileBytes(const SoundRange& range) : descriptor_(range.descriptor), start_(range.begin), size_(range.size) {}
  /// Returns the number of bytes.
  std::int64_t size() const { return size_; }
  /// Returns up to `count` bytes from `at` on, fewer at the end. They are valid until the next call.
  std::string_view at(std::int64_t at, std::size_t count) {
    if (at < 0 || at >= size_) return {};
    count = static_cast<std::size_t>(std::min<std::int64_t>(static_cast<std::int64_t>(count), size_ - at));
    if (at < begin_ || at + static_cast<std::int64_t>(count) > begin_ + static_cast<std::int64_t>(window_.size())) {
      window_.resize(std::max(count, std::size_t{1} << 16));
      ssize_t got = 0;
      do got = ::pread(descriptor_, window_.data(), window_.size(), start_ + at);
      while (got < 0 && errno == EINTR);
      window_.resize(static_cast<std::size_t>(std::max<ssize_t>(got, 0)));
      begin_ = at;
    }
    return std::string_view(window_).substr(static_cast<std::size_t>(at - begin_), count);
  }
  /// Returns an unsigned number of `width` bytes at `at`, the lowest first; 0 beyond the end of the file.
  std::uint64_t number(std::int64_t at, std::size_t width) { return little_endian(this->at(at, width), width); }
  /// Returns an unsigned number of four bytes at `at`, the highest first; 0 beyond the end of the file.
  std::uint64_t big_endian_32(std::int64_t at) {
    std::uint64_t out = 0;
    for (const char c : this->at(at, 4)) out = out << 8 | static_cast<unsigned char>(c);
    return out;
  }
  /// Returns the unsigned number that a text of `width` bytes holds, the lowest first; 0 if the text is shorter.
  static std::uint64_t little_endian(std::string_view bytes, std::size_t width) {
    std::uint64_t out = 0;
    if (bytes.size() < width) return 0;
    for (std::size_t i = width; i-- > 0;) out = out << 8 | static_cast<unsigned char>(bytes[i]);
    return out;
  }

 private:
  int descriptor_;
  std::int64_t start_, size_, begin_ = 0;
  std::string window_;
};

/// Returns the place after the last byte that is not 0. Reads the file from its end on, no further than to there.
inline std::int64_t end_without_zeros(FileBytes& file) {
  constexpr std::int64_t look = 1 << 16;
  for (std::int64_t end = file.size(); end > 0; end -= look) {
    const std::int64_t begin = std::max<std::int64_t>(end - look, 0);
    const std::size_t last = file.at(begin, static_cast<std::size_t>(end - begin)).find_last_not_of('\0');
    if (last != std::string_view::npos) return begin + static_cast<std::int64_t>(last) + 1;
  }
  return 0;
}

/// Returns the size of the tag that begins at `at`, 0 if none does: ID3v2 and APE with a header, which stand before
/// sound or after it, and ID3v1.
inline std::int64_t tag_size(FileBytes& file, std::int64_t at) {
  const std::string head(file.at(at, 32));
  if (head.starts_with("TAG")) return 128;
  if (head.starts_with("ID3") && head.size() >= 10) {
    std::int64_t size = 0;
    for (std::size_t i = 6; i < 10; ++i) size = size << 7 | (static_cast<unsigned char>(head[i]) & 0x7F);
    return size + ((head[5] & 0x10) != 0 ? 20 : 10);  // with a footer, or without
  }
  if (head.size() < 32 || !head.starts_with("APETAGEX")) return 0;
  return 32 + static_cast<std::int64_t>(file.number(at + 12, 4));
}

/// Returns the bytes of a file without the tags of players before and after them (ID3v1, ID3v2, APE), which say nothing
/// of sound, and which decoders take for sound or refuse. Of those after them, at most 8 are left out.
inline SoundRange without_tags(const OpenFile& opened) {
  const SoundRange all{opened.descriptor.get(), 0, opened.size};
  FileBytes file(all);
  std::int64_t begin = 0, end = all.size;
  for (std::int64_t size = 0; file.at(begin, 3) != "TAG" && (size = tag_size(file, begin)) > 0 && begin + size < end;)
    begin += size;
  for (int tags = 0; tags < 8; ++tags) {  // going backwards, each costs a read
    std::int64_t size = 0;
    if (file.at(end - 32, 8) == "APETAGEX") {
      const bool has_header = (file.number(end - 12, 4) >> 31 & 1) != 0;
      size = static_cast<std::int64_t>(file.number(end - 20, 4)) + (has_header ? 32 : 0);
    } else if (file.at(end - 128, 3) == "TAG") {
      size = 128;
    }
    if (size <= 0 || end - size <= begin) break;
    end -= size;
  }
  return {all.descriptor, begin, end - begin};
}

/// Bounds the parts of a file that are heard one after the other, each of which takes memory.
inline constexpr std::size_t max_sound_parts = 10000;

/// Throws `Error` for a file of `parts` parts if one more is too many.
inline void require_few_parts(const std::filesystem::path& path, std::size_t parts) {
  require(parts < max_sound_parts, path.string(), ": its sound is in more than ", max_sound_parts, " parts, at most ",
          max_sound_parts, " expected");
}

/// Holds a stretch of what libsndfile is shown: bytes of the file, or others in their place.
struct SoundBytes {
  std::int64_t begin = 0, size = 0;  ///< place in the range, in bytes
  std::string instead;               ///< shown if it is not empty, with `size` its length
  /// Returns a stretch with these bytes.
  static SoundBytes of(std::string bytes) {
    const auto size = static_cast<std::int64_t>(bytes.size());
    return {0, size, std::move(bytes)};
  }
};

/// Describes a stream of sound: its bytes, and how long they should sound.
struct SoundStream {
  std::vector<SoundBytes> bytes;
  double seconds = -1;  ///< duration as the container tells it; negative: as libsndfile says
};

/// Returns a note on a header that tells of no samples, though bytes follow it.
inline std::string note_of_no_size(std::int64_t bytes) {
  return text("the header says 0 bytes of samples; all ", bytes, " that follow are heard");
}

/// Returns a note on several parts of a file, which `what` names.
inline std::string note_of_parts(std::size_t count, std::string_view what) {
  return text(count, ' ', what, " are heard one after the other");
}

/// Describes what is to be heard of a file: streams, one after the other, and what is wrong with it.
struct SoundPlan {
  std::vector<SoundStream> streams;
  std::vector<std::string> notes;  ///< parts of a sentence for a person
  bool is_whole = true;            ///< false: something is missing, and it may not be known how much
  /// Bytes of samples that the header tells of, and bytes that follow and are not heard.
  std::int64_t sample_bytes = 0, rest_bytes = 0;
};

/// Returns the plan for a file of which nothing more is known.
inline SoundPlan whole_file(const SoundRange& file) {
  SoundPlan plan;
  plan.streams.push_back({{{0, file.size, {}}}});
  return plan;
}

/// Returns the plan for a file in which other bytes stand at a place.
inline SoundPlan with_bytes_at(const SoundRange& file, std::int64_t at, std::string bytes) {
  SoundPlan plan;
  const std::int64_t end = at + static_cast<std::int64_t>(bytes.size());
  plan.streams.push_back({{{0, at, {}}, SoundBytes::of(std::move(bytes)), {end, file.size - end, {}}}});
  return plan;
}

/// Shows libsndfile the bytes of a stream.
class SoundInput {
 public:
  /// Reads stretches of these bytes.
  SoundInput(const SoundRange& range, std::vector<SoundBytes> bytes) : range_(range), bytes_(std::move(bytes)) {
    for (const SoundBytes& one : bytes_) {
      begins_.push_back(size_);
      size_ += one.size;
    }
  }
  /// Opens the stream. This object must stay where it is until the file is closed.
  SoundFile open(SF_INFO& info) {
    SF_VIRTUAL_IO io{};
    io.get_filelen = [](void* self) { return static_cast<sf_count_t>(static_cast<SoundInput*>(self)->size_); };
    io.seek = [](sf_count_t to, int whence, void* self) { return static_cast<SoundInput*>(self)->seek(to, whence); };
    io.read = [](void* out, sf_count_t count, void* self) {
      return static_cast<SoundInput*>(self)->read(static_cast<char*>(out), count);
    };
    io.write = [](const void*, sf_count_t, void*) { return sf_count_t{0}; };
    io.tell = [](void* self) { return static_cast<sf_count_t>(static_cast<SoundInput*>(self)->at_); };
    return {sf_open_virtual(&io, SFM_READ, &info, this), sf_close};
  }

 private:
  sf_count_t seek(sf_count_t to, int whence) {
    const std::int64_t base = whence == SEEK_CUR ? at_ : whence == SEEK_END ? size_ : 0;
    if (to < -base || to > size_ - base) return -1;
    return at_ = base + to;
  }
  sf_count_t read(char* out, sf_count_t count) {
    sf_count_t done = 0;
    auto i = static_cast<std::size_t>(std::upper_bound(begins_.begin(), begins_.end(), at_) - begins_.begin());
    for (i = i > 0 ? i - 1 : 0; i < bytes_.size() && done < count; ++i) {
      const SoundBytes& one = bytes_[i];
      while (done < count && at_ < begins_[i] + one.size) {
        const std::int64_t from = at_ - begins_[i];
        auto more = static_cast<std::size_t>(std::min<std::int64_t>(count - done, one.size - from));
        if (!one.instead.empty()) {
          std::memcpy(out + done, one.instead.data() + from, more);
        } else {
          const ssize_t got = ::pread(range_.descriptor, out + done, more, range_.begin + one.begin + from);
          if (got < 0 && errno == EINTR) continue;
          if (got <= 0) return done;
          more = static_cast<std::size_t>(got);
        }
        done += static_cast<sf_count_t>(more);
        at_ += static_cast<std::int64_t>(more);
      }
    }
    return done;
  }

  SoundRange range_;
  std::vector<SoundBytes> bytes_;
  std::vector<std::int64_t> begins_;  // of the stretches, in the stream
  std::int64_t size_ = 0, at_ = 0;
};

/// Returns the number of bytes from `at` to the last one that is not 0. Zeros at the end fill a sector, or a recorder
/// reserved them.
inline std::int64_t bytes_without_zeros(FileBytes& file, std::int64_t at) {
  return at < file.size() ? std::max<std::int64_t>(end_without_zeros(file) - at, 0) : 0;
}

/// Says whether a chunk of a WAV or an AIFF file could begin at `at`: a name of four printable characters, which is not
/// that of another file, and a size that fits.
inline bool could_be_chunk(FileBytes& file, std::int64_t at, bool is_aiff = false) {
  const std::string name(file.at(at, 4));
  if (name == "RIFF" || name == "RF64" || name == "FORM") return false;
  for (const char c : name)
    if (c < ' ' || c > '~') return false;
  const std::uint64_t size = is_aiff ? file.big_endian_32(at + 4) : file.number(at + 4, 4);
  return name.size() == 4 && at + 8 + static_cast<std::int64_t>(size) <= file.size() + 1;
}

/// Returns the place in a WAV or an AIFF file where the chunks from `at` on end: at most 7 bytes before its end if
/// nothing else follows.
inline std::int64_t end_of_chunks(FileBytes& file, std::int64_t at, bool is_aiff = false) {
  while (at + 8 <= file.size() && could_be_chunk(file, at, is_aiff)) {
    const auto size = static_cast<std::int64_t>(is_aiff ? file.big_endian_32(at + 4) : file.number(at + 4, 4));
    at += 8 + size + size % 2;
  }
  return at;
}

/// Throws `Error` for a header without channels or without a rate.
inline void require_channels(const std::filesystem::path& path, std::uint64_t channels, std::uint64_t rate) {
  require(rate > 0 && channels > 0, path.string(), ": its header says ", channels, " channels at ", rate,
          " Hz, at least 1 of each expected");
}

/// Returns a duration for a person: "0.98 s".
inline std::string shown_seconds(double seconds) {
  char out[32];
  std::snprintf(out, sizeof out, "%.2f s", seconds);
  return out;
}

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
