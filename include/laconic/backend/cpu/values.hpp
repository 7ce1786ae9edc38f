// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cpu/kernels/elementwise.hpp>
#include <laconic/core/parallel.hpp>
#include <laconic/core/parameter.hpp>
#include <laconic/core/tensor.hpp>

#include <algorithm>
#include <cstddef>
#include <map>
#include <memory>
#include <utility>

namespace laconic {
inline namespace LACONIC_ABI {

/// The part of `Cpu` that makes values.
template <class T>
class CpuValues {
 public:
  using Scalar = T;
  using Tensor = laconic::Tensor<T>;
  /// Has `kept_for`.
  static constexpr bool keeps_packed = true;

  /// `threads` = 0 takes all that the machine offers.
  explicit CpuValues(int threads = 0) : threads_(checked_threads(threads)) {}
  CpuValues(const CpuValues&) = delete;
  CpuValues& operator=(const CpuValues&) = delete;

  Arena& arena() { return arena_; }
  int threads() const { return threads_; }

  Tensor make(Index rows, Index cols) { return Tensor(arena_, rows, cols); }
  Tensor zeros(Index rows, Index cols) {
    Tensor out = make(rows, cols);
    std::fill_n(out.data(), out.size(), T(0));
    return out;
  }
  /// Borrows the caller's matrix, which must live as long as what is computed from it. Copies a temporary one, which is
  /// also what any other Eigen expression becomes.
  Tensor input(const Matrix<T>& x) { return Tensor::borrow(x); }
  Tensor input(Matrix<T>&& x) {
    Tensor out = make(x.rows(), x.cols());
    out.view() = x;
    return out;
  }
  Tensor input(Tensor x) { return x; }
  /// A value that is filled here and has no derivative: fill(row, col), a function of these alone.
  template <class Fill>
  Tensor constant(Index rows, Index cols, Fill&& fill) {
    Tensor out = make(rows, cols);
    for (Index r = 0; r < rows; ++r)
      for (Index c = 0; c < cols; ++c) out.row(r)[c] = static_cast<T>(fill(r, c));
    return out;
  }
  /// make(size), which follows from a packed weight and this size alone, and serves smaller ones too: kept for later
  /// calls, as long as the context and the weight live. It grows by a quarter at least, so that sizes which grow by
  /// little do not make it anew each time.
  template <class Make>
  Tensor kept_for(const PackedWeight& weight, Index size, Make&& make) {
    if (!kept_.contains(weight.data)) std::erase_if(kept_, [](const auto& one) { return one.first.use_count() == 1; });
    auto& kept = kept_[weight.data];
    if (kept.size < size) {
      const Index larger = std::max(size, kept.size + kept.size / 4);
      kept = {larger, make(larger)};
    }
    return kept.value;
  }

  /// What a row of parameters that was added to every row has as its gradient, added to it.
  void add_row_backward(const Tensor& dy, const Parameter<T>& row) {
    if (row.trainable) kernels::add_column_sums(threads_, dy.rows(), dy.cols(), dy.data(), row.gradient().data());
  }

 protected:
  static T* gradient(const Parameter<T>& p) { return p.trainable ? p.gradient().data() : nullptr; }

  int threads_;
  Arena arena_;

 private:
  struct Kept {
    Index size = -1;
    Tensor value{};
  };
  std::map<std::shared_ptr<const std::byte>, Kept> kept_;
};

}  // namespace LACONIC_ABI
}  // namespace laconic
