// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/arena.hpp>
#include <laconic/core/matrix.hpp>

#include <limits>
#include <utility>

namespace laconic {
inline namespace LACONIC_ABI {

/// A value of a CPU computation: a row-major matrix `(rows, cols)` without gaps, in a block of an arena.
/// Copies share the block, which returns to the arena with the last of them; so intermediates are freed as soon as
/// nothing needs them. `borrow` wraps memory of the caller's, which must outlive the tensor.
template <class T>
class Tensor {
 public:
  using Scalar = T;

  Tensor() = default;
  Tensor(const Tensor&) = default;
  /// The other is empty afterwards.
  Tensor(Tensor&& other) noexcept
      : buffer_(std::move(other.buffer_)),
        data_(std::exchange(other.data_, nullptr)),
        rows_(std::exchange(other.rows_, 0)),
        cols_(std::exchange(other.cols_, 0)) {}
  Tensor& operator=(Tensor other) noexcept {
    std::swap(buffer_, other.buffer_);
    std::swap(data_, other.data_);
    std::swap(rows_, other.rows_);
    std::swap(cols_, other.cols_);
    return *this;
  }
  Tensor(Arena& arena, Index rows, Index cols)
      : buffer_(arena.allocate(bytes(rows, cols))), data_(static_cast<T*>(buffer_.data())), rows_(rows), cols_(cols) {}

  static Tensor borrow(const Matrix<T>& matrix) {
    Tensor out;
    out.data_ = const_cast<T*>(matrix.data());  // never written: `unique()` is false for borrowed memory
    out.rows_ = matrix.rows();
    out.cols_ = matrix.cols();
    return out;
  }

  Index rows() const { return rows_; }
  Index cols() const { return cols_; }
  Index size() const { return rows_ * cols_; }
  bool empty() const { return data_ == nullptr; }
  /// True when nobody else sees this memory, so that a primitive may overwrite it.
  bool unique() const { return buffer_.unique(); }

  const T* data() const { return data_; }
  T* data() { return data_; }
  const T* row(Index r) const { return data_ + r * cols_; }
  T* row(Index r) { return data_ + r * cols_; }
  MatrixView<const T> view() const { return matrix_view<const T>(data_, rows_, cols_); }
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
