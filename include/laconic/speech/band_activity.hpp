// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/extent.hpp>
#include <laconic/speech/level_steps.hpp>
#include <laconic/speech/speech_level.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

/// Says which steps of 10 ms are sound and which are background, by the octaves of `BandSteps` and what came before.
/// Each octave counts by how far its level, over 30 ms, is above its background, in units of how much the background
/// varies: between its 10% and 30% quantiles, 1 to 3 dB, and at least 8% of its contrast. In white noise speech stands
/// out from a few octaves long before it does from the whole; in noise of many voices, which varies, more is needed.
/// (Sohn, Kim and Sung 1999, "A Statistical Model-Based Voice Activity Detection", averages bands by the likelihood
/// ratio of steady noise, which takes voices in the background for speech.) Memory is fixed.
class BandActivity {
 public:
  /// Begins at time 0. `sample_rate` in Hz, at least 500. The octaves of the background are taken to be at -65 dB until
  /// half a second has come.
  explicit BandActivity(int sample_rate) : levels_of_(sample_rate), bands_of_(sample_rate) {
    for (LevelCounts& one : background_) one.push(-65, 5);  // a tenth of the levels for 0.45 s
  }
  /// Takes a sample in [-1, 1]. Returns true if it ends a step, of which `sounds()` then speaks.
  bool push(float x) {
    bands_of_.push(x);
    if (!levels_of_.push(x)) return false;
    const BandSteps::Levels& levels = bands_of_.end_step(levels_of_.level());
    double sum = 0;
    for (std::size_t i = 0; i < bands_of_.count(); ++i) sum += excess(i, levels[i]);
    sounds_ = sum > least_excess * static_cast<double>(bands_of_.count());
    ++steps_;
    return true;
  }
  /// Says whether the step that ended last is sound.
  bool sounds() const { return sounds_; }

 private:
  static constexpr std::size_t together = 3;   // steps whose mean power is a level
  static constexpr double least_excess = 1.4;  // mean over octaves that is sound

  /// Takes the level of an octave in a step and returns how far it is beyond its background, in units of its variation.
  double excess(std::size_t i, double level) {
    powers_[i][steps_ % together] = std::pow(10, level / 10);
    double power = 0;
    for (const double one : powers_[i]) power += one / static_cast<double>(std::min(steps_ + 1, together));
    level = std::clamp(10 * std::log10(power), LevelSteps::lowest, 0.0);
    background_[i].push(level);
    const LevelCounts::Quantiles found = background_[i].quantiles();
    const double varies =
        std::max(std::clamp(found.noise - found.background, 1.0, 3.0), 0.08 * (found.speech - found.background));
    return std::max(0.0, (level - found.background) / varies - 1);
  }

  LevelSteps levels_of_;
  BandSteps bands_of_;
  std::array<LevelCounts, BandSteps::bands> background_;
  std::array<std::array<double, together>, BandSteps::bands> powers_{};  // of the last steps
  std::size_t steps_ = 0;
  bool sounds_ = false;
};

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
