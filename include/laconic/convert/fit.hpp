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
/// Holds keys and values as functions of the layer's input: weights (heads * head_dim, d_model), biases as one more
/// column.
struct KeyValueMap {
  Matrix<double> k;  ///< keys
  Matrix<double> v;  ///< values
  /// Returns the weights of keys, without the biases.
  Matrix<double> k_weight() const { return detail::columns_of(k, 0, k.cols() - 1); }
  /// Returns the weights of values, without the biases.
  Matrix<double> v_weight() const { return detail::columns_of(v, 0, v.cols() - 1); }
  /// Returns the biases of values (rows, 1).
  Matrix<double> v_bias() const { return detail::columns_of(v, v.cols() - 1, 1); }
};

/// Holds the method and the settings by which keys and values of one layer are fitted.
struct Fitting {
  /// Factorizes keys and values through one latent of this rank, by the method of the conversion.
  std::function<JointFactors(const Matrix<double>& k, const Matrix<double>& v, Index rank,
                             const LayerStatistics& statistics)>
      factorize;
  SingularValues singular_values;  ///< the factor that the singular values go to
  bool balance;                    ///< whether keys and values are scaled to weigh the same
  bool hadamard;                   ///< whether the channels of the latent are mixed
  LayerStatistics statistics;      ///< statistics of the layer on calibration speech; empty without any
};

/// Returns a linear layer as a matrix (out, in + 1), its bias (or zeros) as the last column. Allocates. Throws `Error`
/// if its parameters are not on the host.
template <class T>
Matrix<double> weight_and_bias(const Linear<T>& linear) {
  Matrix<double> out = Matrix<double>::Zero(linear.out(), linear.in() + 1);
  detail::set_columns(out, 0, detail::to_double(linear.weight.host()));
  for (Index i = 0; linear.has_bias() && i < linear.out(); ++i)
    out(i, linear.in()) = static_cast<double>(linear.bias.host()(0, i));
  return out;
}
/// Sets a linear layer to a matrix (out, in + 1), whose last column is the bias; a layer without bias ignores it.
/// Throws `Error` if its parameters are not on the host.
template <class T>
void set_weight_and_bias(Linear<T>& linear, const Matrix<double>& values) {
  detail::round_to(linear.weight.host(), detail::columns_of(values, 0, linear.in()));
  if (linear.has_bias())
    detail::round_to(linear.bias.host(), detail::transposed(detail::columns_of(values, linear.in(), 1)));
}

