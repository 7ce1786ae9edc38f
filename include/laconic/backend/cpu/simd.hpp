// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cpu/parallel.hpp>

#include <xsimd/xsimd.hpp>

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

namespace laconic::inline LACONIC_ABI {
namespace kernels {

template <class T>
using Batch = xsimd::batch<T>;
template <class T>
inline constexpr Index lanes = static_cast<Index>(Batch<T>::size);

/// A small array on the stack.
template <class T, Index N>
using Local = T[static_cast<std::size_t>(N)];

template <class T>
Batch<T> load(const T* from) {
  return Batch<T>::load_unaligned(from);
}
/// Loads `count` < lanes numbers; the other lanes are `fill`.
template <class T>
Batch<T> load_part(const T* from, Index count, T fill = T(0)) {
  Local<T, lanes<T>> part;
  for (Index i = 0; i < lanes<T>; ++i) part[i] = i < count ? from[i] : fill;
  return load(part);
}
template <class T>
void store(T* to, const Batch<T>& x) {
  x.store_unaligned(to);
}
template <class T>
void store_part(T* to, const Batch<T>& x, Index count) {
  Local<T, lanes<T>> part;
  store(part, x);
  for (Index i = 0; i < count; ++i) to[i] = part[i];
}

/// Sum and maximum over the lanes, always in the same order (xsimd renamed its own between 8 and 9).
template <class T>
T sum_lanes(const Batch<T>& x) {
  Local<T, lanes<T>> part;
  store(part, x);
  for (Index step = lanes<T> / 2; step > 0; step /= 2)
    for (Index i = 0; i < step; ++i) part[i] += part[i + step];
  return part[0];
}
template <class T>
T max_lanes(const Batch<T>& x) {
  Local<T, lanes<T>> part;
  store(part, x);
  T most = part[0];
  for (Index i = 1; i < lanes<T>; ++i) most = part[i] > most ? part[i] : most;
  return most;
}

/// out[i] = f(in[i]...) for i in [0, n), by vectors; the tail goes through the same code, padded with zeros.
template <class T, class F, class... In>
void map_span(Index n, T* out, F&& f, const In*... in) {
  Index i = 0;
  for (; i + lanes<T> <= n; i += lanes<T>) store(out + i, Batch<T>(f(load(in + i)...)));
  if (i < n) store_part(out + i, Batch<T>(f(load_part(in + i, n - i)...)), n - i);
}

/// The same over several threads.
template <class T, class F, class... In>
void map(int threads, Index n, T* out, F&& f, const In*... in) {
  parallel_blocks(threads, n, 16384,
                  [&](Index begin, Index end) { map_span(end - begin, out + begin, f, (in + begin)...); });
}

/// Sum over i of f(in[i]...).
template <class T, class F, class... In>
T sum_span(Index n, F&& f, const T* first, const In*... in) {
  Batch<T> total(T(0));
  Index i = 0;
  for (; i + lanes<T> <= n; i += lanes<T>) total += f(load(first + i), load(in + i)...);
  T sum = sum_lanes<T>(total);
  if (i < n) {
    Local<T, lanes<T>> part;
    store(part, Batch<T>(f(load_part(first + i, n - i), load_part(in + i, n - i)...)));
    for (Index j = 0; j < n - i; ++j) sum += part[j];
  }
  return sum;
}

template <class T>
Batch<T> sigmoid(const Batch<T>& x) {
  return Batch<T>(T(1)) / (Batch<T>(T(1)) + xsimd::exp(-x));
}

}  // namespace kernels
}  // namespace laconic
