// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/parallel.hpp>

#include <xsimd/xsimd.hpp>

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include <cstring>
#include <limits>
#include <type_traits>

#if defined(__clang__)
#define LACONIC_UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define LACONIC_UNROLL _Pragma("GCC unroll 16")
#else
#define LACONIC_UNROLL
#endif

namespace laconic {
inline namespace LACONIC_ABI {
namespace kernels {

/// Names the vector of elements of the widest instruction set that is compiled for.
template <class T>
using Batch = xsimd::batch<T>;
/// Gives the number of elements of a vector.
template <class T>
inline constexpr Index lanes = static_cast<Index>(Batch<T>::size);

/// Names a small array on the stack.
template <class T, Index N>
using Local = T[static_cast<std::size_t>(N)];

/// Loads a vector, without requirements on alignment.
template <class T>
Batch<T> load(const T* from) {
  return Batch<T>::load_unaligned(from);
}
/// Loads `count` < lanes elements; the other lanes are `fill`.
template <class T>
Batch<T> load_part(const T* from, Index count, T fill = T(0)) {
  Local<T, lanes<T>> part;
  for (Index i = 0; i < lanes<T>; ++i) part[i] = i < count ? from[i] : fill;
  return load(part);
}
/// Stores a vector, without requirements on alignment.
template <class T>
void store(T* to, const Batch<T>& x) {
  x.store_unaligned(to);
}
/// Stores the first `count` elements of a vector.
template <class T>
void store_part(T* to, const Batch<T>& x, Index count) {
  Local<T, lanes<T>> part;
  store(part, x);
  for (Index i = 0; i < count; ++i) to[i] = part[i];
}

#ifdef __AVX512F__
/// Loads `count` <= lanes elements with a mask; the other lanes are `fill`.
inline Batch<float> load_part(const float* from, Index count, float fill = 0) {
  return _mm512_mask_loadu_ps(_mm512_set1_ps(fill), static_cast<__mmask16>((1u << count) - 1), from);
}
/// Stores the first `count` elements of a vector with a mask.
inline void store_part(float* to, const Batch<float>& x, Index count) {
  _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1), x);
}
#elif defined(__AVX2__)
/// Returns a mask of the first `count` <= 8 lanes.
inline __m256i first_lanes(Index count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
/// Loads `count` <= lanes elements with a mask; the other lanes are `fill`.
inline Batch<float> load_part(const float* from, Index count, float fill = 0) {
  const __m256i some = first_lanes(count);
  return _mm256_blendv_ps(_mm256_set1_ps(fill), _mm256_maskload_ps(from, some), _mm256_castsi256_ps(some));
}
/// Stores the first `count` elements of a vector with a mask.
inline void store_part(float* to, const Batch<float>& x, Index count) {
  _mm256_maskstore_ps(to, first_lanes(count), x);
}
#endif

/// Returns a vector that the compiler holds in a register. g++ 12 otherwise reads some operands from memory again in
/// each multiply-add, and loads become the limit.
template <class T>
Batch<T> in_register(const Batch<T>& x) {
#if defined(__GNUC__) && defined(__SSE2__)
  auto value = x.data;
  asm("" : "+v"(value));
  return Batch<T>(value);
#else
  return x;
#endif
}

/// Adds x y to `sum`. With 16 vector registers the instruction is named, or g++ 12 moves sums about and to memory.
template <class T>
[[gnu::always_inline]] inline void multiply_add(Batch<T>& sum, const Batch<T>& x, const Batch<T>& y) {
#if defined(__GNUC__) && defined(__FMA__) && !defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>)
    asm("vfmadd231ps %2, %1, %0" : "+x"(sum.data) : "x"(x.data), "x"(y.data));
  else
    asm("vfmadd231pd %2, %1, %0" : "+x"(sum.data) : "x"(x.data), "x"(y.data));
#else
  sum = xsimd::fma(x, y, sum);
#endif
}

/// Returns the sum over the lanes, always in the same order. (xsimd renamed its own function between versions 8 and 9.)
template <class T>
T sum_lanes(const Batch<T>& x) {
  Local<T, lanes<T>> part;
  store(part, x);
  for (Index step = lanes<T> / 2; step > 0; step /= 2)
    for (Index i = 0; i < step; ++i) part[i] += part[i + step];
  return part[0];
}
/// Returns the max over the lanes.
template <class T>
T max_lanes(const Batch<T>& x) {
  Local<T, lanes<T>> part;
  store(part, x);
  T max = part[0];
  for (Index i = 1; i < lanes<T>; ++i) max = part[i] > max ? part[i] : max;
  return max;
}

#ifdef __AVX512F__
/// Returns the sum over the lanes by one reduction.
template <>
inline float sum_lanes<float>(const Batch<float>& x) {
  return _mm512_reduce_add_ps(x);
}
/// Returns the max over the lanes by one reduction.
template <>
inline float max_lanes<float>(const Batch<float>& x) {
  return _mm512_reduce_max_ps(x);
}
#elif defined(__AVX2__)
/// Returns the sum over the lanes, in the order of the other sets.
template <>
inline float sum_lanes<float>(const Batch<float>& x) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1)),
               two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
