// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/convert/factorize.hpp>
#include <laconic/core/sequences.hpp>

#include <algorithm>
#include <cmath>
#include <concepts>
#include <utility>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Holds the statistics of one layer on calibration speech. All matrices are empty without calibration; the metrics are
/// also empty unless the method is score-aware.
struct LayerStatistics {
  Matrix<double> key_input,   ///< mean of x^T x over the rows x that keys are computed from, (d_model, d_model)
      value_input;            ///< mean of x^T x over the rows x that values are computed from, (d_model, d_model)
  Matrix<double> key_metric,  ///< weights of the errors of each head's keys, (heads * head_dim, head_dim)
      value_metric;           ///< weights of the errors of each head's values, (heads * head_dim, head_dim)
};

/// Holds speech to calibrate on.
template <class T>
struct Calibration {
  Matrix<T> features;   ///< packed rows, (rows, num_mels)
  Sequences sequences;  ///< the utterances of the rows
};

/// Holds a text to calibrate a language model on.
struct CalibrationTokens {
  std::vector<int> ids;  ///< packed tokens, one a row
  Sequences sequences;   ///< the sequences of the rows, each at most as long as the model sees at a time
};

namespace detail {

/// Weighs the errors of heads: errors e count as e M e^T with each head's metric M. With L = M^(1/2), they are
/// errors of L W. A metric of one head serves all heads; without any, all errors count alike.
template <std::same_as<double> T>
class HeadWeights {
 public:
  explicit HeadWeights(const Matrix<T>& metric) {
    if (metric.size() == 0) return;
    const Index dim = metric.cols(), heads = metric.rows() / dim;
    T trace = 0;
    for (Index i = 0; i < metric.rows(); ++i) trace += metric(i, i % dim);
    // Directions that no query of the calibration looked in may be asked for later, so they weigh a little. That also
    // keeps L far from singular.
    const T least = trace > 0 ? 1e-6 * trace / static_cast<T>(metric.rows()) : 1;
    root_ = inverse_ = Matrix<T>(metric.rows(), dim);
    for (Index h = 0; h < heads; ++h) {
      const SymmetricEigen<T> eigen = eigenvectors(rows_of(metric, h * dim, dim));
      const Matrix<T> rows = transposed(eigen.vectors);
      Matrix<T> values(1, dim), inverses(1, dim);
      for (Index i = 0; i < dim; ++i) {
        values(0, i) = std::sqrt(std::max(eigen.values[static_cast<std::size_t>(i)], T{0}) + least);
        inverses(0, i) = 1 / values(0, i);
      }
      set_rows(root_, h * dim, product_by_columns(scaled_columns(eigen.vectors, values), rows));
      set_rows(inverse_, h * dim, product_by_columns(scaled_columns(eigen.vectors, inverses), rows));
    }
  }

  Matrix<T> apply(const Matrix<T>& rows) const { return root_.size() == 0 ? rows : blockwise(root_, rows); }
  Matrix<T> undo(const Matrix<T>& rows) const { return root_.size() == 0 ? rows : blockwise(inverse_, rows); }
  /// Scales the weights so that these rows have energy 1 for inputs of this second moment.
  void normalise(const Matrix<T>& rows, const Matrix<T>& second_moment) {
    if (root_.size() == 0) return;
    const T energy = output_energy(apply(rows), second_moment);
    if (!(energy > 0)) return;
    const T length = std::sqrt(energy);
    std::for_each_n(root_.data(), root_.size(), [=](T& x) { x /= length; });
    inverse_ = scaled(length, std::move(inverse_));
  }

 private:
  static Matrix<T> blockwise(const Matrix<T>& blocks, const Matrix<T>& rows) {
    const Index dim = blocks.cols();
    Matrix<T> out(rows.rows(), rows.cols());
    for (Index at = 0; at < rows.rows(); at += dim)
      set_rows(out, at, product_by_columns(rows_of(blocks, at % blocks.rows(), dim), rows_of(rows, at, dim)));
    return out;
  }

  Matrix<T> root_, inverse_;
};

}  // namespace detail

