// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/aliases.hpp>
#include <laconic/convert/activation.hpp>

#include <algorithm>
#include <functional>
#include <vector>

// Keys and values of an attention as linear functions of the layer's input: read off, and fitted.

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

/// Keys and values as functions of the layer's input: weights (heads * head_dim, d_model), biases as one more column.
struct KeyValueMap {
  Matrix<double> k, v;
  auto k_weight() const { return k.leftCols(k.cols() - 1); }
  auto v_weight() const { return v.leftCols(v.cols() - 1); }
  auto v_bias() const { return v.rightCols(1); }
};

template <class T>
Matrix<double> with_bias(const Linear<T>& linear) {
  Matrix<double> out(linear.out(), linear.in() + 1);
  out.leftCols(linear.in()) = linear.weight.host().template cast<double>();
  out.rightCols(1).setZero();
  if (linear.has_bias()) out.rightCols(1) = linear.bias.host().transpose().template cast<double>();
  return out;
}
template <class T>
void assign(Linear<T>& linear, const Matrix<double>& with_bias) {
  linear.weight.host() = with_bias.leftCols(linear.in()).template cast<T>();
  if (linear.has_bias()) linear.bias.host() = with_bias.rightCols(1).transpose().template cast<T>();
}
template <class T>
void assign_weight(Linear<T>& linear, const Matrix<double>& weight) {
  linear.weight.host() = weight.template cast<T>();
  if (linear.has_bias()) linear.bias.host().setZero();
}

/// `second` after `first`, both with a bias as their last column; where `second` has a matrix for every block of rows
/// of `first`, each after its block.
inline Matrix<double> composed(const Matrix<double>& second, const Matrix<double>& first) {
  const Index in = second.cols() - 1, blocks = first.rows() / in, out = second.rows() / blocks;
  Matrix<double> both(second.rows(), first.cols());
  for (Index b = 0; b < blocks; ++b) {
    both.middleRows(b * out, out) = second.block(b * out, 0, out, in) * first.middleRows(b * in, in);
    both.block(b * out, first.cols() - 1, out, 1) += second.block(b * out, in, out, 1);
  }
  return both;
}
/// The same where every block of rows of `first` meets all of `second`.
inline Matrix<double> composed_each(const Matrix<double>& second, const Matrix<double>& first) {
  const Index in = second.cols() - 1, blocks = first.rows() / in, out = second.rows();
  Matrix<double> both(blocks * out, first.cols());
  for (Index b = 0; b < blocks; ++b) both.middleRows(b * out, out) = composed(second, first.middleRows(b * in, in));
  return both;
}

template <class Layer>
KeyValueMap key_value_map(FullRank, const Layer& layer) {
  return {with_bias(layer.linear_k), with_bias(layer.linear_v)};
}
template <class Layer>
KeyValueMap key_value_map(InputLatent, const Layer& layer) {
  return key_value_map(FullRank(), layer);
}
template <Index R, class Layer>
KeyValueMap key_value_map(SharedLatent<R>, const Layer& layer) {
  const Matrix<double> down = with_bias(layer.linear_kv_down);
  return {composed(with_bias(layer.linear_k_up), down), composed(with_bias(layer.linear_v_up), down)};
}
template <Index R, class Layer>
KeyValueMap key_value_map(TwoStageLatent<R>, const Layer& layer) {
  const Matrix<double> down = with_bias(layer.linear_kv_down);
  return {composed(with_bias(layer.linear_k_b), composed(with_bias(layer.linear_k_a), down)),
          composed(with_bias(layer.linear_v_b), composed(with_bias(layer.linear_v_a), down))};
}
template <Index RK, Index RV, class Layer>
KeyValueMap key_value_map(SplitLatent<RK, RV>, const Layer& layer) {
  return {composed(with_bias(layer.linear_k_up), with_bias(layer.linear_k_down)),
          composed(with_bias(layer.linear_v_up), with_bias(layer.linear_v_down))};
}
template <Index R, class Layer>
KeyValueMap key_value_map(HeadLatent<R, 0>, const Layer& layer) {
  return {composed_each(with_bias(layer.k_expand), with_bias(layer.linear_k_down)),
          composed_each(with_bias(layer.v_expand), with_bias(layer.linear_v_down))};
}

