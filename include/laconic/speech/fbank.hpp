// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <kiss_fft.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <laconic/core/matrix.hpp>
#include <limits>
#include <memory>
#include <numbers>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Holds the settings of log-mel features. The defaults are Kaldi's with 80 channels.
struct FbankConfig {
  int sample_rate = 16000;      ///< in Hz
  int num_mels = 80;            ///< number of channels
  double frame_length_ms = 25,  ///< length of a frame
      frame_shift_ms = 10;      ///< time from one frame to the next
  double low_hz = 20,           ///< low end of the band
      high_hz = 0;              ///< high end of the band; 0 or less counts down from the Nyquist frequency
  double preemphasis = 0.97;    ///< 0 to 1; x[i] - preemphasis x[i - 1]

  /// Lists the members for JSON.
  static constexpr void fields(auto& self, auto&& visit) {
    visit("sample_rate", self.sample_rate);
    visit("num_mels", self.num_mels);
    visit("frame_length_ms", self.frame_length_ms);
    visit("frame_shift_ms", self.frame_shift_ms);
    visit("low_hz", self.low_hz);
    visit("high_hz", self.high_hz);
    visit("preemphasis", self.preemphasis);
  }
  /// Says whether two configurations are equal.
  friend bool operator==(const FbankConfig&, const FbankConfig&) = default;
};

/// Computes log-mel filterbank features as Kaldi and torchaudio.compliance.kaldi.fbank do, without dither and with
/// `snip_edges`: only frames that lie wholly inside the signal. For each frame: subtract the mean, preemphasis, Povey
/// window (Hann to the power 0.85), zeros up to a power of two, power spectrum, triangles that are even on the mel
/// scale 1127 ln(1 + f / 700) (the Nyquist bin belongs to none), natural log of the energy, at least ln(2^-23). The
/// constructor makes all tables; calls may come from several threads, and copies share the transform's plan.
class Fbank {
 public:
  /// Throws `Error` for a configuration that makes no sense, such as more channels than a frame can resolve. Allocates.
  explicit Fbank(const FbankConfig& config) : config_(config) {
    require(config.sample_rate > 0 && config.sample_rate <= 10'000'000, "fbank: sample_rate ", config.sample_rate,
            " Hz given, 1 to 10000000 expected");
    require(config.num_mels > 0 && config.num_mels <= 4096, "fbank: num_mels ", config.num_mels,
            " given, 1 to 4096 expected");
    require(std::isfinite(config.preemphasis) && config.preemphasis >= 0 && config.preemphasis <= 1,
            "fbank: preemphasis ", config.preemphasis, " given, 0 to 1 expected");
    const Index frame = samples_in(config.frame_length_ms, "frame_length_ms");
    shift_ = samples_in(config.frame_shift_ms, "frame_shift_ms");
    require(frame >= 2, "fbank: frame_length_ms ", config.frame_length_ms, " is ", frame,
            " samples, at least 2 expected");
    const auto fft = std::max<std::size_t>(4, std::bit_ceil(static_cast<std::size_t>(frame)));

    for (Index i = 0; i < frame; ++i) {
      const double hann =
          0.5 - 0.5 * std::cos(2 * std::numbers::pi * static_cast<double>(i) / static_cast<double>(frame - 1));
      window_.push_back(static_cast<float>(std::pow(hann, 0.85)));
    }
    for (std::size_t k = 0; k < fft / 2; ++k) {
      const double angle = 2 * std::numbers::pi * static_cast<double>(k) / static_cast<double>(fft);
      twiddles_.push_back({static_cast<float>(-std::sin(angle)), static_cast<float>(-std::cos(angle))});
    }
    plan_ = {kiss_fft_alloc(static_cast<int>(fft / 2), 0, nullptr, nullptr),
             [](kiss_fft_cfg plan) { kiss_fft_free(plan); }};
    require(plan_ != nullptr, "fbank: no memory for a transform of ", fft, " samples");
    make_filters(fft);
  }

  /// Returns the settings.
  const FbankConfig& config() const { return config_; }

  /// Returns the number of samples from one frame to the next.
  Index frame_shift() const { return shift_; }
  /// Returns the number of frames of a signal, 0 if it is shorter than a frame.
  Index num_frames(Index num_samples) const {
    const auto frame = static_cast<Index>(window_.size());
    return num_samples < frame ? 0 : 1 + (num_samples - frame) / shift_;
  }

  /// Returns the features `(frames, num_mels)` of samples in [-1, 1] at the configured rate. Allocates the result and
  /// the scratch memory of a frame.
  Matrix<float> operator()(std::span<const float> samples) const {
    static_assert(std::is_same_v<kiss_fft_scalar, float>, "laconic: kissfft must be built for float");
    Matrix<float> features(num_frames(static_cast<Index>(samples.size())), config_.num_mels);
    const std::size_t half = twiddles_.size();
    std::vector<kiss_fft_cpx> frame(half), transform(half);
    std::vector<float> power(half);
    for (Index t = 0; t < features.rows(); ++t) {
      load(samples.subspan(static_cast<std::size_t>(t * shift_), window_.size()), frame);
      kiss_fft(plan_.get(), frame.data(), transform.data());
      power_spectrum(transform, power);
      for (std::size_t m = 0; m < filters_.size(); ++m)
        features(t, static_cast<Index>(m)) = log_energy(filters_[m], power);
    }
    return features;
  }