/// Finds the best latent of its size for the inputs that a layer has in calibration speech, or, with
/// CalibrationTokens, in a text: principal components of the outputs Y = x W^T (as TransMLA does, Meng et al. 2025).
/// The optimum is that of whitening the inputs (SVD-LLM, Palu), but nothing is inverted, so fewer frames than d_model
/// suffice: in directions without input the strongest weights are kept if the rank leaves room. With `score_aware`,
/// errors count by their effect. Errors of keys count in the scores, by the energy of the queries that meet them: M =
/// mean of (q + u)^T (q + u) for each head. Errors of values count after the output projection: M = W_O^T W_O. The two
/// have different units, so each is divided by its total energy.
///
///     ActivationPca<float> method{.calibration = {features, sequences}, .score_aware = true};
///     auto [small, report] = convert<Small>(model, method, numbers, other_features, other_sequences);
///
///     auto gpt = convert<Small>(model, ActivationPca<float, CalibrationTokens>{{ids, {1024, 1024}}}).model;
template <class Scalar = float, class Input = Calibration<Scalar>>
struct ActivationPca {
  Input calibration;         ///< speech or text of the domain in which the model will be used
  bool score_aware = false;  ///< weigh errors by their effect on scores and output

  /// Factorizes k (key channels, d_model) and v (value channels, d_model) at a rank from 1 to d_model, for inputs of
  /// these statistics. `singular_values` of the result are the roots of the mean squares of all d_model principal
  /// components of the outputs, weighted if `score_aware`. `discarded` and `predicted_error` are those of keys and
  /// values for such inputs, not weighted. Without statistics it calls JointSvd. Allocates. Throws `Error` for other
  /// ranks, weights that are not finite, and statistics of another width.
  template <std::same_as<double> T>
  JointFactors factorize(const Matrix<T>& k, const Matrix<T>& v, Index rank, const LayerStatistics& statistics) const {
    const Matrix<T>& input = v.rows() > 0 ? statistics.value_input : statistics.key_input;
    if (input.size() == 0) return JointSvd::factorize(k, v, rank);
    require(input.rows() == k.cols(), "factorize: statistics of ", input.rows(), " inputs given, ", k.cols(),
            " expected");
    detail::HeadWeights<T> of_keys(statistics.key_metric), of_values(statistics.value_metric);
    of_keys.normalise(k, input);
    of_values.normalise(v, input);
    const Matrix<T> weighted = detail::stacked(of_keys.apply(k), of_values.apply(v), rank);

    // The outputs fill d_model dimensions at most: their components are found in coordinates of these, which is fewer
    // than there are outputs, and d_model components then hold all of W whatever the inputs were.
    const Index d_model = k.cols(), outputs = weighted.rows();
    Matrix<T> axes = Matrix<T>::Identity(outputs, d_model), coordinates = Matrix<T>::Zero(d_model, d_model);
    if (outputs > d_model) {
      axes = detail::orthonormal(weighted);
      coordinates = detail::product_by_columns(detail::transposed(axes), weighted);
    } else {
      detail::set_rows(coordinates, 0, weighted);
    }
    const Matrix<T> rows = detail::transposed(coordinates),
                    moment = detail::product(detail::product_by_columns(coordinates, input), rows);
    // In directions without any energy the weights decide, with too little weight to be seen elsewhere.
    Matrix<T> little = Matrix<T>::Zero(d_model, d_model);
    detail::add_product(little, detail::scaled(1e-10 * input.trace() / static_cast<T>(d_model), coordinates), rows);
    const Matrix<T> directions = detail::principal_directions<T>(moment + little),
                    kept = detail::columns_of(directions, 0, rank);

    // With components P of L W x, down = P^T L W and up = L^-1 P. Where the latent's components have any energy, this
    // is also the up that fits the unweighted outputs best: both are the only solution of L up = P.
    const Matrix<T> components = detail::product(axes, kept),
                    down = detail::product(detail::transposed(kept), coordinates);
    const Matrix<T> up = detail::above(of_keys.undo(detail::rows_of(components, 0, k.rows())),
                                       of_values.undo(detail::rows_of(components, k.rows(), v.rows())));
    JointFactors out = detail::product_svd(up, down, k.rows());
    const Matrix<T> energies = detail::transposed_product(moment, directions),
                    squares = detail::by_columns(energies).cwiseProduct(directions).colwise().sum();
    for (Index i = 0; i < d_model; ++i) out.singular_values.push_back(std::sqrt(std::max(squares(0, i), T{0})));
    detail::measure(out, k, v, input, input);
    return out;
  }
};

}  // namespace LACONIC_ABI
}  // namespace laconic
