// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cpu.hpp>

#include <optional>

namespace laconic {
inline namespace LACONIC_ABI {

/// Computes like `Cpu`, but with another library for the products of linear layers with weights that are not packed,
/// forward and backward:
///
///     CpuWith<EigenProducts> cpu(2);
///     auto logits = model(cpu, features, sequences);
///
/// `Products` has add_product(threads, m, n, k, a, b, c, c_stride), which computes c (m, n) += a (m, k) b (k, n).
/// Results may depend on the number of threads or rows if that library's do. Attention, convolutions over (time,
/// frequency) and packed weights use the kernels of laconic.
template <class Products, class T = float>
class CpuWith : public Cpu<T> {
 public:
  using typename Cpu<T>::Tensor;
  using Cpu<T>::Cpu, Cpu<T>::make, Cpu<T>::zeros;

  Tensor linear(const Tensor& x, const Parameter<T>& weight, const Parameter<T>* bias,
                std::optional<Activation> activation = {}) {
    if (weight.is_resident()) return Cpu<T>::linear(x, weight, bias, activation);
    const Index out = weight.rows(), in = weight.cols();
    require(x.cols() == in && (bias == nullptr || bias->size() == out), "linear: input has ", x.cols(),
            " channels and the bias ", bias == nullptr ? 0 : bias->size(), ", the weight is (", out, ", ", in, ")");
    Tensor y = make(x.rows(), out);
    if (bias == nullptr)
      y.view().setZero();
    else
      y.view().rowwise() = bias->host().reshaped().transpose();
    Products::add_product(this->threads(), x.rows(), out, in, kernels::Operand<T>{x.data(), in},
                          of(weight).transposed(), y.data(), out);
    return activation ? this->activation(*activation, std::move(y)) : y;
  }
  Tensor linear_backward(const Tensor& dy, const Tensor& x, const Parameter<T>& weight, const Parameter<T>* bias,
                         bool needs_dx) {
    const Index out = weight.rows(), in = weight.cols(), rows = x.rows();
    const kernels::Operand<T> g{dy.data(), out};
    if (weight.trainable)
      Products::add_product(this->threads(), out, in, rows, g.transposed(), kernels::Operand<T>{x.data(), in},
                            weight.gradient().data(), in);
    if (bias != nullptr) this->add_row_backward(dy, *bias);
    if (!needs_dx) return {};
    Tensor dx = zeros(rows, in);
    Products::add_product(this->threads(), rows, in, out, g, of(weight), dx.data(), in);
    return dx;
  }

 private:
  static kernels::Operand<T> of(const Parameter<T>& weight) { return {weight.host().data(), weight.host().cols()}; }
};

/// Computes products with Eigen. It sets the number of threads that Eigen uses everywhere.
struct EigenProducts {
  template <class T>
  static void add_product(int threads, Index m, Index n, Index k, kernels::Operand<T> a, kernels::Operand<T> b, T* c,
                          Index c_stride) {
    Eigen::setNbThreads(threads);
    using Result = Eigen::Map<Matrix<T>, 0, Eigen::OuterStride<>>;
    with_map(a, m, k, [&](const auto& left) {
      with_map(b, k, n,
               [&](const auto& right) { Result(c, m, n, Eigen::OuterStride<>(c_stride)).noalias() += left * right; });
    });
  }

 private:
  /// Calls body(matrix) with the operand as an Eigen matrix. Its rows or its columns are contiguous.
  template <class T, class Body>
  static void with_map(kernels::Operand<T> x, Index rows, Index cols, Body&& body) {
    using ByColumns = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::ColMajor>;
    if (x.col_stride == 1)
      body(
          Eigen::Map<const Matrix<T>, 0, Eigen::OuterStride<>>(x.data, rows, cols, Eigen::OuterStride<>(x.row_stride)));
    else
      body(
          Eigen::Map<const ByColumns, 0, Eigen::OuterStride<>>(x.data, rows, cols, Eigen::OuterStride<>(x.col_stride)));
  }
};

}  // namespace LACONIC_ABI
}  // namespace laconic
