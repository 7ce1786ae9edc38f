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

/// Names how the learning rate falls after its linear warm-up.
enum class Decay {
  cosine,  ///< along half a cosine to a hundredth at the last step (Loshchilov and Hutter 2017)
  noam,    ///< with the inverse square root of the step (Vaswani et al. 2017, equation 3; the peak is given directly)
};
/// Names the values of Decay.
constexpr auto enum_names(Decay) {
  return std::to_array<EnumName<Decay>>({{Decay::cosine, "cosine"}, {Decay::noam, "noam"}});
}

/// Computes the learning rate of a step: linear from 0 to `peak` in `warmup_steps`, then falling.
struct Schedule {
  double peak = 1e-3;               ///< highest learning rate
  std::int64_t warmup_steps = 100;  ///< steps of linear growth
  Decay decay = Decay::cosine;      ///< how it falls afterwards
  std::int64_t total_steps = 1000;  ///< the step at which the cosine ends; Noam has no end

  /// Lists the members for JSON.
  static constexpr void fields(auto& self, auto&& visit) {
    visit("peak", self.peak);
    visit("warmup_steps", self.warmup_steps);
    visit("decay", self.decay);
    visit("total_steps", self.total_steps);
  }

  /// Returns the learning rate of step `step`, counted from 1.
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