namespace detail {

template <class T>
void assign_weight(Linear<T>& linear, const Matrix<double>& weight) {
  round_to(linear.weight.host(), weight);
  if (linear.has_bias()) linear.bias.host().setZero();
}
/// Adds (out, 1) to the bias of a layer, if it has one.
template <class T>
void add_to_bias(Linear<T>& linear, const Matrix<double>& moved) {
  for (Index i = 0; linear.has_bias() && i < moved.rows(); ++i) linear.bias.host()(0, i) += static_cast<T>(moved(i, 0));
}

/// Returns `second` after `first`, both with a bias as their last column. If `second` has a matrix for every block of
/// rows of `first`, each follows its own block.
template <std::same_as<double> T>
Matrix<T> composed(const Matrix<T>& second, const Matrix<T>& first) {
  const Index in = second.cols() - 1, blocks = first.rows() / in, out = second.rows() / blocks;
  const Matrix<T> weight = columns_of(second, 0, in);
  Matrix<T> both(second.rows(), first.cols());
  for (Index b = 0; b < blocks; ++b)
    set_rows(both, b * out, product_by_columns(rows_of(weight, b * out, out), rows_of(first, b * in, in)));
  for (Index i = 0; i < both.rows(); ++i) both(i, first.cols() - 1) += second(i, in);
  return both;
}
/// Returns `second` after every block of rows of `first`, both with a bias as their last column.
template <std::same_as<double> T>
Matrix<T> composed_each(const Matrix<T>& second, const Matrix<T>& first) {
  const Index in = second.cols() - 1, blocks = first.rows() / in, out = second.rows();
  Matrix<T> both(blocks * out, first.cols());
  for (Index b = 0; b < blocks; ++b) set_rows(both, b * out, composed(second, rows_of(first, b * in, in)));
  return both;
}

template <class Layer>
KeyValueMap key_value_map(FullRank, const Layer& layer) {
  return {weight_and_bias(layer.linear_k), weight_and_bias(layer.linear_v)};
}
template <class Layer>
KeyValueMap key_value_map(InputLatent, const Layer& layer) {
  return key_value_map(FullRank(), layer);
}
template <Index R, class Layer>
KeyValueMap key_value_map(SharedLatent<R>, const Layer& layer) {
  const Matrix<double> down = weight_and_bias(layer.linear_kv_down);
  return {composed(weight_and_bias(layer.linear_k_up), down), composed(weight_and_bias(layer.linear_v_up), down)};
}
template <Index R, class Layer>
KeyValueMap key_value_map(TwoStageLatent<R>, const Layer& layer) {
  const Matrix<double> down = weight_and_bias(layer.linear_kv_down);
  return {composed(weight_and_bias(layer.linear_k_b), composed(weight_and_bias(layer.linear_k_a), down)),
          composed(weight_and_bias(layer.linear_v_b), composed(weight_and_bias(layer.linear_v_a), down))};
}
template <Index RK, Index RV, class Layer>
KeyValueMap key_value_map(SplitLatent<RK, RV>, const Layer& layer) {
  return {composed(weight_and_bias(layer.linear_k_up), weight_and_bias(layer.linear_k_down)),
          composed(weight_and_bias(layer.linear_v_up), weight_and_bias(layer.linear_v_down))};
}
template <Index RK, Index RV, class Layer>
KeyValueMap key_value_map(HeadLatent<RK, RV>, const Layer& layer) {
  return {composed_each(weight_and_bias(layer.k_expand), weight_and_bias(layer.linear_k_down)),
          composed_each(weight_and_bias(layer.v_expand), weight_and_bias(layer.linear_v_down))};
}

/// Returns the rows of every query head, copied from the key-value head that it reads.
template <std::same_as<double> T>
Matrix<T> repeat_heads(const Matrix<T>& rows, const AttentionDims& d) {
  Matrix<T> out(d.d_model, rows.cols());
  const Index dim = d.head_dim, group = d.num_heads / d.num_kv_heads;
  for (Index h = 0; h < d.num_heads; ++h) set_rows(out, h * dim, rows_of(rows, h / group * dim, dim));
  return out;
}
/// Returns the mean of the heads that will read one key-value head (Ainslie et al. 2023, section 2.1).
template <std::same_as<double> T>
Matrix<T> mean_heads(const Matrix<T>& rows, const AttentionDims& d) {
  Matrix<T> out = Matrix<T>::Zero(d.kv_dim(), rows.cols());
  const Index group = d.num_heads / d.num_kv_heads, numbers = d.head_dim * rows.cols();
  for (Index h = 0; h < d.num_heads; ++h)
    for (Index i = 0; i < numbers; ++i) out.data()[h / group * numbers + i] += rows.data()[h * numbers + i];
  std::for_each_n(out.data(), out.size(), [=](T& x) { x /= static_cast<T>(group); });
  return out;
}
inline KeyValueMap repeat_heads(const KeyValueMap& map, const AttentionDims& d) {
  return {repeat_heads(map.k, d), repeat_heads(map.v, d)};
}
inline KeyValueMap mean_heads(const KeyValueMap& map, const AttentionDims& d) {
  return {mean_heads(map.k, d), mean_heads(map.v, d)};
}

/// Factorizes keys and values through one latent, balanced, placed and mixed as the settings say.
template <std::same_as<double> T>
JointFactors joint(const Matrix<T>& k, const Matrix<T>& v, Index rank, const Fitting& how) {
  const LayerStatistics& s = how.statistics;
  const T of_k = output_energy(k, s.key_input), of_v = output_energy(v, s.value_input);
  JointFactors out;
  if (how.balance && of_k > 0 && of_v > 0) {
    const T rho = std::sqrt(of_k / of_v);
    Matrix<T> keys = k;
    std::for_each_n(keys.data(), keys.size(), [=](T& x) { x /= rho; });
    const JointFactors balanced = how.factorize(keys, v, rank, s);
    out = product_svd(above(scaled(rho, balanced.k_up), balanced.v_up), balanced.down, k.rows());
    measure(out, k, v, s.key_input, s.value_input);
  } else {
    out = how.factorize(k, v, rank, s);
  }
  place(out.down, out.k_up, out.v_up, how.singular_values);
  if (how.hadamard) mix_channels(out.down, out.k_up, out.v_up);
  return out;
}

/// Makes the layer's keys and values as near to `wanted` as its policy allows, and returns the squared error that is
/// left.
template <class Layer>
double fit(FullRank, Layer& layer, const KeyValueMap& wanted, const Fitting&) {
  set_weight_and_bias(layer.linear_k, wanted.k);
  set_weight_and_bias(layer.linear_v, wanted.v);
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
  Matrix<double> identities = Matrix<double>::Zero(k.rows(), dim);
  for (Index i = 0; i < k.rows(); ++i) identities(i, i % dim) = 1;
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

/// Fits one expansion (head_dim, rank) for all heads and a latent of each head, and returns the squared error that is
/// left. The left singular vectors of the heads' matrices side by side, (head_dim, heads * d_model), span their best
/// common column space, and each head's latent is its projection to that space. Calibrated, each matrix is multiplied
/// from the right by a root of the second moment of the inputs, and from the left by a root of the heads' mean metric,
/// because one expansion can depend on one metric only.
template <class T, std::same_as<double> D>
double fit_heads(Linear<T>& down, Linear<T>& expand, const Matrix<D>& weight, const Matrix<D>& input,
                 const Matrix<D>& metric, const Fitting& how) {
  const Index dim = expand.out(), rank = expand.in(), heads = weight.rows() / dim, d_model = weight.cols();
  Matrix<D> mean = rows_of(metric, 0, std::min(dim, metric.rows()));
  for (Index i = mean.size(); i < metric.size(); ++i) mean.data()[i % mean.size()] += metric.data()[i];
  const HeadWeights<D> weights(mean);
  const Matrix<D> weighted = weights.apply(weight);
  Matrix<D> seen = weighted;
  if (input.size() > 0) {
    const SymmetricEigen<D> eigen = eigenvectors(input);
    Matrix<D> lengths(1, d_model);
    for (Index i = 0; i < d_model; ++i)
      lengths(0, i) = std::sqrt(std::max(eigen.values[static_cast<std::size_t>(i)], D{0}));
    seen = product_by_columns(weighted, scaled_columns(eigen.vectors, lengths));
  }
  Matrix<D> stacked(heads * d_model, dim);
  for (Index h = 0; h < heads; ++h) set_rows(stacked, h * d_model, transposed(rows_of(seen, h * dim, dim)));
  const JointFactors factors = how.factorize(stacked, Matrix<D>(0, dim), rank, {});

  Matrix<D> latents(heads * rank, d_model), expansion = weights.undo(transposed(factors.down));
  for (Index h = 0; h < heads; ++h)
    set_rows(latents, h * rank, product_by_columns(factors.down, rows_of(weighted, h * dim, dim)));
  double discarded = factors.discarded;
  if (input.size() > 0) {
    discarded = 0;
    for (Index h = 0; h < heads; ++h)
      discarded +=
          output_energy(difference(rows_of(weight, h * dim, dim), expansion, rows_of(latents, h * rank, rank)), input);
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
    std::for_each_n(latents.data() + i * d_model, d_model, [=](D& x) { x /= moved; });
    if (i < rank) scale_column(expansion, i, moved);
  }
  assign_weight(down, latents);
  assign_weight(expand, expansion);
  return discarded;
}
template <Index RK, Index RV, class Layer>
double fit(HeadLatent<RK, RV>, Layer& layer, const KeyValueMap& wanted, const Fitting& how) {
  const Matrix<double> k = wanted.k_weight(), v = wanted.v_weight();
  const LayerStatistics& s = how.statistics;
  return fit_heads(layer.linear_k_down, layer.k_expand, k, s.key_input, s.key_metric, how) +
         fit_heads(layer.linear_v_down, layer.v_expand, v, s.value_input, s.value_metric, how);
}

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
