// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/enum.hpp>
#include <laconic/core/extent.hpp>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace laconic {
inline namespace LACONIC_ABI {

/// Says how stored values are rounded.
enum class Storage {
  full,  ///< not at all
  bf16,  ///< to 16 bits with the exponent of a float
  int8   ///< to 8 bits with a scale for each row
};
/// Names the values of Storage.
constexpr auto enum_names(Storage) {
  return std::to_array<EnumName<Storage>>({{Storage::full, "float"}, {Storage::bf16, "bf16"}, {Storage::int8, "int8"}});
}

/// Says how a GPU rounds the operands of products of floats before it multiplies them. Sums are in float.
enum class ProductPrecision {
  full,  ///< not at all
  tf32,  ///< to 10 bits of mantissa, for tensor cores
  bf16   ///< to 7 bits of mantissa, for tensor cores
};
/// Names the values of ProductPrecision.
constexpr auto enum_names(ProductPrecision) {
  return std::to_array<EnumName<ProductPrecision>>(
      {{ProductPrecision::full, "float"}, {ProductPrecision::tf32, "tf32"}, {ProductPrecision::bf16, "bf16"}});
}

/// Holds the upper 16 bits of a float.
struct Bf16 {
  std::uint16_t bits;  ///< sign, 8 bits of exponent, 7 of mantissa
};

/// Rounds to nearest, ties to even. NaN stays NaN.
constexpr Bf16 to_bf16(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  if (x != x) return {static_cast<std::uint16_t>(bits >> 16 | 0x40)};
  return {static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
/// Returns the float, exactly.
constexpr float from_bf16(Bf16 x) { return std::bit_cast<float>(static_cast<std::uint32_t>(x.bits) << 16); }

/// Quantises a row to multiples -127 .. 127 of a scale, which the largest magnitude of the row sets.
class ByteRow {
 public:
  /// Takes the largest of the `magnitude` of all values.
  constexpr explicit ByteRow(std::uint32_t largest) {
    if (largest >= 0x7f800000U)
      fault_ = std::numeric_limits<float>::quiet_NaN();
    else
      most_ = std::bit_cast<float>(largest);
  }
  /// Finds the scale of n values.
  template <class T>
  ByteRow(Index n, const T* x) : ByteRow(largest(n, x)) {}
  /// Returns the bits of the magnitude of a value: those of positive floats have the order of the floats.
  template <class T>
  static constexpr std::uint32_t magnitude(T x) {
    return std::bit_cast<std::uint32_t>(static_cast<float>(x)) & 0x7fffffffU;
  }
  /// Returns the scale: the largest magnitude over 127. It is NaN if the row has a NaN or an infinity, so that it
  /// propagates.
  constexpr float scale() const { return most_ / 127 + fault_; }
  /// Returns a value of the row as a multiple of the scale, rounded to nearest.
  template <class T>
  constexpr std::int8_t operator()(T x) const {
    if (fault_ != fault_) return 1;
    return most_ > 0 ? static_cast<std::int8_t>(std::lrint(static_cast<float>(x) * (127 / most_))) : std::int8_t{0};
  }

 private:
  template <class T>
  static std::uint32_t largest(Index n, const T* x) {
    std::uint32_t most = 0;
    for (Index i = 0; i < n; ++i) most = std::max(most, magnitude(x[i]));
    return most;
  }

  float most_ = 0, fault_ = 0;
};

}  // namespace LACONIC_ABI
}  // namespace laconic
