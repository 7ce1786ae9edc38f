// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <sndfile.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <laconic/core/extent.hpp>
#include <laconic/io/file.hpp>
#include <laconic/speech/flac.hpp>
#include <laconic/speech/mp3.hpp>
#include <laconic/speech/ogg.hpp>
#include <laconic/speech/pcm_files.hpp>
#include <laconic/speech/resample.hpp>
#include <laconic/speech/sound_file.hpp>
#include <laconic/speech/wav.hpp>
#include <limits>
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
  bool is_whole = true;        ///< false if a part of the file could not be heard, or may have been cut off

  /// Returns the duration in seconds.
  double duration() const { return static_cast<double>(samples.size()) / sample_rate; }
};

namespace detail {

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

/// Names a part of a recording.
struct AudioPart {
  double offset = 0;    ///< seconds before it
  double duration = 0;  ///< in seconds; 0: to the end of the recording
};

/// Reads an audio file block by block, in memory that does not grow with its length: WAV, FLAC, Ogg (Opus, Vorbis), MP3
/// and all else that libsndfile reads. Averages the channels and resamples to `sample_rate` Hz (0: no resampling).
/// Integer samples are scaled to [-1, 1); float samples stay as they are. Several threads may have a reader each.
///
/// The reader hears what it can of a damaged file: after the end `note()` says what was not, and `is_whole()` that
/// something was not. Streams that follow each other in an Ogg or a FLAC file are heard one after the other.
class AudioReader {
 public:
  /// Opens a file, or a part of it. Throws `Error` if it is missing, empty, not audio, in more than 10000 parts, or a
  /// WAV file that is shorter than its header says. Reads all of an Ogg, a FLAC and an MP3 file once. Allocates.
  explicit AudioReader(const std::filesystem::path& path, int sample_rate = 0, AudioPart part = {})
      : path_(path.string()), opened_(detail::open_to_read(path)) {
    require(sample_rate >= 0, path_, ": a sample rate of ", sample_rate, " Hz given, 0 or more expected");
    require(part.offset >= 0 && part.duration >= 0 && part.offset + part.duration < 1e9, path_, ": ", part.duration,
            " s from ", part.offset, " s on given, 0 or more of each expected");
    require(opened_.size > 0, path_, ": an empty file, an audio file expected");
    range_ = detail::without_tags(opened_);
    std::optional<detail::SoundPlan> plan = detail::read_wav(path, range_);
    if (!plan) plan = detail::read_au(path, range_);
    if (!plan) plan = detail::read_aiff(path, range_);
    if (!plan) plan = detail::read_rf64(path, range_);
    if (!plan) plan = detail::read_wav64(path, range_);
    if (!plan) plan = detail::read_caf(path, range_);
    if (!plan) plan = detail::read_ogg(range_);
    if (!plan) plan = detail::read_flac(path, range_);
    if (!plan) plan = detail::read_mp3(path, range_);
    plan_ = plan ? std::move(*plan) : detail::whole_file(range_);
    try {
      open_stream();
    } catch (const Unreadable&) {
      if (plan || !open_late_mp3()) throw;
    }
    note_rest();
    rate_ = info_.samplerate;
    sample_rate_ = sample_rate == 0 ? rate_ : sample_rate;
    if (sample_rate_ != rate_) resampler_.emplace(rate_, sample_rate_, path_ + ": ");
    go_to(part);
  }

  /// Returns the rate of the samples that `read` returns, in Hz.
  int sample_rate() const { return sample_rate_; }
  /// Returns the duration in seconds as the header or the container says it, of the part; 0 if they do not.
  double duration() const {
    double all = 0;
    for (const detail::SoundStream& stream : plan_.streams) {
      if (stream.seconds < 0 && plan_.streams.size() > 1) return 0;
      all += std::max(stream.seconds, 0.0);
    }
    if (plan_.streams[0].seconds < 0)
      all = info_.frames == SF_COUNT_MAX || info_.frames < 0 ? 0 : static_cast<double>(info_.frames) / rate_;
    if (all == 0) return 0;
    all = std::max(all - part_.offset, 0.0);
    return part_.duration > 0 ? std::min(all, part_.duration) : all;
  }
  /// Returns what is converted, what is odd about the file and, after its end, what was not heard; or "": "x.wav:
  /// 24-bit samples converted; 2 channels averaged; 44100 Hz resampled to 16000 Hz". Allocates.
  std::string note() const {
    std::string out;
    const auto say = [&](const std::string& what) { out += (out.empty() ? path_ + ": " : "; ") + what; };
    if (const auto depth = detail::other_depth(info_.format); !depth.empty()) say(text(depth, " samples converted"));
    if (info_.channels > 1) say(text(info_.channels, " channels averaged"));
    if (resampler_) say(text(rate_, " Hz resampled to ", sample_rate_, " Hz"));
    for (const std::string& note : plan_.notes) say(note);
    if (missing_seconds_ > 0) say(detail::shown_seconds(missing_seconds_) + " are missing");
    return out;
  }
  /// Says whether nothing is known to be missing. Not all is known before the end.
  bool is_whole() const { return plan_.is_whole && missing_seconds_ == 0; }
  /// Returns the seconds that the file tells of and that could not be heard so far. What was cut off with the end of
  /// an Ogg file it does not tell of; then `is_whole()` is false all the same.
  double missing_seconds() const { return missing_seconds_; }

