// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/checks/norms.hpp>
#include <laconic/backend/cuda/core.hpp>
#include <laconic/backend/cuda/kernels/column_norm.hpp>
#include <laconic/backend/cuda/kernels/norm.hpp>

#include <algorithm>
#include <array>
#include <utility>

namespace laconic {
inline namespace LACONIC_ABI {

/// Implements the norms of `Cuda`.
template <class T>
class CudaNorms {
 public:
  /// Names the type of the values that primitives take and return.
  using Tensor = CudaTensor<T>;

  /// Returns the layer norm of each row of x (rows, channels), and writes mean and 1/std of each row (rows, 2) if
  /// `moments` is not null.
  Tensor layer_norm(const Tensor& x, const Parameter<T>& weight, const Parameter<T>& bias, double eps,
                    Tensor* moments = nullptr) {
    checks::layer_norm(x, weight, bias);
    Tensor y = core_.make(x.rows(), x.cols());
    if (moments != nullptr) *moments = core_.make(x.rows(), 2);
    launch(core_.stream(), "layer_norm", {x.rows()},
           cuda::LayerNorm<T>{x.data(), cuda::values_of(weight), cuda::values_of(bias), y.data(),
                              moments == nullptr ? nullptr : moments->data(), x.cols(), static_cast<T>(eps)});
    return y;
  }
  /// Returns dx, or nothing if `needs_dx` is false, and adds the derivatives by weight and bias to their gradients.
  Tensor layer_norm_backward(const Tensor& dy, const Tensor& x, const Parameter<T>& weight, const Parameter<T>& bias,
                             const Tensor& moments, bool needs_dx) {
    Tensor dx = needs_dx ? core_.make(x.rows(), x.cols()) : Tensor();
    if (needs_dx)
      launch(core_.stream(), "layer_norm_backward", {x.rows()},
             cuda::LayerNormBackward<T>{dy.data(), x.data(), cuda::values_of(weight), moments.data(), dx.data(),
                                        x.cols()});
    T *const dweight = cuda::gradient_of(weight), *const dbias = cuda::gradient_of(bias);
    if (dweight == nullptr && dbias == nullptr) return dx;
    const Sums sums =
        sums_of(all_rows(x), cuda::LayerNormTerms<T>{dy.data(), x.data(), moments.data(), x.cols()}, x.cols());
    add_sums(sums[1], dweight);
    add_sums(sums[0], dbias);
    return dx;
  }

  /// Returns the root-mean-square norm of each row of x (rows, channels), and writes 1/rms of each row (rows, 1) if
  /// `inverses` is not null.
  Tensor rms_norm(const Tensor& x, const Parameter<T>& weight, double eps, Tensor* inverses = nullptr) {
    checks::rms_norm(x, weight);
    Tensor y = core_.make(x.rows(), x.cols());
    if (inverses != nullptr) *inverses = core_.make(x.rows(), 1);
    launch(core_.stream(), "rms_norm", {x.rows()},
           cuda::RmsNorm<T>{x.data(), cuda::values_of(weight), y.data(),
                            inverses == nullptr ? nullptr : inverses->data(), x.cols(), static_cast<T>(eps)});
    return y;
  }
  /// Returns dx, or nothing if `needs_dx` is false, and adds the derivative by weight to its gradient.
  Tensor rms_norm_backward(const Tensor& dy, const Tensor& x, const Parameter<T>& weight, const Tensor& inverses,
                           bool needs_dx) {
    Tensor dx = needs_dx ? core_.make(x.rows(), x.cols()) : Tensor();
    if (needs_dx)
      launch(
          core_.stream(), "rms_norm_backward", {x.rows()},
          cuda::RmsNormBackward<T>{dy.data(), x.data(), cuda::values_of(weight), inverses.data(), dx.data(), x.cols()});
    if (T* const dweight = cuda::gradient_of(weight))
      add_sums(sums_of(all_rows(x), cuda::RmsNormTerms<T>{dy.data(), x.data(), inverses.data(), x.cols()}, x.cols())[0],
               dweight);
    return dx;
  }

  /// Returns the batch norm of each channel of x (rows, channels) by the running statistics.
  Tensor batch_norm(const Tensor& x, const BatchNormParameters<T>& p) {
    checks::batch_norm(x, p);
    return column_norm("batch_norm", x, all_rows(x), p.weight, p.bias, running(p), p.eps);
  }
  /// Returns the batch norm of each channel by the statistics of x, and writes them to `moments` (2, channels). If
  /// `gather` is true, adds the update of the running statistics to their gradients.
  Tensor batch_norm_train(const Tensor& x, const BatchNormParameters<T>& p, Tensor& moments, bool gather = true) {
    moments = core_.make(2, x.cols());
    if (x.rows() == 0) return core_.make(0, x.cols());
    checks::batch_norm(x, p);
    compute_moments(x, all_rows(x), moments);
    const Moments of = of_groups(moments);
    const T unbiased = static_cast<T>(x.rows()) / static_cast<T>(std::max<Index>(1, x.rows() - 1));
    const auto add_update = [&](const Parameter<T>& statistic, const T* now, T factor) {
      if (!statistic.trainable || !gather) return;
      for_each(core_.stream(), "running statistic", x.cols(),
               cuda::MovingAverage<T>{now, cuda::values_of(statistic), cuda::gradient_of(statistic),
                                      static_cast<T>(statistic.momentum), factor});
    };
    add_update(p.running_mean, of.mean, T(1));
    add_update(p.running_var, of.variance, unbiased);
    return column_norm("batch_norm", x, all_rows(x), p.weight, p.bias, of, p.eps);
  }
  /// Returns dx, or nothing if `needs_dx` is false, and adds the derivatives by weight and bias to their gradients.
  /// Empty `moments` say that the running statistics were used.
  Tensor batch_norm_backward(const Tensor& dy, const Tensor& x, const BatchNormParameters<T>& p, const Tensor& moments,
                             bool needs_dx) {
    return column_norm_backward("batch_norm_backward", dy, x, all_rows(x), p.weight, p.bias,
                                moments.empty() ? running(p) : of_groups(moments), p.eps, needs_dx);
  }

  /// Returns the norm of each channel over the rows of each sequence, and writes mean and variance (2 * sequences,
  /// channels) if `moments` is not null.
  Tensor sequence_norm(const Tensor& x, const Parameter<T>& weight, const Parameter<T>& bias, double eps,
                       const Sequences& sequences, Tensor* moments = nullptr) {
    checks::sequence_norm(x, weight, bias, sequences);
    Tensor own = core_.make(2 * sequences.size(), x.cols());
    compute_moments(x, rows_of(sequences), own);
    Tensor y = column_norm("sequence_norm", x, rows_of(sequences), weight, bias, of_groups(own), eps);
    if (moments != nullptr) *moments = std::move(own);
    return y;
  }
  /// Returns dx, or nothing if `needs_dx` is false, and adds the derivatives by weight and bias to their gradients.
  Tensor sequence_norm_backward(const Tensor& dy, const Tensor& x, const Parameter<T>& weight, const Parameter<T>& bias,
                                double eps, const Sequences& sequences, const Tensor& moments, bool needs_dx) {
    return column_norm_backward("sequence_norm_backward", dy, x, rows_of(sequences), weight, bias, of_groups(moments),
                                eps, needs_dx);
  }

 protected:
  /// Binds this slice to the core of its context.
  explicit CudaNorms(CudaCore<T>& core) : core_(core) {}

 private:
  /// Points to mean and variance of the groups of a norm of columns, `stride` elements from one group to the next.
  struct Moments {
    const T *mean, *variance;
    Index stride;
    bool of_batch;  ///< whether they depend on x
  };
  static Moments running(const BatchNormParameters<T>& p) {
    return {cuda::values_of(p.running_mean), cuda::values_of(p.running_var), 0, false};
  }
  static Moments of_groups(const Tensor& moments) { return {moments.row(0), moments.row(1), 2 * moments.cols(), true}; }

  static cuda::RowGroups all_rows(const Tensor& x) { return {nullptr, 1, x.rows()}; }
  cuda::RowGroups rows_of(const Sequences& sequences) {
    return {core_.offsets_of(sequences), sequences.size(), sequences.rows()};
  }

  using Sums = std::array<Tensor, 2>;
  /// Returns the sums of terms over the rows of each group, each (groups, cols).
  template <class F>
  Sums sums_of(const cuda::RowGroups& groups, const F& term, Index cols) {
    Sums out;
    std::array<T*, F::sums> to;
    for (std::size_t k = 0; k < F::sums; ++k) {
      out[k] = core_.make(groups.size, cols);
      to[k] = out[k].data();
    }
    sum_columns(groups, term, cols, to, cols, false);
    return out;
  }
  /// Writes the sums of terms over the rows of each group, or their means, to rows of `stride` elements.
  template <class F>
  void sum_columns(const cuda::RowGroups& groups, const F& term, Index cols, const std::array<T*, F::sums>& to,
                   Index stride, bool mean) {
    using Chunks = cuda::ChunkSums<F>;
    using Join = cuda::JoinChunks<T, F::sums>;
    const Index columns = cuda::pieces(cols, cuda::warp_threads);
    const Buffer parts =
        core_.device_arena().allocate(static_cast<std::size_t>(groups.chunks() * F::sums * cols) * sizeof(double));
    auto* of_chunks = static_cast<double*>(parts.data());
    launch(core_.stream(), "sums of chunks", {groups.chunks(), columns},
           cuda::SumColumns<Chunks>{{term, groups, of_chunks, cols}, cols}, cuda::SumColumns<Chunks>::shared_bytes);
    Join join{of_chunks, groups, {}, cols, stride, mean};
    std::copy(to.begin(), to.end(), join.to);
    launch(core_.stream(), "sums of groups", {groups.size, columns}, cuda::SumColumns<Join>{join, cols},
           cuda::SumColumns<Join>::shared_bytes);
  }
  /// Adds the sums of all groups (groups, cols) to a gradient (cols), unless it is null.
  void add_sums(const Tensor& sums, T* gradient) {
    if (gradient != nullptr) core_.add_column_sums(sums.rows(), sums.cols(), sums.data(), gradient);
  }

  /// Writes mean and population variance of each column of x over the rows of each group to moments (2 * groups, cols).
  void compute_moments(const Tensor& x, const cuda::RowGroups& groups, Tensor& moments) {
    const Index cols = x.cols(), stride = 2 * cols;
    sum_columns(groups, cuda::Values<T>{x.data(), cols}, cols, {moments.row(0)}, stride, true);
    sum_columns(groups, cuda::SquaredDistances<T>{x.data(), moments.row(0), cols, stride}, cols, {moments.row(1)},
                stride, true);
  }
  Tensor column_norm(const char* name, const Tensor& x, const cuda::RowGroups& groups, const Parameter<T>& weight,
                     const Parameter<T>& bias, const Moments& of, double eps) {
    Tensor y = core_.make(x.rows(), x.cols());
    each_column(core_.stream(), name, groups, x.cols(),
                cuda::ColumnNorm<T>{x.data(), cuda::values_of(weight), cuda::values_of(bias), of.mean, of.variance,
                                    y.data(), x.cols(), of.stride, static_cast<T>(eps)});
    return y;
  }
  Tensor column_norm_backward(const char* name, const Tensor& dy, const Tensor& x, const cuda::RowGroups& groups,
                              const Parameter<T>& weight, const Parameter<T>& bias, const Moments& of, double eps,
                              bool needs_dx) {
    const Index cols = x.cols();
    T *const dweight = cuda::gradient_of(weight), *const dbias = cuda::gradient_of(bias);
    Sums sums;
    if (dweight != nullptr || dbias != nullptr || (needs_dx && of.of_batch))
      sums = sums_of(
          groups,
          cuda::ColumnNormTerms<T>{dy.data(), x.data(), of.mean, of.variance, cols, of.stride, static_cast<T>(eps)},
          cols);
    add_sums(sums[1], dweight);
    add_sums(sums[0], dbias);
    if (!needs_dx) return Tensor();
    Tensor dx = core_.make(x.rows(), cols);
    each_column(
        core_.stream(), name, groups, cols,
        cuda::ColumnNormBackward<T>{dy.data(), x.data(), cuda::values_of(weight), of.mean, of.variance,
                                    of.of_batch ? sums[0].data() : nullptr, of.of_batch ? sums[1].data() : nullptr,
                                    dx.data(), groups, cols, of.stride, static_cast<T>(eps)});
    return dx;
  }

  CudaCore<T>& core_;
};

LACONIC_COMPILE_CUDA_CLASS(CudaNorms);

}  // namespace LACONIC_ABI
}  // namespace laconic