 private:
  /// Holds the weights of the bins `first`, `first + 1` ...
  struct Filter {
    std::size_t first = 0;
    std::vector<float> weights;
  };

  /// Returns a duration in samples. Throws `Error`, naming the setting, if it is too short or too long.
  Index samples_in(double ms, const char* name) const {
    const double samples = config_.sample_rate * ms * 0.001;  // rounded as torchaudio does
    require(samples >= 1 && samples <= 1 << 20, "fbank: ", name, ' ', ms, " given, which is ", samples,
            " samples; 1 to ", 1 << 20, " expected");
    return static_cast<Index>(samples);
  }

  /// Returns a frequency on the mel scale.
  static double mel(double hz) { return 1127 * std::log(1 + hz / 700); }

  /// Computes the triangles of all channels. Throws `Error` for a band outside 0 to Nyquist and for channels without a
  /// bin.
  void make_filters(std::size_t fft) {
    const double nyquist = 0.5 * config_.sample_rate, low = config_.low_hz;
    const double high = config_.high_hz > 0 ? config_.high_hz : nyquist + config_.high_hz;
    require(low >= 0 && low < high && high <= nyquist, "fbank: a band from ", low, " to ", high,
            " Hz, 0 <= low < high <= ", nyquist, " expected");
    const double delta = (mel(high) - mel(low)) / (config_.num_mels + 1);
    std::size_t begin = 0;  // first bin of the current channel; later channels have none below it
    for (int m = 0; m < config_.num_mels; ++m) {
      const double left = mel(low) + m * delta;
      Filter filter;
      for (std::size_t k = begin; k < fft / 2; ++k) {
        const double up = (mel(static_cast<double>(k) * config_.sample_rate / static_cast<double>(fft)) - left) / delta;
        const auto weight = static_cast<float>(std::min(up, 2 - up));
        if (weight <= 0 && filter.weights.empty()) continue;
        if (weight <= 0) break;
        if (filter.weights.empty()) filter.first = begin = k;
        filter.weights.push_back(weight);
      }
      require(!filter.weights.empty(), "fbank: mel channel ", m, " of ", config_.num_mels,
              " has no frequency of the transform of ", fft, " samples: fewer channels or longer frames expected");
      filters_.push_back(std::move(filter));
    }
  }

  /// Subtracts the mean, applies preemphasis and window. The zeros after the frame stay from the start.
  void load(std::span<const float> samples, std::span<kiss_fft_cpx> frame) const {
    double sum = 0;
    for (const float x : samples) sum += x;
    const auto mean = static_cast<float>(sum / static_cast<double>(samples.size()));
    const auto c = static_cast<float>(config_.preemphasis);
    float* out = &frame[0].r;  // as floats: real parts hold even samples, imaginary parts odd ones
    out[0] = 0;                // the window begins with 0
    for (std::size_t i = 1; i < samples.size(); ++i)
      out[i] = (samples[i] - mean - c * (samples[i - 1] - mean)) * window_[i];
  }

  /// Computes |X|^2 of the real signal x from the transform Z of x[2n] + i x[2n+1], half as long:
  /// X[k] = (Z[k] + Z*[-k]) / 2 - i exp(-2 pi i k / N) (Z[k] - Z*[-k]) / 2.
  /// kissfft's own (kiss_fftr) does the same with scratch memory inside the plan, so that threads could not share it.
  void power_spectrum(std::span<const kiss_fft_cpx> z, std::span<float> power) const {
    power[0] = 0;  // 0 Hz is in no triangle: the band begins there or above
    for (std::size_t k = 1; k < z.size(); ++k) {
      const kiss_fft_cpx a = z[k], b = z[z.size() - k], t = twiddles_[k];
      const float odd_r = a.r - b.r, odd_i = a.i + b.i;
      const float r = 0.5F * (a.r + b.r + t.r * odd_r - t.i * odd_i);
      const float i = 0.5F * (a.i - b.i + t.r * odd_i + t.i * odd_r);
      power[k] = r * r + i * i;
    }
  }

  /// Returns the log energy of one channel.
  static float log_energy(const Filter& filter, std::span<const float> power) {
    float energy = 0;
    for (std::size_t i = 0; i < filter.weights.size(); ++i) energy += filter.weights[i] * power[filter.first + i];
    return std::log(std::max(energy, std::numeric_limits<float>::epsilon()));
  }

  FbankConfig config_;
  Index shift_ = 0;
  std::vector<float> window_;
  std::vector<kiss_fft_cpx> twiddles_;  // -i exp(-2 pi i k / N)
  std::vector<Filter> filters_;
  std::shared_ptr<kiss_fft_state> plan_;
};

}  // namespace LACONIC_ABI
}  // namespace laconic