  /// Fills `out` with the next samples and returns their number, which is less than the size of `out` only at the end
  /// of the file or the part. Throws `Error` for a file without samples or cut short, and for samples that are not
  /// finite. The first call allocates.
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
  /// Reports a stream that libsndfile cannot open.
  struct Unreadable : Error {
    using Error::Error;
  };

  /// Opens the stream number `stream_`.
  void open_stream() {
    file_.reset();
    input_ = std::make_unique<detail::SoundInput>(range_, std::move(plan_.streams[stream_].bytes));
    info_ = {};
    file_ = input_->open(info_);
    if (file_ == nullptr) {
      const std::string_view why = sf_strerror(nullptr);
      throw Unreadable(text(path_, ": cannot read as audio: ",
                            why.find("SF_INFO") != std::string_view::npos  // what it says to programmers
                                ? "its header tells no rate, number of channels or kind of samples"
                                : why));
    }
    require(info_.channels > 0 && info_.samplerate > 0, path_, ": ", info_.channels, " channels at ", info_.samplerate,
            " Hz, at least 1 of each expected");
    require(stream_ == 0 || info_.samplerate == rate_, path_, ": stream ", stream_ + 1, " of ", plan_.streams.size(),
            " has ", info_.samplerate, " Hz, ", rate_, " expected, as the first");
    frames_of_stream_ = 0;
  }

  /// Opens a file that nobody knows at the first frames of MP3 in it, if there are any.
  bool open_late_mp3() {
    const auto begin = detail::find_mp3(range_);
    if (!begin) return false;
    range_ = {range_.descriptor, range_.begin + *begin, range_.size - *begin};
    auto plan = detail::read_mp3(path_, range_);
    if (!plan) return false;
    plan_ = std::move(*plan);
    plan_.is_whole = false;
    plan_.notes.push_back(text("its first ", *begin, " bytes are no frames of MP3"));
    open_stream();
    return true;
  }

  /// Notes what follows the samples of the header, if that may be sound: a twentieth of a second or more.
  void note_rest() {
    if (plan_.rest_bytes == 0 || plan_.sample_bytes == 0 || info_.frames <= 0) return;
    const double seconds = static_cast<double>(plan_.rest_bytes) / static_cast<double>(plan_.sample_bytes) *
                           static_cast<double>(info_.frames) / info_.samplerate;
    if (seconds < 0.05) return;
    plan_.is_whole = false;
    plan_.notes.push_back(text("after the samples that the header tells of follow ", plan_.rest_bytes,
                               " bytes that are not heard (", detail::shown_seconds(seconds), " if they are samples)"));
  }

  /// Goes to the beginning of a part.
  void go_to(AudioPart part) {
    part_ = part;
    Index before = static_cast<Index>(std::llround(part.offset * rate_));
    // What is damaged, or of several streams, is read up to there.
    const bool seeks = before > 0 && plan_.is_whole && plan_.streams.size() == 1 && info_.seekable != 0 &&
                       before < info_.frames && info_.frames != SF_COUNT_MAX;
    if (seeks && sf_seek(file_.get(), before, SEEK_SET) == before) {
      frames_of_stream_ = frames_read_ = std::exchange(before, 0);
    }
    while (before > 0) {
      next_block();
      require(!ended_, path_, ": an offset of ", part.offset, " s given, but it ends after ",
              detail::shown_seconds(static_cast<double>(frames_read_) / rate_));
      const auto skipped = std::min(before, static_cast<Index>(waiting_.size()));
      waiting_ = waiting_.subspan(static_cast<std::size_t>(skipped));
      before -= skipped;
    }
    if (part.duration == 0) return;
    const auto wanted = static_cast<Index>(std::llround(part.duration * rate_));
    waiting_ = waiting_.first(static_cast<std::size_t>(std::min(wanted, static_cast<Index>(waiting_.size()))));
    left_ = wanted - static_cast<Index>(waiting_.size());
  }

