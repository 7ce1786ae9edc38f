// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/extent.hpp>

#include <bit>
#include <cmath>
#include <cstdint>

namespace laconic::inline LACONIC_ABI {
namespace kernels {

/// A float without its lower 16 bits.
struct Bf16 {
  std::uint16_t bits;
};

/// To nearest, ties to even.
inline Bf16 to_bf16(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  if (std::isnan(x)) return {static_cast<std::uint16_t>(bits >> 16 | 0x40)};
  return {static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
inline float from_bf16(Bf16 x) { return std::bit_cast<float>(static_cast<std::uint32_t>(x.bits) << 16); }

}  // namespace kernels
}  // namespace laconic
