// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/checks/elementwise.hpp>
#include <laconic/backend/cuda/kernels/map.hpp>
#include <laconic/backend/cuda/kernels/row_sums.hpp>
#include <laconic/backend/cuda/tensor.hpp>
#include <laconic/backend/cuda/weights.hpp>
#include <laconic/backend/kept_tensors.hpp>
#include <laconic/core/sequences.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <type_traits>
#include <utility>

namespace laconic {
inline namespace LACONIC_ABI {

/// Holds what all slices of `Cuda` share: a stream of work, memory, and what is kept for weights. It implements the
/// primitives of tensors and parameters.
template <class T>
class CudaCore {
 public:
  /// Names the type of the values that primitives take and return.
  using Tensor = CudaTensor<T>;

  /// Makes a core on the device of this number, or on the current one. Throws `Error` if there is none, and for
  /// products of doubles that are to be rounded.
  explicit CudaCore(std::optional<int> device, ProductPrecision precision = ProductPrecision::full)
      : stream_(std::make_shared<cuda::Stream>(device)), precision_(precision) {
    require(precision == ProductPrecision::full || std::is_same_v<T, float>, "Cuda: products in ", to_name(precision),
            " given with double, float expected");
  }
  CudaCore(const CudaCore&) = delete;
  CudaCore& operator=(const CudaCore&) = delete;
  /// Waits until all work is done: kernels may still read memory that is freed now.
  ~CudaCore() {
    try {
      stream_->wait();
    } catch (const Error&) {  // whoever asked for the result was told
    }
  }

  /// Returns the memory of the host for the offsets of sequences.
  Arena& arena() { return arena_; }
  /// Returns the memory of the device for tensors and scratch.
  Arena& device_arena() { return device_arena_; }
  /// Returns the stream of work.
  const cuda::Stream& stream() const { return *stream_; }
  /// Returns how operands of products are rounded.
  ProductPrecision precision() const { return precision_; }
  /// Returns the number of threads of the host, which is 1.
  static constexpr int threads() { return 1; }

  /// Prepares passes that must not allocate, after the largest ones have run: doubles the free memory of every size, on
  /// the host and on the device, or brings it to that of a context that has run them.
  void settle(const CudaCore& like) {
    arena_.settle(like.arena_);
    device_arena_.settle(like.device_arena_);
  }

  /// Returns a tensor (rows, cols) with unspecified values.
  Tensor make(Index rows, Index cols) { return Tensor(device_arena_, rows, cols); }
  /// Returns a tensor (rows, cols) of zeros.
  Tensor zeros(Index rows, Index cols) {
    Tensor out = make(rows, cols);
    stream_->zero(out.data(), bytes_of(out));
    return out;
  }
  /// Returns a tensor that copies a matrix of the host.
  Tensor input(const Matrix<T>& x) {
    Tensor out = make(x.rows(), x.cols());
    stream_->to_device(out.data(), x.data(), bytes_of(out));
    return out;
  }
  /// Returns a tensor unchanged.
  Tensor input(Tensor x) { return x; }
  /// Returns the values as a matrix. Waits for them. Allocates.
  Matrix<T> output(const Tensor& x) {
    Matrix<T> out(x.rows(), x.cols());
    stream_->to_host(out.data(), x.data(), bytes_of(x));
    return out;
  }
  /// Writes the values, row by row, to memory of the host. Waits for them. Throws `Error` unless there is room for
  /// exactly all of them.
  void read(const Tensor& x, std::span<T> values) {
    checks::read(x, values.size());
    stream_->to_host(values.data(), x.data(), bytes_of(x));
  }
  /// Returns the value of a (1, 1) tensor. Throws `Error` for any other shape.
  double number(const Tensor& x) {
    checks::number(x);
    T value;
    stream_->to_host(&value, x.data(), sizeof value);
    return static_cast<double>(value);
  }
  /// Writes, for each row, the first column of its max, or -1 - c where c is the column of its first NaN.
  void argmax(const Tensor& x, std::span<Index> columns) {
    checks::argmax(x, columns.size());
    const Buffer found = device_arena_.allocate(columns.size_bytes());
    launch(*stream_, "argmax", {x.rows()}, cuda::Argmax<T>{x.data(), static_cast<Index*>(found.data()), x.cols()},
           cuda::Argmax<T>::threads * sizeof(Index));
    stream_->to_host(columns.data(), found.data(), columns.size_bytes());
  }
  /// Copies `count` rows of `from`, from row `first` on, to `to`, from row `at` on. Throws `Error` for rows that either
  /// does not have.
  void copy_rows(const Tensor& from, Index first, Index count, Tensor& to, Index at) {
    checks::copy_rows(from, first, count, to, at);
    const std::size_t bytes = static_cast<std::size_t>(count * from.cols()) * sizeof(T);
    if (std::as_const(to).data() != from.data()) return stream_->copy(to.row(at), from.row(first), bytes);
    const Buffer between = device_arena_.allocate(bytes);  // the ranges may overlap
    stream_->copy(between.data(), from.row(first), bytes);
    stream_->copy(to.row(at), between.data(), bytes);
  }
  /// Returns a tensor (rows, cols) whose elements all have this value.
  Tensor fill(Index rows, Index cols, double value) {
    Tensor out = make(rows, cols);
    for_each(*stream_, "fill", out.size(), cuda::Fill<T>{out.data(), static_cast<T>(value)});
    return out;
  }

  /// Moves the parameters of a model to the device, rounded as `storage` says. Allocates. Throws `Error` if some are
  /// resident already, or if parameters that are not of float are to be rounded.
  template <class Model>
  void prepare(Model& model, Storage storage = Storage::full) {
    require_on_host(model, "prepare");
    move_in(model, false, storage);
  }
  /// Moves the parameters of a model to the device with their gradients. Allocates. Throws `Error` if some are resident
  /// already.
  template <class Model>
  void prepare_training(Model& model) {
    require_on_host(model, "prepare_training");
    move_in(model, true, Storage::full);
  }
  /// Moves the parameters of a model back to the host. Allocates.
  template <class Model>
  void fetch(Model& model) {
    model.parameters([&](std::string_view, Parameter<T>& p) { fetch_weight(p); });
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

  // -- for the other slices -----------------------------------------------------------------------------------------

  /// Holds numbers that were copied to the device for one primitive or one pass.
  template <class V>
  struct Uploaded {
    Buffer memory;  ///< keeps them
    /// Returns the first number, on the device.
    const V* data() const { return static_cast<const V*>(memory.data()); }
  };
  /// Copies numbers of the host to the device.
  template <class V>
  Uploaded<V> upload(std::span<const V> values) {
    Uploaded<V> out{device_arena_.allocate(values.size_bytes())};
    stream_->to_device(out.memory.data(), values.data(), values.size_bytes());
    return out;
  }
  /// Returns the offsets of sequences, (size + 1), on the device, where they stay for the next primitives of a pass: at
  /// least until 15 others have been asked for.
  const Index* offsets_of(const Sequences& sequences) {
    const auto is_here = [&](const Offsets& one) {
      return !one.memory.memory.empty() && one.sequences.identity() == sequences.identity();
    };
    const auto found = std::find_if(offsets_.begin(), offsets_.end(), is_here);
    const auto place = found == offsets_.end() ? offsets_.end() - 1 : found;
    std::rotate(offsets_.begin(), place, place + 1);  // the latest first, so that the last was not used for longest
    if (found == offsets_.end()) {
      const auto count = static_cast<std::size_t>(sequences.size()) + 1;
      // The copy keeps the offsets' memory alive, so that no other sequences can have the same identity.
      offsets_.front() = {sequences, upload(std::span(static_cast<const Index*>(sequences.identity()), count))};
    }
    return offsets_.front().memory.data();
  }
  /// Returns the sum of term(i), in double, for i in [0, size). Waits for it. F is as in `cuda::for_each`.
  template <class F>
  double sum(const char* name, Index size, const F& term) {
    const Buffer total = sum_on_device(name, size, term);
    double value = 0;
    stream_->to_host(&value, total.data(), sizeof value);
    return value;
  }
  /// Returns the sum of term(i), in double, for i in [0, size), as one number on the device.
  template <class F>
  Buffer sum_on_device(const char* name, Index size, const F& term) {
    using Sums = cuda::PartialSums<F>;
    const Index blocks = std::max<Index>(1, cuda::pieces(size, Sums::per_block));
    const Buffer parts = device_arena_.allocate(static_cast<std::size_t>(blocks) * sizeof(double));
    launch(*stream_, name, {blocks}, Sums{term, size, static_cast<double*>(parts.data())});
    if (blocks == 1) return parts;
    return sum_on_device(name, blocks, cuda::Itself{static_cast<const double*>(parts.data())});
  }
  /// Adds the sums of the columns of dy (rows, cols) to the gradient of a parameter (cols) that was added to every row.
  void add_column_sums(const Tensor& dy, const Parameter<T>& row) {
    if (T* gradient = cuda::gradient_of(row)) add_column_sums(dy.rows(), dy.cols(), dy.data(), gradient);
  }
  /// Adds the sums of the columns of dy (rows, cols) to `to` (cols).
  void add_column_sums(Index rows, Index cols, const T* dy, T* to) {
    using Kernel = cuda::ColumnSums<T>;
    const Index tiles = Kernel::tiles(cols);
    add_row_sums("column sums", cuda::RowSplit::of(rows, Kernel::chunk, tiles), tiles, cols, to, Kernel::shared_bytes(),
                 [&](const cuda::RowSplit& split, double* parts) {
                   return Kernel{dy, parts, split, rows, cols};
                 });
  }
  /// Adds sums over rows to `to` (size). make(split, parts) returns the kernel that writes the parts of these sums
  /// (parts, size); `tiles` blocks of it, with that much shared memory, compute each part.
  template <class Make>
  void add_row_sums(const char* name, const cuda::RowSplit& split, Index tiles, Index size, T* to,
                    std::size_t shared_bytes, const Make& make) {
    const auto bytes = static_cast<std::size_t>(split.parts() * size) * sizeof(double);
    const Buffer memory = device_arena_.allocate(bytes);
    auto* parts = static_cast<double*>(memory.data());
    launch(*stream_, name, {tiles, split.parts()}, make(split, parts), shared_bytes);
    for_each(*stream_, name, size, cuda::AddParts<T>{parts, to, split.parts(), size});
  }

 private:
  struct Offsets {
    Sequences sequences{};
    Uploaded<Index> memory{};
  };
  /// Moves all parameters to the device, or none if one throws.
  template <class Model>
  void move_in(Model& model, bool trains, Storage storage) {
    try {
      model.parameters([&](std::string_view, Parameter<T>& p) { make_resident(p, trains, storage); });
    } catch (...) {
      fetch(model);
      throw;
    }
  }
  // No templates: laconic::cuda has the kernels that they run.
  void make_resident(Parameter<T>& p, bool trains, Storage storage) {
    cuda::make_resident(stream_, p, trains, storage);
  }
  void fetch_weight(Parameter<T>& p) { cuda::fetch_weight(p); }
  static std::size_t bytes_of(const Tensor& x) { return static_cast<std::size_t>(x.size()) * sizeof(T); }

  std::shared_ptr<const cuda::Stream> stream_;
  ProductPrecision precision_;
  Arena arena_{};
  Arena device_arena_{MemorySource{cuda::allocate, cuda::release, stream_->device()}};
  KeptTensors<Tensor> kept_{};
  std::array<Offsets, 16> offsets_{};
};

LACONIC_COMPILE_CUDA_CLASS(CudaCore);

}  // namespace LACONIC_ABI
}  // namespace laconic
