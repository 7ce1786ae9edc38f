// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/kernels/row_sums.hpp>

#include <cmath>

// Tables of positions. Angles, sines and cosines are computed in double.

namespace laconic {
inline namespace LACONIC_ABI {
namespace cuda {

/// Gives the position of packed rows in time, as `RowPositions` does on the host.
struct DevicePositions {
  const Index* offsets;  ///< the first row of each sequence
  const Index* firsts;   ///< the position of that row; null: 0
  Index sequences;       ///< how many there are
  Index step;            ///< from a row to the next
  /// Returns the position of a row.
  LACONIC_DEVICE double operator()(Index row) const {
    const Index n = sequence_of(offsets, sequences, row);
    return static_cast<double>((firsts == nullptr ? 0 : firsts[n]) + step * (row - offsets[n]));
  }
};

/// Computes one element of y (rows, width): sin(position * rate) in even columns and cos(position * rate) in odd ones,
/// with the rate of the column's pair.
template <class T>
struct Sinusoids {
  DevicePositions position;
  const double* rates;
  T* y;
  Index width;
  LACONIC_DEVICE void operator()(Index i) const {
    const Index c = i % width;
    const double angle = position(i / width) * rates[c / 2];
    y[i] = static_cast<T>(c % 2 == 0 ? std::sin(angle) : std::cos(angle));
  }
};

/// Computes one pair of y (rows, width): amplitude * cos(position * rate) of width / 2 pairs, then as many sines. The
/// index numbers pairs.
template <class T>
struct RotaryTable {
  DevicePositions position;
  const double* rates;
  double amplitude;
  T* y;
  Index width;
  LACONIC_DEVICE void operator()(Index i) const {
    const Index half = width / 2, row = i / half, m = i % half;
    const double angle = position(row) * rates[m];
    y[row * width + m] = static_cast<T>(amplitude * std::cos(angle));
    y[row * width + half + m] = static_cast<T>(amplitude * std::sin(angle));
  }
};

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
