// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/shapes.hpp>
#include <laconic/core/enum.hpp>
#include <laconic/core/index_list.hpp>

namespace laconic {
inline namespace LACONIC_ABI {

/// Names the normalisation in the waveform front end.
enum class WaveformNorm {
  layer,  ///< layer norm after every convolution
  group   ///< per-channel norm over time, after the first convolution only
};
/// Lists the names as configurations spell them.
constexpr auto enum_names(WaveformNorm) {
  return std::to_array<EnumName<WaveformNorm>>({{WaveformNorm::layer, "layer"}, {WaveformNorm::group, "group"}});
}

/// Describes convolutions over samples that take the place of log-mel features (wav2vec 2.0, Baevski et al. 2020,
/// section 2). Names are Hugging Face's.
struct WaveformConfig {
  IndexList conv_dim{};     ///< output channels of each convolution; empty: there are no such convolutions
  IndexList conv_kernel{};  ///< kernel of each convolution, in samples of its input
  IndexList conv_stride{};  ///< stride of each convolution, in samples of its input
  bool conv_bias = false;   ///< whether the convolutions have biases
  WaveformNorm feat_extract_norm = WaveformNorm::layer;   ///< normalisation after the convolutions
  Activation feat_extract_activation = Activation::gelu;  ///< activation after each convolution

  /// Returns whether there are no convolutions over samples.
  constexpr bool empty() const { return conv_dim.size() == 0; }
  /// Returns the shape of convolution i.
  constexpr Conv1dShape layer(Index i) const {
    return {i == 0 ? 1 : conv_dim[i - 1], conv_dim[i], conv_kernel[i], conv_stride[i]};
  }
  /// Returns the samples between two output frames, or 0 where strides or their product exceed any use.
  constexpr Index stride() const {
    Index out = 1;
    for (const Index one : conv_stride) out = one > 0 && one <= 16 && out < (Index{1} << 48) ? out * one : 0;
    return out;
  }
  /// Returns the samples that the first output frame needs.
  constexpr Index window() const {
    Index out = 1;
    for (Index i = conv_dim.size(); i-- > 0;) out = (out - 1) * conv_stride[i] + conv_kernel[i];
    return out;
  }

  /// Visits each member with its name, for files and command lines.
  static constexpr void fields(auto& self, auto&& visit) {
    visit("conv_dim", self.conv_dim);
    visit("conv_kernel", self.conv_kernel);
    visit("conv_stride", self.conv_stride);
    visit("conv_bias", self.conv_bias);
    visit("feat_extract_norm", self.feat_extract_norm);
    visit("feat_extract_activation", self.feat_extract_activation);
  }
};

}  // namespace LACONIC_ABI
}  // namespace laconic
