// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/kernels/columns.hpp>
#include <laconic/backend/cuda/kernels/held_rows.hpp>
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

/// Computes the elements of all pieces by F: f.at<N>(piece, i) computes N of a piece, from element i on. N is more than
/// 1 where f.in_vectors(piece) is true.
template <class T, class F>
struct EachElement {
  static constexpr int threads = 256, together = vector_size<T>;
  const ParameterPiece<T>* pieces;
  Index count;
  F f;
  LACONIC_DEVICE void operator()(Block& block) const {
    const Index number = last_at_most(count, block.x(), [&](Index i) { return pieces[i].first_block; });
    const ParameterPiece<T> piece = pieces[number];
    const Index begin = (block.x() - piece.first_block) * piece.per_block, left = piece.size - begin;
    block.each([&](int t) {
      in_vectors<together>(block, t, left < piece.per_block ? left : piece.per_block,
                           f.template in_vectors<together>(piece),
                           [&]<int N>(Index i) { f.template at<N>(piece, begin + i); });
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
    const double sum = sum_over<double>(block, piece.gradient + begin, left < piece.per_block ? left : piece.per_block,
                                        [](T g) { return static_cast<double>(g) * static_cast<double>(g); });
    block.one([&] { parts[block.x()] = sum; });
  }
};

/// Zeroes gradients.
template <class T>
struct ClearGradient {
  template <int N>
  LACONIC_DEVICE bool in_vectors(const ParameterPiece<T>& p) const {
    return are_aligned<N>(p.gradient);
  }
  template <int N>
  LACONIC_DEVICE void at(const ParameterPiece<T>& p, Index i) const {
    store(p.gradient + i, Vector<T, N>{});
  }
};
/// Copies gradients to a list, and zeroes them.
template <class T>
struct TakeGradient {
  T* list;
  template <int N>
  LACONIC_DEVICE bool in_vectors(const ParameterPiece<T>& p) const {
    return are_aligned<N>(p.gradient, list + p.at);
  }
  template <int N>
  LACONIC_DEVICE void at(const ParameterPiece<T>& p, Index i) const {
    store(list + p.at + i, load<N>(p.gradient + i));
    store(p.gradient + i, Vector<T, N>{});
  }
};
/// Copies a list to gradients.
template <class T>
struct PutGradient {
  const T* list;
  template <int N>
  LACONIC_DEVICE bool in_vectors(const ParameterPiece<T>& p) const {
    return are_aligned<N>(p.gradient, list + p.at);
  }
  template <int N>
  LACONIC_DEVICE void at(const ParameterPiece<T>& p, Index i) const {
    store(p.gradient + i, load<N>(list + p.at + i));
  }
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
  template <int N>
  LACONIC_DEVICE bool in_vectors(const ParameterPiece<T>& p) const {
    return are_aligned<N>(p.value, p.gradient, p.first, p.second);
  }
  template <int N>
  LACONIC_DEVICE void at(const ParameterPiece<T>& p, Index i) const {
    const Vector<T, N> gradient = load<N>(p.gradient + i);
    Vector<T, N> value = load<N>(p.value + i);
    store(p.gradient + i, Vector<T, N>{});
    if (p.first == nullptr) {
      LACONIC_UNROLL_DEVICE
      for (int k = 0; k < N; ++k) value[k] += gradient[k];
      return store(p.value + i, value);
    }
    Vector<T, N> first = load<N>(p.first + i), second = load<N>(p.second + i);
    LACONIC_UNROLL_DEVICE
    for (int k = 0; k < N; ++k) {
      const T g = scale * gradient[k];
      first[k] = beta1 * first[k] + rest1 * g;
      second[k] = beta2 * second[k] + rest2 * g * g;
      value[k] = p.kept * value[k] - rate * first[k] / (std::sqrt(second[k]) * root_scale + eps);
    }
    store(p.first + i, first);
    store(p.second + i, second);
    store(p.value + i, value);
  }
};

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
