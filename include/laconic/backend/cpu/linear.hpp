// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/checks/linear.hpp>
#include <laconic/backend/cpu/core.hpp>
#include <laconic/backend/cpu/kernels/heads.hpp>
#include <laconic/backend/cpu/kernels/packed_gemm.hpp>
#include <laconic/backend/cpu/weights.hpp>
#include <laconic/core/compiled.hpp>

#include <cstddef>
#include <optional>
#include <span>

namespace laconic {
inline namespace LACONIC_ABI {

/// Implements the products of `Cpu` with weights.
template <class T>
class CpuLinear {
 public:
  /// Names the type of the values that primitives take and return.
  using Tensor = laconic::Tensor<T>;

  /// Returns x W^T + b (rows, out), then the activation if one is given. x (rows, in), weight (out, in) packed or not,
  /// bias (out) or null. Throws `Error` for shapes that do not fit.
  Tensor linear(const Tensor& x, const Parameter<T>& weight, const Parameter<T>* bias,
                std::optional<Activation> activation = {}) {
    const Index out = weight.rows(), in = weight.cols();
    checks::linear(x, weight, bias);
    Tensor y = core_.make(x.rows(), out);
    const T* start = bias == nullptr ? nullptr : kernels::values_of(*bias);
    const CpuWeight<T>* packed = kernels::packed_form_of(weight);
    require(packed == nullptr || packed->form == WeightForm::panels,
            "linear: the packed weight of a convolution given, a matrix expected");
    if (packed != nullptr)
      kernels::multiply(core_.threads(), core_.arena(), x.rows(), kernels::Operand<T>{x.data(), in}, out, in,
                        kernels::PackedWeight{packed->storage(), packed->data.get()}, start, y.data(),
                        kernels::ActivationEpilogue{activation});
    else
      kernels::gemm<T>(core_.threads(), core_.arena(), x.rows(), out, in, {x.data(), in},
                       kernels::Operand<T>{kernels::values_of(weight), in}.transposed(), y.data(), out, false, start,
                       kernels::ActivationEpilogue{activation});
    return y;
  }
  /// Returns row ids[r] of a weight (vocabulary, channels) in row r. Throws `Error` for an id that it has no row of.
  Tensor embed(std::span<const int> ids, const Parameter<T>& weight) {
    checks::embed(ids, weight);
    Tensor y = core_.make(static_cast<Index>(ids.size()), weight.cols());
    kernels::gather_rows(core_.threads(), weight, ids, y.data());
    return y;
  }
  /// Adds each row of dy to the gradient of the weight's row that it came from. The order of each sum is that of the
  /// rows, whatever the number of threads.
  void embed_backward(const Tensor& dy, std::span<const int> ids, const Parameter<T>& weight) {
    T* gradient = kernels::gradient_of(weight);
    if (gradient == nullptr) return;
    const Index cols = weight.cols();
    kernels::parallel_blocks(core_.threads(), cols, 64, [&](Index begin, Index end) {
      for (Index r = 0; r < dy.rows(); ++r)
        for (Index c = begin; c < end; ++c) gradient[ids[static_cast<std::size_t>(r)] * cols + c] += dy.row(r)[c];
    });
  }
  /// Returns dx = dy W, or nothing if `needs_dx` is false, and adds dy^T x and the column sums of dy to the gradients
  /// of weight and bias.
  Tensor linear_backward(const Tensor& dy, const Tensor& x, const Parameter<T>& weight, const Parameter<T>* bias,
                         bool needs_dx) {
    const Index out = weight.rows(), in = weight.cols(), rows = x.rows();
    const kernels::Operand<T> g{dy.data(), out};
    if (weight.trainable)
      kernels::gemm<T>(core_.threads(), core_.arena(), out, in, rows, g.transposed(), {x.data(), in},
                       kernels::gradient_of(weight), in, true, nullptr);
    if (bias != nullptr) core_.add_column_sums(dy, *bias);
    if (!needs_dx) return {};
    Tensor dx = core_.make(rows, in);
    kernels::gemm<T>(core_.threads(), core_.arena(), rows, in, out, g,
                     kernels::Operand<T>{kernels::values_of(weight), in}, dx.data(), in, false, nullptr);
    return dx;
  }

  /// Returns y_h = x_h W_h^T + b_h for every head h, or x_h W_h if transposed. Throws `Error` for shapes that do not
  /// fit.
  Tensor head_linear(const Tensor& x, const Parameter<T>& weight, const Parameter<T>* bias, const HeadShape& shape) {
    const auto [out, in] = checks::head_linear(x, weight, bias, shape);
    Tensor y = core_.make(x.rows(), shape.num_heads * (shape.transposed ? in : out));
    kernels::head_linear(core_.threads(), core_.arena(), shape, x.rows(), out, in, x.data(), kernels::values_of(weight),
                         bias == nullptr ? nullptr : kernels::values_of(*bias), y.data());
    return y;
  }
  /// Returns dx, or nothing if `needs_dx` is false, and adds the derivatives by weight and bias to their gradients.
  Tensor head_linear_backward(const Tensor& dy, const Tensor& x, const Parameter<T>& weight, const Parameter<T>* bias,
                              HeadShape shape, bool needs_dx) {
    const auto [out, in] = checks::head_sizes(x, weight, shape);
    kernels::head_linear_backward_weight(core_.threads(), core_.arena(), shape, x.rows(), out, in, dy.data(), x.data(),
                                         kernels::gradient_of(weight),
                                         bias == nullptr ? nullptr : kernels::gradient_of(*bias));
    if (!needs_dx) return {};
    shape.transposed = !shape.transposed;
    Tensor dx = core_.make(x.rows(), x.cols());
    kernels::head_linear(core_.threads(), core_.arena(), shape, x.rows(), out, in, dy.data(),
                         kernels::values_of(weight), static_cast<const T*>(nullptr), dx.data());
    return dx;
  }

 protected:
  /// Binds this slice to the core of its context.
  explicit CpuLinear(CpuCore<T>& core) : core_(core) {}

 private:
  CpuCore<T>& core_;
};

LACONIC_COMPILE_CLASS(CpuLinear);

}  // namespace LACONIC_ABI
}  // namespace laconic