/// Every head's rows from those of the key-value head that it reads.
inline Matrix<double> repeat_heads(const Matrix<double>& rows, const AttentionDims& d) {
  Matrix<double> out(d.d_model, rows.cols());
  const Index dim = d.head_dim, group = d.num_heads / d.num_kv_heads;
  for (Index h = 0; h < d.num_heads; ++h) out.middleRows(h * dim, dim) = rows.middleRows(h / group * dim, dim);
  return out;
}
/// The mean of the heads that will read one key-value head (Ainslie et al. 2023, section 2.1).
inline Matrix<double> mean_heads(const Matrix<double>& rows, const AttentionDims& d) {
  Matrix<double> out = Matrix<double>::Zero(d.kv_dim(), rows.cols());
  const Index dim = d.head_dim, group = d.num_heads / d.num_kv_heads;
  for (Index h = 0; h < d.num_heads; ++h) out.middleRows(h / group * dim, dim) += rows.middleRows(h * dim, dim);
  return out / static_cast<double>(group);
}
inline KeyValueMap repeat_heads(const KeyValueMap& map, const AttentionDims& d) {
  return {repeat_heads(map.k, d), repeat_heads(map.v, d)};
}
inline KeyValueMap mean_heads(const KeyValueMap& map, const AttentionDims& d) {
  return {mean_heads(map.k, d), mean_heads(map.v, d)};
}

/// How keys and values of one layer are factorized.
struct Fitting {
  std::function<JointFactors(const Matrix<double>& k, const Matrix<double>& v, Index rank,
                             const LayerStatistics& statistics)>
      factorize;
  SingularValues singular_values;
  bool balance, hadamard;
  LayerStatistics statistics;
};

/// Keys and values by one latent.
template <std::same_as<double> T>
JointFactors joint(const Matrix<T>& k, const Matrix<T>& v, Index rank, const Fitting& how) {
  const LayerStatistics& s = how.statistics;
  const T of_k = output_energy(k, s.key_input), of_v = output_energy(v, s.value_input);
  JointFactors out;
  if (how.balance && of_k > 0 && of_v > 0) {
    const T rho = std::sqrt(of_k / of_v);
    const JointFactors balanced = how.factorize(k / rho, v, rank, s);
    Matrix<T> up(k.rows() + v.rows(), rank);
    up << rho * balanced.k_up, balanced.v_up;
    out = product_svd(up, balanced.down, k.rows());
    measure(out, k, v, s.key_input, s.value_input);
  } else {
    out = how.factorize(k, v, rank, s);
  }
  place(out.down, out.k_up, out.v_up, how.singular_values);
  if (how.hadamard) mix_channels(out.down, out.k_up, out.v_up);
  return out;
}

/// Makes the layer's keys and values as near to `wanted` as it can; returns the squared error that this costs.
template <class Layer>
double fit(FullRank, Layer& layer, const KeyValueMap& wanted, const Fitting&) {
  assign(layer.linear_k, wanted.k);
  assign(layer.linear_v, wanted.v);
  return 0;
}
template <class Layer>
double fit(InputLatent, Layer& layer, const KeyValueMap& wanted, const Fitting& how) {
  return fit(FullRank(), layer, wanted, how);
}
template <Index R, class Layer>
double fit(SharedLatent<R>, Layer& layer, const KeyValueMap& wanted, const Fitting& how) {
  const Matrix<double> k = wanted.k_weight(), v = wanted.v_weight();
  const JointFactors factors = joint(k, v, layer.linear_kv_down.out(), how);
  assign_weight(layer.linear_kv_down, factors.down);
  assign_weight(layer.linear_k_up, factors.k_up);
  assign_weight(layer.linear_v_up, factors.v_up);
  return factors.discarded;
}
template <Index R, class Layer>
double fit(TwoStageLatent<R>, Layer& layer, const KeyValueMap& wanted, const Fitting& how) {
  const Matrix<double> k = wanted.k_weight(), v = wanted.v_weight();
  const JointFactors factors = joint(k, v, layer.linear_kv_down.out(), how);
  const Index dim = layer.linear_k_b.in();
  const Matrix<double> identities = Matrix<double>::Identity(dim, dim).replicate(k.rows() / dim, 1);
  assign_weight(layer.linear_kv_down, factors.down);
  assign_weight(layer.linear_k_a, factors.k_up);
  assign_weight(layer.linear_k_b, identities);
  assign_weight(layer.linear_v_a, factors.v_up);
  assign_weight(layer.linear_v_b, identities);
  return factors.discarded;
}
template <Index RK, Index RV, class Layer>
double fit(SplitLatent<RK, RV>, Layer& layer, const KeyValueMap& wanted, const Fitting& how) {
  const Matrix<double> k = wanted.k_weight(), v = wanted.v_weight(), nothing(0, k.cols());
  const JointFactors keys = joint(k, nothing, layer.linear_k_down.out(), how);
  const JointFactors values = joint(nothing, v, layer.linear_v_down.out(), how);
  assign_weight(layer.linear_k_down, keys.down);
  assign_weight(layer.linear_k_up, keys.k_up);
  assign_weight(layer.linear_v_down, values.down);
  assign_weight(layer.linear_v_up, values.v_up);
  return keys.discarded + values.discarded;
}

