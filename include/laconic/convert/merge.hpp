// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/attention.hpp>
#include <laconic/convert/fit.hpp>

// Many key-value heads to few: the mean of heads, or heads that are turned to agree before.

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

/// Keys and values of fewer heads, and how every query head has them: k_i = k_turn_i k', v_i = v_turn_i v'. No matrices
/// where each has them as they are.
struct HeadMerge {
  KeyValueMap wanted;
  Matrix<double> k_turn{}, v_turn{};  ///< (num_heads * head_dim, head_dim)

  bool turns() const { return k_turn.size() > 0; }
  /// Rows of every query head (num_heads * head_dim, n) from those of the merged heads.
  static Matrix<double> spread(const Matrix<double>& turn, const Matrix<double>& merged, const AttentionDims& d) {
    Matrix<double> out = repeat_heads(merged, d);
    if (turn.size() == 0) return out;
    for (Index at = 0; at < out.rows(); at += d.head_dim)
      out.middleRows(at, d.head_dim) = (turn.middleRows(at, d.head_dim) * out.middleRows(at, d.head_dim)).eval();
    return out;
  }
};

/// The orthogonal matrix nearest to this one.
template <std::same_as<double> D>
Matrix<D> nearest_orthogonal(const Matrix<D>& matrix) {
  // With V from M^T M, the columns of M V are those of U, as long as their singular values.
  const Matrix<D> v = principal_directions<D>(matrix.transpose() * matrix), columns = matrix * v;
  Matrix<D> u = orthonormal(columns);
  for (Index i = 0; i < u.cols(); ++i)
    if (u.col(i).dot(columns.col(i)) < 0) u.col(i) = -u.col(i);
  return u * v.transpose();
}

/// Merges heads for what the layer gets in calibration speech. Keys are turned by orthogonal matrices, which positions
/// can follow, to agree best with the mean of their group (generalised Procrustes analysis, Gower 1975; for attention
/// Jin et al. 2024): turn and mean take turns. Values are free, for the output projection can undo any matrix: a
/// group's are projected to the head_dim principal components of its outputs.
template <std::same_as<double> D>
HeadMerge align_heads(const KeyValueMap& before, const AttentionDims& d, const LayerStatistics& seen,
                      const Matrix<D>& output_weight) {
  const Index dim = d.head_dim, group = d.num_heads / d.num_kv_heads, inputs = before.k.cols() - 1;
  const Matrix<D> k = before.k_weight(), v = before.v_weight();
  HeadMerge out;
  out.wanted.k = Matrix<D>::Zero(d.kv_dim(), inputs + 1);
  out.wanted.v = Matrix<D>::Zero(d.kv_dim(), inputs + 1);
  out.k_turn.resize(d.q_dim(), dim);
  out.v_turn.resize(d.q_dim(), dim);
  for (Index g = 0; g < d.num_kv_heads; ++g) {
    const Index first = g * group * dim;
    const auto head = [&](Index i) { return k.middleRows(first + i * dim, dim); };
    const auto turn = [&](Index i) { return out.k_turn.middleRows(first + i * dim, dim); };
    Matrix<D> mean = head(0);
    double error = -1;
    for (Index round = 0; round < 100; ++round) {
      Matrix<D> next = Matrix<D>::Zero(dim, inputs);
      double rest = 0;
      const Matrix<D> met = seen.key_input * mean.transpose();
      for (Index i = 0; i < group; ++i) {
        turn(i) = nearest_orthogonal<D>(head(i) * met);
        next += turn(i).transpose() * head(i) / static_cast<D>(group);
      }
      mean = next;
      for (Index i = 0; i < group; ++i) rest += output_energy<D>(head(i) - turn(i) * mean, seen.key_input);
      if (round > 0 && error - rest <= 1e-9 * error) break;
      error = rest;
    }
    out.wanted.k.block(g * dim, 0, dim, inputs) = mean;

    // Errors of values count behind the output projection.
    const Index rows = group * dim;
    Matrix<D> metric(rows, dim);
    for (Index i = 0; i < group; ++i) {
      const auto columns = output_weight.middleCols(first + i * dim, dim);
      metric.middleRows(i * dim, dim) = columns.transpose() * columns;
    }
    const HeadWeights<D> weights(metric);
    const Matrix<D> weighted = weights.apply(v.middleRows(first, rows));
    const Matrix<D> components =
        principal_directions<D>(weighted * seen.value_input * weighted.transpose()).leftCols(dim);
    const Matrix<D> spread = weights.undo(components), merged = components.transpose() * weighted;
    // In units in which the output projection keeps its size, so that training goes on as before.
    const auto eigen = eigenvectors<D>(spread.transpose() * spread / static_cast<D>(group));
    const Matrix<D> root = eigen.operatorSqrt(), inverse = eigen.operatorInverseSqrt();
    out.v_turn.middleRows(first, rows) = spread * inverse;
    out.wanted.v.block(g * dim, 0, dim, inputs) = root * merged;
  }
  return out;
}

/// Whether queries, positions and the output can follow when keys and values are turned.
template <class Policy>
inline constexpr bool can_turn_heads =
    !Policy::Score::is_linear && Policy::Position::key_bias_cancels && !Policy::Position::turns_keys;

/// Turns queries, positions and output of a layer as keys and values of its heads are turned.
template <class Policy, class T>
void turn_heads(AttentionLayer<Policy, T>& layer, const HeadMerge& merge) {
  const Index dim = layer.dims().head_dim;
  const auto turn = [&](Parameter<T>& rows) {  // of all heads, one below the other
    for (Index at = 0; at < merge.k_turn.rows(); at += dim)
      rows.host().middleRows(at, dim) =
          (merge.k_turn.middleRows(at, dim).transpose() * rows.host().middleRows(at, dim).template cast<double>())
              .template cast<T>()
              .eval();
  };
  const auto turn_each = [&](Matrix<T>& numbers) {  // head_dim numbers a head
    for (Index h = 0; h < merge.k_turn.rows() / dim; ++h) {
      Eigen::Map<Eigen::Matrix<T, 1, Eigen::Dynamic>> one(numbers.data() + h * dim, dim);
      one = (one.template cast<double>() * merge.k_turn.middleRows(h * dim, dim)).template cast<T>().eval();
    }
  };
  auto& query = [&]() -> auto& {
    if constexpr (requires { layer.query.up; })
      return layer.query.up;
    else
      return layer.query;
  }
  ();
  turn(query.linear_q.weight);
  if (query.linear_q.has_bias()) turn_each(query.linear_q.bias.host());
  if constexpr (Policy::Position::is_relative) {
    turn(layer.position.linear_pos.weight);
    turn_each(layer.position.pos_bias_u.host());
    turn_each(layer.position.pos_bias_v.host());
  }
  Matrix<T>& out = layer.linear_out.weight.host();
  for (Index at = 0; at < merge.v_turn.rows(); at += dim)
    out.middleCols(at, dim) =
        (out.middleCols(at, dim).template cast<double>() * merge.v_turn.middleRows(at, dim)).template cast<T>().eval();
}

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
