// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/matrix.hpp>

#include <cmath>
#include <cstddef>
#include <vector>

namespace laconic {

/// Log probabilities whose likeliest class in each frame is the one given, with this probability.
inline Matrix<float> saying(const std::vector<int>& best, Index classes, double probability = 0.9) {
  Matrix<float> out(static_cast<Index>(best.size()), classes);
  out.setConstant(static_cast<float>(std::log((1 - probability) / static_cast<double>(classes - 1))));
  for (std::size_t t = 0; t < best.size(); ++t)
    out(static_cast<Index>(t), best[t]) = static_cast<float>(std::log(probability));
  return out;
}

}  // namespace laconic
