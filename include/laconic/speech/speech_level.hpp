// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/error.hpp>
#include <laconic/core/extent.hpp>
#include <laconic/speech/level_steps.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <deque>
#include <numeric>
#include <span>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

namespace detail {

/// Counts levels, of which those of ten seconds before count a third, and says which ones are silent.
class LevelCounts {
 public:
  /// Holds levels in dB.
  struct Thresholds {
    double silence,  ///< below is silent
        noise;       ///< below is silent if it is steady
    /// Says whether a step is silent. `floor` returns the level of the quietest 50 ms around; it is called if needed.
    bool is_silent(double level, auto&& floor) const {
      return level < silence || (level < noise && level < floor() + steady);
    }
  };

  /// Takes the level of a step, `times` times.
  void push(double level, double times = 1) {
    for (double& one : counts_) one *= keeps;
    counts_[static_cast<std::size_t>(level - LevelSteps::lowest)] += times;
  }
  /// Returns the thresholds by the levels so far.
  Thresholds thresholds() const {
    const Quantiles found = quantiles();
    const double background = std::floor(found.background), contrast = std::floor(found.speech) - background;
    return {background + std::max(6.0, 0.2 * contrast), background + 0.45 * contrast};
  }
  /// Holds levels in dB.
  struct Quantiles {
    double background,  ///< a tenth of the levels are below
        noise,          ///< 30% are below
        speech;         ///< 90% are below
  };
  /// Returns quantiles of the levels so far. Digital silence counts only where the rest has no contrast.
  Quantiles quantiles() const {
    const std::size_t first = std::floor(quantile(0.9, 1)) - std::floor(quantile(0.1, 1)) < least_contrast ? 0 : 1;
    return {quantile(0.1, first), quantile(0.3, first), quantile(0.9, first)};
  }

 private:
  static constexpr double least_contrast = 15,  // dB between the levels
      keeps = 0.999,                            // part of a count that is left after a step
      steady = 2;                               // dB above the floor

  /// Returns the level in dB below which this part of the counts is, of those from index `first` on. The levels of a
  /// count are taken as evenly spread over its dB.
  double quantile(double part, std::size_t first) const {
    const double wanted =
        part * std::accumulate(counts_.begin() + static_cast<std::ptrdiff_t>(first), counts_.end(), 0.0);
    double sum = 0;
    std::size_t i = first;
    while (i + 1 < counts_.size() && sum + counts_[i] <= wanted) sum += counts_[i++];
    const double within = counts_[i] > 0 ? std::min(0.999, (wanted - sum) / counts_[i]) : 0;
    return LevelSteps::lowest + static_cast<double>(i) + within;
  }

  std::array<double, 91> counts_{};  // steps by level, in steps of 1 dB
};

/// Returns the level of the quietest 50 ms among the steps from `begin` to before `end`, of which `level(i)` is known.
double quietest(Index begin, Index end, auto&& level) {
  double floor = 0;
  for (Index middle = begin; middle < end; ++middle) {
    const Index first = std::max(middle - 2, begin), last = std::min(middle + 3, end);
    double sum = 0;
    for (Index j = first; j < last; ++j) sum += level(j);
    floor = std::min(floor, sum / static_cast<double>(last - first));
  }
  return floor;
}

}  // namespace detail

/// Measures the level of sound in steps of 10 ms while samples come, and says which steps are silent: nearer to the
/// level of the background than to that of speech. These are the 10% and 90% quantiles of levels, of which those of ten
/// seconds before count a third; a step is judged by the quantiles ten seconds after it, or the last ones. Digital
/// silence counts only where the rest has no contrast. Where the background is louder than its quantile, steady sound
/// is silence, too: steps within 2 dB of the quietest 50 ms that are within 0.1 s, if nearer to the background than to
/// speech. Speech is seldom so steady. (Minima follow a noise floor in Martin 2001, "Noise Power Spectral Density
/// Estimation Based on Optimal Smoothing and Minimum Statistics".) Keeps the last twenty minutes, 4 MB.
class SpeechLevel {
 public:
  static constexpr double step = 0.01;  ///< seconds of a step

  /// Begins at time 0. `sample_rate` in Hz. Throws `Error` for a rate below 100 Hz.
  explicit SpeechLevel(int sample_rate) : levels_of_(sample_rate), bands_of_(sample_rate) {
    require(sample_rate >= 100, "speech level: a sample rate of ", sample_rate, " Hz given, at least 100 Hz expected");
  }

