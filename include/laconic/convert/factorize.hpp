// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/matrix.hpp>

#include <Eigen/SVD>

#include <algorithm>
#include <cmath>
#include <concepts>
#include <vector>

namespace laconic::inline v0 {

/// Keys and values by way of one latent: K = x (k_up down)^T, V = x (v_up down)^T.
struct JointFactors {
  Matrix<double> down;                  ///< (rank, d_model), orthonormal rows
  Matrix<double> k_up, v_up;            ///< (key or value channels, rank)
  std::vector<double> singular_values;  ///< of the stacked weights, all of them, falling
  double discarded = 0;                 ///< sum of squares of the singular values beyond the rank
  double predicted_error = 0;           ///< |W - up down| / |W| (Frobenius): the relative error of K and V for white inputs
};

/// Truncated singular value decomposition of the stacked key and value weights: the best latent of its size for inputs
/// whose channels are uncorrelated and equally strong (Eckart and Young 1936). It needs no calibration.
struct JointSvd {
  /// k (key channels, d_model), v (value channels, d_model), rank 1 .. d_model. Allocates. Throws `Error` for other
  /// ranks and for weights that are not finite. (A template so that only who converts compiles it.)
  template <std::same_as<double> T>
  static JointFactors factorize(const Matrix<T>& k, const Matrix<T>& v, Index rank) {
    const Index d_model = k.cols();
    require(v.cols() == d_model, "factorize: keys of ", d_model, " and values of ", v.cols(), " inputs given, equal numbers expected");
    require(rank > 0 && rank <= d_model, "factorize: rank ", rank, " given, expected 1 .. d_model = ", d_model);
    Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic> stacked(k.rows() + v.rows(), d_model);
    stacked << k, v;
    require(stacked.allFinite(), "factorize: the key or value weights hold numbers that are not finite");

    const Eigen::BDCSVD<decltype(stacked)> svd(stacked, Eigen::ComputeThinU | Eigen::ComputeFullV);
    const auto& s = svd.singularValues();
    const Index kept = std::min(rank, s.size());

    // All of S goes to `up` (attention.md 2.1): then the latent has the scale of its input, and also the channels of
    // singular value 0 (repeated heads, rank = d_model) can learn; with sqrt(S) on both sides their gradients would vanish.
    JointFactors out;
    out.down = svd.matrixV().leftCols(rank).transpose();
    Matrix<T> up = Matrix<T>::Zero(stacked.rows(), rank);
    up.leftCols(kept) = svd.matrixU().leftCols(kept) * s.head(kept).asDiagonal();
    out.k_up = up.topRows(k.rows());
    out.v_up = up.bottomRows(v.rows());
    out.singular_values.assign(s.data(), s.data() + s.size());
    out.discarded = s.tail(s.size() - kept).squaredNorm();
    if (out.discarded > 0) out.predicted_error = std::sqrt(out.discarded / s.squaredNorm());
    return out;
  }
};

}  // namespace laconic::inline v0
