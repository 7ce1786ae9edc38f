// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/checks/convolution.hpp>
#include <laconic/backend/cpu/core.hpp>
#include <laconic/backend/cpu/kernels/convolution.hpp>
#include <laconic/backend/cpu/kernels/packed_gemm.hpp>
#include <laconic/backend/cpu/kernels/winograd_conv2d.hpp>
#include <laconic/backend/cpu/weights.hpp>
#include <laconic/core/compiled.hpp>

#include <optional>
#include <utility>

namespace laconic {
inline namespace LACONIC_ABI {

/// Implements the convolutions of `Cpu`.
template <class T>
class CpuConvolution {
 public:
  /// Names the type of the values that primitives take and return.
  using Tensor = laconic::Tensor<T>;

  /// Returns a convolution over time (rows of `to`, out_channels). Throws `Error` for shapes that do not fit.
  Tensor conv1d(const Tensor& x, const Parameter<T>& weight, const Parameter<T>* bias, const Conv1dShape& shape,
                const Sequences& from, const Sequences& to) {
    checks::conv1d(x, weight, bias, shape, from, to);
    Tensor y = core_.make(to.rows(), shape.out_channels);
    Buffer space;
    const kernels::PackedWeight packed = packed_form(weight, shape, space);
    const Index depth = shape.patch();
    // The inputs of an output frame are contiguous, so the rows of x are read in place, `stride` rows apart.
    for (Index n = 0; n < from.size(); ++n)
      kernels::multiply(core_.threads(), core_.arena(), to.length(n),
                        kernels::Operand<T>{x.row(from.begin(n)), shape.stride * shape.in_channels}, shape.out_channels,
                        depth, packed, bias == nullptr ? nullptr : kernels::values_of(*bias), y.row(to.begin(n)),
                        kernels::NoEpilogue());
    return y;
  }
  /// Returns dx, or nothing if `needs_dx` is false, and adds the derivatives by weight and bias to their gradients.
  Tensor conv1d_backward(const Tensor& dy, const Tensor& x, const Parameter<T>& weight, const Parameter<T>* bias,
                         const Conv1dShape& shape, const Sequences& from, const Sequences& to, bool needs_dx) {
    if (weight.trainable) {
      Tensor ordered = core_.zeros(shape.patch(), shape.out_channels);
      kernels::conv1d_backward_weight(core_.threads(), core_.arena(), shape, from, to, dy.data(), x.data(),
                                      ordered.data());
      add_gradient(weight, shape, ordered);
    }
    if (bias != nullptr) core_.add_column_sums(dy, *bias);
    if (!needs_dx) return {};
    Tensor dx = core_.zeros(x.rows(), x.cols());
    const Tensor ordered = ordered_weight(weight, shape);
    kernels::conv1d_backward_input(core_.threads(), core_.arena(), shape, from, to, dy.data(), ordered.data(),
                                   dx.data());
    return dx;
  }

  /// Returns a 3 x 3 convolution over (time, frequency) (rows of `to`, out_cols()), then the activation if one is
  /// given. A stride of 2 with enough channels is computed by Winograd tiles. Throws `Error` for shapes that do not
  /// fit.
  Tensor conv2d(const Tensor& x, const Parameter<T>& weight, const Parameter<T>& bias, const Conv2dShape& shape,
                const Sequences& from, const Sequences& to, std::optional<Activation> activation = {}) {
    checks::conv2d(x, weight, bias, shape, from, to);
    Tensor y = core_.make(to.rows(), shape.out_cols());
    const CpuWeight<T>* prepared = kernels::packed_form_of(weight);
    const bool by_tiles = prepared != nullptr ? prepared->form == WeightForm::tiles : kernels::is_tiled(shape);
    if (by_tiles) {
      require(kernels::is_tiled(shape), "conv2d: a weight packed for tiles given, whose stride is 2; ", shape.stride,
              " expected");
      Buffer memory;
      const T* panels = prepared != nullptr ? reinterpret_cast<const T*>(prepared->data.get()) : nullptr;
      if (prepared == nullptr) {
        memory = core_.arena().allocate(static_cast<std::size_t>(kernels::tile_panels_size<T>(shape)) * sizeof(T));
        kernels::pack_tile_weights(core_.threads(), shape, tile_weights(weight, shape).data(),
                                   static_cast<T*>(memory.data()));
        panels = static_cast<const T*>(memory.data());
      }
      kernels::conv2d_tiles(core_.threads(), core_.arena(), shape, from, to, x.data(), panels, kernels::values_of(bias),
                            activation, y.data());
      return y;
    }
    Buffer space;
    const kernels::PackedWeight packed = packed_form(weight, shape, space);
    const Index depth = shape.patch();
    const kernels::ActivationEpilogue epilogue{activation};
    kernels::conv2d(core_.threads(), core_.arena(), shape, from, to, x.data(), y.data(),
                    kernels::multiply_rows_space(depth, packed),
                    [&](const T* patches, Index count, T* out, void* scratch) {
                      kernels::multiply_rows(count, kernels::Operand<T>{patches, depth}, shape.out_channels, depth,
                                             packed, kernels::values_of(bias), out, epilogue, scratch);
                    });
    return y;
  }
  /// Returns dx, or nothing if `needs_dx` is false, and adds the derivatives by weight and bias to their gradients.
  Tensor conv2d_backward(const Tensor& dy, const Tensor& x, const Parameter<T>& weight, const Parameter<T>& bias,
                         const Conv2dShape& shape, const Sequences& from, const Sequences& to, bool needs_dx) {
    if (bias.trainable)
      kernels::add_column_sums(core_.threads(), dy.rows() * shape.out_freqs(), shape.out_channels, dy.data(),
                               kernels::gradient_of(bias));
    Tensor dx = needs_dx ? core_.zeros(x.rows(), x.cols()) : Tensor();
    if (kernels::is_tiled(shape)) {
      if (weight.trainable) {
        Tensor dweights = core_.zeros(kernels::ConvTiles::all * shape.in_channels, shape.out_channels);
        kernels::conv2d_tiles_backward_weights(core_.threads(), core_.arena(), shape, from, to, dy.data(), x.data(),
                                               dweights.data());
        kernels::add_tile_weights(core_.threads(), shape, std::as_const(dweights).data(), kernels::gradient_of(weight));
      }
      if (needs_dx)
        kernels::conv2d_tiles_backward_input(core_.threads(), core_.arena(), shape, from, to, dy.data(),
                                             tile_weights(weight, shape).data(), dx.data());
      return dx;
    }
    if (weight.trainable) {
      Tensor ordered = core_.zeros(shape.patch(), shape.out_channels);
      kernels::conv2d_backward_weight(core_.threads(), core_.arena(), shape, from, to, dy.data(), x.data(),
                                      ordered.data());
      add_gradient(weight, shape, ordered);
    }
    if (!needs_dx) return {};
    const Tensor ordered = ordered_weight(weight, shape);
    kernels::conv2d_backward_input(core_.threads(), core_.arena(), shape, from, to, dy.data(), ordered.data(),
                                   dx.data());
    return dx;
  }

  /// Returns a depthwise convolution over time, with `past` rows less in each sequence. Throws `Error` for shapes that
  /// do not fit.
  Tensor depthwise_conv(const Tensor& x, const Parameter<T>& weight, const Parameter<T>* bias,
                        const Sequences& sequences, const DepthwiseShape& shape) {
    const Index channels = weight.rows(), kernel = weight.cols();
    checks::depthwise_conv(x, weight, bias, sequences, shape);
    Tensor y = core_.make(x.rows() - sequences.size() * shape.past, channels);
    const Tensor taps = depthwise_taps(weight);
    kernels::depthwise_conv(core_.threads(), sequences, channels, kernel, shape, false, x.data(), taps.data(),
                            bias == nullptr ? nullptr : kernels::values_of(*bias), y.data());
    return y;
  }
  /// Returns dx, or nothing if `needs_dx` is false, and adds the derivatives by weight and bias to their gradients.
  /// Throws `Error` for shapes with past rows.
  Tensor depthwise_conv_backward(const Tensor& dy, const Tensor& x, const Parameter<T>& weight,
                                 const Parameter<T>* bias, const Sequences& sequences, const DepthwiseShape& shape,
                                 bool needs_dx) {
    const Index channels = weight.rows(), kernel = weight.cols();
    checks::depthwise_conv_backward(shape);
    if (weight.trainable) {
      Tensor dtaps = core_.zeros(kernel, channels);
      kernels::depthwise_conv_backward_taps(core_.threads(), sequences, channels, kernel, shape, dy.data(), x.data(),
                                            dtaps.data());
      matrix_view(kernels::gradient_of(weight), channels, kernel) += dtaps.view().transpose();
    }
    if (bias != nullptr) core_.add_column_sums(dy, *bias);
    if (!needs_dx) return {};
    Tensor dx = core_.make(x.rows(), channels);
    const Tensor taps = depthwise_taps(weight);
    kernels::depthwise_conv(core_.threads(), sequences, channels, kernel,
                            DepthwiseShape{kernel - 1 - shape.left, shape.chunk}, true, dy.data(), taps.data(),
                            static_cast<const T*>(nullptr), dx.data());
    return dx;
  }

 protected:
  /// Binds this slice to the core of its context.
  explicit CpuConvolution(CpuCore<T>& core) : core_(core) {}

 private:
  /// Returns the packed form of a weight: the prepared one, or one that is packed now into `space`.
  template <class Shape>
  kernels::PackedWeight packed_form(const Parameter<T>& weight, const Shape& shape, Buffer& space) {
    if (const CpuWeight<T>* prepared = kernels::packed_form_of(weight)) {
      require(prepared->form == WeightForm::taps,
              "convolution: a packed weight of another layer given, one with taps expected");
      return {prepared->storage(), prepared->data.get()};
    }
    const Index depth = shape.patch(), cols = shape.out_channels;
    space = core_.arena().allocate(static_cast<std::size_t>(kernels::Panels<T>::size(depth, cols)) * sizeof(T));
    const Tensor ordered = ordered_weight(weight, shape);
    kernels::pack(core_.threads(), kernels::Operand<T>{ordered.data(), depth}.transposed(), depth, cols,
                  static_cast<T*>(space.data()));
    return {Storage::full, static_cast<const std::byte*>(space.data())};
  }
  Tensor tile_weights(const Parameter<T>& weight, const Conv2dShape& shape) {
    Tensor weights = core_.make(kernels::ConvTiles::all * shape.in_channels, shape.out_channels);
    kernels::tile_weights(core_.threads(), shape, kernels::values_of(weight), weights.data());
    return weights;
  }
  template <class Shape>
  Tensor ordered_weight(const Parameter<T>& weight, const Shape& shape) {
    Tensor ordered = core_.make(shape.out_channels, shape.patch());
    kernels::reorder_taps(shape.out_channels, shape.in_channels, shape.taps(), kernels::values_of(weight),
                          ordered.data());
    return ordered;
  }
  template <class Shape>
  static void add_gradient(const Parameter<T>& weight, const Shape& shape, const Tensor& ordered) {
    kernels::add_reordered_taps(shape.out_channels, shape.in_channels, shape.taps(), ordered.data(),
                                kernels::gradient_of(weight));
  }
  Tensor depthwise_taps(const Parameter<T>& weight) {
    Tensor taps = core_.make(weight.cols(), weight.rows());
    taps.view() = matrix_view<const T>(kernels::values_of(weight), weight.rows(), weight.cols()).transpose();
    return taps;
  }

  CpuCore<T>& core_;
};

LACONIC_COMPILE_CLASS(CpuConvolution);

}  // namespace LACONIC_ABI
}  // namespace laconic
