// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <laconic/core/error.hpp>
#include <laconic/speech/sound_file.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

// The pages of Ogg files (RFC 3533; Opus in them: RFC 7845). libsndfile hears the first of several streams, and where
// pages are lost or the end is cut off it goes on, or ends, without a word.

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

/// Holds the header of an Ogg page.
struct OggPage {
  bool begins = false, ends = false;     ///< whether it is the first, or the last, of its stream
  bool is_intact = false;                ///< whether its checksum is right
  std::int64_t position = -1;            ///< samples up to its last whole packet; -1: none ends in it
  std::uint32_t stream = 0, number = 0;  ///< serial number of its stream; counted from 0 in the stream
  std::int64_t body = 0, end = 0;        ///< places in the file, in bytes
  std::vector<std::size_t> packets;      ///< bytes of the packets that end in it
  bool continues = false;                ///< the first of them began in the page before
};

/// Returns the checksum of Ogg pages after more bytes: polynomial 0x04c11db7, highest bit first.
inline std::uint32_t ogg_checksum(std::uint32_t checksum, std::string_view bytes) {
  static constexpr auto table = [] {
    std::array<std::uint32_t, 256> out{};
    for (std::uint32_t i = 0; i < 256; ++i) {
      std::uint32_t value = i << 24;
      for (int bit = 0; bit < 8; ++bit) value = value << 1 ^ (value >> 31 != 0 ? 0x04c11db7U : 0U);
      out[i] = value;
    }
    return out;
  }();
  for (const char c : bytes) checksum = checksum << 8 ^ table[checksum >> 24 ^ static_cast<unsigned char>(c)];
  return checksum;
}

/// Reads the page at a place, or nothing if none begins there or the file ends in it.
inline std::optional<OggPage> read_ogg_page(FileBytes& file, std::int64_t at) {
  const std::string head(file.at(at, 27));
  if (head.size() < 27 || !head.starts_with("OggS") || head[4] != 0) return std::nullopt;
  const auto count = static_cast<unsigned char>(head[26]);
  const std::string lengths(file.at(at + 27, count));
  if (lengths.size() < count) return std::nullopt;
  OggPage page;
  page.continues = (head[5] & 1) != 0;
  page.begins = (head[5] & 2) != 0;
  page.ends = (head[5] & 4) != 0;
  page.position = static_cast<std::int64_t>(FileBytes::little_endian(head.substr(6), 8));
  page.stream = static_cast<std::uint32_t>(FileBytes::little_endian(head.substr(14), 4));
  page.number = static_cast<std::uint32_t>(FileBytes::little_endian(head.substr(18), 4));
  page.body = page.end = at + 27 + count;
  std::size_t packet = 0;
  for (const char c : lengths) {
    const auto length = static_cast<unsigned char>(c);
    page.end += length;
    packet += length;
    if (length == 255) continue;
    page.packets.push_back(packet);
    packet = 0;
  }
  if (page.end > file.size()) return std::nullopt;
  std::string zeroed = head;
  zeroed.replace(22, 4, 4, '\0');
  const std::string_view body = file.at(page.body, static_cast<std::size_t>(page.end - page.body));
  page.is_intact = ogg_checksum(ogg_checksum(ogg_checksum(0, zeroed), lengths), body) ==
                   FileBytes::little_endian(head.substr(22), 4);
  return page;
}

/// Returns the samples at 48 kHz of an Opus packet (RFC 6716, section 3.1), 0 for none.
inline std::int64_t opus_samples(std::string_view packet) {
  if (packet.empty()) return 0;
  const auto first = static_cast<unsigned char>(packet[0]);
  const int config = first >> 3;
  constexpr std::array<std::int64_t, 4> silk{480, 960, 1920, 2880}, celt{120, 240, 480, 960};
  const std::int64_t frame = config < 12   ? silk[static_cast<std::size_t>(config % 4)]
                             : config < 16 ? silk[static_cast<std::size_t>(config % 2)]
                                           : celt[static_cast<std::size_t>(config % 4)];
  const int code = first & 3;
  return frame * (code == 0 ? 1 : code < 3 ? 2 : packet.size() > 1 ? static_cast<unsigned char>(packet[1]) & 63 : 0);
}

/// Follows one stream of speech through its pages.
class OggStream {
 public:
  /// Begins with the first page of a stream. Its codec is not known if it is neither Opus nor Vorbis.
  OggStream(FileBytes& file, const OggPage& page) : serial_(page.stream) {
    const std::string head(file.at(page.body, 32));
    if (head.starts_with("OpusHead") && head.size() >= 19) {
      opus_ = true;
      rate_ = 48000;
      skipped_ = static_cast<std::int64_t>(FileBytes::little_endian(std::string_view(head).substr(10), 2));
    } else if (head.starts_with("\x01vorbis") && head.size() >= 16) {
      rate_ = static_cast<std::int64_t>(FileBytes::little_endian(std::string_view(head).substr(12), 4));
    }
    next_ = page.number + 1;
  }
  /// Says whether it is speech that can be followed.
  bool is_known() const { return rate_ > 0; }
  /// Returns its serial number.
  std::uint32_t serial() const { return serial_; }

