// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/arena.hpp>
#include <laconic/core/matrix.hpp>

#include <limits>
#include <utility>

namespace laconic {
inline namespace LACONIC_ABI {

/// Holds a value of a CPU computation: a contiguous row-major matrix `(rows, cols)` in a block of an arena. Copies
/// share the block, which returns to the arena with the last of them, so that an intermediate is freed as soon as
/// nothing needs it.
template <class T>
class Tensor {
 public:
  using Scalar = T;  ///< the type of an element

  /// Makes an empty tensor.
  Tensor() = default;
  /// Shares the memory of the other.
  Tensor(const Tensor&) = default;
  /// Takes over the memory of the other, which is empty afterwards.
  Tensor(Tensor&& other) noexcept
      : buffer_(std::move(other.buffer_)),
        data_(std::exchange(other.data_, nullptr)),
        rows_(std::exchange(other.rows_, 0)),
        cols_(std::exchange(other.cols_, 0)) {}
  /// Drops its memory and takes that of the other.
  Tensor& operator=(Tensor other) noexcept {
    std::swap(buffer_, other.buffer_);
    std::swap(data_, other.data_);
    std::swap(rows_, other.rows_);
    std::swap(cols_, other.cols_);
    return *this;
  }
  /// Takes an uninitialised block (rows, cols) of the arena. Throws `Error` for a negative size or one beyond the
  /// address space.
  Tensor(Arena& arena, Index rows, Index cols)
      : buffer_(arena.allocate(bytes(rows, cols))), data_(static_cast<T*>(buffer_.data())), rows_(rows), cols_(cols) {}

  /// Wraps the memory of a matrix, which must outlive the tensor. Copies nothing.
  static Tensor borrow(const Matrix<T>& matrix) {
    Tensor out;
    out.data_ = const_cast<T*>(matrix.data());  // never written: `unique()` is false for borrowed memory
    out.rows_ = matrix.rows();
    out.cols_ = matrix.cols();
    return out;
  }

  /// Returns the number of rows.
  Index rows() const { return rows_; }
  /// Returns the number of columns.
  Index cols() const { return cols_; }
  /// Returns the number of elements.
  Index size() const { return rows_ * cols_; }
  /// Says whether there is no memory.
  bool empty() const { return data_ == nullptr; }
  /// Says whether this is the only reference to the memory, so that a primitive may overwrite it.
  bool unique() const { return buffer_.unique(); }

  /// Returns the first element.
  const T* data() const { return data_; }
  /// Returns the first element for writing.
  T* data() { return data_; }
  /// Returns the first element of row r.
  const T* row(Index r) const { return data_ + r * cols_; }
  /// Returns the first element of row r for writing.
  T* row(Index r) { return data_ + r * cols_; }
  /// Returns the elements as a matrix.
  MatrixView<const T> view() const { return matrix_view<const T>(data_, rows_, cols_); }
  /// Returns the elements as a matrix for writing.
  MatrixView<T> view() { return matrix_view<T>(data_, rows_, cols_); }

 private:
  static std::size_t bytes(Index rows, Index cols) {
    constexpr Index most = std::numeric_limits<Index>::max() / static_cast<Index>(sizeof(T));
    require(rows >= 0 && cols >= 0 && (cols == 0 || rows <= most / cols), "tensor: (", rows, ", ", cols,
            ") given, sizes of at least 0 that fit the memory expected");
    return static_cast<std::size_t>(rows * cols) * sizeof(T);
  }

  Buffer buffer_;
  T* data_ = nullptr;
  Index rows_ = 0, cols_ = 0;
};

}  // namespace LACONIC_ABI
}  // namespace laconic
