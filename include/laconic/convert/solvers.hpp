// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/compiled.hpp>
#include <laconic/core/error.hpp>
#include <laconic/core/matrix.hpp>

#include <Eigen/Eigenvalues>

#include <algorithm>
#include <cmath>
#include <concepts>
#include <limits>
#include <numeric>
#include <tuple>
#include <utility>
#include <vector>

// Dense linear algebra of conversions: whole matrices of double in, whole matrices out. Eigen's expressions of products
// and solvers take long to compile, so each of its kernels is instantiated in one function here and nowhere else. All
// are templates, although `T` is always double, so that only programs that convert compile them.

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

/// Returns the same values as double.
template <class T>
Matrix<double> to_double(const Matrix<T>& values) {
  Matrix<double> out(values.rows(), values.cols());
  std::copy_n(values.data(), values.size(), out.data());
  return out;
}
/// Overwrites `values` by what is wanted, rounded to its type.
template <class T>
void round_to(Matrix<T>& values, const Matrix<double>& wanted) {
  values.resize(wanted.rows(), wanted.cols());
  std::transform(wanted.data(), wanted.data() + wanted.size(), values.data(),
                 [](double x) { return static_cast<T>(x); });
}

/// Returns `count` rows of a matrix from row `begin` on.
template <class T>
Matrix<T> rows_of(const Matrix<T>& matrix, Index begin, Index count) {
  Matrix<T> out(count, matrix.cols());
  std::copy_n(matrix.data() + begin * matrix.cols(), out.size(), out.data());
  return out;
}
/// Overwrites rows of a matrix from row `begin` on by all rows of `values`.
template <class T>
void set_rows(Matrix<T>& matrix, Index begin, const Matrix<T>& values) {
  std::copy_n(values.data(), values.size(), matrix.data() + begin * matrix.cols());
}
/// Returns `count` columns of a matrix from column `begin` on.
template <class T>
Matrix<T> columns_of(const Matrix<T>& matrix, Index begin, Index count) {
  Matrix<T> out(matrix.rows(), count);
  for (Index r = 0; r < matrix.rows(); ++r)
    std::copy_n(matrix.data() + r * matrix.cols() + begin, count, out.data() + r * count);
  return out;
}
/// Overwrites columns of a matrix from column `begin` on by all columns of `values`.
template <class T>
void set_columns(Matrix<T>& matrix, Index begin, const Matrix<T>& values) {
  for (Index r = 0; r < matrix.rows(); ++r)
    std::copy_n(values.data() + r * values.cols(), values.cols(), matrix.data() + r * matrix.cols() + begin);
}
/// Returns the rows of both matrices, those of `first` above.
template <class T>
Matrix<T> above(const Matrix<T>& first, const Matrix<T>& second) {
  Matrix<T> out(first.rows() + second.rows(), first.cols());
  set_rows(out, 0, first);
  set_rows(out, first.rows(), second);
  return out;
}
template <class T>
Matrix<T> transposed(const Matrix<T>& matrix) {
  Matrix<T> out(matrix.cols(), matrix.rows());
  for (Index r = 0; r < matrix.rows(); ++r)
    for (Index c = 0; c < matrix.cols(); ++c) out.data()[c * matrix.rows() + r] = matrix.data()[r * matrix.cols() + c];
  return out;
}
/// Returns factor * matrix.
template <class T>
Matrix<T> scaled(T factor, Matrix<T> matrix) {
  std::for_each_n(matrix.data(), matrix.size(), [=](T& x) { x *= factor; });
  return matrix;
}
/// Returns a matrix whose column i is multiplied by factor i.
template <class T>
Matrix<T> scaled_columns(Matrix<T> matrix, const Matrix<T>& factors) {
  for (Index r = 0; r < matrix.rows(); ++r)
    for (Index c = 0; c < matrix.cols(); ++c) matrix.data()[r * matrix.cols() + c] *= factors.data()[c];
  return matrix;
}

