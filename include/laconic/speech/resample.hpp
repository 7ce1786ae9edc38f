// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <samplerate.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <laconic/core/error.hpp>
#include <laconic/core/extent.hpp>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

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
    // libsamplerate calls it an overlap where the end of a signal that was taken is the beginning of `out`.
    static constexpr float nothing[2]{};
    std::size_t written = 0;
    for (bool moves = true; moves && written < out.size();) {
      SRC_DATA job{};
      job.data_in = in.empty() ? nothing + 1 : in.data();
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

}  // namespace LACONIC_ABI
}  // namespace laconic
