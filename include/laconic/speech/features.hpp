// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/enum.hpp>
#include <laconic/speech/fbank.hpp>
#include <laconic/speech/normalize.hpp>

#include <cmath>
#include <optional>
#include <span>

namespace laconic {
inline namespace LACONIC_ABI {

/// Says what a model sees of audio.
enum class FeatureKind {
  fbank,   ///< log-mel energies
  samples  ///< the samples themselves
};
/// Names the values of FeatureKind.
constexpr auto enum_names(FeatureKind) {
  return std::to_array<EnumName<FeatureKind>>({{FeatureKind::fbank, "fbank"}, {FeatureKind::samples, "samples"}});
}

/// Says how features are brought to mean 0 and variance 1.
enum class Normalization {
  utterance,  ///< by the statistics of each utterance
  global,     ///< by those of the training corpus, which then belong to the model
  none        ///< not at all
};
/// Names the values of Normalization.
constexpr auto enum_names(Normalization) {
  return std::to_array<EnumName<Normalization>>(
      {{Normalization::utterance, "utterance"}, {Normalization::global, "global"}, {Normalization::none, "none"}});
}

/// Says how audio becomes the values that a model sees.
struct FeatureConfig {
  FeatureKind kind = FeatureKind::fbank;                   ///< log-mel energies or samples
  FbankConfig fbank;                                       ///< settings of log-mel features; of samples only the rate
  Normalization normalization = Normalization::utterance;  ///< how they are normalised
  GlobalNormalization statistics;                          ///< used by `global`; empty otherwise

  /// Returns the configuration of samples themselves, one row each.
  static FeatureConfig samples(int sample_rate, Normalization normalization) {
    const double period = 1000.0 / sample_rate;
    return {.kind = FeatureKind::samples,
            .fbank = {.sample_rate = sample_rate, .num_mels = 1, .frame_length_ms = period, .frame_shift_ms = period},
            .normalization = normalization,
            .statistics = {}};
  }

  /// Throws `Error` for features that need the whole utterance.
  void require_streamable() const {
    require(normalization != Normalization::utterance,
            "a stream cannot know the mean of an utterance that it has not heard: a model with global normalization "
            "expected");
  }

  /// Lists the members for JSON.
  static constexpr void fields(auto& self, auto&& visit) {
    visit("kind", self.kind);
    visit("fbank", self.fbank);
    visit("normalization", self.normalization);
    visit("statistics", self.statistics);
  }
};

/// Computes features of audio. Calls may come from several threads.
class FeatureExtractor {
 public:
  /// Throws `Error` for a configuration that makes no sense.
  explicit FeatureExtractor(const FeatureConfig& config) : config_(config) {
    if (config.kind == FeatureKind::fbank) {
      fbank_.emplace(config.fbank);
      return;
    }
    require(config.fbank.num_mels == 1 && config.fbank.sample_rate > 0 && config.normalization != Normalization::global,
            "features: of samples, one channel at a rate above 0 with normalization utterance or none is expected");
  }

  /// Returns the settings.
  const FeatureConfig& config() const { return config_; }
  /// Returns the number of samples from one row of features to the next.
  Index frame_shift() const { return fbank_ ? fbank_->frame_shift() : 1; }

  /// Returns the features (frames, num_mels) of audio at the configured sample rate, before normalisation. Allocates.
  Matrix<float> raw(std::span<const float> samples) const {
    if (fbank_) return (*fbank_)(samples);
    return Eigen::Map<const Matrix<float>>(samples.data(), static_cast<Index>(samples.size()), 1);
  }
  /// Returns the normalised features (frames, num_mels) of audio at the configured sample rate. Allocates.
  Matrix<float> operator()(std::span<const float> samples) const {
    Matrix<float> features = raw(samples);
    if (config_.normalization == Normalization::global)
      config_.statistics(view(features));
    else if (config_.normalization == Normalization::utterance)
      config_.kind == FeatureKind::fbank ? normalize_utterance(view(features)) : normalize_samples(view(features));
    return features;
  }

 private:
  FeatureConfig config_;
  std::optional<Fbank> fbank_;
};

}  // namespace LACONIC_ABI
}  // namespace laconic
