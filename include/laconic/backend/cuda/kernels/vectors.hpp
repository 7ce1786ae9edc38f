// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/block.hpp>

#include <cstdint>

// Reads and writes of 16 bytes: a thread moves several neighbours by one instruction, so that more bytes are on their
// way at a time. A kernel is written once, for N neighbours; N = 1 is what it does where addresses are no multiples of
// 16, and for the values after the last whole vector.

namespace laconic {
inline namespace LACONIC_ABI {
namespace cuda {

/// Counts the values of 16 bytes.
template <class T>
inline constexpr int vector_size = 16 / static_cast<int>(sizeof(T));

/// Holds N neighbours, a power of two. Those of up to 16 bytes are read or written by one instruction.
template <class T, int N = vector_size<T>>
struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Vector {
  T values[static_cast<std::size_t>(N)];
  /// Returns value k.
  LACONIC_DEVICE T& operator[](int k) { return values[k]; }
  /// Returns value k.
  LACONIC_DEVICE const T& operator[](int k) const { return values[k]; }
};

/// Reads N neighbours at an address that `are_aligned` for N.
template <int N, class T>
LACONIC_DEVICE Vector<T, N> load(const T* from) {
  return *reinterpret_cast<const Vector<T, N>*>(from);
}
/// Writes N neighbours at an address that `are_aligned` for N.
template <class T, int N>
LACONIC_DEVICE void store(T* to, const Vector<T, N>& values) {
  *reinterpret_cast<Vector<T, N>*>(to) = values;
}
/// Says whether N neighbours can be read at once at each of these addresses.
template <int N, class... T>
constexpr bool are_aligned(const T*... at) {
  return ((reinterpret_cast<std::uintptr_t>(at) % alignof(Vector<T, N>) == 0) && ...);
}
/// Says whether each size is a multiple of N.
template <int N, class... Size>
constexpr bool are_multiples(Size... size) {
  return ((size % N == 0) && ...);
}

/// Writes to[k] = f(from[k]...) for k in [0, N). The ranges are the same or do not overlap.
template <int N, class T, class F, class... From>
LACONIC_DEVICE void map(T* to, const F& f, const From*... from) {
  const auto compute = [&](const Vector<From, N>&... values) {
    Vector<T, N> out;
    LACONIC_UNROLL_DEVICE
    for (int k = 0; k < N; ++k) out[k] = f(values[k]...);
    store(to, out);
  };
  compute(load<N>(from)...);
}

/// Calls f<n>(i) in thread t of a block, with n = N for whole vectors of [0, size) if `aligned`, and n = 1 for the
/// rest.
template <int N, class F>
LACONIC_DEVICE void in_vectors(const Block& block, int t, Index size, bool aligned, const F& f) {
  const Index vectors = aligned ? size / N : 0;
  for (Index i = t; i < vectors; i += block.threads()) f.template operator()<N>(i * N);
  for (Index i = vectors * N + t; i < size; i += block.threads()) f.template operator()<1>(i);
}

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
