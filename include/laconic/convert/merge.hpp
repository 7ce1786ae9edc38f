// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/attention.hpp>
#include <laconic/convert/fit.hpp>

#include <algorithm>
#include <concepts>
#include <utility>
#include <vector>

// Many key-value heads to few: the mean of heads, or heads that are turned to agree before.

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

/// Holds keys and values of fewer heads, and the matrices by which every query head has them: k_i = k_turn_i k', v_i =
/// v_turn_i v'. The matrices are empty if each head has them as they are.
struct HeadMerge {
  KeyValueMap wanted;
  Matrix<double> k_turn{}, v_turn{};  ///< (num_heads * head_dim, head_dim)

  bool turns() const { return k_turn.size() > 0; }
  /// Returns the rows of every query head (num_heads * head_dim, n) from those of the merged heads.
  template <std::same_as<double> T>
  static Matrix<T> spread(const Matrix<T>& turn, const Matrix<T>& merged, const AttentionDims& d) {
    Matrix<T> out = repeat_heads(merged, d);
    for (Index at = 0; turn.size() > 0 && at < out.rows(); at += d.head_dim)
      set_rows(out, at, product_by_columns(rows_of(turn, at, d.head_dim), rows_of(out, at, d.head_dim)));
    return out;
  }
};

/// Returns the orthogonal matrix nearest to this one (Frobenius).
template <std::same_as<double> D>
Matrix<D> nearest_orthogonal(const Matrix<D>& matrix) {
  // With V from M^T M, the columns of M V are those of U, as long as their singular values.
  const Matrix<D> v = principal_directions(gram(matrix)), columns = product(matrix, v);
  Matrix<D> u = orthonormal(columns);
  for (Index i = 0; i < u.cols(); ++i) {
    D cosine = 0;
    for (Index r = 0; r < u.rows(); ++r) cosine += u(r, i) * columns(r, i);
    if (cosine < 0) scale_column(u, i, D{-1});
  }
  return product(u, transposed(v));
}

/// Merges heads for the inputs that the layer has in calibration speech. Keys are rotated by orthogonal matrices, which
/// positions can follow, to agree best with the mean of their group (generalised Procrustes analysis, Gower 1975; for
/// attention Jin et al. 2024); rotations and mean are computed in alternation. Values are free, because the output
/// projection can undo any matrix: a group's are projected to the head_dim principal components of its outputs.
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
  const auto set_weight = [&](Matrix<D>& wanted, Index g, const Matrix<D>& weight) {
    for (Index r = 0; r < dim; ++r)
      std::copy_n(weight.data() + r * inputs, inputs, wanted.data() + (g * dim + r) * (inputs + 1));
  };
  for (Index g = 0; g < d.num_kv_heads; ++g) {
    const Index first = g * group * dim;
    std::vector<Matrix<D>> heads, turns(static_cast<std::size_t>(group));
    for (Index i = 0; i < group; ++i) heads.push_back(rows_of(k, first + i * dim, dim));
    Matrix<D> mean = heads[0];
    double error = -1;
    for (Index round = 0; round < 100; ++round) {
      Matrix<D> next = Matrix<D>::Zero(dim, inputs);
      double rest = 0;
      const Matrix<D> met = product(seen.key_input, transposed(mean));
      for (std::size_t i = 0; i < heads.size(); ++i) {
        turns[i] = nearest_orthogonal(product(heads[i], met));
        const Matrix<D> turned = product_by_columns(transposed(turns[i]), heads[i]);
        for (Index n = 0; n < next.size(); ++n) next.data()[n] += turned.data()[n] / static_cast<D>(group);
      }
      mean = next;
      for (std::size_t i = 0; i < heads.size(); ++i)
        rest += output_energy(difference(heads[i], turns[i], mean), seen.key_input);
      if (round > 0 && error - rest <= 1e-9 * error) break;
      error = rest;
    }
    for (Index i = 0; i < group; ++i) set_rows(out.k_turn, first + i * dim, turns[static_cast<std::size_t>(i)]);
    set_weight(out.wanted.k, g, mean);

    // Errors of values count after the output projection.
    const Index rows = group * dim;
    Matrix<D> metric(rows, dim);
    for (Index i = 0; i < group; ++i)
      set_rows(metric, i * dim, gram_by_columns(columns_of(output_weight, first + i * dim, dim)));
    const HeadWeights<D> weights(metric);
    const Matrix<D> weighted = weights.apply(rows_of(v, first, rows));
    const Matrix<D> components = columns_of(
        principal_directions(product(product_by_columns(weighted, seen.value_input), transposed(weighted))), 0, dim);
    const Matrix<D> spread = weights.undo(components), merged = product(transposed(components), weighted);
    // In units in which the output projection keeps its size, so that training goes on as before.
    Matrix<D> scale = gram_by_columns(spread);
    std::for_each_n(scale.data(), scale.size(), [=](D& x) { x /= static_cast<D>(group); });
    const auto [root, inverse] = square_roots(scale);
    set_rows(out.v_turn, first, product_by_columns(spread, inverse));
    set_weight(out.wanted.v, g, product_by_columns(root, merged));
  }
  return out;
}

/// Says whether queries, positions and the output can follow when keys and values are rotated.
template <class Policy>
inline constexpr bool can_turn_heads =
    !Policy::Score::is_linear && Policy::Position::key_bias_cancels && !Policy::Position::turns_keys;

/// Rotates queries, positions and output of a layer as keys and values of its heads are rotated.
template <class Policy, class T>
void turn_heads(AttentionLayer<Policy, T>& layer, const HeadMerge& merge) {
  const Index dim = layer.dims().head_dim;
  const auto turn = [&](Parameter<T>& rows) {  // of all heads, one below the other
    Matrix<double> turned = to_double(rows.host());
    for (Index at = 0; at < merge.k_turn.rows(); at += dim)
      set_rows(turned, at, product_by_columns(transposed(rows_of(merge.k_turn, at, dim)), rows_of(turned, at, dim)));
    round_to(rows.host(), turned);
  };
  const auto turn_each = [&](Matrix<T>& numbers) {  // head_dim numbers a head
    for (Index at = 0; at < merge.k_turn.rows(); at += dim) {
      Matrix<double> one(1, dim);
      std::copy_n(numbers.data() + at, dim, one.data());
      one = product(one, rows_of(merge.k_turn, at, dim));
      for (Index i = 0; i < dim; ++i) numbers.data()[at + i] = static_cast<T>(one(0, i));
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
  Matrix<double> out = to_double(layer.linear_out.weight.host());
  for (Index at = 0; at < merge.v_turn.rows(); at += dim)
    set_columns(out, at, product_by_columns(columns_of(out, at, dim), rows_of(merge.v_turn, at, dim)));
  round_to(layer.linear_out.weight.host(), out);
}

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
