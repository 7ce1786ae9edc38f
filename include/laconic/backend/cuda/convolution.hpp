// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/checks/convolution.hpp>
#include <laconic/backend/cuda/core.hpp>
#include <laconic/backend/cuda/kernels/convolution.hpp>
#include <laconic/backend/cuda/kernels/depthwise.hpp>
#include <laconic/backend/cuda/products.hpp>

#include <optional>
#include <type_traits>

namespace laconic {
inline namespace LACONIC_ABI {

/// Implements the convolutions of `Cuda`.
template <class T>
class CudaConvolution {
 public:
  /// Names the type of the values that primitives take and return.
  using Tensor = CudaTensor<T>;

  /// Returns a convolution over time (rows of `to`, out_channels). Throws `Error` for shapes that do not fit.
  Tensor conv1d(const Tensor& x, const Parameter<T>& weight, const Parameter<T>* bias, const Conv1dShape& shape,
                const Sequences& from, const Sequences& to) {
    checks::conv1d(x, weight, bias, shape, from, to);
    Tensor y = core_.make(to.rows(), shape.out_channels);
    convolve("conv1d", patches(shape, from, to), x, weight, bias, {}, y);
    return y;
  }
  /// Returns dx, or nothing if `needs_dx` is false, and adds the derivatives by weight and bias to their gradients.
  Tensor conv1d_backward(const Tensor& dy, const Tensor& x, const Parameter<T>& weight, const Parameter<T>* bias,
                         const Conv1dShape& shape, const Sequences& from, const Sequences& to, bool needs_dx) {
    return convolve_backward("conv1d_backward", patches(shape, from, to), dy, x, weight, bias, needs_dx);
  }

  /// Returns a 3 x 3 convolution over (time, frequency) (rows of `to`, out_cols()), then the activation if one is
  /// given. Throws `Error` for shapes that do not fit.
  Tensor conv2d(const Tensor& x, const Parameter<T>& weight, const Parameter<T>& bias, const Conv2dShape& shape,
                const Sequences& from, const Sequences& to, std::optional<Activation> activation = {}) {
    checks::conv2d(x, weight, bias, shape, from, to);
    Tensor y = core_.make(to.rows(), shape.out_cols());
    convolve("conv2d", patches(shape, from, to), x, weight, &bias, activation, y);
    return y;
  }
  /// Returns dx, or nothing if `needs_dx` is false, and adds the derivatives by weight and bias to their gradients.
  Tensor conv2d_backward(const Tensor& dy, const Tensor& x, const Parameter<T>& weight, const Parameter<T>& bias,
                         const Conv2dShape& shape, const Sequences& from, const Sequences& to, bool needs_dx) {
    return convolve_backward("conv2d_backward", patches(shape, from, to), dy, x, weight, &bias, needs_dx);
  }

  /// Returns a depthwise convolution over time, with `past` rows less in each sequence. Throws `Error` for shapes that
  /// do not fit.
  Tensor depthwise_conv(const Tensor& x, const Parameter<T>& weight, const Parameter<T>* bias,
                        const Sequences& sequences, const DepthwiseShape& shape) {
    checks::depthwise_conv(x, weight, bias, sequences, shape);
    Tensor y = core_.make(x.rows() - sequences.size() * shape.past, x.cols());
    const cuda::DepthwiseRows rows{core_.offsets_of(sequences), sequences.size(), y.rows(), weight.cols(), shape};
    depthwise("depthwise_conv", rows, x, weight, bias, y);
    return y;
  }
  /// Returns dx, or nothing if `needs_dx` is false, and adds the derivatives by weight and bias to their gradients.
  /// Throws `Error` for shapes with past rows.
  Tensor depthwise_conv_backward(const Tensor& dy, const Tensor& x, const Parameter<T>& weight,
                                 const Parameter<T>* bias, const Sequences& sequences, const DepthwiseShape& shape,
                                 bool needs_dx) {
    checks::depthwise_conv_backward(shape);
    const Index channels = weight.rows(), kernel = weight.cols();
    cuda::DepthwiseRows rows{core_.offsets_of(sequences), sequences.size(), x.rows(), kernel, shape};
    if (T* gradient = cuda::gradient_of(weight)) {
      using Taps = cuda::DepthwiseBackwardTaps<T>;
      const Index tiles = Taps::tiles(channels, kernel);
      core_.add_row_sums("depthwise_conv_backward", cuda::RowSplit::of(x.rows(), Taps::chunk, tiles), tiles,
                         weight.size(), gradient, Taps::shared_bytes(),
                         [&](const cuda::RowSplit& split, double* parts) {
                           return Taps{rows, split, dy.data(), x.data(), parts, channels};
                         });
    }
    if (bias != nullptr) core_.add_column_sums(dy, *bias);
    if (!needs_dx) return {};
    Tensor dx = core_.make(x.rows(), channels);
    rows.shape.left = kernel - 1 - shape.left;
    rows.flipped = true;
    depthwise("depthwise_conv_backward", rows, dy, weight, nullptr, dx);
    return dx;
  }

 protected:
  /// Binds this slice to the core of its context.
  explicit CudaConvolution(CudaCore<T>& core) : core_(core) {}

 private:
  cuda::Patches patches(const Conv1dShape& s, const Sequences& from, const Sequences& to) {
    return patches(from, to, 1, 1, s.in_channels, s.out_channels, s.kernel, 1, s.stride);
  }
  cuda::Patches patches(const Conv2dShape& s, const Sequences& from, const Sequences& to) {
    return patches(from, to, s.in_freqs, s.out_freqs(), s.in_channels, s.out_channels, s.kernel, s.kernel, s.stride);
  }
  cuda::Patches patches(const Sequences& from, const Sequences& to, Index in_freqs, Index out_freqs, Index in_channels,
                        Index out_channels, Index time_taps, Index freq_taps, Index stride) {
    const auto small = [](Index i) { return static_cast<int>(i); };
    return {
        core_.offsets_of(from), core_.offsets_of(to), from.size(),      to.rows() * out_freqs, in_freqs,     out_freqs,
        small(in_channels),     small(out_channels),  small(time_taps), small(freq_taps),      small(stride)};
  }

  void convolve(const char* name, const cuda::Patches& patches, const Tensor& x, const Parameter<T>& weight,
                const Parameter<T>* bias, std::optional<Activation> activation, Tensor& y) {
    if constexpr (std::is_same_v<T, float>) {
      if (core_.precision() == ProductPrecision::bf16 && cuda::TensorPatches<Bf16>::can_read(patches))
        return cuda::tensor_convolve<Bf16>(core_, name, patches, x, weight, cuda::values_of(bias), activation, y);
      if (core_.precision() == ProductPrecision::tf32 && cuda::TensorPatches<float>::can_read(patches))
        return cuda::tensor_convolve<float>(core_, name, patches, x, weight, cuda::values_of(bias), activation, y);
    }
    using Kernel = cuda::Convolve<T>;
    launch(core_.stream(), name, Kernel::grid(patches),
           Kernel{patches, x.data(), cuda::values_of(weight), cuda::values_of(bias), y.data(), activation.has_value(),
                  activation.value_or(Activation::relu)},
           Kernel::shared_bytes());
  }
  Tensor convolve_backward(const char* name, const cuda::Patches& patches, const Tensor& dy, const Tensor& x,
                           const Parameter<T>& weight, const Parameter<T>* bias, bool needs_dx) {
    if (T* gradient = cuda::gradient_of(weight)) {
      using Kernel = cuda::ConvolveBackwardWeight<T>;
      const Index tiles = Kernel::tiles(patches);
      core_.add_row_sums(name, cuda::RowSplit::of(patches.points, Kernel::chunk, tiles), tiles, weight.size(), gradient,
                         Kernel::shared_bytes(), [&](const cuda::RowSplit& split, double* parts) {
                           return Kernel{patches, split, dy.data(), x.data(), parts};
                         });
    }
    if (T* gradient = bias == nullptr ? nullptr : cuda::gradient_of(*bias))
      core_.add_column_sums(patches.points, patches.out_channels, dy.data(), gradient);
    if (!needs_dx) return {};
    Tensor dx = core_.make(x.rows(), x.cols());
    using Kernel = cuda::ConvolveBackwardInput<T>;
    const Kernel kernel = Kernel::of(patches, dy.rows(), dy.data(), cuda::values_of(weight), dx.data());
    launch(core_.stream(), name, kernel.grid(), kernel, Kernel::shared_bytes());
    return dx;
  }

  void depthwise(const char* name, const cuda::DepthwiseRows& rows, const Tensor& x, const Parameter<T>& weight,
                 const Parameter<T>* bias, Tensor& y) {
    const cuda::Depthwise<T> kernel{rows, x.data(), cuda::values_of(weight), cuda::values_of(bias), y.data(), y.cols()};
    launch(core_.stream(), name, kernel.grid(), kernel, kernel.shared_bytes());
  }

  CudaCore<T>& core_;
};

LACONIC_COMPILE_CUDA_CLASS(CudaConvolution);

}  // namespace LACONIC_ABI
}  // namespace laconic
