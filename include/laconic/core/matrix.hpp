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

/// Owns a row-major matrix `(rows, channels)`, one row for each frame.
template <class T>
using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

namespace detail {

/// Maps an element type to the type of its view.
template <class T>
struct View {
  using type = Eigen::Map<Matrix<T>, Eigen::Unaligned, Eigen::OuterStride<>>;  ///< a view that can write
};
/// Maps a const element type to the type of its view.
template <class T>
struct View<const T> {
  using type = Eigen::Map<const Matrix<T>, Eigen::Unaligned, Eigen::OuterStride<>>;  ///< a view that only reads
};

}  // namespace detail

/// Borrows a row-major matrix whose rows may be apart in memory (a block of columns). `MatrixView<const T>` only reads.
/// Assigning to a view copies values, as with every `Eigen::Map`.
template <class T>
using MatrixView = typename detail::View<T>::type;

/// Returns a view of `rows` rows of `cols` elements, each `stride` elements after the one before.
template <class T>
MatrixView<T> matrix_view(T* data, Index rows, Index cols, Index stride) {
  return MatrixView<T>(data, rows, cols, Eigen::OuterStride<>(stride));
}
/// Returns a view of (rows, cols) contiguous elements.
template <class T>
MatrixView<T> matrix_view(T* data, Index rows, Index cols) {
  return matrix_view(data, rows, cols, cols);
}
/// Returns a view of a whole matrix that only reads.
template <class T>
MatrixView<const T> view(const Matrix<T>& matrix) {
  return matrix_view(matrix.data(), matrix.rows(), matrix.cols());
}
/// Returns a view of a whole matrix that can write.
template <class T>
MatrixView<T> view(Matrix<T>& matrix) {
  return matrix_view(matrix.data(), matrix.rows(), matrix.cols());
}

}  // namespace LACONIC_ABI
}  // namespace laconic
