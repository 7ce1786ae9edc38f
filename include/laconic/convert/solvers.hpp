// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/compiled.hpp>
#include <laconic/core/error.hpp>
#include <laconic/core/matrix.hpp>

#include <Eigen/Eigenvalues>
#include <Eigen/QR>

#include <algorithm>
#include <cmath>
#include <concepts>
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

/// Adds factor * a * b to `sum`, which must not be a or b.
template <std::same_as<double> T>
void add_product(Matrix<T>& sum, double factor, const Matrix<T>& a, const Matrix<T>& b) {
  sum.noalias() += (factor * a) * b;
}
/// Returns a * b.
template <std::same_as<double> T>
Matrix<T> product(const Matrix<T>& a, const Matrix<T>& b) {
  Matrix<T> out(a.rows(), b.cols());
  out.setZero();
  add_product(out, 1, a, b);
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
  add_product(a, -1, b, c);
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
  if (second_moment.size() == 0) return weight.squaredNorm();
  const Matrix<T> seen = transposed_product(weight, second_moment);
  return std::max(by_columns(seen).cwiseProduct(weight).sum(), T{0});  // rounding could make it less
}

/// Multiplies `columns` from the left by reflections H_0 H_1 ..., the last one first. Reflection k is I - t_k v v^T,
/// whose v is 1 in row k + `shift` and holds, below it, what column k of `vectors` holds there. An identity is given as
/// `triangular`, so that what stays 0 is skipped. Eigen's HouseholderSequence does this in blocks, but a third of the
/// time that a conversion took to compile was its own.
template <std::same_as<double> T>
void reflect(Columns<T>& columns, const Columns<T>& vectors, const ColumnVector<T>& t, Index shift, bool triangular) {
  std::vector<T> workspace(static_cast<std::size_t>(columns.cols()));
  for (Index k = std::min(t.size(), columns.rows() - shift) - 1; k >= 0; --k) {
    const Index rows = columns.rows() - k - shift;
    columns.bottomRightCorner(rows, columns.cols() - (triangular ? k + shift : 0))
        .applyHouseholderOnTheLeft(vectors.col(k).tail(rows - 1), t[k], workspace.data());
  }
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
  if (scale == 0) scale = 1;
  Columns<T> vectors(size, size);
  std::transform(symmetric.data(), symmetric.data() + symmetric.size(), vectors.data(),
                 [scale](T x) { return x / scale; });
  const Eigen::Tridiagonalization<Columns<T>> tridiagonal(vectors);
  Eigen::SelfAdjointEigenSolver<Columns<T>> eigen;
  eigen.computeFromTridiagonal(tridiagonal.diagonal(), tridiagonal.subDiagonal());
  require(eigen.info() == Eigen::Success, "factorize: the eigenvalues of the (", symmetric.rows(), ", ",
          symmetric.cols(), ") Gram matrix did not converge");
  vectors = eigen.eigenvectors();
  reflect(vectors, tridiagonal.packedMatrix(), tridiagonal.householderCoefficients(), 1, false);
  SymmetricEigen<T> out{{eigen.eigenvalues().data(), eigen.eigenvalues().data() + size}, vectors};
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
  Columns<T> vectors = by_columns(transposed(matrix));
  ColumnVector<T> t(std::min(vectors.rows(), vectors.cols()));
  std::vector<T> workspace(static_cast<std::size_t>(vectors.cols()));
  for (Index k = 0; k < t.size(); ++k) {
    const Index rows = vectors.rows() - k;
    T length;
    vectors.col(k).tail(rows).makeHouseholderInPlace(t[k], length);
    vectors.bottomRightCorner(rows, vectors.cols() - k - 1)
        .applyHouseholderOnTheLeft(vectors.col(k).tail(rows - 1), t[k], workspace.data());
  }
  Columns<T> out = Columns<T>::Identity(vectors.rows(), vectors.cols());
  reflect(out, vectors, t, 0, true);
  return out;
}

/// Returns the square of the length of column i.
template <std::same_as<double> T>
T column_energy(const Matrix<T>& matrix, Index i) {
  return matrix.col(i).squaredNorm();
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
