// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include "gradient_check.hpp"

#include <laconic/convert/activation.hpp>

#include <functional>

namespace laconic {

// What is declared without a body is compiled with optimisation, in convert_factors.cpp: Eigen's solvers are a hundred
// times slower without.

/// Returns k above v.
inline Matrix<double> below(const Matrix<double>& k, const Matrix<double>& v) {
  Matrix<double> out(k.rows() + v.rows(), k.cols());
  out << k, v;
  return out;
}
/// Returns the singular values of a matrix, largest first.
std::vector<double> singular_values(const Matrix<double>& m);
/// Returns the sum of squares of the singular values after the first `rank`.
inline double tail(const Matrix<double>& m, Index rank) {
  const auto s = singular_values(m);
  double sum = 0;
  for (std::size_t i = static_cast<std::size_t>(rank); i < s.size(); ++i) sum += s[i] * s[i];
  return sum;
}
/// Returns a random matrix whose singular values are s(0), s(1) ...
Matrix<double> with_spectrum(Index rows, Index cols, std::uint64_t seed, const std::function<double(double)>& s);
/// Returns the positive square root of a Gram matrix.
Matrix<double> root(const Matrix<double>& gram);
/// Returns x^T x / rows.
inline Matrix<double> second_moment(const Matrix<double>& x) {
  return x.transpose() * x / static_cast<double>(x.rows());
}

/// Returns the matrix that the factors approximate.
inline Matrix<double> product(const JointFactors& f) { return below(f.k_up, f.v_up) * f.down; }
/// Checks the form of factors that JointFactors documents.
inline void check_form(const JointFactors& f, Index rank) {
  CHECK((f.down * f.down.transpose() - Matrix<double>::Identity(rank, rank)).norm() < 1e-12);
  const Matrix<double> up = below(f.k_up, f.v_up), gram = up.transpose() * up, diagonal = gram.diagonal().asDiagonal();
  CHECK((gram - diagonal).norm() < 1e-12 * gram.norm());
  for (Index i = 1; i < rank; ++i) CHECK(gram(i, i) <= gram(i - 1, i - 1) + 1e-12 * gram(0, 0));
}

/// Returns the sum of squares of the singular values that these ranks leave out, over all spectra.
inline double lost(const std::vector<std::vector<double>>& spectra, const std::vector<Index>& ranks) {
  double sum = 0;
  for (std::size_t l = 0; l < spectra.size(); ++l)
    for (std::size_t i = static_cast<std::size_t>(ranks[l]); i < spectra[l].size(); ++i)
      sum += spectra[l][i] * spectra[l][i];
  return sum;
}

}  // namespace laconic
