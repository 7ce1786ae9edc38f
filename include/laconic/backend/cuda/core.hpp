// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/checks/elementwise.hpp>
#include <laconic/backend/cuda/kernels/copy_rows.hpp>
#include <laconic/backend/cuda/kernels/map.hpp>
#include <laconic/backend/cuda/kernels/row_sums.hpp>
#include <laconic/backend/cuda/tensor.hpp>
#include <laconic/backend/cuda/weights.hpp>
#include <laconic/backend/kept_tensors.hpp>
#include <laconic/core/sequences.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <type_traits>
#include <utility>

namespace laconic {
inline namespace LACONIC_ABI {

/// Selects a GPU, and how it multiplies.
struct CudaDevice {
  std::optional<int> number{};                          ///< its number, from 0; empty: the current one of the thread
  ProductPrecision precision = ProductPrecision::full;  ///< how operands of products of floats are rounded
};

/// Holds what all slices of `Cuda` share: a stream of work, memory, and what is kept for weights. It implements the
/// primitives of tensors and parameters.
template <class T>
class CudaCore {
 public:
  /// Names the type of the values that primitives take and return.
  using Tensor = CudaTensor<T>;

  /// Makes a core on a device. Throws `Error` if it is not there, and for products of doubles that are to be rounded.
  explicit CudaCore(const CudaDevice& device)
      : stream_(std::make_shared<cuda::Stream>(device.number)), precision_(device.precision) {
    require(precision_ == ProductPrecision::full || std::is_same_v<T, float>, "Cuda: products in ", to_name(precision_),
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
  /// Returns what another context like this one is constructed from.
  CudaDevice settings() const { return {stream_->device(), precision_}; }
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
  /// Copies ranges of rows. Within one tensor a range may overlap itself, but no row that another range reads or
  /// writes. Throws `Error` for rows that either tensor does not have.
  void copy_rows(const Tensor& from, Tensor& to, std::span<const RowRange> ranges) {
    checks::copy_rows(from, to, ranges);
    const auto overlaps = [&](const RowRange& range) {
      return from.data() == std::as_const(to).data() && std::abs(range.from - range.to) < range.count;
    };
    const Index cols = from.cols();
    if (ranges.size() == 1 && !overlaps(ranges[0]))
      return stream_->copy(to.row(ranges[0].to), from.row(ranges[0].from),
                           static_cast<std::size_t>(ranges[0].count * cols) * sizeof(T));
    const Buffer here = arena_.allocate(ranges.size() * sizeof(cuda::RowsPlace));
    auto* places = static_cast<cuda::RowsPlace*>(here.data());
    Index count = 0, rows = 0;
    for (const RowRange& range : ranges) {
      if (range.count == 0) continue;
      places[count++] = {rows, range.from, range.to};
      rows += range.count;
    }
    if (rows == 0) return;
    const auto there = upload(std::span<const cuda::RowsPlace>(places, static_cast<std::size_t>(count)));
    const cuda::RowPlaces all{there.data(), count};
    if (std::none_of(ranges.begin(), ranges.end(), overlaps))
      return copy_rows({from.data(), to.data(), all, false, false}, rows, cols);
    Tensor between = make(rows, cols);  // all are read before any is written
    copy_rows({from.data(), between.data(), all, false, true}, rows, cols);
    copy_rows({between.data(), to.data(), all, true, false}, rows, cols);
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

  /// Returns numbers of the host on the device. They are copied unless equal ones, of at most 64 KiB, were among the
  /// last 32 lists: the layers of a model often have the same. Those of a replayed pass go there in one copy.
  template <class V>
  cuda::Uploaded<V> upload(std::span<const V> values) {
    const std::size_t bytes = values.size_bytes();
    if (bytes <= max_kept_upload) {
      const Upload& kept = kept_upload(values.data(), bytes);
      return {kept.there, kept.values};
    }
    Buffer there = device_arena_.allocate(bytes);
    stream_->to_device(there.data(), values.data(), bytes);
    return {there, there.data()};
  }
  /// Returns the offsets of sequences, (size + 1), on the device, where they stay for the next primitives: at least
  /// until 31 other lists of numbers have been uploaded.
  const Index* offsets_of(const Sequences& sequences) {
    const auto count = static_cast<std::size_t>(sequences.size()) + 1;
    return static_cast<const Index*>(kept_upload(sequences.offsets(), count * sizeof(Index)).values);
  }
  /// Returns pass(), the work of which is put off until its end and replayed from a pass of the same shapes, if there
  /// was one: see `cuda::Stream`.
  template <class Pass>
  auto replayed(Pass&& pass) {
    if (stream_->is_recorded()) return pass();
    // A pass of the same shapes uploads the same lists, and has the same memory, whatever came before it.
    uploads_ = {};
    device_arena_.sort();
    if (pass_uploads_.empty()) pass_uploads_ = device_arena_.allocate(pass_upload_bytes);
    pass_uploads_used_ = 0;
    return stream_->replayed(std::forward<Pass>(pass));
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
  /// Keeps a list of numbers that was copied to the device.
  struct Upload {
    std::size_t bytes = 0;
    Buffer here{}, there{};        ///< on the host, and the block on the device that holds them
    const void* values = nullptr;  ///< the list in that block; null: there is none
  };
  static constexpr std::size_t max_kept_upload = 64 * 1024;     // bytes of a list that is kept
  static constexpr std::size_t pass_upload_bytes = 256 * 1024;  // bytes of lists of a pass that go in one copy

  /// Returns a list on the device, which is copied if there is no equal one.
  const Upload& kept_upload(const void* values, std::size_t bytes) {
    const auto found = std::find_if(uploads_.begin(), uploads_.end(), [&](const Upload& one) {
      return one.values != nullptr && one.bytes == bytes &&
             (bytes == 0 || std::memcmp(one.here.data(), values, bytes) == 0);
    });
    const auto place = found == uploads_.end() ? uploads_.end() - 1 : found;
    std::rotate(uploads_.begin(), place, place + 1);  // the latest first, so that the last was not used for longest
    Upload& latest = uploads_.front();
    if (found != uploads_.end()) return latest;
    latest = {};
    Upload made{bytes, arena_.allocate(bytes)};
    if (bytes > 0) std::memcpy(made.here.data(), values, bytes);
    const std::size_t rounded = (bytes + 63) / 64 * 64;
    if (stream_->is_recorded() && rounded <= pass_upload_bytes - pass_uploads_used_) {
      // No work of the pass but this upload touches the block, so it may come before all others.
      made.there = pass_uploads_;
      std::byte* const to = static_cast<std::byte*>(pass_uploads_.data()) + pass_uploads_used_;
      pass_uploads_used_ += rounded;
      stream_->to_device_first(to, values, bytes);
      made.values = to;
    } else {
      made.there = device_arena_.allocate(bytes);
      stream_->to_device(made.there.data(), values, bytes);
      made.values = made.there.data();
    }
    return latest = std::move(made);
  }

  /// Runs a copy of rows, with as many bytes at a time as the width and the addresses allow.
  void copy_rows(const cuda::CopyRows<T>& copy, Index rows, Index cols) {
    using Wide = cuda::Bytes16;
    const auto is_wide = [](const T* at) { return reinterpret_cast<std::uintptr_t>(at) % sizeof(Wide) == 0; };
    constexpr Index each = sizeof(Wide) / sizeof(T);
    if (cols % each == 0 && is_wide(copy.from) && is_wide(copy.to))
      for_each(*stream_, "copy_rows", rows * (cols / each), copy.template in<Wide>(cols / each));
    else
      for_each(*stream_, "copy_rows", rows * cols, copy.template in<T>(cols));
  }

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
  std::array<Upload, 32> uploads_{};
  Buffer pass_uploads_{};  // the lists of the replayed pass
  std::size_t pass_uploads_used_ = 0;
};

LACONIC_COMPILE_CUDA_CLASS(CudaCore);

}  // namespace LACONIC_ABI
}  // namespace laconic
