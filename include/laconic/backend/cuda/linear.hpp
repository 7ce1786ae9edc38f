// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/checks/linear.hpp>
#include <laconic/backend/cuda/core.hpp>
#include <laconic/backend/cuda/kernels/embedding.hpp>
#include <laconic/backend/cuda/products.hpp>

#include <algorithm>
#include <cstddef>
#include <optional>
#include <span>
#include <type_traits>

namespace laconic {
inline namespace LACONIC_ABI {

/// Implements the products of `Cuda` with weights.
template <class T>
class CudaLinear {
 public:
  /// Names the type of the values that primitives take and return.
  using Tensor = CudaTensor<T>;

  /// Returns x W^T + b (rows, out), then the activation if one is given. x (rows, in), weight (out, in) rounded or not,
  /// bias (out) or null. Throws `Error` for shapes that do not fit.
  Tensor linear(const Tensor& x, const Parameter<T>& weight, const Parameter<T>* bias,
                std::optional<Activation> activation = {}) {
    checks::linear(x, weight, bias);
    const Index out = weight.rows(), in = weight.cols();
    Tensor y = core_.make(x.rows(), out);
    const auto multiply = [&](const auto& matrix) {
      gemm(core_, "linear", {x.rows(), out, in}, Operand{x.data(), in}, matrix, Result{y.data(), out},
           cuda::GemmEpilogue<T>{cuda::values_of(bias), activation}, held(weight));
    };
    const cuda::StoredRows<T> rows = cuda::rows_of(weight);
    if constexpr (std::is_same_v<T, float>) {  // no other weights are rounded
      if (rows.storage == Storage::bf16) multiply(cuda::StoredColumns<T, Storage::bf16>{rows});
      if (rows.storage == Storage::int8) multiply(cuda::StoredColumns<T, Storage::int8>{rows});
    }
    if (rows.storage == Storage::full) multiply(Operand{cuda::values_of(weight), in}.transposed());
    return y;
  }
  /// Returns dx = dy W, or nothing if `needs_dx` is false, and adds dy^T x and the column sums of dy to the gradients
  /// of weight and bias.
  Tensor linear_backward(const Tensor& dy, const Tensor& x, const Parameter<T>& weight, const Parameter<T>* bias,
                         bool needs_dx) {
    const Index out = weight.rows(), in = weight.cols(), rows = x.rows();
    const Operand g{dy.data(), out};
    if (T* gradient = cuda::gradient_of(weight))
      add_gemm(core_, "linear_backward", {out, in, rows}, g.transposed(), Operand{x.data(), in}, gradient);
    if (bias != nullptr) core_.add_column_sums(dy, *bias);
    if (!needs_dx) return {};
    Tensor dx = core_.make(rows, in);
    gemm(core_, "linear_backward", {rows, in, out}, g, Operand{cuda::values_of(weight), in}, Result{dx.data(), in});
    return dx;
  }

  /// Returns row ids[r] of a weight (vocabulary, channels) in row r. Throws `Error` for an id that it has no row of.
  Tensor embed(std::span<const int> ids, const Parameter<T>& weight) {
    checks::embed(ids, weight);
    Tensor y = core_.make(static_cast<Index>(ids.size()), weight.cols());
    const auto there = core_.upload(ids);
    for_each(core_.stream(), "embed", y.size(), cuda::LoadRows<T>{cuda::rows_of(weight), there.data(), y.data()});
    return y;
  }
  /// Adds each row of dy to the gradient of the weight's row that it came from.
  void embed_backward(const Tensor& dy, std::span<const int> ids, const Parameter<T>& weight) {
    T* gradient = cuda::gradient_of(weight);
    if (gradient == nullptr || ids.empty()) return;
    // Rows are sorted by their ids, and then by their own numbers, so that the order of each sum is that of the rows.
    const auto count = static_cast<Index>(ids.size());
    const Buffer memory = core_.arena().allocate(ids.size() * (sizeof(Index) + sizeof(cuda::EmbeddingRun)));
    auto* runs = static_cast<cuda::EmbeddingRun*>(memory.data());
    auto* rows = reinterpret_cast<Index*>(runs + count);
    for (Index r = 0; r < count; ++r) rows[r] = ids[static_cast<std::size_t>(r)] * count + r;
    std::sort(rows, rows + count);
    std::size_t used = 0;
    for (Index i = 0; i < count; ++i) {
      const Index id = rows[i] / count;
      rows[i] %= count;
      if (used == 0 || runs[used - 1].id != id) runs[used++] = {id, i, i};
      runs[used - 1].end = i + 1;
    }
    const auto runs_there = core_.upload(std::span<const cuda::EmbeddingRun>(runs, used));
    const auto rows_there = core_.upload(std::span<const Index>(rows, ids.size()));
    using Kernel = cuda::EmbedBackward<T>;
    launch(core_.stream(), "embed_backward",
           {static_cast<Index>(used), cuda::pieces(weight.cols(), cuda::warp_threads)},
           Kernel{dy.data(), runs_there.data(), rows_there.data(), gradient, weight.cols()},
           Kernel::threads * sizeof(double));
  }

  /// Returns y_h = x_h W_h^T + b_h for every head h, or x_h W_h if transposed. Throws `Error` for shapes that do not
  /// fit.
  Tensor head_linear(const Tensor& x, const Parameter<T>& weight, const Parameter<T>* bias, const HeadShape& shape) {
    const auto [out, in] = checks::head_linear(x, weight, bias, shape);
    Tensor y = core_.make(x.rows(), shape.num_heads * (shape.transposed ? in : out));
    multiply_heads(x, weight, cuda::values_of(bias), shape, out, in, y);
    return y;
  }
  /// Returns dx, or nothing if `needs_dx` is false, and adds the derivatives by weight and bias to their gradients.
  Tensor head_linear_backward(const Tensor& dy, const Tensor& x, const Parameter<T>& weight, const Parameter<T>* bias,
                              HeadShape shape, bool needs_dx) {
    const auto [out, in] = checks::head_sizes(x, weight, shape);
    const HeadRows merged(x.rows(), shape);
    if (T* gradient = cuda::gradient_of(weight)) {
      // dW_b is the sum over the heads of block b of dy_h^T x_h, or of x_h^T dy_h if transposed.
      const T *left = shape.transposed ? x.data() : dy.data(), *right = shape.transposed ? dy.data() : x.data();
      for (Index h = 0; h < merged.group; ++h)
        add_gemm(core_, "head_linear_backward", {out, in, merged.rows, shape.num_blocks},
                 Operand{left + h * out, merged.heads * out, 1, merged.group * out}.transposed(),
                 Operand{right + h * in, merged.heads * in, 1, merged.group * in}, gradient);
    }
    if (T* gradient = bias == nullptr ? nullptr : cuda::gradient_of(*bias)) {
      if (merged.group == 1) {
        core_.add_column_sums(merged.rows, merged.heads * out, dy.data(), gradient);
      } else {
        Tensor sums = core_.zeros(merged.heads, out);
        core_.add_column_sums(merged.rows, merged.heads * out, dy.data(), sums.data());
        for_each(core_.stream(), "head_linear_backward", shape.num_blocks * out,
                 cuda::AddHeadSums<T>{sums.data(), gradient, merged.group, out});
      }
    }
    if (!needs_dx) return {};
    shape.transposed = !shape.transposed;
    Tensor dx = core_.make(x.rows(), x.cols());
    multiply_heads(dy, weight, nullptr, shape, out, in, dx);
    return dx;
  }

 protected:
  /// Binds this slice to the core of its context.
  explicit CudaLinear(CudaCore<T>& core) : core_(core) {}

 private:
  using Operand = cuda::GemmOperand<T>;
  using Result = cuda::GemmResult<T>;

  /// Counts rows, heads, and heads of a block. With one matrix, heads are more rows.
  struct HeadRows {
    Index rows, heads, group;
    HeadRows(Index of_all, const HeadShape& shape)
        : rows(shape.num_blocks == 1 ? of_all * shape.num_heads : of_all),
          heads(shape.num_blocks == 1 ? 1 : shape.num_heads),
          group(heads / shape.num_blocks) {}
  };
  void multiply_heads(const Tensor& x, const Parameter<T>& weight, const T* bias, const HeadShape& shape, Index out,
                      Index in, Tensor& y) {
    const Index from = shape.transposed ? out : in, to = shape.transposed ? in : out;
    const HeadRows merged(x.rows(), shape);
    const Operand matrix{cuda::values_of(weight), in, 1, out * in};
    gemm(core_, "head_linear", {merged.rows, to, from, merged.heads, merged.group},
         Operand{x.data(), merged.heads * from, 1, from}, shape.transposed ? matrix : matrix.transposed(),
         Result{y.data(), merged.heads * to, to}, cuda::GemmEpilogue<T>{bias, {}}, held(weight));
  }

  static const CudaWeight<T>* held(const Parameter<T>& weight) {
    return weight.size() == 0 ? nullptr : &CudaWeight<T>::of(weight);
  }

  CudaCore<T>& core_;
};

LACONIC_COMPILE_CUDA_CLASS(CudaLinear);

}  // namespace LACONIC_ABI
}  // namespace laconic
