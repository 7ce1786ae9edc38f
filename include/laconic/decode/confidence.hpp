// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/enum.hpp>

namespace laconic {
inline namespace LACONIC_ABI {

/// Says how confident a frame is in its likeliest class.
enum class ConfidenceMeasure {
  max_probability,  ///< the probability of the class
  entropy           ///< 1 - H / log(classes), H the entropy of the frame: 0 for even odds, 1 for certainty
};
/// Names the values of ConfidenceMeasure.
constexpr auto enum_names(ConfidenceMeasure) {
  return std::to_array<EnumName<ConfidenceMeasure>>(
      {{ConfidenceMeasure::max_probability, "max-probability"}, {ConfidenceMeasure::entropy, "entropy"}});
}

}  // namespace LACONIC_ABI
}  // namespace laconic
