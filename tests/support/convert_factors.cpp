// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include "convert_factors.hpp"

#include <Eigen/SVD>

namespace laconic {

std::vector<double> singular_values(const Matrix<double>& m) {
  const Eigen::VectorXd s = Eigen::JacobiSVD<Eigen::MatrixXd>(m).singularValues();
  return {s.begin(), s.end()};
}

Matrix<double> with_spectrum(Index rows, Index cols, std::uint64_t seed, const std::function<double(double)>& s) {
  Matrix<double> diagonal = Matrix<double>::Zero(rows, cols);
  for (Index i = 0; i < std::min(rows, cols); ++i) diagonal(i, i) = s(static_cast<double>(i));
  return detail::orthonormal(random_matrix(rows, rows, seed)) * diagonal *
         detail::orthonormal(random_matrix(cols, cols, seed + 1));
}

Matrix<double> root(const Matrix<double>& gram) {
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> eigen(gram);
  return eigen.eigenvectors() * eigen.eigenvalues().cwiseMax(0).cwiseSqrt().asDiagonal() *
         eigen.eigenvectors().transpose();
}

}  // namespace laconic
