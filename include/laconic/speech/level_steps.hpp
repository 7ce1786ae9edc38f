// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/extent.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <numbers>
#include <utility>

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

/// Measures the level of sound in steps of 10 ms while samples come, in dB, 0 dB being that of samples of 1.
class LevelSteps {
 public:
  static constexpr double lowest = -90;  ///< dB: half a bit of 16

  /// Begins at time 0. `sample_rate` in Hz.
  explicit LevelSteps(int sample_rate) : sample_rate_(sample_rate) {}
  /// Takes a sample in [-1, 1]. Returns true if it ends a step, whose level is then `level()`.
  bool push(float x) {
    sum_ += x;
    squares_ += static_cast<double>(x) * x;
    ++in_step_;
    if (++samples_ * 100 < (steps_ + 1) * sample_rate_) return false;
    const auto n = static_cast<double>(in_step_);
    const double mean = sum_ / n, power = std::max(0.0, squares_ / n - mean * mean);
    level_ = std::clamp(10 * std::log10(power + 1e-12), lowest, 0.0);
    sum_ = squares_ = 0;
    in_step_ = 0;
    ++steps_;
    return true;
  }
  /// Returns the level of the step that ended last.
  double level() const { return level_; }

 private:
  Index sample_rate_, samples_ = 0, in_step_ = 0, steps_ = 0;
  double sum_ = 0, squares_ = 0, level_ = lowest;
};

/// Measures the levels of octaves around 200, 400, 800, 1600, 3200 and 6400 Hz while samples come, in dB as
/// `LevelSteps` does, which says where steps end.
class BandSteps {
 public:
  static constexpr std::size_t bands = 6;
  using Levels = std::array<float, bands>;

  /// Begins at time 0. `sample_rate` in Hz. Octaves whose middle is above 0.4 of it stay at the lowest level.
  explicit BandSteps(int sample_rate) {
    levels_.fill(LevelSteps::lowest);
    for (double middle = 200; middle <= 0.4 * sample_rate && count_ < bands; middle *= 2)
      filters_[count_++] = Filter(middle / sample_rate);
  }
  /// Returns the number of octaves that are measured: the first ones.
  std::size_t count() const { return count_; }
  /// Takes a sample in [-1, 1].
  void push(float x) {
    for (std::size_t i = 0; i < count_; ++i) filters_[i].push(x);
    ++in_step_;
  }
  /// Ends a step of one sample or more, whose level is `level`, and returns its levels. No octave is louder than the
  /// whole: a filter rings when a sound has ended.
  const Levels& end_step(double level) {
    for (std::size_t i = 0; i < count_; ++i) {
      const double power = filters_[i].end_step() / static_cast<double>(in_step_);
      levels_[i] = static_cast<float>(std::clamp(10 * std::log10(power + 1e-12), LevelSteps::lowest, level));
    }
    in_step_ = 0;
    return levels_;
  }

 private:
  /// Passes a band an octave wide: the band-pass filter of R. Bristow-Johnson's Audio EQ Cookbook, 0 dB in its middle.
  struct Filter {
    Filter() = default;
    /// `middle` is in cycles a sample.
    explicit Filter(double middle) {
      constexpr double q = std::numbers::sqrt2;  // middle over width: an octave
      const double w = 2 * std::numbers::pi * middle, alpha = std::sin(w) / (2 * q);
      gain = alpha / (1 + alpha);
      a1 = -2 * std::cos(w) / (1 + alpha);
      a2 = (1 - alpha) / (1 + alpha);
    }
    void push(double x) {
      const double y = gain * x + s1;
      s1 = s2 - a1 * y;
      s2 = -gain * x - a2 * y;
      squares += y * y;
    }
    /// Returns the sum of squares since the last step; 0 if a sample was NaN.
    double end_step() {
      // Digital silence would end in denormal numbers, which are slow, and a sample that is not finite would stay.
      if (!(squares > 1e-30 && squares < 1e30)) s1 = s2 = 0;
      return std::max(0.0, std::exchange(squares, 0.0));
    }
    double gain = 0, a1 = 0, a2 = 0, s1 = 0, s2 = 0, squares = 0;
  };

  std::array<Filter, bands> filters_;
  Levels levels_{};
  std::size_t count_ = 0;  // bands below the limit
  Index in_step_ = 0;      // samples
};

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
