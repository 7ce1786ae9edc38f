// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/checks/elementwise.hpp>
#include <laconic/backend/cpu/kernels/elementwise.hpp>
#include <laconic/backend/cpu/weights.hpp>
#include <laconic/backend/kept_tensors.hpp>
#include <laconic/core/compiled.hpp>
#include <laconic/core/parallel.hpp>
#include <laconic/core/parameter.hpp>
#include <laconic/core/tensor.hpp>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>
#include <span>
#include <string_view>
#include <utility>

namespace laconic {
inline namespace LACONIC_ABI {

/// Holds what all slices of `Cpu` share: threads, memory, and what is kept for weights. It implements the primitives of
/// tensors and parameters.
template <class T>
class CpuCore {
 public:
  /// Names the type of the values that primitives take and return.
  using Tensor = laconic::Tensor<T>;

  /// Makes a core with `threads` threads; 0 takes all that the machine offers. Throws `Error` unless 0 <= threads <=
  /// 4096.
  explicit CpuCore(int threads) : threads_(checked_threads(threads)) {}
  CpuCore(const CpuCore&) = delete;
  CpuCore& operator=(const CpuCore&) = delete;

  /// Returns the memory of tensors and scratch.
  Arena& arena() { return arena_; }
  /// Returns the number of threads, which is 1 within the tasks of a region.
  int threads() const { return kernels::is_nested() ? 1 : threads_; }

  /// Prepares passes that must not allocate, after the largest ones have run: doubles the free memory of every size, or
  /// brings it to that of a context that has run them.
  void settle(const CpuCore& like) { arena_.settle(like.arena_); }

  /// Returns what another context like this one is constructed from: the number of threads.
  int settings() const { return threads_; }
  /// Returns pass(): on the processor, starting work costs nothing.
  template <class Pass>
  auto replayed(Pass&& pass) {
    return pass();
  }

  /// Returns a tensor (rows, cols) with unspecified values.
  Tensor make(Index rows, Index cols) { return Tensor(arena_, rows, cols); }
  /// Returns a tensor (rows, cols) of zeros.
  Tensor zeros(Index rows, Index cols) { return fill(rows, cols, 0); }
  /// Returns a tensor that borrows a matrix, which must outlive everything that is computed from it.
  Tensor input(const Matrix<T>& x) { return Tensor::borrow(x); }
  /// Returns a tensor that copies a temporary matrix.
  Tensor input(const Matrix<T>&& x) {
    Tensor out = make(x.rows(), x.cols());
    out.view() = x;
    return out;
  }
  /// Returns a tensor unchanged.
  Tensor input(Tensor x) { return x; }
  /// Returns the values as a matrix. Allocates.
  Matrix<T> output(const Tensor& x) { return x.view(); }
  /// Writes the values, row by row, to memory of the host. Throws `Error` unless there is room for exactly all of them.
  void read(const Tensor& x, std::span<T> values) {
    checks::read(x, values.size());
    std::copy_n(x.data(), x.size(), values.data());
  }
  /// Returns the value of a (1, 1) tensor. Throws `Error` for any other shape.
  double number(const Tensor& x) {
    checks::number(x);
    return static_cast<double>(x.row(0)[0]);
  }
  /// Writes, for each row, the first column of its max, or -1 - c where c is the column of its first NaN.
  void argmax(const Tensor& x, std::span<Index> columns) {
    checks::argmax(x, columns.size());
    for (Index r = 0; r < x.rows(); ++r) {
      const T* row = x.row(r);
      Index best = 0;
      for (Index c = 0; c < x.cols() && best >= 0; ++c) {
        if (row[c] != row[c])
          best = -1 - c;
        else if (row[c] > row[best])
          best = c;
      }
      columns[static_cast<std::size_t>(r)] = best;
    }
  }
  /// Copies ranges of rows. Within one tensor a range may overlap itself, but no row that another range reads or
  /// writes. Throws `Error` for rows that either tensor does not have.
  void copy_rows(const Tensor& from, Tensor& to, std::span<const RowRange> ranges) {
    checks::copy_rows(from, to, ranges);
    for (const RowRange& range : ranges)
      if (range.count > 0 && from.cols() > 0)
        std::memmove(to.row(range.to), from.row(range.from),
                     static_cast<std::size_t>(range.count * from.cols()) * sizeof(T));
  }
  /// Returns a tensor (rows, cols) whose elements all have this value.
  Tensor fill(Index rows, Index cols, double value) {
    Tensor out = make(rows, cols);
    std::fill_n(out.data(), out.size(), static_cast<T>(value));
    return out;
  }

  /// Packs the parameters of a model for products, rounded as `storage` says. Allocates. Throws `Error` if some are
  /// resident already.
  template <class Model>
  void prepare(Model& model, Storage storage = Storage::full) {
    require_on_host(model, "prepare");
    kernels::WeightMemory memory;
    model.parameters([&](std::string_view, Parameter<T>& p) { kernels::prepare_weight(memory, threads_, storage, p); });
  }
  /// Makes the parameters of a model resident with their gradients, in the form of the host. Allocates. Throws `Error`
  /// if some are resident already.
  template <class Model>
  void prepare_training(Model& model) {
    require_on_host(model, "prepare_training");
    model.parameters([](std::string_view, Parameter<T>& p) {
      Matrix<T> gradient = p.has_gradient() ? std::move(p.gradient()) : Matrix<T>();
      p.make_resident(std::make_shared<CpuWeight<T>>(std::move(p.host()), std::move(gradient), true));
    });
  }
  /// Moves the parameters of a model back to the host. Allocates.
  template <class Model>
  void fetch(Model& model) {
    model.parameters([](std::string_view, Parameter<T>& p) { kernels::fetch_weight(p); });
  }

  /// Returns whether what is derived from a weight may be kept from call to call, which holds if the weight cannot
  /// change.
  bool keeps(const Parameter<T>& weight) const { return !weight.can_train(); }
  /// Returns make(n) for some n >= size, kept from an earlier call with this weight if there is one that is large
  /// enough.
  template <class Make>
  Tensor kept_for(const Parameter<T>& weight, Index size, Make&& make) {
    return kept_.get(weight.resident(), size, std::forward<Make>(make));
  }

  /// Adds the sums of the columns of dy (rows, cols) to the gradient of a parameter (cols) that was added to every row.
  void add_column_sums(const Tensor& dy, const Parameter<T>& row) {
    if (T* gradient = kernels::gradient_of(row))
      kernels::add_column_sums(threads_, dy.rows(), dy.cols(), dy.data(), gradient);
  }

 private:
  int threads_;
  Arena arena_;
  KeptTensors<Tensor> kept_;
};

LACONIC_COMPILE_CLASS(CpuCore);

}  // namespace LACONIC_ABI
}  // namespace laconic
