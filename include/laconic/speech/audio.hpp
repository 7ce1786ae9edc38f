// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <samplerate.h>
#include <sndfile.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <laconic/core/extent.hpp>
#include <laconic/io/file.hpp>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Holds mono sound. Full scale is [-1, 1].
struct Audio {
  std::vector<float> samples;  ///< amplitudes
  int sample_rate = 16000;     ///< in Hz

  /// Returns the duration in seconds.
  double duration() const { return static_cast<double>(samples.size()) / sample_rate; }
};

/// Limits the length of a recording that is read: 2^29 samples after mixing to mono, 9 hours at 16 kHz.
inline constexpr Index max_audio_samples = Index{1} << 29;

/// Returns a sound at another rate, `ceil(n * to / from)` samples in time with the input (no delay). It can change
/// speed and pitch together, too: `resample(x, 11, 10)` played at the old rate is 10% faster. Rates may have any unit;
/// their ratio is from 1/256 to 256. Uses libsamplerate's medium sinc, which keeps 90% of the band and has noise 121 dB
/// below the signal, which is less than 16 bits hold; its best one keeps 97% and takes three to five times as long.
/// Throws `Error` for other ratios and for results of more than `max_audio_samples`. Allocates.
inline std::vector<float> resample(std::span<const float> samples, int from, int to) {
  require(from > 0 && to > 0, "resample: from ", from, " Hz to ", to, " Hz given, positive rates expected");
  const double ratio = static_cast<double>(to) / from;
  require(src_is_valid_ratio(ratio) != 0, "resample: from ", from, " Hz to ", to,
          " Hz given, a ratio from 1/256 to 256 expected");
  if (from == to || samples.empty()) return {samples.begin(), samples.end()};

  const auto count = static_cast<Index>(samples.size());
  require(count <= max_audio_samples, "resample: ", count, " samples given, at most ", max_audio_samples, " expected");
  const Index expected = (count * to + from - 1) / from;
  require(expected <= max_audio_samples, "resample: would give ", expected, " samples, at most ", max_audio_samples,
          " expected");
  // libsamplerate may stop up to a filter's length before the end for lack of input, so silence follows the samples.
  const auto silence = static_cast<Index>(std::ceil(64 * std::max(1.0, 1 / ratio)));
  std::vector<float> in(static_cast<std::size_t>(count + silence));
  std::copy(samples.begin(), samples.end(), in.begin());
  std::vector<float> out(static_cast<std::size_t>(expected));
  SRC_DATA job{};
  job.data_in = in.data();
  job.data_out = out.data();
  job.input_frames = static_cast<long>(in.size());
  job.output_frames = static_cast<long>(out.size());
  job.src_ratio = ratio;
  const int error = src_simple(&job, SRC_SINC_MEDIUM_QUALITY, 1);
  require(error == 0, "resample: ", error == 0 ? "" : src_strerror(error));
  require(job.output_frames_gen == job.output_frames, "resample: ", job.output_frames_gen, " samples came, ",
          job.output_frames, " expected");
  return out;
}

namespace detail {

/// Owns a file of libsndfile and closes it.
using SoundFile = std::unique_ptr<SNDFILE, int (*)(SNDFILE*)>;

/// Throws `Error` if a WAV file is shorter than its header says, about which libsndfile is silent. Sizes near 2^31 and
/// 2^32 pass: programs write them that do not know the size (to a pipe).
inline void require_whole_wav(const std::filesystem::path& path, const Descriptor& file, std::int64_t file_size) {
  struct {
    char id[4];
    std::uint32_t size;
  } chunk;
  static_assert(std::endian::native == std::endian::little && sizeof chunk == 8);
  const auto read_at = [&](std::int64_t at) { return ::pread(file.get(), &chunk, sizeof chunk, at) == sizeof chunk; };
  if (!read_at(0) || std::memcmp(chunk.id, "RIFF", 4) != 0) return;
  for (std::int64_t at = 12; read_at(at);
       at += 8 + std::int64_t{chunk.size} + chunk.size % 2) {  // 64-bit: 8 + size may be 2^32
    if (std::memcmp(chunk.id, "data", 4) != 0) continue;
    require(chunk.size >= 0x7fff0000 || at + 8 + chunk.size <= file_size, path.string(),
            ": cut short: the header says ", chunk.size, " bytes of samples, but ", file_size - at - 8, " follow");
    return;
  }
}

/// Returns the name of a sample format other than 16-bit, for a note; empty for 16-bit, single float and codecs.
inline std::string_view other_depth(int format) {
  switch (format & SF_FORMAT_SUBMASK) {
    case SF_FORMAT_PCM_S8:
    case SF_FORMAT_PCM_U8:
      return "8-bit";
    case SF_FORMAT_PCM_24:
      return "24-bit";
    case SF_FORMAT_PCM_32:
      return "32-bit";
    case SF_FORMAT_DOUBLE:
      return "64-bit float";
    default:
      return {};
  }
}

/// Returns all samples of a file, channels averaged. Throws `Error` for a read error, too many samples and for samples
/// that are not finite.
inline std::vector<float> read_mono(SNDFILE* file, const SF_INFO& info, const std::filesystem::path& path) {
  const auto channels = static_cast<std::size_t>(info.channels);
  const std::size_t block_frames = std::max<std::size_t>(1, 65536 / channels);
  std::vector<float> block(block_frames * channels), samples;
  // A header may lie, so it is trusted only as far as that costs little.
  samples.reserve(static_cast<std::size_t>(std::clamp<sf_count_t>(info.frames, 0, 1 << 22)));
  const float scale = 1.0F / static_cast<float>(channels);
  while (true) {
    const sf_count_t count = sf_readf_float(file, block.data(), static_cast<sf_count_t>(block_frames));
    require(sf_error(file) == SF_ERR_NO_ERROR, path.string(), ": cannot read as audio after ", samples.size(),
            " samples: ", std::string_view(sf_strerror(file)));
    if (count <= 0) return samples;
    require(static_cast<Index>(samples.size()) + count <= max_audio_samples, path.string(), ": longer than ",
            max_audio_samples, " samples, which is the most that is read");
    for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) {
      float sum = 0;
      for (std::size_t c = 0; c < channels; ++c) sum += block[i * channels + c];
      samples.push_back(channels == 1 ? sum : sum * scale);
      require(std::isfinite(sum), path.string(), ": sample ", samples.size() - 1, " is not a finite number");
    }
  }
}

}  // namespace detail

