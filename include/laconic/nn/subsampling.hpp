// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/shapes.hpp>
#include <laconic/core/parameter.hpp>
#include <laconic/nn/linear.hpp>

namespace laconic {
inline namespace LACONIC_ABI {

/// Computes a 3 x 3 convolution over (time, frequency) without padding, then ReLU: (rows, in_cols) to (fewer rows,
/// out_cols), see Conv2dShape.
template <class T>
class Conv2d : public Module<Conv2d<T>> {
 public:
  /// Makes the layer with its initial parameters. Allocates.
  Conv2d(const Conv2dShape& shape, Seed seed)
      : weight({shape.out_channels, shape.in_channels, Conv2dShape::kernel, Conv2dShape::kernel}),
        bias({shape.out_channels}),
        shape_(shape) {
    weight.use = shape.stride == 2 ? WeightUse::conv2d_stride_2 : WeightUse::conv2d;
    const double bound = 1 / std::sqrt(static_cast<double>(shape.patch()));
    fill_uniform(weight, bound, Random(seed, "weight"));
    fill_uniform(bias, bound, Random(seed, "bias"));
  }
  /// Returns the shape.
  const Conv2dShape& shape() const { return shape_; }

  /// Returns the convolution of the sequences `from`, whose lengths become those of `to`.
  template <class Context, class Tensor>
  auto operator()(Context& context, const Tensor& x, const Sequences& from, const Sequences& to) const {
    return context.conv2d(x, weight, bias, shape_, from, to, Activation::relu);
  }

  /// Visits the parameters with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    visit("weight", self.weight);
    visit("bias", self.bias);
  }

  Parameter<T> weight;  ///< (out, in, 3, 3)
  Parameter<T> bias;    ///< (out)

 private:
  Conv2dShape shape_;
};

/// Subsamples features (rows, num_mels) by 2 or 4 to encoder frames (fewer rows, d_model): two 3 x 3 convolutions with
/// ReLU over (time, mel), then a linear layer (ESPnet's Conv2dSubsampling and Conv2dSubsampling2). Nothing is padded: T
/// rows give ((T - 1) / 2 - 1) / 2 frames by 4, or (T - 1) / 2 - 2 by 2. Columns between the layers are (frequency,
/// channel), channel innermost.
template <class T>
class Conv2dSubsampling : public Module<Conv2dSubsampling<T>> {
 public:
  /// Makes the layers with their initial parameters. Allocates. Throws Error for a factor other than 2 and 4, and for
  /// fewer than 7 mels.
  Conv2dSubsampling(Index num_mels, Index channels, Index d_model, Index factor, Seed seed)
      : Conv2dSubsampling(Conv2dShape{1, channels, num_mels, 2}, factor, d_model, seed) {}

  /// Returns the frames that `frames` rows give; the same holds for frequencies.
  static constexpr Index out_length(Index frames, Index factor) {
    const Index half = Conv2dShape{1, 1, 3, 2}.out_length(frames);
    return Conv2dShape{1, 1, 3, factor / 2}.out_length(half);
  }

  /// Returns the trained parameters.
  static constexpr Index parameter_count(Index num_mels, Index channels, Index d_model, Index factor) {
    constexpr Index taps = Conv2dShape::kernel * Conv2dShape::kernel;
    return channels * (taps + 1) + channels * (taps * channels + 1) +
           (channels * out_length(num_mels, factor) + 1) * d_model;
  }

  /// Returns the floating-point operations (a multiply-add counts two) for `frames` output frames.
  static constexpr Index flops(Index num_mels, Index channels, Index d_model, Index factor, Index frames) {
    constexpr Index taps = Conv2dShape::kernel * Conv2dShape::kernel;
    const Index half = factor / 2 * (frames - 1) + Conv2dShape::kernel,
                half_freqs = Conv2dShape{1, 1, num_mels, 2}.out_freqs();
    const Index freqs = out_length(num_mels, factor);
    return 2 * channels * (half * half_freqs * taps + frames * freqs * (taps * channels + d_model));
  }

  /// Returns the rows between two output frames.
  Index factor() const { return conv0.shape().stride * conv1.shape().stride; }
  /// Returns the rows that the first output frame needs.
  Index window() const { return (Conv2dShape::kernel - 1) * conv0.shape().stride + Conv2dShape::kernel; }

  /// Holds encoder frames and their sequences.
  template <class Tensor>
  struct Output {
    Tensor rows;          ///< (rows, d_model)
    Sequences sequences;  ///< the rows of each sequence
  };

  /// Returns the encoder frames of packed features. Throws Error where the sizes do not fit.
  template <class Context, class Tensor>
  Output<Tensor> operator()(Context& context, const Tensor& features, const Sequences& sequences) const {
    require(features.cols() == conv0.shape().in_freqs, "subsampling: features have ", features.cols(),
            " mels, the model expects ", conv0.shape().in_freqs);
    require(features.rows() == sequences.rows(), "subsampling: ", features.rows(),
            " rows of features given, their sequences have ", sequences.rows());
    const auto half = sequences.map_lengths(context.arena(), [&](Index n) { return conv0.shape().out_length(n); });
    const auto out = half.map_lengths(context.arena(), [&](Index n) { return conv1.shape().out_length(n); });
    auto x = conv0(context, features, sequences, half);
    x = conv1(context, x, half, out);
    return {linear(context, x), out};
  }

  /// Visits the parameters with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    visit("conv0", self.conv0);
    visit("conv1", self.conv1);
    visit("linear", self.linear);
  }

  Conv2d<T> conv0;   ///< the first convolution
  Conv2d<T> conv1;   ///< the second convolution
  Linear<T> linear;  ///< from the last convolution's channels and frequencies to d_model

 private:
  Conv2dSubsampling(const Conv2dShape& first, Index factor, Index d_model, Seed seed)
      : conv0(first, seed / "conv0"),
        conv1(second(first, factor), seed / "conv1"),
        linear(conv1.shape().out_cols(), d_model, seed / "linear") {}

  static Conv2dShape second(const Conv2dShape& first, Index factor) {
    require(factor == 2 || factor == 4, "subsampling: factor ", factor, " given, 2 or 4 expected");
    const Conv2dShape shape{first.out_channels, first.out_channels, first.out_freqs(), factor / 2};
    require(shape.out_freqs() > 0, "subsampling: ", first.in_freqs, " mels given, at least 7 expected");
    return shape;
  }
};

}  // namespace LACONIC_ABI
}  // namespace laconic
