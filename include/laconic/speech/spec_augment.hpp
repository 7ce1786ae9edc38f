// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstdint>
#include <laconic/core/matrix.hpp>
#include <laconic/core/random.hpp>

namespace laconic {
inline namespace LACONIC_ABI {

/// Says how much SpecAugment hides. The defaults are WeNet's, with at most a fifth of an utterance under each time
/// mask.
struct SpecAugmentConfig {
  Index num_time_masks = 2,        ///< number of time masks
      max_time_width = 50;         ///< max width of a time mask in frames
  double max_time_fraction = 0.2;  ///< max width of a time mask as a fraction of the utterance
  Index num_freq_masks = 2,        ///< number of frequency masks
      max_freq_width = 10;         ///< max width of a frequency mask in channels

  /// Lists the members for JSON.
  static constexpr void fields(auto& self, auto&& visit) {
    visit("num_time_masks", self.num_time_masks);
    visit("max_time_width", self.max_time_width);
    visit("max_time_fraction", self.max_time_fraction);
    visit("num_freq_masks", self.num_freq_masks);
    visit("max_freq_width", self.max_freq_width);
  }
  /// Says whether two configurations are equal.
  friend bool operator==(const SpecAugmentConfig&, const SpecAugmentConfig&) = default;
};

/// Sets random spans of time and bands of frequency of one utterance's features `(frames, channels)` to 0, in place:
/// the mean, as features are normalised (Park et al. 2019, "SpecAugment", without time warping). Each mask has a width
/// uniform in 0 .. max and a position uniform among those that fit; masks may overlap. The same `random` gives the same
/// masks. Allocates nothing. Throws `Error` for negative numbers and a fraction outside 0 to 1.
inline void spec_augment(MatrixView<float> features, const SpecAugmentConfig& config, const Random& random) {
  require(config.num_time_masks >= 0 && config.max_time_width >= 0 && config.num_freq_masks >= 0 &&
              config.max_freq_width >= 0,
          "spec_augment: ", config.num_time_masks, " time masks up to ", config.max_time_width, " frames and ",
          config.num_freq_masks, " frequency masks up to ", config.max_freq_width,
          " channels given, at least 0 expected");
  require(config.max_time_fraction >= 0 && config.max_time_fraction <= 1, "spec_augment: max_time_fraction ",
          config.max_time_fraction, " given, 0 to 1 expected");
  if (features.size() == 0) return;
  std::uint64_t draw = 0;
  const auto hide = [&](Index masks, Index size, Index widest, auto&& clear) {
    for (Index i = 0; i < masks; ++i) {
      const Index width = random.below(std::min(widest, size) + 1, draw++);
      const Index start = random.below(size - width + 1, draw++);
      clear(start, width);
    }
  };
  const auto fraction = static_cast<Index>(config.max_time_fraction * static_cast<double>(features.rows()));
  hide(config.num_time_masks, features.rows(), std::min(config.max_time_width, fraction),
       [&](Index start, Index width) { features.middleRows(start, width).setZero(); });
  hide(config.num_freq_masks, features.cols(), config.max_freq_width,
       [&](Index start, Index width) { features.middleCols(start, width).setZero(); });
}

}  // namespace LACONIC_ABI
}  // namespace laconic
