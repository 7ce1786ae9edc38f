// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include "gradient_check.hpp"

#include <laconic/convert/activation.hpp>

#include <Eigen/SVD>

namespace laconic {

/// Returns k above v.
inline Matrix<double> below(const Matrix<double>& k, const Matrix<double>& v) {
  Matrix<double> out(k.rows() + v.rows(), k.cols());
  out << k, v;
  return out;
}
/// Returns the singular values of a matrix, largest first.
inline std::vector<double> singular_values(const Matrix<double>& m) {
  const Eigen::VectorXd s = Eigen::JacobiSVD<Eigen::MatrixXd>(m).singularValues();
  return {s.begin(), s.end()};
}
/// Returns the sum of squares of the singular values after the first `rank`.
inline double tail(const Matrix<double>& m, Index rank) {
  const auto s = singular_values(m);
  double sum = 0;
  for (std::size_t i = static_cast<std::size_t>(rank); i < s.size(); ++i) sum += s[i] * s[i];
  return sum;
}
/// Returns a random matrix whose singular values are s(0), s(1) ...
template <class S>
inline Matrix<double> with_spectrum(Index rows, Index cols, std::uint64_t seed, S&& s) {
  Matrix<double> diagonal = Matrix<double>::Zero(rows, cols);
  for (Index i = 0; i < std::min(rows, cols); ++i) diagonal(i, i) = s(static_cast<double>(i));
  return detail::orthonormal(random_matrix(rows, rows, seed)) * diagonal *
         detail::orthonormal(random_matrix(cols, cols, seed + 1));
}
/// Returns the positive square root of a Gram matrix.
inline Matrix<double> root(const Matrix<double>& gram) {
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> eigen(gram);
  return eigen.eigenvectors() * eigen.eigenvalues().cwiseMax(0).cwiseSqrt().asDiagonal() *
         eigen.eigenvectors().transpose();
}
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
