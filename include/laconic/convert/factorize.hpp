// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/convert/solvers.hpp>
#include <laconic/core/enum.hpp>
#include <laconic/core/matrix.hpp>
#include <laconic/core/random.hpp>

#include <algorithm>
#include <cmath>
#include <concepts>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Says where the singular values S of W = U S V^T go. The product is the same, but the scale of the latent is not, on
/// which a norm, storage in 8 bits and the learning rate of fine-tuning depend. By default the latent has the scale of
/// its input, and channels of singular value 0 (as of repeated heads) can still learn, because their down-projection is
/// not 0.
enum class SingularValues {
  up,    ///< into the up-projections
  down,  ///< into the down-projection
  both   ///< square roots into each
};
constexpr auto enum_names(SingularValues) {
  using enum SingularValues;
  return std::to_array<EnumName<SingularValues>>({{up, "up"}, {down, "down"}, {both, "both"}});
}

/// Holds a factorization of keys and values through one latent: K = x (k_up down)^T, V = x (v_up down)^T.
struct JointFactors {
  Matrix<double> down;                  ///< down-projection, (rank, d_model), orthonormal rows
  Matrix<double> k_up,                  ///< up-projection of keys, (key channels, rank), scaled by singular values
      v_up;                             ///< up-projection of values, (value channels, rank), scaled alike
  std::vector<double> singular_values;  ///< falling, also those beyond the rank; JointSvd: all d_model of [W_K; W_V]
  double discarded = 0;                 ///< |W - up down|^2: the sum of squared singular values beyond the rank
  double predicted_error = 0;           ///< |W - up down| / |W| (Frobenius): the error of K and V for white inputs
};

// Functions that all methods share. They are templates, so that only programs that convert compile them.
namespace detail {

/// Returns keys above values, (key and value channels, d_model). Throws `Error` for a rank out of range and for weights
/// that are not finite.
template <std::same_as<double> T>
Matrix<T> stacked(const Matrix<T>& k, const Matrix<T>& v, Index rank) {
  const Index d_model = k.cols();
  require(v.cols() == d_model, "factorize: keys of ", d_model, " and values of ", v.cols(),
          " inputs given, equal numbers expected");
  require(rank > 0 && rank <= d_model, "factorize: rank ", rank, " given, expected 1 .. d_model = ", d_model);
  Matrix<T> out = above(k, v);
  require(all_finite(out), "factorize: the key or value weights hold numbers that are not finite");
  return out;
}

/// Returns the singular value decomposition of up * down, keys above values in `up`. Nothing of the product is lost.
template <std::same_as<double> T>
JointFactors product_svd(const Matrix<T>& up, const Matrix<T>& down, Index k_rows) {
  const Matrix<T> rows = orthonormal(transposed(down)), core = product(up, product_by_columns(down, rows));
  const Matrix<T> turn = principal_directions(gram(core)), turned = product(core, turn);
  JointFactors out;
  out.down = transposed_product(rows, turn);
  out.k_up = rows_of(turned, 0, k_rows);
  out.v_up = rows_of(turned, k_rows, up.rows() - k_rows);
  return out;
}

/// Sets the error of a factorization of k and v for inputs of these second moments (empty: white). It is computed from
/// the factors, whatever method made them.
template <std::same_as<double> T>
void measure(JointFactors& factors, const Matrix<T>& k, const Matrix<T>& v, const Matrix<T>& key_input,
             const Matrix<T>& value_input) {
  const Matrix<T> of_keys = difference(k, factors.k_up, factors.down),
                  of_values = difference(v, factors.v_up, factors.down);
  factors.discarded = output_energy(of_keys, key_input) + output_energy(of_values, value_input);
  const double all = output_energy(k, key_input) + output_energy(v, value_input);
  factors.predicted_error = factors.discarded > 0 ? std::sqrt(factors.discarded / all) : 0;
}

/// Moves the singular values, which are the lengths of the columns of `up`, to where they are wanted.
template <std::same_as<double> T>
void place(Matrix<T>& down, Matrix<T>& k_up, Matrix<T>& v_up, SingularValues where) {
  if (where == SingularValues::up) return;
  std::vector<T> lengths;
  for (Index i = 0; i < down.rows(); ++i) lengths.push_back(std::sqrt(column_energy(k_up, i) + column_energy(v_up, i)));
  const T least = 1e-12 * *std::max_element(lengths.begin(), lengths.end());
  for (Index i = 0; i < down.rows(); ++i) {
    const T length = lengths[static_cast<std::size_t>(i)],
            moved = where == SingularValues::both ? std::sqrt(length) : length;
    if (length <= least) continue;  // holds nothing; as it is, it can learn
    for (Index c = 0; c < down.cols(); ++c) down(i, c) *= moved;
    for (Matrix<T>* up : {&k_up, &v_up})
      for (Index r = 0; r < up->rows(); ++r) (*up)(r, i) /= moved;
  }
}

/// Mixes the channels of a latent by Hadamard matrices (entries +-1/sqrt(n)), each over as many channels as the largest
/// power of 2 that divides their number: down' = H down, up' = up H^T. The function is the same, and what is cached has
/// no few strong channels (as QuaRot does before quantising, Ashkboos et al. 2024).
template <std::same_as<double> T>
void mix_channels(Matrix<T>& down, Matrix<T>& k_up, Matrix<T>& v_up) {
  const Index rank = down.rows(), block = rank & -rank;
  const auto mix = [](T& one, T& other) {
    const T sum = (one + other) / std::sqrt(T{2}), difference = (one - other) / std::sqrt(T{2});
    one = sum;
    other = difference;
  };
  for (Index step = 1; step < block; step *= 2)
    for (Index i = 0; i < rank; ++i)
      if ((i & step) == 0) {
        for (Index c = 0; c < down.cols(); ++c) mix(down(i, c), down(i + step, c));
        for (Matrix<T>* up : {&k_up, &v_up})
          for (Index r = 0; r < up->rows(); ++r) mix((*up)(r, i), (*up)(r, i + step));
      }
}

}  // namespace detail

