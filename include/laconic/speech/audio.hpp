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
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
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

/// Limits the length of a recording that is read: 2^29 samples after mixing to mono and resampling, 9 hours at 16 kHz.
inline constexpr Index max_audio_samples = Index{1} << 29;

namespace detail {

/// Throws `Error`, whose text begins with `where`, unless the ratio of the rates is from 1/256 to 256.
inline void require_rates(int from, int to, const std::string& where = {}) {
  require(from > 0 && to > 0, where, "resample: from ", from, " Hz to ", to, " Hz given, positive rates expected");
  require(src_is_valid_ratio(static_cast<double>(to) / from) != 0, where, "resample: from ", from, " Hz to ", to,
          " Hz given, a ratio from 1/256 to 256 expected");
}

/// Resamples a signal that comes in pieces by libsamplerate's medium sinc. All pieces together give what the whole
/// signal gives at once, bit for bit.
class Resampler {
 public:
  /// Begins a signal. Throws `Error` as `require_rates` does. Allocates.
  Resampler(int from, int to, std::string where = {})
      : from_(from),
        to_(to),
        where_(std::move(where)),
        ratio_(static_cast<double>(to) / from),
        state_(nullptr, src_delete) {
    require_rates(from, to, where_);
    int error = 0;
    state_.reset(src_new(SRC_SINC_MEDIUM_QUALITY, 1, &error));
    require(state_ != nullptr, where_, "resample: ", error == 0 ? "" : src_strerror(error));
    silence_.resize(static_cast<std::size_t>(std::ceil(64 * std::max(1.0, 1 / ratio_))));
    silent_ = silence_;
  }
  /// Takes samples from the front of `in`, fills `out` as far as they allow and returns the number of samples written.
  /// If `last` says that no samples follow, `out` is filled until `ceil(n * to / from)` samples are written in all.
  std::size_t operator()(std::span<const float>& in, bool last, std::span<float> out) {
    if (last) {
      const Index left = ((taken_ + static_cast<Index>(in.size())) * to_ + from_ - 1) / from_ - given_;
      out = out.first(static_cast<std::size_t>(std::clamp<Index>(left, 0, static_cast<Index>(out.size()))));
    }
    std::size_t written = process(in, false, out);
    require(in.empty() || written == out.size(), where_, "resample: stopped before ", in.size(), " samples were taken");
    // libsamplerate may stop up to a filter's length before the end for lack of input, so silence follows the samples.
    if (last && in.empty()) written += process(silent_, true, out.subspan(written));
    require(!last || written == out.size(), where_, "resample: ", given_, " samples came, ",
            given_ + static_cast<Index>(out.size() - written), " expected");
    return written;
  }

 private:
  /// Calls libsamplerate until `out` is full or it takes and writes nothing more.
  std::size_t process(std::span<const float>& in, bool end, std::span<float> out) {
    std::size_t written = 0;
    for (bool moves = true; moves && written < out.size();) {
      SRC_DATA job{};
      job.data_in = in.data();
      job.data_out = out.data() + written;
      job.input_frames = static_cast<long>(in.size());
      job.output_frames = static_cast<long>(out.size() - written);
      job.end_of_input = end ? 1 : 0;
      job.src_ratio = ratio_;
      const int error = src_process(state_.get(), &job);
      require(error == 0, where_, "resample: ", error == 0 ? "" : src_strerror(error));
      in = in.subspan(static_cast<std::size_t>(job.input_frames_used));
      written += static_cast<std::size_t>(job.output_frames_gen);
      if (!end) taken_ += job.input_frames_used;
      given_ += job.output_frames_gen;
      moves = job.input_frames_used > 0 || job.output_frames_gen > 0;
    }
    return written;
  }

  Index from_, to_;
  std::string where_;
  double ratio_;
  std::unique_ptr<SRC_STATE, SRC_STATE* (*)(SRC_STATE*)> state_;
  std::vector<float> silence_;
  std::span<const float> silent_;  // what is left of the silence
  Index taken_ = 0, given_ = 0;    // samples
};

}  // namespace detail

