// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/enum.hpp>
#include <laconic/core/error.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>

namespace laconic {
inline namespace LACONIC_ABI {

/// How the learning rate falls after its linear warm-up.
enum class Decay {
  cosine,  ///< along half a cosine to a hundredth at the last step (Loshchilov and Hutter 2017)
  noam,    ///< with the inverse square root of the step (Vaswani et al. 2017, equation 3; the peak is given directly)
};
constexpr auto enum_names(Decay) {
  return std::to_array<EnumName<Decay>>({{Decay::cosine, "cosine"}, {Decay::noam, "noam"}});
}

/// Learning rate by step: from 0 to `peak` in `warmup_steps`, then down.
struct Schedule {
  double peak = 1e-3;
  std::int64_t warmup_steps = 100;
  Decay decay = Decay::cosine;
  std::int64_t total_steps = 1000;  ///< where the cosine ends; Noam has no end

  static constexpr void fields(auto& self, auto&& visit) {
    visit("peak", self.peak);
    visit("warmup_steps", self.warmup_steps);
    visit("decay", self.decay);
    visit("total_steps", self.total_steps);
  }

  /// The rate of step `step`, counted from 1.
  double operator()(std::int64_t step) const {
    const double s = static_cast<double>(step), w = static_cast<double>(std::max<std::int64_t>(1, warmup_steps));
    if (step <= warmup_steps) return peak * s / w;
    if (decay == Decay::noam) return peak * std::sqrt(w / s);
    const double left = std::max(1.0, static_cast<double>(total_steps - warmup_steps));
    const double progress = std::clamp((s - w) / left, 0.0, 1.0);
    return peak * (0.01 + 0.99 * 0.5 * (1 + std::cos(std::numbers::pi * progress)));
  }
};

}  // namespace LACONIC_ABI
}  // namespace laconic
