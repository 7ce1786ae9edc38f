// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/error.hpp>
#include <laconic/core/extent.hpp>

#include <algorithm>
#include <cmath>
#include <deque>
#include <span>

namespace laconic {
inline namespace LACONIC_ABI {

/// Measures the level of sound in steps of 10 ms while samples come, and says which steps are silent: nearer to the
/// level of the background than to that of speech. Both levels are followed: the background's falls at once and rises
/// by 1 dB a second, that of speech rises at once and falls by 1 dB a second.
class SpeechLevel {
 public:
  static constexpr double step = 0.01;  ///< seconds of a step

  /// Begins at time 0. `sample_rate` in Hz. Throws `Error` for a rate below 100 Hz.
  explicit SpeechLevel(int sample_rate) : per_step_(sample_rate / 100) {
    require(sample_rate >= 100, "speech level: a sample rate of ", sample_rate, " Hz given, at least 100 Hz expected");
  }

  /// Takes samples in [-1, 1]. Allocates one number a step.
  void push(std::span<const float> samples) {
    for (const float x : samples) {
      sum_ += x;
      squares_ += static_cast<double>(x) * x;
      if (++in_step_ == per_step_) end_step();
    }
  }
  /// Forgets the steps before this time, in seconds.
  void forget_before(double seconds) {
    while (first_ < step_at(seconds) && !levels_.empty()) {
      levels_.pop_front();
      ++first_;
    }
  }

  /// Returns the number of whole steps so far.
  Index steps() const { return first_ + static_cast<Index>(levels_.size()); }
  /// Returns the step in which a time lies.
  static Index step_at(double seconds) { return static_cast<Index>(std::floor(seconds / step + 1e-6)); }
  /// Says whether a step is silent. Steps that are forgotten or to come count as silent.
  bool is_silent(Index i) const { return level(i) < threshold(); }
  /// Returns the level in dB below which a step is silent. 0 dB is that of samples of 1.
  double threshold() const { return background_ + std::max(6.0, 0.3 * (speech_ - background_)); }
  /// Returns the level of a step in dB; that of a silent one if it is forgotten or to come.
  double level(Index i) const {
    return i < first_ || i >= steps() ? quietest : levels_[static_cast<std::size_t>(i - first_)];
  }
  /// Returns the seconds of silence that the samples so far end with.
  double silence() const {
    Index i = steps();
    while (i > first_ && is_silent(i - 1)) --i;
    return static_cast<double>(steps() - i) * step;
  }

 private:
  static constexpr double quietest = -90;   // dB: half a bit of 16
  static constexpr double rise = 1 * step;  // dB a step

  void end_step() {
    const auto n = static_cast<double>(per_step_);
    const double mean = sum_ / n, power = std::max(0.0, squares_ / n - mean * mean);
    const double level = std::max(quietest, 10 * std::log10(power + 1e-12));
    const bool first = steps() == 0;
    background_ = first ? level : std::min(level, background_ + rise);
    speech_ = first ? level : std::max(level, speech_ - rise);
    levels_.push_back(level);
    sum_ = squares_ = 0;
    in_step_ = 0;
  }

  Index per_step_, in_step_ = 0, first_ = 0;
  double sum_ = 0, squares_ = 0, background_ = 0, speech_ = 0;
  std::deque<double> levels_;  // dB, from step first_ on
};

}  // namespace LACONIC_ABI
}  // namespace laconic
