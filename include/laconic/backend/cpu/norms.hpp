// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/checks/norms.hpp>
#include <laconic/backend/cpu/core.hpp>
#include <laconic/backend/cpu/kernels/norm.hpp>
#include <laconic/backend/cpu/weights.hpp>
#include <laconic/core/compiled.hpp>

#include <algorithm>
#include <utility>

namespace laconic {
inline namespace LACONIC_ABI {

/// Implements the norms of `Cpu`.
template <class T>
class CpuNorms {
 public:
  /// Names the type of the values that primitives take and return.
  using Tensor = laconic::Tensor<T>;

  /// Returns the layer norm of each row of x (rows, channels), and writes mean and 1/std of each row (rows, 2) if
  /// `moments` is not null.
  Tensor layer_norm(const Tensor& x, const Parameter<T>& weight, const Parameter<T>& bias, double eps,
                    Tensor* moments = nullptr) {
    checks::layer_norm(x, weight, bias);
    Tensor y = core_.make(x.rows(), x.cols());
    if (moments != nullptr) *moments = core_.make(x.rows(), 2);
    kernels::layer_norm(core_.threads(), x.rows(), x.cols(), x.data(), kernels::values_of(weight),
                        kernels::values_of(bias), static_cast<T>(eps), y.data(),
                        moments == nullptr ? nullptr : moments->data());
    return y;
  }
  /// Returns dx, or nothing if `needs_dx` is false, and adds the derivatives by weight and bias to their gradients.
  Tensor layer_norm_backward(const Tensor& dy, const Tensor& x, const Parameter<T>& weight, const Parameter<T>& bias,
                             const Tensor& moments, bool needs_dx) {
    Tensor dx = needs_dx ? core_.make(x.rows(), x.cols()) : Tensor();
    kernels::layer_norm_backward(core_.threads(), x.rows(), x.cols(), dy.data(), x.data(), kernels::values_of(weight),
                                 moments.data(), dx.data(), kernels::gradient_of(weight), kernels::gradient_of(bias));
    return dx;
  }

  /// Returns the root-mean-square norm of each row of x (rows, channels), and writes 1/rms of each row (rows, 1) if
  /// `inverses` is not null.
  Tensor rms_norm(const Tensor& x, const Parameter<T>& weight, double eps, Tensor* inverses = nullptr) {
    checks::rms_norm(x, weight);
    Tensor y = core_.make(x.rows(), x.cols());
    if (inverses != nullptr) *inverses = core_.make(x.rows(), 1);
    kernels::rms_norm(core_.threads(), x.rows(), x.cols(), x.data(), kernels::values_of(weight), static_cast<T>(eps),
                      y.data(), inverses == nullptr ? nullptr : inverses->data());
    return y;
  }
  /// Returns dx, or nothing if `needs_dx` is false, and adds the derivative by weight to its gradient.
  Tensor rms_norm_backward(const Tensor& dy, const Tensor& x, const Parameter<T>& weight, const Tensor& inverses,
                           bool needs_dx) {
    Tensor dx = needs_dx ? core_.make(x.rows(), x.cols()) : Tensor();
    kernels::rms_norm_backward(core_.threads(), x.rows(), x.cols(), dy.data(), x.data(), kernels::values_of(weight),
                               inverses.data(), dx.data(), kernels::gradient_of(weight));
    return dx;
  }

  /// Returns the batch norm of each channel of x (rows, channels) by the running statistics.
  Tensor batch_norm(const Tensor& x, const BatchNormParameters<T>& p) {
    return batch_norm_with(x, p, kernels::values_of(p.running_mean), kernels::values_of(p.running_var));
  }
  /// Returns the batch norm of each channel by the statistics of x, and writes them to `moments` (2, channels). If
  /// `gather` is true, adds the update of the running statistics to their gradients.
  Tensor batch_norm_train(const Tensor& x, const BatchNormParameters<T>& p, Tensor& moments, bool gather = true) {
    const Index cols = x.cols();
    moments = core_.make(2, cols);
    if (x.rows() == 0) return core_.make(0, cols);
    checks::batch_norm(x, p);
    kernels::column_moments(core_.threads(), x.rows(), cols, x.data(), moments.row(0), moments.row(1));
    const T unbiased = static_cast<T>(x.rows()) / static_cast<T>(std::max<Index>(1, x.rows() - 1));
    // Each batch updates what the batches before it accumulated, so that several batches before a step give what as
    // many forward passes give in PyTorch.
    const auto add_update = [&](const Parameter<T>& statistic, Index row, T factor) {
      if (!statistic.trainable || !gather) return;
      const T rate = static_cast<T>(statistic.momentum);
      T* update = kernels::gradient_of(statistic);
      const T* value = kernels::values_of(statistic);
      for (Index c = 0; c < cols; ++c) update[c] += rate * (moments.row(row)[c] * factor - (value[c] + update[c]));
    };
    add_update(p.running_mean, 0, T(1));
    add_update(p.running_var, 1, unbiased);
    return batch_norm_with(x, p, moments.row(0), moments.row(1));
  }
  /// Returns dx, or nothing if `needs_dx` is false, and adds the derivatives by weight and bias to their gradients.
  /// Empty `moments` say that the running statistics were used.
  Tensor batch_norm_backward(const Tensor& dy, const Tensor& x, const BatchNormParameters<T>& p, const Tensor& moments,
                             bool needs_dx) {
    Tensor dx = needs_dx ? core_.make(x.rows(), x.cols()) : Tensor();
    const bool of_batch = !moments.empty();
    kernels::batch_norm_backward(core_.threads(), x.rows(), x.cols(), dy.data(), x.data(), kernels::values_of(p.weight),
                                 of_batch ? moments.row(0) : kernels::values_of(p.running_mean),
                                 of_batch ? moments.row(1) : kernels::values_of(p.running_var), static_cast<T>(p.eps),
                                 of_batch, dx.data(), kernels::gradient_of(p.weight), kernels::gradient_of(p.bias));
    return dx;
  }

  /// Returns the norm of each channel over the rows of each sequence, and writes mean and variance (2 * sequences,
  /// channels) if `moments` is not null.
  Tensor sequence_norm(const Tensor& x, const Parameter<T>& weight, const Parameter<T>& bias, double eps,
                       const Sequences& sequences, Tensor* moments = nullptr) {
    checks::sequence_norm(x, weight, bias, sequences);
    Tensor y = core_.make(x.rows(), x.cols()), of = core_.make(2 * sequences.size(), x.cols()),
           scale_shift = core_.make(2, x.cols());
    for (Index n = 0; n < sequences.size(); ++n) {
      const Index first = sequences.begin(n), rows = sequences.length(n);
      if (rows == 0) continue;
      kernels::column_moments(core_.threads(), rows, x.cols(), x.row(first), of.row(2 * n), of.row(2 * n + 1));
      kernels::batch_norm(core_.threads(), rows, x.cols(), x.row(first), kernels::values_of(weight),
                          kernels::values_of(bias), of.row(2 * n), of.row(2 * n + 1), static_cast<T>(eps),
                          scale_shift.data(), y.row(first));
    }
    if (moments != nullptr) *moments = std::move(of);
    return y;
  }
  /// Returns dx, or nothing if `needs_dx` is false, and adds the derivatives by weight and bias to their gradients.
  Tensor sequence_norm_backward(const Tensor& dy, const Tensor& x, const Parameter<T>& weight, const Parameter<T>& bias,
                                double eps, const Sequences& sequences, const Tensor& moments, bool needs_dx) {
    Tensor dx = needs_dx ? core_.make(x.rows(), x.cols()) : Tensor();
    for (Index n = 0; n < sequences.size(); ++n) {
      const Index first = sequences.begin(n), rows = sequences.length(n);
      if (rows == 0) continue;
      kernels::batch_norm_backward(core_.threads(), rows, x.cols(), dy.row(first), x.row(first),
                                   kernels::values_of(weight), moments.row(2 * n), moments.row(2 * n + 1),
                                   static_cast<T>(eps), true, needs_dx ? dx.row(first) : nullptr,
                                   kernels::gradient_of(weight), kernels::gradient_of(bias));
    }
    return dx;
  }

 protected:
  /// Binds this slice to the core of its context.
  explicit CpuNorms(CpuCore<T>& core) : core_(core) {}

 private:
  Tensor batch_norm_with(const Tensor& x, const BatchNormParameters<T>& p, const T* mean, const T* variance) {
    checks::batch_norm(x, p);
    Tensor y = core_.make(x.rows(), x.cols());
    Tensor scale_shift = core_.make(2, x.cols());
    kernels::batch_norm(core_.threads(), x.rows(), x.cols(), x.data(), kernels::values_of(p.weight),
                        kernels::values_of(p.bias), mean, variance, static_cast<T>(p.eps), scale_shift.data(),
                        y.data());
    return y;
  }

  CpuCore<T>& core_;
};

LACONIC_COMPILE_CLASS(CpuNorms);

}  // namespace LACONIC_ABI
}  // namespace laconic
