// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cpu/kernels/simd.hpp>

#include <cstdint>
#include <type_traits>

// The instructions by which rounded activations meet weights of bytes, with sums of 32 bits.

namespace laconic {
inline namespace LACONIC_ABI {
namespace kernels {

/// Gives the inputs of a weight of bytes that lie together: those that one instruction multiplies and adds up, four
/// bytes with VNNI and two numbers of 16 bits otherwise.
inline constexpr Index bytes_group = LACONIC_VNNI ? 4 : 2;

#if LACONIC_WHOLE_PRODUCTS

/// Names a vector of whole numbers.
using WholeVector = Batch<std::int32_t>;
/// Names a rounded activation: -127 to 127 with `activation_zero` added.
using RoundedNumber = std::conditional_t<LACONIC_VNNI, std::uint8_t, std::int16_t>;
/// Gives the activation that stands for zero. VNNI multiplies unsigned bytes by signed ones.
inline constexpr std::int32_t activation_zero = LACONIC_VNNI ? 128 : 0;

#ifdef __AVX512F__

/// Stores whole numbers in bytes, or in 16 bits.
inline void store_narrow(__m512i x, std::uint8_t* to) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(x));
}
inline void store_narrow(__m512i x, std::int16_t* to) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(x));
}

#if LACONIC_VNNI
/// Loads the bytes of one group of inputs for a vector of outputs, for `add_products`.
inline WholeVector load_group(const std::int8_t* from) { return _mm512_loadu_si512(from); }
/// Returns sum + the products of a group, added up for each output.
inline WholeVector add_products(WholeVector sum, WholeVector x, WholeVector w) {
  return _mm512_dpbusd_epi32(sum, x, w);
}
#else
/// Loads the bytes of one group of inputs for a vector of outputs, for `add_products`, and widens them.
inline WholeVector load_group(const std::int8_t* from) {
  return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
/// Returns sum + the products of a group, added up for each output.
inline WholeVector add_products(WholeVector sum, WholeVector x, WholeVector w) {
  return _mm512_add_epi32(sum, _mm512_madd_epi16(x, w));
}
#endif

#else

/// Stores whole numbers in bytes, or in 16 bits.
inline void store_narrow(__m256i x, std::int16_t* to) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                   _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1)));
}
inline void store_narrow(__m256i x, std::uint8_t* to) {
  const __m128i halves = _mm_packus_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packus_epi16(halves, halves));
}

#if LACONIC_VNNI
/// Loads the bytes of one group of inputs for a vector of outputs, for `add_products`.
inline WholeVector load_group(const std::int8_t* from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}
/// Returns sum + the products of a group, added up for each output.
inline WholeVector add_products(WholeVector sum, WholeVector x, WholeVector w) {
  return _mm256_dpbusd_avx_epi32(sum, x, w);
}
#else
/// Loads the bytes of one group of inputs for a vector of outputs, for `add_products`, and widens them.
inline WholeVector load_group(const std::int8_t* from) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
/// Returns sum + the products of a group, added up for each output.
inline WholeVector add_products(WholeVector sum, WholeVector x, WholeVector w) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(x, w));
}
#endif

#endif

/// Returns a vector in which each output meets the same group of activations, whose bits these are.
inline WholeVector spread_group(std::int32_t bits) { return WholeVector(bits); }
/// Returns what `activation_zero` adds to sums: that many times the sum of each output's row.
inline WholeVector zero_of(const std::int32_t* sums) { return load(sums) * WholeVector(activation_zero); }

/// Rounds `count` floats times `factor`, or a whole vector if there are more, to whole numbers in `to`, which has room
/// for a vector. Lanes from `count` on become zeros.
inline void round_some(const float* x, Index count, float factor, RoundedNumber* to) {
  const Batch<float> some = count < lanes<float> ? load_part(x, count) : load(x);
  store_narrow(xsimd::nearbyint_as_int(some * Batch<float>(factor)) + WholeVector(activation_zero), to);
}

#endif

}  // namespace kernels
}  // namespace LACONIC_ABI
}  // namespace laconic
