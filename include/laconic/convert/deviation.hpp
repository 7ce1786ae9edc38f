// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/extent.hpp>

#include <cmath>

namespace laconic {
inline namespace LACONIC_ABI {

/// How far one thing is from another, as sums, so that deviations add up over layers: of squared errors and squares of
/// what was expected; and, where numbers were compared one by one, of absolute errors, squares and products of both.
struct Deviation {
  double error = 0, reference = 0, absolute = 0, square = 0, product = 0;
  Index count = 0;

  void add(double value, double expected) {
    error += (value - expected) * (value - expected);
    reference += expected * expected;
    absolute += std::abs(value - expected);
    square += value * value;
    product += value * expected;
    ++count;
  }
  Deviation& operator+=(const Deviation& other) {
    error += other.error;
    reference += other.reference;
    absolute += other.absolute;
    square += other.square;
    product += other.product;
    count += other.count;
    return *this;
  }
  /// |value - expected| / |expected| (Frobenius).
  double relative() const { return error == 0 ? 0 : std::sqrt(error / reference); }
  double mean_squared() const { return count == 0 ? 0 : error / static_cast<double>(count); }
  double mean_absolute() const { return count == 0 ? 0 : absolute / static_cast<double>(count); }
  /// Of the angle between both. It does not see the scale: the relative error does.
  double cosine() const { return error == 0 ? 1 : product / std::sqrt(square * reference); }
};

/// Every number of `value` against that of `expected`.
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