/// Reads WAV, FLAC, Ogg Opus and all else that libsndfile reads, averages the channels and resamples to `sample_rate`
/// Hz (0: no resampling). Integer samples are scaled to [-1, 1); float samples stay as they are. `note` gets what was
/// converted, or "": "x.wav: 24-bit samples converted; 2 channels averaged; 44100 Hz resampled to 16000 Hz". Throws
/// `Error` for a file that is missing, empty, not audio or not whole (an Ogg file cut at the end of a page is not
/// noticed), and for samples that are not finite. May be called from several threads.
inline Audio read_audio(const std::filesystem::path& path, int sample_rate = 0, std::string* note = nullptr) {
  require(sample_rate >= 0, path.string(), ": a sample rate of ", sample_rate, " Hz given, 0 or more expected");
  const detail::Descriptor descriptor(
      ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));  // opening a pipe does not block
  if (descriptor.get() < 0) detail::fail_system(path, "open");
  struct stat status {};
  if (::fstat(descriptor.get(), &status) != 0) detail::fail_system(path, "read");
  require(S_ISREG(status.st_mode), path.string(), ": not a regular file, an audio file expected");
  require(status.st_size > 0, path.string(), ": an empty file, an audio file expected");
  detail::require_whole_wav(path, descriptor, status.st_size);

  SF_INFO info{};
  const detail::SoundFile file(sf_open_fd(descriptor.get(), SFM_READ, &info, SF_FALSE), sf_close);
  require(file != nullptr, path.string(), ": cannot read as audio: ", std::string_view(sf_strerror(nullptr)));
  require(info.channels > 0 && info.samplerate > 0, path.string(), ": ", info.channels, " channels at ",
          info.samplerate, " Hz, at least 1 of each expected");
  Audio audio{detail::read_mono(file.get(), info, path), info.samplerate};
  require(!audio.samples.empty(), path.string(), ": holds no samples");
  require(info.frames == SF_COUNT_MAX || static_cast<sf_count_t>(audio.samples.size()) >= info.frames, path.string(),
          ": cut short: the header says ", info.frames, " samples, but ", audio.samples.size(), " could be read");

  std::string converted;
  const auto say = [&](const std::string& what) { converted += (converted.empty() ? "" : "; ") + what; };
  if (const auto depth = detail::other_depth(info.format); !depth.empty()) say(text(depth, " samples converted"));
  if (info.channels > 1) say(text(info.channels, " channels averaged"));
  if (sample_rate != 0 && sample_rate != audio.sample_rate) {
    say(text(audio.sample_rate, " Hz resampled to ", sample_rate, " Hz"));
    try {
      audio = {resample(audio.samples, audio.sample_rate, sample_rate), sample_rate};
    } catch (const Error& e) {
      throw Error(text(path.string(), ": ", e.what()));
    }
  }
  if (note != nullptr) *note = converted.empty() ? "" : text(path.string(), ": ", converted);
  return audio;
}

/// Writes 16-bit mono WAV, whole or not at all. Samples outside [-1, 1) are clipped. Throws `Error` for audio without
/// samples, samples that are not finite, a rate below 1 Hz, more than `max_audio_samples` and a full disk.
inline void write_wav(const std::filesystem::path& path, const Audio& audio) {
  const std::size_t count = audio.samples.size();
  require(count > 0, path.string(), ": no samples to write");
  require(count <= static_cast<std::size_t>(max_audio_samples), path.string(), ": ", count,
          " samples to write, at most ", max_audio_samples, " expected");
  require(audio.sample_rate > 0, path.string(), ": a sample rate of ", audio.sample_rate, " Hz, at least 1 expected");
  std::string bytes;
  bytes.reserve(44 + 2 * count);
  const auto number = [&](std::uint32_t value, int width) {  // little endian
    for (int i = 0; i < width; ++i) bytes += static_cast<char>(value >> (8 * i) & 0xff);
  };
  const auto rate = static_cast<std::uint32_t>(audio.sample_rate), data = static_cast<std::uint32_t>(2 * count);
  bytes += "RIFF";
  number(36 + data, 4);
  bytes += "WAVEfmt ";
  number(16, 4);  // size of the format
  number(1, 2);   // PCM
  number(1, 2);   // channels
  number(rate, 4);
  number(2 * rate, 4);  // bytes per second
  number(2, 2);         // bytes per frame
  number(16, 2);        // bits per sample
  bytes += "data";
  number(data, 4);
  for (std::size_t i = 0; i < count; ++i) {
    const float x = audio.samples[i];
    require(std::isfinite(x), path.string(), ": sample ", i, " to write is not a finite number");
    number(static_cast<std::uint32_t>(std::lrint(std::clamp(x * 32768.0F, -32768.0F, 32767.0F))), 2);
  }
  write_file(path, bytes);
}

}  // namespace LACONIC_ABI
}  // namespace laconic