/// Says whether all numbers are finite.
template <class T>
bool all_finite(const Matrix<T>& matrix) {
  return std::all_of(matrix.data(), matrix.data() + matrix.size(), [](T x) { return std::isfinite(x); });
}
/// Returns the sum of all products of elements of equal positions, in matrices of equal shapes.
template <std::same_as<double> T>
T inner_product(const Matrix<T>& a, const Matrix<T>& b) {
  return std::inner_product(a.data(), a.data() + a.size(), b.data(), T{0});
}
/// Returns the sum of the squares of all elements.
template <std::same_as<double> T>
T energy(const Matrix<T>& matrix) {
  return inner_product(matrix, matrix);
}

/// Adds a * b to `sum`, which must not be a or b.
template <std::same_as<double> T>
void add_product(Matrix<T>& sum, const Matrix<T>& a, const Matrix<T>& b) {
  sum.noalias() += a * b;
}
/// Returns a * b.
template <std::same_as<double> T>
Matrix<T> product(const Matrix<T>& a, const Matrix<T>& b) {
  Matrix<T> out(a.rows(), b.cols());
  out.setZero();
  add_product(out, a, b);
  return out;
}
/// Returns (a * b)^T as Eigen computes a * b for a matrix stored by columns. The order of its sums is another than that
/// of `product`, so the last bits differ.
template <std::same_as<double> T>
Matrix<T> transposed_product(const Matrix<T>& a, const Matrix<T>& b) {
  if (a.rows() == 1 || b.cols() == 1) return transposed(product(a, b));
  return product(transposed(b), transposed(a));
}
/// Returns a * b, summed in the order of `transposed_product`.
template <std::same_as<double> T>
Matrix<T> product_by_columns(const Matrix<T>& a, const Matrix<T>& b) {
  return transposed(transposed_product(a, b));
}
/// Returns matrix^T * matrix.
template <std::same_as<double> T>
Matrix<T> gram(const Matrix<T>& matrix) {
  return product(transposed(matrix), matrix);
}
template <std::same_as<double> T>
Matrix<T> gram_by_columns(const Matrix<T>& matrix) {
  return product_by_columns(transposed(matrix), matrix);
}
/// Returns a - b * c.
template <std::same_as<double> T>
Matrix<T> difference(Matrix<T> a, const Matrix<T>& b, const Matrix<T>& c) {
  add_product(a, scaled(T{-1}, b), c);
  return a;
}

/// A matrix stored by columns, and a vector, as Eigen's solvers take them.
template <class T>
using Columns = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic>;
template <class T>
using ColumnVector = Eigen::Matrix<T, Eigen::Dynamic, 1>;

/// Shows the transpose of a matrix, as one that is stored by columns.
template <class T>
auto by_columns(const Matrix<T>& transpose) {
  return Eigen::Map<const Columns<T>>(transpose.data(), transpose.cols(), transpose.rows());
}

/// Returns tr(W G W^T): the mean square of x W^T, summed over its channels, for inputs x of second moment G. An empty G
/// means white inputs.
template <std::same_as<double> T>
T output_energy(const Matrix<T>& weight, const Matrix<T>& second_moment) {
  if (second_moment.size() == 0) return energy(weight);
  return std::max(inner_product(product_by_columns(weight, second_moment), weight),
                  T{0});  // rounding could make it less
}

/// Adds factor * x to `sum`, both of `size` elements.
template <std::same_as<double> T>
void add_scaled(T* sum, T factor, const T* x, Index size) {
  Eigen::Map<ColumnVector<T>>(sum, size) += factor * Eigen::Map<const ColumnVector<T>>(x, size);
}
/// Returns the sum of the products of `size` elements.
template <std::same_as<double> T>
T dot(const T* a, const T* b, Index size) {
  return Eigen::Map<const ColumnVector<T>>(a, size).dot(Eigen::Map<const ColumnVector<T>>(b, size));
}

/// Multiplies a vector of `size` elements by the reflection I - t v v^T, whose v begins with 1 and goes on with `tail`.
template <std::same_as<double> T>
void reflect(T* vector, const T* tail, T t, Index size) {
  const T along = t * (vector[0] + dot(tail, vector + 1, size - 1));
  vector[0] -= along;
  add_scaled(vector + 1, -along, tail, size - 1);
}
/// Finds the reflection I - t v v^T that leaves a vector of `size` elements only its first one. Overwrites the others
/// by those of v, which begins with 1. Returns t and what the first element becomes.
template <std::same_as<double> T>
std::pair<T, T> find_reflection(T* vector, Index size) {
  T t, length;
  Eigen::Map<ColumnVector<T>>(vector, size).makeHouseholderInPlace(t, length);
  return {t, length};
}