  /// Takes its next page.
  void add(FileBytes& file, const OggPage& page) {
    if (page.is_intact && page.number + 1 == next_) return;  // the same page once more
    // A page in which a packet ends has a position.
    if (!page.is_intact || page.number != next_ || (page.position == -1 && !page.packets.empty())) has_gaps_ = true;
    next_ = page.number + 1;
    if (!page.is_intact) return;
    ended_ = ended_ || page.ends;
    if (page.position < 0 || (page.position == 0 && end_ == 0)) return;  // of headers, or no packet ends in it
    if (end_ == 0) start_ = first_sample(file, page);
    end_ = std::max(end_, page.position);
  }
  /// Returns how long it should sound, in seconds.
  double seconds() const {
    return static_cast<double>(std::max<std::int64_t>(end_ - start_ - skipped_, 0)) / static_cast<double>(rate_);
  }
  /// Says whether pages are missing or damaged.
  bool has_gaps() const { return has_gaps_; }
  /// Says whether the mark of its end has come.
  bool has_ended() const { return ended_; }

 private:
  /// Returns where the stream begins: not at 0 if it was cut out of a longer one, as broadcasts are.
  std::int64_t first_sample(FileBytes& file, const OggPage& page) const {
    if (has_gaps_) return 0;
    if (!opus_) return page.position > 20 * rate_ ? page.position : 0;
    std::int64_t samples = 0, at = page.body;
    for (std::size_t i = 0; i < page.packets.size(); ++i) {
      if (i > 0 || !page.continues) samples += opus_samples(file.at(at, std::min<std::size_t>(page.packets[i], 2)));
      at += static_cast<std::int64_t>(page.packets[i]);
    }
    return page.ends ? 0 : std::max<std::int64_t>(page.position - samples, 0);  // a last page may end early
  }

  std::uint32_t serial_, next_ = 0;
  bool opus_ = false, has_gaps_ = false, ended_ = false;
  std::int64_t rate_ = 0, skipped_ = 0;  // samples a second; samples before the first that is heard
  std::int64_t start_ = 0, end_ = 0;     // samples
};

/// Reads the pages of an Ogg file; nothing for other files. Streams that follow each other are heard one after the
/// other. Damaged and missing pages, and an end without its mark, are noted.
inline std::optional<SoundPlan> read_ogg(const SoundRange& range) {
  FileBytes file(range);
  if (file.at(0, 4) != "OggS") return std::nullopt;
  SoundPlan plan;
  std::optional<OggStream> stream;
  std::int64_t begin = 0, at = 0, lost_bytes = 0;
  bool begins = false, gaps = false, all_ended = true;
  const auto end_stream = [&](std::int64_t end) {
    const bool is_known = stream && stream->is_known();
    plan.streams.push_back({{{begin, end - begin, {}}}, is_known ? stream->seconds() : -1});
    gaps = gaps || (is_known && stream->has_gaps());
    all_ended = all_ended && (!is_known || stream->has_ended());
  };
  while (at < file.size()) {
    const std::optional<OggPage> page = read_ogg_page(file, at);
    if (!page) {  // looks for the next one
      // A short look, most of which lies in the window that the file has in memory.
      constexpr std::int64_t look = 4096;
      const std::size_t next = file.at(at + 1, look).find("OggS");
      const std::int64_t step = next != std::string_view::npos ? static_cast<std::int64_t>(next) + 1 : look - 3;
      lost_bytes += std::min(step, file.size() - at);
      at += step;
      continue;
    }
    if (page->begins && page->is_intact) {
      if (!begins && at > 0) {  // after pages of sound: another stream
        if (plan.streams.size() + 1 == max_sound_parts) break;
        end_stream(std::min(at, file.size()));
        begin = at;
        stream.reset();
      }
      begins = true;
      if (!stream || !stream->is_known()) stream.emplace(file, *page);
    } else {
      begins = false;
      if (stream && page->stream == stream->serial())
        stream->add(file, *page);
      else if (!page->is_intact)
        gaps = true;
    }
    at = page->end;
  }
  end_stream(at);
  plan.is_whole = all_ended && !gaps && at >= file.size();
  if (at < file.size()) plan.notes.push_back(text("what follows ", max_sound_parts, " streams is not heard"));
  if (gaps) plan.notes.push_back("pages are missing or damaged");
  if (!all_ended) plan.notes.push_back("it ends before the mark of its end, so that more may be missing");
  if (lost_bytes > 0) plan.notes.push_back(text(lost_bytes, " bytes are no pages"));
  if (plan.streams.size() > 1) plan.notes.push_back(note_of_parts(plan.streams.size(), "streams"));
  return plan;
}

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