/// Returns the max over the lanes.
template <>
inline float max_lanes<float>(const Batch<float>& x) {
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1)),
               two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
#endif

/// Returns e^x.
template <class T>
Batch<T> exp(const Batch<T>& x) {
  return xsimd::exp(x);
}
#ifdef __AVX512F__
/// Returns e^x as 2^n e^r, with n an integer and |r| at most half of ln 2, where a polynomial of degree 7 is off by at
/// most 1.3 units in the last place (simd_test). exp(-infinity) is 0, and NaN stays NaN.
template <>
inline Batch<float> exp<float>(const Batch<float>& x) {
  const auto number = [](float value) { return _mm512_set1_ps(value); };
  // NaN stays NaN: min and max return their second operand then.
  const __m512 bounded = _mm512_max_ps(number(-104.0f), _mm512_min_ps(number(89.0f), x));
  const __m512 n = xsimd::nearbyint(Batch<float>(_mm512_mul_ps(bounded, number(1.44269504f))));
  __m512 r = _mm512_fnmadd_ps(n, number(0.693359375f), bounded);
  r = _mm512_fnmadd_ps(n, number(-2.12194440e-4f), r);
  __m512 p = number(1.9875691500e-4f);
  for (const float next : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    p = _mm512_fmadd_ps(p, r, number(next));
  p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, number(1.0f)));
  return _mm512_scalef_ps(p, n);
}
#endif

/// Computes out[i] = f(in[i]...) for i in [0, n) by vectors. The tail takes the same code, padded with zeros. One
/// thread; no allocation.
template <class T, class F, class... In>
void map_span(Index n, T* out, F&& f, const In*... in) {
  Index i = 0;
  for (; i + lanes<T> <= n; i += lanes<T>) store(out + i, Batch<T>(f(load(in + i)...)));
  if (i < n) store_part(out + i, Batch<T>(f(load_part(in + i, n - i)...)), n - i);
}

/// Computes out[i] = f(in[i]...) for i in [0, n) on several threads. No allocation.
template <class T, class F, class... In>
void map(int threads, Index n, T* out, F&& f, const In*... in) {
  parallel_blocks(threads, n, 16384,
                  [&](Index begin, Index end) { map_span(end - begin, out + begin, f, (in + begin)...); });
}

/// Returns the sum over i in [0, n) of f(in[i]...), in four partial sums that hide the latency of addition, always in
/// the same order. One thread; no allocation.
template <class T, class F, class... In>
T sum_span(Index n, F&& f, const T* first, const In*... in) {
  constexpr Index sums = 4;
  Batch<T> total[sums] = {Batch<T>(T(0)), Batch<T>(T(0)), Batch<T>(T(0)), Batch<T>(T(0))};
  Index i = 0;
  for (; i + sums * lanes<T> <= n; i += sums * lanes<T>)
    for (Index j = 0; j < sums; ++j) {
      const Index at = i + j * lanes<T>;
      total[j] += f(load(first + at), load(in + at)...);
    }
  for (; i + lanes<T> <= n; i += lanes<T>) total[0] += f(load(first + i), load(in + i)...);
  T sum = sum_lanes<T>((total[0] + total[1]) + (total[2] + total[3]));
  if (i < n) {
    Local<T, lanes<T>> part;
    store(part, Batch<T>(f(load_part(first + i, n - i), load_part(in + i, n - i)...)));
    for (Index j = 0; j < n - i; ++j) sum += part[j];
  }
  return sum;
}

/// Returns 1 / (1 + e^-x).
template <class T>
Batch<T> sigmoid(const Batch<T>& x) {
  return Batch<T>(T(1)) / (Batch<T>(T(1)) + exp<T>(-x));
}

}  // namespace kernels
}  // namespace LACONIC_ABI
}  // namespace laconic
