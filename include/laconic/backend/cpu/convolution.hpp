// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cpu/attention.hpp>
#include <laconic/backend/cpu/kernels/convolution.hpp>
#include <laconic/backend/cpu/kernels/elementwise.hpp>
#include <laconic/backend/cpu/packed.hpp>

#include <memory>
#include <optional>

namespace laconic {
inline namespace LACONIC_ABI {

/// The part of `Cpu` that convolves.
template <class T>
class CpuConvolution : public CpuAttention<T> {
 public:
  using typename CpuValues<T>::Tensor;
  using CpuAttention<T>::CpuAttention, CpuValues<T>::make, CpuValues<T>::zeros, CpuValues<T>::add_row_backward;

  /// x (rows of `from`, in_channels) to (rows of `to`, out_channels); bias may be null.
  Tensor conv1d(const Tensor& x, const Parameter<T>& weight, const Parameter<T>* bias, const Conv1dShape& shape,
                const Sequences& from, const Sequences& to) {
    require(shape.stride > 0 && weight.rows() == shape.out_channels && weight.cols() == shape.patch() &&
                (bias == nullptr || bias->size() == shape.out_channels),
            "conv1d: stride ", shape.stride, ", a weight of (", weight.rows(), ", ", weight.cols(), ") and a bias of ",
            bias == nullptr ? 0 : bias->size(), " given, a positive one, (", shape.out_channels, ", ", shape.patch(),
            ") and none or ", shape.out_channels, " expected");
    require(x.cols() == shape.in_channels && x.rows() == from.rows(), "conv1d: input is (", x.rows(), ", ", x.cols(),
            "), expected (", from.rows(), ", ", shape.in_channels, ")");
    check_convolved("conv1d", shape, from, to);
    Tensor y = make(to.rows(), shape.out_channels);
    Buffer space;
    const PackedWeight packed = packed_form(weight, shape, space);
    const Index depth = shape.patch();
    // What an output frame sees is one run of memory, so the rows of x are read where they lie, `stride` rows apart.
    for (Index n = 0; n < from.size(); ++n)
      kernels::multiply(threads_, arena_, to.length(n),
                        kernels::Operand<T>{x.row(from.begin(n)), shape.stride * shape.in_channels}, shape.out_channels,
                        depth, packed, bias == nullptr ? nullptr : bias->host().data(), y.row(to.begin(n)),
                        kernels::NoEpilogue());
    return y;
  }
  Tensor conv1d_backward(const Tensor& dy, const Tensor& x, const Parameter<T>& weight, const Parameter<T>* bias,
                         const Conv1dShape& shape, const Sequences& from, const Sequences& to, bool needs_dx) {
    if (weight.trainable) {
      Tensor ordered = zeros(shape.patch(), shape.out_channels);
      kernels::conv1d_backward_weight(threads_, arena_, shape, from, to, dy.data(), x.data(), ordered.data());
      add_gradient(weight, shape, ordered);
    }
    if (bias != nullptr) add_row_backward(dy, *bias);
    if (!needs_dx) return {};
    Tensor dx = zeros(x.rows(), x.cols());
    const Tensor ordered = ordered_weight(weight, shape);
    kernels::conv1d_backward_input(threads_, arena_, shape, from, to, dy.data(), ordered.data(), dx.data());
    return dx;
  }

  /// x (rows of `from`, shape.in_cols()) to (rows of `to`, shape.out_cols()), then an activation if one is given.
  Tensor conv2d(const Tensor& x, const Parameter<T>& weight, const Parameter<T>& bias, const Conv2dShape& shape,
                const Sequences& from, const Sequences& to, std::optional<Activation> activation = {}) {
    require(shape.stride > 0 && weight.rows() == shape.out_channels && weight.cols() == shape.patch() &&
                bias.size() == shape.out_channels,
            "conv2d: stride ", shape.stride, ", a weight of (", weight.rows(), ", ", weight.cols(), ") and a bias of ",
            bias.size(), " given, a positive one, (", shape.out_channels, ", ", shape.patch(), ") and ",
            shape.out_channels, " expected");
    require(x.cols() == shape.in_cols() && x.rows() == from.rows(), "conv2d: input is (", x.rows(), ", ", x.cols(),
            "), expected (", from.rows(), ", ", shape.in_cols(), ")");
    check_convolved("conv2d", shape, from, to);
    Tensor y = make(to.rows(), shape.out_cols());
    const bool by_tiles = weight.is_packed() ? weight.packed().packing == Packing::tiles : shape.is_tiled();
    if (by_tiles) {
      require(shape.is_tiled(), "conv2d: a weight packed for tiles given, whose stride is 2; ", shape.stride,
              " expected");
      Buffer memory;
      const T* panels = reinterpret_cast<const T*>(weight.packed().data.get());
      if (!weight.is_packed()) {
        memory = arena_.allocate(static_cast<std::size_t>(kernels::tile_panels_size<T>(shape)) * sizeof(T));
        kernels::pack_tile_weights(threads_, shape, tile_weights(weight, shape).data(), static_cast<T*>(memory.data()));
        panels = static_cast<const T*>(memory.data());
      }
      kernels::conv2d_tiles(threads_, arena_, shape, from, to, x.data(), panels, bias.host().data(), activation,
                            y.data());
      return y;
    }
    Buffer space;
    const PackedWeight packed = packed_form(weight, shape, space);
    const Index depth = shape.patch();
    const kernels::ActivationEpilogue epilogue{activation};
    kernels::conv2d(threads_, arena_, shape, from, to, x.data(), y.data(), kernels::multiply_rows_space(depth, packed),
                    [&](const T* patches, Index count, T* out, void* scratch) {
                      kernels::multiply_rows(count, kernels::Operand<T>{patches, depth}, shape.out_channels, depth,
                                             packed, bias.host().data(), out, epilogue, scratch);
                    });
    return y;
  }
  Tensor conv2d_backward(const Tensor& dy, const Tensor& x, const Parameter<T>& weight, const Parameter<T>& bias,
                         const Conv2dShape& shape, const Sequences& from, const Sequences& to, bool needs_dx) {
    if (bias.trainable)
      kernels::add_column_sums(threads_, dy.rows() * shape.out_freqs(), shape.out_channels, dy.data(),
                               bias.gradient().data());
    Tensor dx = needs_dx ? zeros(x.rows(), x.cols()) : Tensor();
    if (shape.is_tiled()) {
      if (weight.trainable) {
        Tensor dweights = zeros(kernels::ConvTiles::all * shape.in_channels, shape.out_channels);
        kernels::conv2d_tiles_backward_weights(threads_, arena_, shape, from, to, dy.data(), x.data(), dweights.data());
        kernels::add_tile_weights(threads_, shape, std::as_const(dweights).data(), weight.gradient().data());
      }
      if (needs_dx)
        kernels::conv2d_tiles_backward_input(threads_, arena_, shape, from, to, dy.data(),
                                             tile_weights(weight, shape).data(), dx.data());
      return dx;
    }
    if (weight.trainable) {
      Tensor ordered = zeros(shape.patch(), shape.out_channels);
      kernels::conv2d_backward_weight(threads_, arena_, shape, from, to, dy.data(), x.data(), ordered.data());
      add_gradient(weight, shape, ordered);
    }
    if (!needs_dx) return {};
    const Tensor ordered = ordered_weight(weight, shape);
    kernels::conv2d_backward_input(threads_, arena_, shape, from, to, dy.data(), ordered.data(), dx.data());
    return dx;
  }

  /// Each channel with its own kernel over time, zeros outside a sequence: see DepthwiseShape. weight (channels, 1,
  /// kernel), bias (channels) or null. Gives `past` rows less for each sequence than there are.
  Tensor depthwise_conv(const Tensor& x, const Parameter<T>& weight, const Parameter<T>* bias,
                        const Sequences& sequences, const DepthwiseShape& shape) {
    const Index channels = weight.rows(), kernel = weight.cols();
    require(x.cols() == channels && x.rows() == sequences.rows(), "depthwise_conv: input is (", x.rows(), ", ",
            x.cols(), "), expected (", sequences.rows(), ", ", channels, ")");
    require(bias == nullptr || bias->size() == channels, "depthwise_conv: a bias of ",
            bias == nullptr ? 0 : bias->size(), " given for ", channels, " channels");
    require((shape.chunk == Mask::unlimited || shape.chunk > 0) && shape.past >= 0, "depthwise_conv: chunk ",
            shape.chunk, " and past ", shape.past, " given, at least 1 and 0 expected");
    for (Index n = 0; shape.past > 0 && n < sequences.size(); ++n)
      require(sequences.length(n) >= shape.past, "depthwise_conv: sequence ", n, " has ", sequences.length(n),
              " rows, at least ", shape.past, " expected");
    Tensor y = make(x.rows() - sequences.size() * shape.past, channels);
    const Tensor taps = depthwise_taps(weight);
    kernels::depthwise_conv(threads_, sequences, channels, kernel, shape, false, x.data(), taps.data(),
                            bias == nullptr ? nullptr : bias->host().data(), y.data());
    return y;
  }
  Tensor depthwise_conv_backward(const Tensor& dy, const Tensor& x, const Parameter<T>& weight,
                                 const Parameter<T>* bias, const Sequences& sequences, const DepthwiseShape& shape,
                                 bool needs_dx) {
    const Index channels = weight.rows(), kernel = weight.cols();
    require(shape.past == 0, "depthwise_conv: its derivative is known for whole sequences only, ", shape.past,
            " past rows given");
    if (weight.trainable) {
      Tensor dtaps = zeros(kernel, channels);
      kernels::depthwise_conv_backward_taps(threads_, sequences, channels, kernel, shape, dy.data(), x.data(),
                                            dtaps.data());
      weight.gradient() += dtaps.view().transpose();
    }
    if (bias != nullptr) add_row_backward(dy, *bias);
    if (!needs_dx) return {};
    Tensor dx = make(x.rows(), channels);
    const Tensor taps = depthwise_taps(weight);
    kernels::depthwise_conv(threads_, sequences, channels, kernel, DepthwiseShape{kernel - 1 - shape.left, shape.chunk},
                            true, dy.data(), taps.data(), static_cast<const T*>(nullptr), dx.data());
    return dx;
  }

 protected:
  using CpuValues<T>::threads_, CpuValues<T>::arena_;

 private:
  template <class Shape>
  static void check_convolved(const char* name, const Shape& shape, const Sequences& from, const Sequences& to) {
    require(from.size() == to.size(), name, ": ", to.size(), " sequences out given for ", from.size(), " in");
    for (Index n = 0; n < from.size(); ++n)
      require(to.length(n) == shape.out_length(from.length(n)), name, ": length ", to.length(n), " out given for ",
              from.length(n), " in, ", shape.out_length(from.length(n)), " expected");
  }
  /// The weight as it was packed, or packed now, in `space`.
  template <class Shape>
  PackedWeight packed_form(const Parameter<T>& weight, const Shape& shape, Buffer& space) {
    require(!weight.is_packed() || weight.packed().packing == Packing::taps,
            "convolution: a packed weight of another layer given, one with taps expected");
    if (weight.is_packed()) return weight.packed();
    const Index depth = shape.patch(), cols = shape.out_channels;
    space = arena_.allocate(static_cast<std::size_t>(kernels::Panels<T>::size(depth, cols)) * sizeof(T));
    const Tensor ordered = ordered_weight(weight, shape);
    kernels::pack(threads_, kernels::Operand<T>{ordered.data(), depth}.transposed(), depth, cols,
                  static_cast<T*>(space.data()));
    return {Storage::full,
            Packing::taps,
            {std::shared_ptr<const std::byte>(), static_cast<const std::byte*>(space.data())}};
  }
  Tensor tile_weights(const Parameter<T>& weight, const Conv2dShape& shape) {
    require_as_it_is(weight);
    Tensor weights = make(kernels::ConvTiles::all * shape.in_channels, shape.out_channels);
    kernels::tile_weights(threads_, shape, weight.host().data(), weights.data());
    return weights;
  }
  static void require_as_it_is(const Parameter<T>& weight) {
    require(!weight.is_packed(),
            "convolution: a packed weight given, which can only be run; one as it is expected to train");
  }
  template <class Shape>
  Tensor ordered_weight(const Parameter<T>& weight, const Shape& shape) {
    require_as_it_is(weight);
    Tensor ordered = make(shape.out_channels, shape.patch());
    kernels::reorder_taps(shape.out_channels, shape.in_channels, shape.taps(), weight.host().data(), ordered.data());
    return ordered;
  }
  template <class Shape>
  static void add_gradient(const Parameter<T>& weight, const Shape& shape, const Tensor& ordered) {
    kernels::add_reordered_taps(shape.out_channels, shape.in_channels, shape.taps(), ordered.data(),
                                weight.gradient().data());
  }
  Tensor depthwise_taps(const Parameter<T>& weight) {
    Tensor taps = make(weight.host().cols(), weight.host().rows());
    taps.view() = weight.host().transpose();
    return taps;
  }
};

}  // namespace LACONIC_ABI
}  // namespace laconic
