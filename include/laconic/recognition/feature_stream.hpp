// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/recognition/dataset.hpp>

#include <algorithm>
#include <span>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Computes the features of audio that comes in pieces of any length. The features of all pieces together are those of
/// the whole.
class FeatureStream {
 public:
  /// Throws `Error` for features that need the whole utterance.
  explicit FeatureStream(const FeatureConfig& config) : extract_(config) { config.require_streamable(); }

  /// Takes samples in [-1, 1] at the configured rate and returns the normalised frames (frames, num_mels) that they
  /// complete. Allocates.
  Matrix<float> push(std::span<const float> samples) {
    const std::size_t between = std::min(skip_, samples.size());
    skip_ -= between;
    waiting_.insert(waiting_.end(), samples.begin() + static_cast<std::ptrdiff_t>(between), samples.end());
    Matrix<float> features = extract_(waiting_);
    const auto used = static_cast<std::size_t>(features.rows() * extract_.frame_shift()),
               now = std::min(used, waiting_.size());
    waiting_.erase(waiting_.begin(), waiting_.begin() + static_cast<std::ptrdiff_t>(now));
    skip_ += used - now;
    return features;
  }

 private:
  FeatureExtractor extract_;
  std::vector<float> waiting_;
  std::size_t skip_ = 0;  // samples to skip before the next frame, if frames do not overlap
};

}  // namespace LACONIC_ABI
}  // namespace laconic