  /// Takes samples in [-1, 1]. Allocates, 32 bytes a step.
  void push(std::span<const float> samples) {
    for (const float x : samples) {
      bands_of_.push(x);
      if (levels_of_.push(x)) take_level(levels_of_.level(), bands_of_.end_step(levels_of_.level()));
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
    return i < first_ || i >= steps() ? detail::LevelSteps::lowest : levels_[static_cast<std::size_t>(i - first_)];
  }
  /// Says whether a step is silent. Steps to come are, forgotten ones are not.
  bool is_silent(Index i) const {
    if (i < first_) return false;
    if (i >= steps()) return true;
    const Index judged = std::min(i + 10 * per_threshold, steps() - 1) / per_threshold - first_threshold_;
    return thresholds_[static_cast<std::size_t>(std::max<Index>(judged, 0))].is_silent(level(i), [&] {
      return detail::quietest(std::max(i - 12, first_), std::min(i + 13, steps()), [&](Index j) { return level(j); });
    });
  }
  /// Returns the part of a silence in which no octave stands out: a weak "s" is hidden below a hum of the same level,
  /// but not in its own octaves. Up to 0.3 s at either end are speech as long as an octave is above its floor, by 3 dB
  /// where speech fades, and by 4 dB where it begins. The floor is the 40% quantile of the octave in the silence,
  /// within a second from that end. A silence of which less than 30 ms are left is returned whole. Allocates.
  Range without_weak_speech(Range silence) const {
    const Index begin = std::max(silence.begin, first_), end = std::min(silence.end, steps());
    if (end - begin < shortest) return silence;
    Range out = silence;
    if (begin == silence.begin) {
      const Bands floor = floor_of({begin, std::min(begin + near, end)});
      const Index last = std::min(begin + weak, end);
      while (out.begin < last && stands_out(out.begin, floor, 3)) ++out.begin;
    }
    if (end == silence.end) {
      const Bands floor = floor_of({std::max(end - near, begin), end});
      const Index first = std::max(end - weak, out.begin);
      while (out.end > first && stands_out(out.end - 1, floor, 4)) --out.end;
    }
    return out.size() < shortest ? silence : out;
  }

 private:
  // In steps: silences, the speech that one may hold at either end, and how far from there its floor is measured.
  static constexpr Index shortest = 3, weak = 30, near = 100;
  static constexpr Index per_threshold = 100;  // steps
  static constexpr std::size_t most = 120000;  // steps

  using Bands = detail::BandSteps::Levels;

  /// Returns the mean level of an octave in three steps around i, which is known.
  float octave(Index i, std::size_t which) const {
    const Index begin = std::max(i - 1, first_), end = std::min(i + 2, steps());
    float sum = 0;
    for (Index j = begin; j < end; ++j) sum += bands_[static_cast<std::size_t>(j - first_)][which];
    return sum / static_cast<float>(end - begin);
  }
  /// Returns the floor of each octave among these steps, which are known.
  Bands floor_of(Range among) const {
    Bands out{};
    std::vector<float> values(static_cast<std::size_t>(among.size()));
    const std::size_t at = values.size() * 2 / 5;
    for (std::size_t which = 0; which < out.size(); ++which) {
      for (Index i = among.begin; i < among.end; ++i)
        values[static_cast<std::size_t>(i - among.begin)] = octave(i, which);
      std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(at), values.end());
      out[which] = values[at];
    }
    return out;
  }
  /// Says whether an octave of step i, which is known, is so many dB above its floor.
  bool stands_out(Index i, const Bands& floor, float decibels) const {
    for (std::size_t which = 0; which < floor.size(); ++which)
      if (octave(i, which) > floor[which] + decibels) return true;
    return false;
  }
  void take_level(double level, const Bands& bands) {
    counts_.push(level);
    const Index at = steps() / per_threshold - first_threshold_;
    levels_.push_back(level);
    bands_.push_back(bands);
    if (levels_.size() > most) forget_first();
    const auto now = counts_.thresholds();
    if (at < static_cast<Index>(thresholds_.size()))
      thresholds_.back() = now;
    else
      thresholds_.push_back(now);
  }
  void forget_first() {
    levels_.pop_front();
    bands_.pop_front();
    ++first_;
    while (first_threshold_ < first_ / per_threshold && thresholds_.size() > 1) {
      thresholds_.pop_front();
      ++first_threshold_;
    }
  }

  detail::LevelSteps levels_of_;
  detail::BandSteps bands_of_;
  detail::LevelCounts counts_;
  Index first_ = 0, first_threshold_ = 0;
  std::deque<double> levels_;                               // dB, from step first_ on
  std::deque<Bands> bands_;                                 // dB, likewise
  std::deque<detail::LevelCounts::Thresholds> thresholds_;  // of each second from first_threshold_ on
};

}  // namespace LACONIC_ABI
}  // namespace laconic
