// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/kernels/columns.hpp>
#include <laconic/backend/cuda/kernels/norm.hpp>
#include <laconic/backend/shapes.hpp>

#include <cmath>

// Updates of all parameters of a model in one launch. A table on the device says where each parameter is; a block finds
// its own by the number of the parameter's first block.

namespace laconic {
inline namespace LACONIC_ABI {
namespace cuda {

/// Says where a parameter is, and which blocks compute it.
template <class T>
struct ParameterPiece {
  static constexpr Index per_block = 4096;  ///< elements of a block
  Index first_block;                        ///< number of its first block
  Index size;                               ///< elements
  T *value, *gradient;
  T *first, *second;  ///< moments of AdamW; null: a statistic
  T kept;             ///< part of the values that decay leaves
  Index at;           ///< first element in a list of the elements of all parameters
};

/// Calls f(piece, i) for the elements i of all pieces.
template <class T, class F>
struct EachElement {
  static constexpr int threads = 256;
  const ParameterPiece<T>* pieces;
  Index count;
  F f;
  LACONIC_DEVICE void operator()(Block& block) const {
    const Index number = last_at_most(count, block.x(), [&](Index i) { return pieces[i].first_block; });
    const ParameterPiece<T> piece = pieces[number];
    const Index begin = (block.x() - piece.first_block) * piece.per_block, end = begin + piece.per_block;
    block.each([&](int t) {
      for (Index i = begin + t; i < end && i < piece.size; i += threads) f(piece, i);
    });
  }
};

/// Writes the sum of squares of the gradients of each block to parts, in double.
template <class T>
struct SquaredGradients {
  static constexpr int threads = 256;
  const ParameterPiece<T>* pieces;
  Index count;
  double* parts;
  LACONIC_DEVICE void operator()(Block& block) const {
    const Index number = last_at_most(count, block.x(), [&](Index i) { return pieces[i].first_block; });
    const ParameterPiece<T> piece = pieces[number];
    const Index begin = (block.x() - piece.first_block) * piece.per_block, left = piece.size - begin;
    const double sum = sum_over<double>(block, left < piece.per_block ? left : piece.per_block, [&](Index i) {
      const double g = static_cast<double>(piece.gradient[begin + i]);
      return g * g;
    });
    block.one([&] { parts[block.x()] = sum; });
  }
};

/// Zeroes gradients.
template <class T>
struct ClearGradient {
  LACONIC_DEVICE void operator()(const ParameterPiece<T>& p, Index i) const { p.gradient[i] = T(0); }
};
/// Copies gradients to a list, and zeroes them.
template <class T>
struct TakeGradient {
  T* list;
  LACONIC_DEVICE void operator()(const ParameterPiece<T>& p, Index i) const {
    list[p.at + i] = p.gradient[i];
    p.gradient[i] = T(0);
  }
};
/// Copies a list to gradients.
template <class T>
struct PutGradient {
  const T* list;
  LACONIC_DEVICE void operator()(const ParameterPiece<T>& p, Index i) const { p.gradient[i] = list[p.at + i]; }
};

/// Changes values and moments by one step of AdamW (Loshchilov and Hutter 2019, algorithm 2), or adds the update of a
/// statistic. Zeroes the gradients.
template <class T>
struct AdamWElement {
  T scale, beta1, beta2, rest1, rest2, rate, root_scale, eps;

  /// Rounds what is the same for all elements.
  explicit AdamWElement(const AdamWStep& step)
      : scale(static_cast<T>(step.gradient_scale)),
        beta1(static_cast<T>(step.beta1)),
        beta2(static_cast<T>(step.beta2)),
        rest1(static_cast<T>(1 - step.beta1)),
        rest2(static_cast<T>(1 - step.beta2)),
        rate(static_cast<T>(step.rate())),
        root_scale(static_cast<T>(step.root_scale())),
        eps(static_cast<T>(step.eps)) {}
  LACONIC_DEVICE void operator()(const ParameterPiece<T>& p, Index i) const {
    const T gradient = p.gradient[i];
    p.gradient[i] = T(0);
    if (p.first == nullptr) {
      p.value[i] += gradient;
      return;
    }
    const T g = scale * gradient;
    const T first = beta1 * p.first[i] + rest1 * g, second = beta2 * p.second[i] + rest2 * g * g;
    p.first[i] = first;
    p.second[i] = second;
    p.value[i] = p.kept * p.value[i] - rate * first / (std::sqrt(second) * root_scale + eps);
  }
};

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
