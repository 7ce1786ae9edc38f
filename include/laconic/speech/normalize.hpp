// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <laconic/core/matrix.hpp>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Holds a mean and an inverse standard deviation for each channel, to be kept with a model (it is a configuration
/// struct).
struct GlobalNormalization {
  std::vector<float> mean,  ///< mean of each channel
      inverse_std;          ///< one over the standard deviation of each channel

  /// Lists the members for JSON.
  static constexpr void fields(auto& self, auto&& visit) {
    visit("mean", self.mean);
    visit("inverse_std", self.inverse_std);
  }
  /// Says whether two normalisations are equal.
  friend bool operator==(const GlobalNormalization&, const GlobalNormalization&) = default;

  /// Replaces x with (x - mean) * inverse_std. Throws `Error` if the features `(frames, channels)` have another number
  /// of channels. Allocates nothing.
  void operator()(MatrixView<float> features) const {
    const auto channels = static_cast<Index>(mean.size());
    require(inverse_std.size() == mean.size(), "normalization: ", mean.size(), " means and ", inverse_std.size(),
            " inverse standard deviations given, as many of each expected");
    require(features.cols() == channels, "normalization: features of ", features.cols(), " channels given, ", channels,
            " expected");
    const Eigen::Map<const Eigen::RowVectorXf> m(mean.data(), channels), s(inverse_std.data(), channels);
    for (Index t = 0; t < features.rows(); ++t) features.row(t) = (features.row(t) - m).cwiseProduct(s);
  }
};

/// Computes mean and variance of each channel over any number of feature matrices, in double. Matrices are merged with
/// the update of Chan, Golub and LeVeque (1979), which does not lose digits as a sum of squares does.
class FeatureStatistics {
 public:
  /// Adds features `(frames, channels)`. The first ones set the number of channels; others throw `Error`.
  void add(MatrixView<const float> features) {
    if (features.rows() == 0) return;
    FeatureStatistics one;
    const Eigen::MatrixXd x = features.cast<double>();
    one.frames_ = x.rows();
    one.mean_ = x.colwise().mean();
    one.squares_ = (x.rowwise() - one.mean_).colwise().squaredNorm();
    merge(one);
  }

  /// Adds what another object has seen (in another thread, say).
  void merge(const FeatureStatistics& other) {
    if (other.frames_ == 0) return;
    if (frames_ == 0) {
      *this = other;
      return;
    }
    require(other.mean_.size() == mean_.size(), "feature statistics: ", other.mean_.size(), " channels given, ",
            mean_.size(), " expected");
    const auto n = static_cast<double>(frames_), m = static_cast<double>(other.frames_);
    const Eigen::RowVectorXd apart = other.mean_ - mean_;
    mean_ += apart * (m / (n + m));
    squares_ += other.squares_ + apart.cwiseAbs2() * (n * m / (n + m));
    frames_ += other.frames_;
  }

  /// Returns the number of frames seen.
  Index frames() const { return frames_; }
  /// Returns the unbiased variance of each channel (over n - 1); 0 for a single frame.
  Eigen::RowVectorXd variance() const { return squares_ / static_cast<double>(std::max<Index>(frames_ - 1, 1)); }
  /// Returns the mean of each channel.
  const Eigen::RowVectorXd& mean() const { return mean_; }

  /// Returns the normalisation (x - mean) / (std + 1e-5), as in NeMo: a channel that never changes becomes 0, not
  /// infinite. Throws `Error` if no frame was seen or a value was not finite.
  GlobalNormalization normalization() const {
    require(frames_ > 0, "feature statistics: no frames given");
    const Eigen::RowVectorXd inverse = (variance().cwiseSqrt().array() + 1e-5).inverse();
    GlobalNormalization out;
    for (Index c = 0; c < mean_.size(); ++c) {
      require(std::isfinite(mean_[c]) && std::isfinite(inverse[c]), "feature statistics: channel ", c,
              " has values that are not finite");
      out.mean.push_back(static_cast<float>(mean_[c]));
      out.inverse_std.push_back(static_cast<float>(inverse[c]));
    }
    return out;
  }

 private:
  Index frames_ = 0;
  Eigen::RowVectorXd mean_, squares_;  // squares_: sums of squared distances from the mean
};

/// Normalises each channel of one utterance `(frames, channels)` to mean 0 and variance 1, in place; NeMo's
/// "per_feature". Throws `Error` for values that are not finite. Does nothing without frames.
inline void normalize_utterance(MatrixView<float> features) {
  if (features.rows() == 0) return;
  FeatureStatistics statistics;
  statistics.add(matrix_view<const float>(features.data(), features.rows(), features.cols(), features.outerStride()));
  statistics.normalization()(features);
}

/// Normalises the samples of one utterance (rows, 1) to mean 0 and variance 1, in place: (x - mean) / sqrt(var + 1e-7)
/// with the variance over n, as Hugging Face's Wav2Vec2FeatureExtractor does. Throws `Error` for samples that are not
/// finite.
inline void normalize_samples(MatrixView<float> samples) {
  if (samples.rows() == 0) return;
  const Eigen::ArrayXd x = samples.col(0).cast<double>().array();
  const double mean = x.mean(), variance = (x - mean).square().mean();
  require(std::isfinite(variance), "normalization: samples that are not finite given");
  samples.col(0) = ((x - mean) / std::sqrt(variance + 1e-7)).cast<float>().matrix();
}

}  // namespace LACONIC_ABI
}  // namespace laconic