/// A symmetric matrix as H_0 H_1 ... T (H_0 H_1 ...)^T: T has a diagonal and one beside it. H_k is the reflection
/// I - t_k v v^T, whose v is 1 in element k + 1 and holds, after it, what row k of `tails` holds there.
template <class T>
struct Tridiagonal {
  ColumnVector<T> diagonal, beside, t;
  Matrix<T> tails;
};
/// Reduces a symmetric matrix (Golub and Van Loan, Matrix Computations, algorithm 8.3.1); only what is right of the
/// diagonal is read. Eigen's Tridiagonalization and HouseholderSequence took half the time that a conversion took to
/// compile.
template <std::same_as<double> T>
Tridiagonal<T> tridiagonal(Matrix<T> symmetric) {
  const Index size = symmetric.rows();
  Tridiagonal<T> out{ColumnVector<T>(size), ColumnVector<T>(size - 1), ColumnVector<T>(size - 1), {}};
  std::vector<T> products(static_cast<std::size_t>(size));
  for (Index k = 0; k + 1 < size; ++k) {
    T* const v = symmetric.data() + k * size + k + 1;
    const Index rest = size - k - 1;
    std::tie(out.t[k], out.beside[k]) = find_reflection(v, rest);
    v[0] = 1;
    // (I - t v v^T) A (I - t v v^T) = A - v w^T - w v^T, where w = p - t/2 (p v) v and p = t A v.
    T* const w = products.data();
    std::fill_n(w, rest, T{0});
    const auto row = [&](Index i) { return symmetric.data() + (k + 1 + i) * (size + 1); };
    for (Index i = 0; i < rest; ++i) {
      w[i] += dot(row(i), v + i, rest - i);
      add_scaled(w + i + 1, v[i], row(i) + 1, rest - i - 1);
    }
    std::for_each_n(w, rest, [&](T& x) { x *= out.t[k]; });
    add_scaled(w, -out.t[k] / 2 * dot(w, v, rest), v, rest);
    for (Index i = 0; i < rest; ++i) {
      add_scaled(row(i), -v[i], w + i, rest - i);
      add_scaled(row(i), -w[i], v + i, rest - i);
    }
  }
  for (Index i = 0; i < size; ++i) out.diagonal[i] = symmetric(i, i);
  out.tails = std::move(symmetric);
  return out;
}

/// Eigenvalues of a symmetric matrix, rising, and its eigenvectors in columns.
template <class T>
struct SymmetricEigen {
  std::vector<T> values;
  Matrix<T> vectors;
};
template <std::same_as<double> T>
SymmetricEigen<T> eigenvectors(const Matrix<T>& symmetric) {
  const Index size = symmetric.rows();
  T scale = 0;  // of elements up to 1 no square overflows
  std::for_each_n(symmetric.data(), symmetric.size(), [&](T x) { scale = std::max(scale, std::abs(x)); });
  if (scale < std::numeric_limits<T>::min()) scale = 1;
  const Tridiagonal<T> reduced = tridiagonal(scaled(1 / scale, symmetric));
  Eigen::SelfAdjointEigenSolver<Columns<T>> eigen;
  eigen.computeFromTridiagonal(reduced.diagonal, reduced.beside);
  require(eigen.info() == Eigen::Success, "factorize: the eigenvalues of the (", symmetric.rows(), ", ",
          symmetric.cols(), ") Gram matrix did not converge");
  Matrix<T> vectors(size, size);
  std::copy_n(eigen.eigenvectors().data(), vectors.size(), vectors.data());
  for (Index k = size - 2; k >= 0; --k)
    for (Index r = 0; r < size; ++r)
      reflect(vectors.data() + r * size + k + 1, reduced.tails.data() + k * size + k + 2, reduced.t[k], size - k - 1);
  SymmetricEigen<T> out{{eigen.eigenvalues().data(), eigen.eigenvalues().data() + size}, transposed(vectors)};
  for (T& value : out.values) value *= scale;
  return out;
}
/// Returns the eigenvectors of a symmetric matrix in columns, those of the largest eigenvalues first.
template <std::same_as<double> T>
Matrix<T> principal_directions(const Matrix<T>& symmetric) {
  Matrix<T> out = eigenvectors(symmetric).vectors;
  for (Index r = 0; r < out.rows(); ++r) std::reverse(out.data() + r * out.cols(), out.data() + (r + 1) * out.cols());
  return out;
}

