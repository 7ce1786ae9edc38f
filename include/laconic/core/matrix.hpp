// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/extent.hpp>

#include <Eigen/Core>

#include <type_traits>

namespace laconic {
inline namespace LACONIC_ABI {

static_assert(EIGEN_MAX_ALIGN_BYTES == LACONIC_ALIGNMENT,
              "laconic: EIGEN_MAX_ALIGN_BYTES, EIGEN_DONT_ALIGN and EIGEN_DONT_VECTORIZE are defined before the first "
              "header of laconic, whose names contain the alignment, or not at all");

/// An owning row-major matrix `(rows, channels)`: one row a frame.
template <class T>
using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

namespace detail {

template <class T>
struct View {
  using type = Eigen::Map<Matrix<T>, Eigen::Unaligned, Eigen::OuterStride<>>;
};
template <class T>
struct View<const T> {
  using type = Eigen::Map<const Matrix<T>, Eigen::Unaligned, Eigen::OuterStride<>>;
};

}  // namespace detail

/// A borrowed row-major matrix whose rows may lie apart (a block of columns). `MatrixView<const T>` only reads.
/// Assigning to one copies values, as with every `Eigen::Map`.
template <class T>
using MatrixView = typename detail::View<T>::type;

template <class T>
MatrixView<T> matrix_view(T* data, Index rows, Index cols, Index stride) {
  return MatrixView<T>(data, rows, cols, Eigen::OuterStride<>(stride));
}
template <class T>
MatrixView<T> matrix_view(T* data, Index rows, Index cols) {
  return matrix_view(data, rows, cols, cols);
}
template <class T>
MatrixView<const T> view(const Matrix<T>& matrix) {
  return matrix_view(matrix.data(), matrix.rows(), matrix.cols());
}
template <class T>
MatrixView<T> view(Matrix<T>& matrix) {
  return matrix_view(matrix.data(), matrix.rows(), matrix.cols());
}

}  // namespace LACONIC_ABI
}  // namespace laconic