/// The heads' matrices side by side, (head_dim, heads * d_model): their best common column space is spanned by the left
/// singular vectors, with which each head's latent is its projection. Calibrated, each is multiplied from the right by
/// a root of the second moment of the inputs, and from the left by that of the heads' mean metric: one expansion can
/// heed no more than one.
template <class T, std::same_as<double> D>
double fit_heads(Linear<T>& down, Linear<T>& expand, const Matrix<D>& weight, const Matrix<D>& input,
                 const Matrix<D>& metric, const Fitting& how) {
  const Index dim = expand.out(), rank = expand.in(), heads = weight.rows() / dim, d_model = weight.cols();
  Matrix<D> mean = metric.topRows(std::min(dim, metric.rows()));
  for (Index at = dim; at < metric.rows(); at += dim) mean += metric.middleRows(at, dim);
  const HeadWeights<D> weights(mean);
  const Matrix<D> weighted = weights.apply(weight);
  Matrix<D> seen = weighted;
  if (input.size() > 0) {
    const auto eigen = eigenvectors(input);
    seen *= Matrix<D>(eigen.eigenvectors() * eigen.eigenvalues().cwiseMax(0).cwiseSqrt().asDiagonal());
  }
  Matrix<D> stacked(heads * d_model, dim);
  for (Index h = 0; h < heads; ++h)
    stacked.middleRows(h * d_model, d_model) = seen.middleRows(h * dim, dim).transpose();
  const JointFactors factors = how.factorize(stacked, Matrix<D>(0, dim), rank, {});

  Matrix<D> latents(heads * rank, d_model), expansion = weights.undo(factors.down.transpose());
  for (Index h = 0; h < heads; ++h)
    latents.middleRows(h * rank, rank) = factors.down * weighted.middleRows(h * dim, dim);
  double discarded = factors.discarded;
  if (input.size() > 0) {
    discarded = 0;
    for (Index h = 0; h < heads; ++h)
      discarded +=
          output_energy<D>(weight.middleRows(h * dim, dim) - expansion * latents.middleRows(h * rank, rank), input);
  }

  // So far all singular values are in the way down. (A channel that holds nothing stays: its expansion is not 0, so it
  // can learn.)
  std::vector<D> squares(static_cast<std::size_t>(rank));
  for (Index i = 0; i < heads * rank; ++i)
    squares[static_cast<std::size_t>(i % rank)] += latents.row(i).squaredNorm() / static_cast<D>(heads);
  const D least = 1e-24 * *std::max_element(squares.begin(), squares.end());
  for (Index i = 0; i < heads * rank; ++i) {
    const D square = squares[static_cast<std::size_t>(i % rank)];
    if (how.singular_values == SingularValues::down || square <= least) continue;
    const D moved = how.singular_values == SingularValues::up ? std::sqrt(square) : std::sqrt(std::sqrt(square));
    latents.row(i) /= moved;
    if (i < rank) expansion.col(i) *= moved;
  }
  assign_weight(down, latents);
  assign_weight(expand, expansion);
  return discarded;
}
template <Index R, class Layer>
double fit(HeadLatent<R, 0>, Layer& layer, const KeyValueMap& wanted, const Fitting& how) {
  const Matrix<double> k = wanted.k_weight(), v = wanted.v_weight();
  const LayerStatistics& s = how.statistics;
  return fit_heads(layer.linear_k_down, layer.k_expand, k, s.key_input, s.key_metric, how) +
         fit_heads(layer.linear_v_down, layer.v_expand, v, s.value_input, s.value_metric, how);
}

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