/// Returns a sound at another rate, `ceil(n * to / from)` samples in time with the input (no delay). It can change
/// speed and pitch together, too: `resample(x, 11, 10)` played at the old rate is 10% faster. Rates may have any unit;
/// their ratio is from 1/256 to 256. Uses libsamplerate's medium sinc, which keeps 90% of the band and has noise 121 dB
/// below the signal, which is less than 16 bits hold; its best one keeps 97% and takes three to five times as long.
/// Throws `Error` for other ratios and for results of more than `max_audio_samples`. Allocates.
inline std::vector<float> resample(std::span<const float> samples, int from, int to) {
  detail::require_rates(from, to);
  if (from == to || samples.empty()) return {samples.begin(), samples.end()};
  const auto count = static_cast<Index>(samples.size());
  require(count <= max_audio_samples, "resample: ", count, " samples given, at most ", max_audio_samples, " expected");
  const Index expected = (count * to + from - 1) / from;
  require(expected <= max_audio_samples, "resample: would give ", expected, " samples, at most ", max_audio_samples,
          " expected");
  std::vector<float> out(static_cast<std::size_t>(expected));
  detail::Resampler(from, to)(samples, true, out);
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

}  // namespace detail

/// Reads an audio file block by block, in memory that does not grow with its length: WAV, FLAC, Ogg Opus and all else
/// that libsndfile reads. Averages the channels and resamples to `sample_rate` Hz (0: no resampling). Integer samples
/// are scaled to [-1, 1); float samples stay as they are. Several threads may have a reader each.
class AudioReader {
 public:
  /// Opens a file. Throws `Error` if it is missing, empty, not audio, or a WAV file that is shorter than its header
  /// says. Allocates.
  explicit AudioReader(const std::filesystem::path& path, int sample_rate = 0) : path_(path.string()) {
    require(sample_rate >= 0, path_, ": a sample rate of ", sample_rate, " Hz given, 0 or more expected");
    // Opening a pipe does not block.
    descriptor_ = detail::Descriptor(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    if (descriptor_.get() < 0) detail::fail_system(path, "open");
    struct stat status {};
    if (::fstat(descriptor_.get(), &status) != 0) detail::fail_system(path, "read");
    require(S_ISREG(status.st_mode), path_, ": not a regular file, an audio file expected");
    require(status.st_size > 0, path_, ": an empty file, an audio file expected");
    detail::require_whole_wav(path, descriptor_, status.st_size);

    file_.reset(sf_open_fd(descriptor_.get(), SFM_READ, &info_, SF_FALSE));
    require(file_ != nullptr, path_, ": cannot read as audio: ", std::string_view(sf_strerror(nullptr)));
    require(info_.channels > 0 && info_.samplerate > 0, path_, ": ", info_.channels, " channels at ", info_.samplerate,
            " Hz, at least 1 of each expected");
    sample_rate_ = sample_rate == 0 ? info_.samplerate : sample_rate;
    if (sample_rate_ != info_.samplerate) resampler_.emplace(info_.samplerate, sample_rate_, path_ + ": ");
  }

  /// Returns the rate of the samples that `read` returns, in Hz.
  int sample_rate() const { return sample_rate_; }
  /// Returns the duration in seconds as the header says it; 0 if it does not.
  double duration() const {
    return info_.frames == SF_COUNT_MAX || info_.frames < 0 ? 0 : static_cast<double>(info_.frames) / info_.samplerate;
  }
  /// Returns what is converted, or "": "x.wav: 24-bit samples converted; 2 channels averaged; 44100 Hz resampled to
  /// 16000 Hz".
  std::string note() const {
    std::string out;
    const auto say = [&](const std::string& what) { out += (out.empty() ? path_ + ": " : "; ") + what; };
    if (const auto depth = detail::other_depth(info_.format); !depth.empty()) say(text(depth, " samples converted"));
    if (info_.channels > 1) say(text(info_.channels, " channels averaged"));
    if (resampler_) say(text(info_.samplerate, " Hz resampled to ", sample_rate_, " Hz"));
    return out;
  }

  /// Fills `out` with the next samples and returns their number, which is less than the size of `out` only at the end
  /// of the file. Throws `Error` for a file without samples or not whole (an Ogg file cut at the end of a page is not
  /// noticed), and for samples that are not finite. The first call allocates.
  std::size_t read(std::span<float> out) {
    std::size_t count = 0;
    while (count < out.size()) {
      if (waiting_.empty() && !ended_) next_block();
      std::size_t more = 0;
      if (resampler_) {
        more = (*resampler_)(waiting_, ended_, out.subspan(count));
      } else {
        more = std::min(waiting_.size(), out.size() - count);
        std::copy_n(waiting_.begin(), more, out.begin() + static_cast<std::ptrdiff_t>(count));
        waiting_ = waiting_.subspan(more);
      }
      count += more;
      if (ended_ && more == 0) break;
    }
    return count;
  }

 private:
  /// Reads the next block of the file as `waiting_`, channels averaged, or ends.
  void next_block() {
    const auto channels = static_cast<std::size_t>(info_.channels);
    const std::size_t frames = std::max<std::size_t>(1, 65536 / channels);
    block_.resize(frames * channels);
    const sf_count_t count = sf_readf_float(file_.get(), block_.data(), static_cast<sf_count_t>(frames));
    require(sf_error(file_.get()) == SF_ERR_NO_ERROR, path_, ": cannot read as audio after ", frames_read_,
            " samples: ", std::string_view(sf_strerror(file_.get())));
    if (count <= 0) {
      require(frames_read_ > 0, path_, ": holds no samples");
      require(info_.frames == SF_COUNT_MAX || frames_read_ >= info_.frames, path_, ": cut short: the header says ",
              info_.frames, " samples, but ", frames_read_, " could be read");
      ended_ = true;
      return;
    }
    const float scale = 1.0F / static_cast<float>(channels);
    const std::span<float> mono =
        std::span(block_).first(static_cast<std::size_t>(count));  // never ahead of what it averages
    for (std::size_t i = 0; i < mono.size(); ++i) {
      float sum = 0;
      for (std::size_t c = 0; c < channels; ++c) sum += block_[i * channels + c];
      require(std::isfinite(sum), path_, ": sample ", frames_read_ + static_cast<Index>(i), " is not a finite number");
      mono[i] = channels == 1 ? sum : sum * scale;
    }
    waiting_ = mono;
    frames_read_ += count;
  }

  std::string path_;
  detail::Descriptor descriptor_;  // open for as long as file_ reads from it
  SF_INFO info_{};
  detail::SoundFile file_{nullptr, sf_close};
  int sample_rate_ = 0;
  std::optional<detail::Resampler> resampler_;
  std::vector<float> block_;
  std::span<const float> waiting_;  // mono samples of block_ that nobody has read yet
  Index frames_read_ = 0;
  bool ended_ = false;
};

/// Reads all of an audio file as `AudioReader` does, with the same errors. `note` gets what was converted, or "".
/// Throws `Error` also for more than `max_audio_samples`. May be called from several threads. Allocates.
inline Audio read_audio(const std::filesystem::path& path, int sample_rate = 0, std::string* note = nullptr) {
  AudioReader reader(path, sample_rate);
  Audio audio{{}, reader.sample_rate()};
  // A header may lie, so it is trusted only as far as that costs little. One sample more is asked for, to see the end.
  std::size_t size = 0, room = static_cast<std::size_t>(std::min(reader.duration() * reader.sample_rate(), 0x1p22)) + 2;
  for (bool ended = false; !ended; room = 65536) {
    audio.samples.resize(size + room);
    const std::size_t more = reader.read(std::span(audio.samples).subspan(size));
    ended = more < room;
    require(static_cast<Index>(size + more) <= max_audio_samples, path.string(), ": longer than ", max_audio_samples,
            " samples, which is the most that is read");
    audio.samples.resize(size += more);
  }
  if (note != nullptr) *note = reader.note();
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