  /// Reads the next block of the file as `waiting_`, channels averaged, or ends.
  void next_block() {
    const auto channels = static_cast<std::size_t>(info_.channels);
    const std::size_t frames = std::max<std::size_t>(1, 65536 / channels);
    block_.resize(frames * channels);
    sf_count_t wanted = std::min<sf_count_t>(static_cast<sf_count_t>(frames), left_);
    // Beyond the end of a FLAC stream libsndfile would look for another frame.
    if ((info_.format & SF_FORMAT_TYPEMASK) == SF_FORMAT_FLAC && info_.frames > 0)
      wanted = std::min<sf_count_t>(wanted, info_.frames - frames_of_stream_);
    const sf_count_t count = wanted == 0 ? 0 : sf_readf_float(file_.get(), block_.data(), wanted);
    require(sf_error(file_.get()) == SF_ERR_NO_ERROR, path_, ": cannot read as audio after ", frames_read_,
            " samples: ", std::string_view(sf_strerror(file_.get())));
    if (count <= 0) {
      ended_ = left_ == 0 || !next_stream();
      require(!ended_ || frames_read_ > 0, path_, ": holds no samples");
      return;
    }
    const float scale = 1.0F / static_cast<float>(channels);
    const std::span<float> mono =
        std::span(block_).first(static_cast<std::size_t>(count));  // never ahead of what it averages
    for (std::size_t i = 0; i < mono.size(); ++i) {
      float sum = 0;
      for (std::size_t c = 0; c < channels; ++c) sum += block_[i * channels + c];
      require(std::isfinite(sum), path_, ": sample ", frames_read_ + static_cast<Index>(i), " is not a finite number");
      require(std::abs(sum) < 0x1p40F, path_, ": sample ", frames_read_ + static_cast<Index>(i), " is ", sum,
              ", 1 or less expected, or 2^31 or less where floats hold integers");
      mono[i] = channels == 1 ? sum : sum * scale;
    }
    waiting_ = mono;
    frames_read_ += count;
    frames_of_stream_ += count;
    if (left_ != no_limit) left_ -= count;
  }

  /// Looks whether all of a stream was heard, and opens the next one, if there is one.
  bool next_stream() {
    const detail::SoundStream& stream = plan_.streams[stream_];
    if (stream.seconds >= 0) {
      // Encoders pad, and a decoder may lose a frame at the end: less than a twentieth of a second is nothing.
      const double lost = stream.seconds - static_cast<double>(frames_of_stream_) / rate_;
      if (lost > 0.05) missing_seconds_ += lost;
    } else {
      require(info_.frames == SF_COUNT_MAX || frames_of_stream_ >= info_.frames, path_, ": cut short: the header says ",
              info_.frames, " samples, but ", frames_of_stream_, " could be read");
    }
    while (++stream_ < plan_.streams.size()) {
      try {
        open_stream();
        return true;
      } catch (const Unreadable&) {
        plan_.is_whole = false;
        if (unreadable_++ < 3)
          plan_.notes.push_back(text("stream ", stream_ + 1, " of ", plan_.streams.size(), " cannot be read as audio"));
      }
    }
    return false;
  }

  static constexpr Index no_limit = std::numeric_limits<Index>::max();

  std::string path_;
  detail::OpenFile opened_;  // for as long as input_ reads from it
  detail::SoundRange range_;
  detail::SoundPlan plan_;
  std::size_t stream_ = 0, unreadable_ = 0;
  SF_INFO info_{};
  std::unique_ptr<detail::SoundInput> input_;
  detail::SoundFile file_{nullptr, sf_close};
  int rate_ = 0, sample_rate_ = 0;  // of the file, and of what is read, in Hz
  AudioPart part_;
  Index left_ = no_limit;  // frames of the part that have not been read
  std::optional<detail::Resampler> resampler_;
  std::vector<float> block_;
  std::span<const float> waiting_;  // mono samples of block_ that nobody has read yet
  Index frames_read_ = 0, frames_of_stream_ = 0;
  double missing_seconds_ = 0;
  bool ended_ = false;
};

/// Reads all of an audio file, or a part, as `AudioReader` does, with the same errors. `note` gets what was converted
/// and what was not heard, or "". Throws `Error` also for more than `max_audio_samples`. May be called from several
/// threads. Allocates.
inline Audio read_audio(const std::filesystem::path& path, int sample_rate = 0, std::string* note = nullptr,
                        AudioPart part = {}) {
  AudioReader reader(path, sample_rate, part);
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
  audio.is_whole = reader.is_whole();
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
