// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/extent.hpp>

#include <cmath>

namespace laconic {
inline namespace LACONIC_ABI {

/// Holds how far values are from expected ones, as sums, so that deviations add up over layers. A deviation that is
/// computed from weights has `error` and `reference` only.
struct Deviation {
  double error = 0,   ///< sum of (value - expected)^2
      reference = 0,  ///< sum of expected^2
      absolute = 0,   ///< sum of |value - expected|
      square = 0,     ///< sum of value^2
      product = 0;    ///< sum of value * expected
  Index count = 0;    ///< compared pairs

  /// Adds one pair to all sums.
  void add(double value, double expected) {
    error += (value - expected) * (value - expected);
    reference += expected * expected;
    absolute += std::abs(value - expected);
    square += value * value;
    product += value * expected;
    ++count;
  }
  /// Adds the sums of another deviation.
  Deviation& operator+=(const Deviation& other) {
    error += other.error;
    reference += other.reference;
    absolute += other.absolute;
    square += other.square;
    product += other.product;
    count += other.count;
    return *this;
  }
  /// Returns |value - expected| / |expected| (Frobenius), 0 without any error.
  double relative() const { return error == 0 ? 0 : std::sqrt(error / reference); }
  /// Returns the mean squared error, 0 without pairs.
  double mean_squared() const { return count == 0 ? 0 : error / static_cast<double>(count); }
  /// Returns the mean absolute error, 0 without pairs.
  double mean_absolute() const { return count == 0 ? 0 : absolute / static_cast<double>(count); }
  /// Returns the cosine of the angle between both, each as one vector; 1 without any error. It is blind to a scale,
  /// which the relative error shows.
  double cosine() const { return error == 0 ? 1 : product / std::sqrt(square * reference); }
};

/// Compares every element of `value` with that of `expected`, which has the same shape.
template <class A, class B>
Deviation deviation(const A& value, const B& expected) {
  Deviation out;
  for (Index r = 0; r < expected.rows(); ++r)
    for (Index c = 0; c < expected.cols(); ++c)
      out.add(static_cast<double>(value(r, c)), static_cast<double>(expected(r, c)));
  return out;
}

}  // namespace LACONIC_ABI
}  // namespace laconic
