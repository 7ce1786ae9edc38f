// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/shapes.hpp>
#include <laconic/core/compiled.hpp>
#include <laconic/core/index_list.hpp>
#include <laconic/core/parallel.hpp>

#include <cmath>

namespace laconic {
inline namespace LACONIC_ABI {

namespace kernels {

/// Returns the rate at which pair m of `width` channels rotates with position, 10000^(-2 m / width), in radians per
/// frame (Vaswani et al. 2017, section 3.5).
inline double sinusoid_rate(Index m, Index width) {
  return std::pow(10000.0, -2 * static_cast<double>(m) / static_cast<double>(width));
}
/// Writes the rates of all pairs of `width` channels to rates ((width + 1) / 2).
inline void sinusoid_rates(Index width, double* rates) {
  for (Index m = 0; 2 * m < width; ++m) rates[m] = sinusoid_rate(m, width);
}

/// Calls write(row, position) for every row, in parallel over rows. A task has 16 rows only, since a sine and a cosine
/// take about 20 ns a column.
template <class Write>
void each_position(int threads, const RowPositions& at, Write&& write) {
  constexpr Index rows = 16;
  parallel_blocks(threads, at.sequences.rows(), rows, [&](Index begin, Index end) {
    each_part(at.sequences, {begin, end}, [&](Index n, Range part) {
      for (Index i = part.begin; i < part.end; ++i)
        write(at.sequences.begin(n) + i, static_cast<double>(at.first(n) + at.step * i));
    });
  });
}

/// Computes y (rows, width): sin(position * rate) in even columns and cos(position * rate) in odd ones, with the rate
/// of the column's pair. Parallel over rows; no allocation.
template <class T>
void sinusoids(int threads, const RowPositions& at, Index width, const double* rates, T* y) {
  each_position(threads, at, [&](Index row, double position) {
    T* out = y + row * width;
    for (Index c = 0; c < width; ++c) {
      const double angle = position * rates[c / 2];
      out[c] = static_cast<T>(c % 2 == 0 ? std::sin(angle) : std::cos(angle));
    }
  });
}

/// Computes y (rows, width): amplitude * cos(position * rate) of width / 2 pairs, then as many sines. Parallel over
/// rows; no allocation.
template <class T>
void rotary_table(int threads, const RowPositions& at, Index width, const double* rates, double amplitude, T* y) {
  const Index half = width / 2;
  each_position(threads, at, [&](Index row, double position) {
    T* out = y + row * width;
    for (Index i = 0; i < half; ++i) out[i] = static_cast<T>(amplitude * std::cos(position * rates[i]));
    for (Index i = 0; i < half; ++i) out[half + i] = static_cast<T>(amplitude * std::sin(position * rates[i]));
  });
}

LACONIC_COMPILE(sinusoids);
LACONIC_COMPILE(rotary_table);

}  // namespace kernels
}  // namespace LACONIC_ABI
}  // namespace laconic
