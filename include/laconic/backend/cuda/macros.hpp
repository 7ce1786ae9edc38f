// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/extent.hpp>

#include <cmath>
#include <cstddef>
#include <cstring>

// What code of the device is marked with, and what all of it shares.

#if defined(__CUDACC__)
#define LACONIC_DEVICE __device__ __forceinline__
/// Unrolls the loop after it, so that the elements of an array that it numbers can be registers.
#define LACONIC_UNROLL_DEVICE _Pragma("unroll")
/// Does not unroll the loop after it, which needs fewer registers so.
#define LACONIC_LOOP_DEVICE _Pragma("unroll 1")
#else
#define LACONIC_DEVICE inline
#define LACONIC_UNROLL_DEVICE
#define LACONIC_LOOP_DEVICE
#endif

namespace laconic {
inline namespace LACONIC_ABI {
namespace cuda {

inline constexpr int warp_threads = 32;  ///< threads that a multiprocessor runs together
/// Gives the shared memory that a block may take on every GPU from compute capability 8.0 on.
inline constexpr std::size_t max_shared_bytes = 99 * 1024;

/// Returns how many pieces of `size` cover n.
constexpr Index pieces(Index n, Index size) { return (n + size - 1) / size; }

/// Returns a b + c, rounded once. Emulated it is rounded twice on processors that have no such instruction.
template <class T>
LACONIC_DEVICE T multiply_add(T a, T b, T c) {
#if defined(__CUDACC__) || defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return std::fma(a, b, c);
#else
  return a * b + c;
#endif
}

/// Writes 16 bytes to device memory, at a multiple of 16, by one instruction. The compiler may split an assignment.
template <class V>
LACONIC_DEVICE void write_16_bytes(void* to, const V& values) {
  static_assert(sizeof(V) == 16);
#if defined(__CUDACC__)
  uint4 bits;
  memcpy(&bits, &values, 16);
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(bits.x), "r"(bits.y),
               "r"(bits.z), "r"(bits.w)
               : "memory");
#else
  std::memcpy(to, &values, 16);
#endif
}

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
