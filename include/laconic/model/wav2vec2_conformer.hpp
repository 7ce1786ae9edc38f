// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/model/conformer.hpp>
#include <laconic/nn/conv1d.hpp>

#include <variant>

namespace laconic {
inline namespace LACONIC_ABI {

/// Computes one convolution over samples, the norm after it if there is one, and the activation.
template <class T>
class WaveformLayer : public Module<WaveformLayer<T>> {
 public:
  /// Makes the layer with its initial parameters. Allocates.
  WaveformLayer(const WaveformConfig& c, Index i, Seed seed)
      : conv(c.layer(i), seed / "conv", c.conv_bias ? Bias::yes : Bias::no),
        layer_norm(norm_after(c, i)),
        activation_(c.feat_extract_activation) {}

  /// Returns the output of the sequences `from`, whose lengths become those of `to`.
  template <class Context, class Tensor>
  Tensor operator()(Context& context, const Tensor& x, const Sequences& from, const Sequences& to) const {
    Tensor y = conv(context, x, from, to);
    if (const auto* of_frames = std::get_if<LayerNorm<T>>(&layer_norm)) y = (*of_frames)(context, y);
    if (const auto* over_time = std::get_if<SequenceNorm<T>>(&layer_norm)) y = (*over_time)(context, y, to);
    return context.activation(activation_, std::move(y));
  }

  /// Visits the parameters with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    visit("conv", self.conv);
    std::visit([&](auto& norm) { visit("layer_norm", norm); }, self.layer_norm);
  }

  Conv1d<T> conv;                                                     ///< the convolution
  std::variant<NoNorm<T>, LayerNorm<T>, SequenceNorm<T>> layer_norm;  ///< the norm after it

 private:
  static std::variant<NoNorm<T>, LayerNorm<T>, SequenceNorm<T>> norm_after(const WaveformConfig& c, Index i) {
    if (c.feat_extract_norm == WaveformNorm::layer) return LayerNorm<T>(c.conv_dim[i]);
    if (i == 0) return SequenceNorm<T>(c.conv_dim[0]);
    return NoNorm<T>(c.conv_dim[i]);
  }

  Activation activation_;
};

/// Computes encoder frames (fewer rows, d_model) of samples (rows, 1): convolutions, a norm and a linear layer (wav2vec
/// 2.0, Baevski et al. 2020, section 2, as in Hugging Face transformers).
template <class T>
class WaveformFront : public Module<WaveformFront<T>> {
 public:
  /// Makes the layer with its initial parameters. Allocates.
  WaveformFront(const EncoderConfig& c, Seed seed)
      : masked_spec_embed({c.d_model}),
        layer_norm(last_dim(c), c.layer_norm_eps),
        projection(last_dim(c), c.d_model, seed / "feature_projection" / "projection"),
        config_(c.waveform) {
    masked_spec_embed.trainable = false;
    for (Index i = 0; i < config_.conv_dim.size(); ++i)
      conv_layers.emplace_back(config_, i, seed / "feature_extractor" / i);
  }

  /// Returns the samples between two output frames.
  Index factor() const { return config_.stride(); }
  /// Returns the samples that the first output frame needs.
  Index window() const { return config_.window(); }

  /// Holds encoder frames and their sequences.
  template <class Tensor>
  struct Output {
    Tensor rows;          ///< (rows, d_model)
    Sequences sequences;  ///< the rows of each sequence
  };

  /// Returns the encoder frames of packed samples. Throws Error where the sizes do not fit.
  template <class Context, class Tensor>
  Output<Tensor> operator()(Context& context, const Tensor& samples, const Sequences& sequences) const {
    require(samples.cols() == 1, "wav2vec2: samples have ", samples.cols(), " channels, 1 expected");
    require(samples.rows() == sequences.rows(), "wav2vec2: ", samples.rows(), " samples given, their sequences have ",
            sequences.rows());
    Tensor x = samples;
    const Sequences* from = &sequences;  // a copy of what the caller owns would take memory
    Sequences at;
    for (const WaveformLayer<T>& layer : conv_layers) {
      const auto to = from->map_lengths(context.arena(), [&](Index n) { return layer.conv.shape().out_length(n); });
      x = layer(context, x, *from, to);
      at = to;
      from = &at;
    }
    return {projection(context, layer_norm(context, x)), at};
  }

