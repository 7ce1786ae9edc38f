// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/error.hpp>
#include <laconic/core/extent.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <deque>
#include <numeric>
#include <span>

namespace laconic {
inline namespace LACONIC_ABI {

/// Measures the level of sound in steps of 10 ms while samples come, and says which steps are silent: nearer to the
/// level of the background than to that of speech. These are the 10% and 90% quantiles of levels, of which those of ten
/// seconds before count a third; a step is judged by the quantiles ten seconds after it, or the last ones. Digital
/// silence counts only where the rest has no contrast. Keeps the last two minutes.
class SpeechLevel {
 public:
  static constexpr double step = 0.01;  ///< seconds of a step

  /// Begins at time 0. `sample_rate` in Hz. Throws `Error` for a rate below 100 Hz.
  explicit SpeechLevel(int sample_rate) : sample_rate_(sample_rate) {
    require(sample_rate >= 100, "speech level: a sample rate of ", sample_rate, " Hz given, at least 100 Hz expected");
  }

  /// Takes samples in [-1, 1]. Allocates one number a step.
  void push(std::span<const float> samples) {
    for (const float x : samples) {
      sum_ += x;
      squares_ += static_cast<double>(x) * x;
      ++in_step_;
      if (++samples_ * 100 >= (steps() + 1) * sample_rate_) end_step();
    }
  }
  /// Forgets the steps before this time, in seconds.
  void forget_before(double seconds) {
    while (first_ < step_at(seconds) && !levels_.empty()) forget_first();
  }

  /// Returns the number of whole steps so far.
  Index steps() const { return first_ + static_cast<Index>(levels_.size()); }
  /// Returns the step in which a time lies.
  static Index step_at(double seconds) { return static_cast<Index>(std::floor(seconds / step + 1e-6)); }
  /// Returns the level of a step in dB, 0 dB being that of samples of 1; the lowest one if the step is forgotten or to
  /// come.
  double level(Index i) const {
    return i < first_ || i >= steps() ? lowest : levels_[static_cast<std::size_t>(i - first_)];
  }
  /// Says whether a step is silent. Steps that are forgotten or to come are.
  bool is_silent(Index i) const {
    if (i < first_ || i >= steps()) return true;
    const Index judged = std::min(i + 10 * per_threshold, steps() - 1) / per_threshold - first_threshold_;
    return level(i) < thresholds_[static_cast<std::size_t>(std::max<Index>(judged, 0))];
  }

 private:
  static constexpr double lowest = -90;         // dB: half a bit of 16
  static constexpr double least_contrast = 15;  // dB between the levels
  static constexpr double keeps = 0.999;        // part of a count that is left after a step
  static constexpr Index per_threshold = 100;   // steps
  static constexpr std::size_t most = 12000;    // steps

  void end_step() {
    const auto n = static_cast<double>(in_step_);
    const double mean = sum_ / n, power = std::max(0.0, squares_ / n - mean * mean);
    const double level = std::clamp(10 * std::log10(power + 1e-12), lowest, 0.0);
    for (double& one : counts_) one *= keeps;
    counts_[static_cast<std::size_t>(level - lowest)] += 1;
    const Index at = steps() / per_threshold - first_threshold_;
    levels_.push_back(level);
    if (levels_.size() > most) forget_first();
    const double threshold = threshold_of_counts();
    if (at < static_cast<Index>(thresholds_.size()))
      thresholds_.back() = threshold;
    else
      thresholds_.push_back(threshold);
    sum_ = squares_ = 0;
    in_step_ = 0;
  }
  void forget_first() {
    levels_.pop_front();
    ++first_;
    while (first_threshold_ < first_ / per_threshold && thresholds_.size() > 1) {
      thresholds_.pop_front();
      ++first_threshold_;
    }
  }
  double threshold_of_counts() const {
    double background = quantile(0.1, 1), speech = quantile(0.9, 1);
    if (speech - background < least_contrast) {  // no background but digital silence
      background = quantile(0.1, 0);
      speech = quantile(0.9, 0);
    }
    return background + std::max(6.0, 0.2 * (speech - background));
  }
  /// Returns the level in dB below which this part of the counts is, of those from index `first` on.
  double quantile(double part, std::size_t first) const {
    const double wanted =
        part * std::accumulate(counts_.begin() + static_cast<std::ptrdiff_t>(first), counts_.end(), 0.0);
    double sum = 0;
    std::size_t i = first;
    while (i + 1 < counts_.size() && sum + counts_[i] <= wanted) sum += counts_[i++];
    return lowest + static_cast<double>(i);
  }

  Index sample_rate_, samples_ = 0, in_step_ = 0, first_ = 0, first_threshold_ = 0;
  double sum_ = 0, squares_ = 0;
  std::deque<double> levels_,        // dB, from step first_ on
      thresholds_;                   // dB, of each second from first_threshold_ on
  std::array<double, 91> counts_{};  // steps by level, in steps of 1 dB
};

}  // namespace LACONIC_ABI
}  // namespace laconic