/// Returns the square root of a symmetric matrix of positive eigenvalues, and the inverse of that root.
template <std::same_as<double> T>
std::pair<Matrix<T>, Matrix<T>> square_roots(const Matrix<T>& symmetric) {
  const SymmetricEigen<T> eigen = eigenvectors(symmetric);
  const Index size = symmetric.rows();
  Matrix<T> lengths(1, size), inverses(1, size);
  for (Index i = 0; i < size; ++i) {
    lengths(0, i) = std::sqrt(eigen.values[static_cast<std::size_t>(i)]);
    inverses(0, i) = std::sqrt(1 / eigen.values[static_cast<std::size_t>(i)]);
  }
  const auto combined = [&](const Matrix<T>& factors) {
    return product_by_columns(scaled_columns(eigen.vectors, factors), transposed(eigen.vectors));
  };
  return {combined(lengths), combined(inverses)};
}

/// Returns as many orthonormal columns, which span at least what these columns span.
template <std::same_as<double> T>
Matrix<T> orthonormal(const Matrix<T>& matrix) {
  Matrix<T> tails = transposed(matrix);
  const Index size = tails.cols();
  ColumnVector<T> t(std::min(tails.rows(), size));
  for (Index k = 0; k < t.size(); ++k) {
    T* const vector = tails.data() + k * size + k;
    t[k] = find_reflection(vector, size - k).first;
    for (Index r = k + 1; r < tails.rows(); ++r) reflect(tails.data() + r * size + k, vector + 1, t[k], size - k);
  }
  Matrix<T> out = Matrix<T>::Zero(tails.rows(), size);
  for (Index i = 0; i < t.size(); ++i) out.data()[i * size + i] = 1;
  for (Index k = t.size() - 1; k >= 0; --k)  // rows before k are unit vectors, which it leaves
    for (Index r = k; r < out.rows(); ++r)
      reflect(out.data() + r * size + k, tails.data() + k * size + k + 1, t[k], size - k);
  return transposed(out);
}

/// Returns the square of the length of column i.
template <std::same_as<double> T>
T column_energy(const Matrix<T>& matrix, Index i) {
  T sum = 0;
  for (Index r = 0; r < matrix.rows(); ++r) sum += matrix(r, i) * matrix(r, i);
  return sum;
}
/// Appends the lengths of all columns.
template <std::same_as<double> T>
void append_column_lengths(std::vector<T>& out, const Matrix<T>& matrix) {
  for (Index i = 0; i < matrix.cols(); ++i) out.push_back(std::sqrt(column_energy(matrix, i)));
}
/// Multiplies column i by a factor.
template <class T>
void scale_column(Matrix<T>& matrix, Index i, T factor) {
  for (Index r = 0; r < matrix.rows(); ++r) matrix.data()[r * matrix.cols() + i] *= factor;
}

LACONIC_COMPILE_DOUBLE(add_product);
LACONIC_COMPILE_DOUBLE(product);
LACONIC_COMPILE_DOUBLE(transposed_product);
LACONIC_COMPILE_DOUBLE(output_energy);
LACONIC_COMPILE_DOUBLE(eigenvectors);
LACONIC_COMPILE_DOUBLE(principal_directions);
LACONIC_COMPILE_DOUBLE(square_roots);
LACONIC_COMPILE_DOUBLE(orthonormal);
LACONIC_COMPILE_DOUBLE(column_energy);
LACONIC_COMPILE_DOUBLE(append_column_lengths);

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