  /// Visits the parameters with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    visit("masked_spec_embed", self.masked_spec_embed);
    visit("feature_extractor.conv_layers", self.conv_layers);
    visit("feature_projection.layer_norm", self.layer_norm);
    visit("feature_projection.projection", self.projection);
  }

  Parameter<T> masked_spec_embed;             ///< stands for masked frames in pretraining; kept for files only
  std::vector<WaveformLayer<T>> conv_layers;  ///< the convolutions
  LayerNorm<T> layer_norm;                    ///< the norm after them
  Linear<T> projection;                       ///< from the last convolution's channels to d_model

 private:
  static Index last_dim(const EncoderConfig& c) {
    require(!c.waveform.empty(), "wav2vec2: no convolutions over samples given (conv_dim), at least one expected");
    return c.waveform.conv_dim[c.waveform.conv_dim.size() - 1];
  }

  WaveformConfig config_;
};

/// Describes Conformer blocks after convolutions over samples, with the parameter names of Hugging Face's
/// `Wav2Vec2ConformerForCTC`, for `Encoder`.
struct Wav2Vec2ConformerKind : ConformerKind {
  /// Returns the convolutions over samples. Throws Error where the configuration has none.
  template <class T>
  static WaveformFront<T> front(const EncoderConfig& c, Seed seed) {
    return {c, seed};
  }
  /// Returns the trained parameters before the blocks.
  static constexpr Index front_parameters(const EncoderConfig& c) {
    const WaveformConfig& w = c.waveform;
    Index sum = c.d_model, channels = 0;
    for (Index i = 0; i < w.conv_dim.size(); ++i) {
      channels = w.conv_dim[i];
      const Index norm = w.feat_extract_norm == WaveformNorm::layer || i == 0 ? 2 * channels : 0;
      sum += channels * (w.layer(i).patch() + (w.conv_bias ? 1 : 0)) + norm;
    }
    return sum + 2 * channels + (channels + 1) * c.d_model;
  }
  /// Returns the floating-point operations before the blocks, for `frames` encoder frames.
  static constexpr Index front_flops(const EncoderConfig& c, Index frames) {
    const WaveformConfig& w = c.waveform;
    Index sum = 2 * frames * w.conv_dim[w.conv_dim.size() - 1] * c.d_model;
    for (Index i = w.conv_dim.size(), n = frames; i-- > 0; n = (n - 1) * w.conv_stride[i] + w.conv_kernel[i])
      sum += 2 * n * w.conv_dim[i] * w.layer(i).patch();
    return sum;
  }
  /// Returns the encoder frames that `rows` samples give.
  static constexpr Index out_length(const EncoderConfig& c, Index rows) {
    for (Index i = 0; i < c.waveform.conv_dim.size(); ++i) rows = c.waveform.layer(i).out_length(rows);
    return rows;
  }
  /// Throws Error for centred convolutions and for a norm over time.
  static constexpr void require_streamable(const EncoderConfig& c) {
    ConformerKind::require_streamable(c);
    require(c.waveform.feat_extract_norm != WaveformNorm::group,
            "wav2vec2: a norm over time cannot be streamed; one of every frame expected");
  }
  static constexpr const char* front_name = "wav2vec2_conformer";                    ///< as in FeatureFront
  static constexpr const char* layers_name = "wav2vec2_conformer.encoder.layers";    ///< as in FeatureFront
  static constexpr const char* norm_name = "wav2vec2_conformer.encoder.layer_norm";  ///< as in FeatureFront
};

/// Encodes samples by the Conformer of Hugging Face's wav2vec2-conformer checkpoints with its CTC head. Samples (rows,
/// 1) are at 16 kHz, normalised to mean 0 and variance 1; the model sees whole utterances. `EncoderConfig::waveform`
/// describes its convolutions, and `num_mels` is 1.
template <class AttentionPolicy, class T = float>
using Wav2Vec2Conformer = Encoder<Wav2Vec2ConformerKind, AttentionPolicy, T>;

}  // namespace LACONIC_ABI
}  // namespace laconic