/// Computes the truncated singular value decomposition W = U S V^T of the stacked key and value weights: the best
/// latent of its size for inputs whose channels are uncorrelated and equally strong (Eckart and Young 1936). It needs
/// no calibration.
struct JointSvd {
  /// Factorizes k (key channels, d_model) and v (value channels, d_model) at a rank from 1 to d_model. Allocates.
  /// Throws `Error` for other ranks and for weights that are not finite.
  template <std::same_as<double> T>
  static JointFactors factorize(const Matrix<T>& k, const Matrix<T>& v, Index rank) {
    const Matrix<T> stacked = detail::stacked(k, v, rank);
    const Index d_model = k.cols();
    // V from W^T W, which compiles four times as fast as Eigen's SVD and runs as fast. Nothing is lost by the square:
    // V is orthogonal to rounding, and U S is W V, so that all of W comes back at full rank.
    const Matrix<T> basis = detail::principal_directions(detail::gram(stacked));
    const Matrix<T> up = detail::product(stacked, basis), kept = detail::columns_of(up, 0, rank);

    JointFactors out;
    out.down = detail::transposed(detail::columns_of(basis, 0, rank));
    out.k_up = detail::rows_of(kept, 0, k.rows());
    out.v_up = detail::rows_of(kept, k.rows(), v.rows());
    detail::append_column_lengths(out.singular_values, up);
    out.discarded = detail::energy(detail::columns_of(up, rank, d_model - rank));
    if (out.discarded > 0) out.predicted_error = std::sqrt(out.discarded / detail::energy(stacked));
    return out;
  }
};

/// Computes the decomposition of JointSvd from a few products with random vectors (Halko, Martinsson and Tropp 2011,
/// algorithms 4.4 and 5.1). It works with rank + oversampling columns instead of d_model, and pays where the rank is
/// far below d_model. The error is within 1% of the optimum, even if singular values hardly fall, as those of random
/// matrices (docs/conversion.md). Equal seeds give equal factors.
struct RandomizedSvd {
  Index oversampling = 10;     ///< columns of the sketch beyond the rank; an eighth of the rank if that is more
  Index power_iterations = 4;  ///< power iterations, each of which damps small singular values against large ones
  Seed seed{};                 ///< seed of the random vectors

  /// Factorizes k (key channels, d_model) and v (value channels, d_model) at a rank from 1 to d_model.
  /// `singular_values` are those of the sketch, and the error is that of the factors, not an estimate. Allocates.
  /// Throws `Error` for other ranks, weights that are not finite, and negative settings.
  template <std::same_as<double> T>
  JointFactors factorize(const Matrix<T>& k, const Matrix<T>& v, Index rank) const {
    require(oversampling >= 0 && power_iterations >= 0, "factorize: oversampling ", oversampling, " and ",
            power_iterations, " power iterations given, at least 0 expected of both");
    const Matrix<T> stacked = detail::stacked(k, v, rank);
    const Index more = std::max(oversampling, rank / 8);
    if (more >= std::min(stacked.rows(), stacked.cols()) - rank)
      return JointSvd::factorize(k, v, rank);  // nothing to save

    const Random random(seed, "RandomizedSvd");
    Matrix<T> noise(stacked.rows(), rank + more);
    for (Index i = 0; i < noise.size(); ++i) noise.data()[i] = random.normal(static_cast<std::uint64_t>(i));
    // Orthonormal again after each half step: else all columns turn to the first singular vector, and rounding takes
    // the rest.
    const Matrix<T> columns = detail::transposed(stacked);
    Matrix<T> rows = detail::orthonormal(detail::product(columns, noise));
    for (Index i = 0; i < power_iterations; ++i)
      rows = detail::orthonormal(detail::product(columns, detail::orthonormal(detail::product(stacked, rows))));

    const Matrix<T> core = detail::product(stacked, rows), turn = detail::principal_directions(detail::gram(core)),
                    up = detail::product(core, turn), kept = detail::columns_of(up, 0, rank);
    JointFactors out;
    out.down = detail::transposed_product(rows, detail::columns_of(turn, 0, rank));
    out.k_up = detail::rows_of(kept, 0, k.rows());
    out.v_up = detail::rows_of(kept, k.rows(), v.rows());
    detail::append_column_lengths(out.singular_values, up);
    detail::measure(out, k, v, {}, {});
    return out;
  }
};

}  // namespace LACONIC_ABI
}  // namespace laconic
