// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/matrix.hpp>
#include <laconic/core/random.hpp>

#include <cstdint>
#include <string_view>

namespace laconic {
inline namespace LACONIC_ABI {

/// Returns (rows, cols) independent standard normal values, which depend on the name only. Allocates.
template <class T>
Matrix<T> white_noise(Index rows, Index cols, std::string_view name) {
  const Random random(Seed(), name);
  Matrix<T> out(rows, cols);
  for (Index i = 0; i < out.size(); ++i) out.data()[i] = static_cast<T>(random.normal(static_cast<std::uint64_t>(i)));
  return out;
}

}  // namespace LACONIC_ABI
}  // namespace laconic
