// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/matrix.hpp>
#include <laconic/decode/confidence.hpp>
#include <laconic/decode/greedy_ctc.hpp>

#include <algorithm>
#include <cmath>
#include <optional>
#include <span>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Holds a token that CTC found, and where.
struct CtcToken {
  int token = 0;          ///< its class
  Index begin = 0,        ///< first frame
      end = 0;            ///< frame after the last
  double confidence = 0;  ///< mean over its frames, 0 to 1
};

namespace detail {

/// Returns how confident a row of logits is in the class `best`, which has its maximum.
template <class Row>
double frame_confidence(const Row& logits, Index best, ConfidenceMeasure measure) {
  const auto top = static_cast<double>(logits[best]);
  double sum = 0, weighted = 0;  // of exp(x - top), and of x - top by it
  for (Index c = 0; c < logits.size(); ++c) {
    const double x = static_cast<double>(logits[c]) - top, e = std::exp(x);
    sum += e;
    if (e > 0) weighted += e * x;
  }
  if (measure == ConfidenceMeasure::max_probability) return 1 / sum;
  const double entropy = std::log(sum) - weighted / sum;
  return logits.size() > 1 ? std::clamp(1 - entropy / std::log(static_cast<double>(logits.size())), 0.0, 1.0) : 1.0;
}

}  // namespace detail

/// Decodes CTC greedily as `GreedyCtc` does, and says of each token which frames it took and how confident they were
/// (Laptev and Ginsburg 2022, "Fast Entropy-Based Methods of Word-Level Confidence Estimation", sections 3.1 and 3.2:
/// maximum probability, and the normalised entropy of Gibbs; the mean over frames). Frames may come in blocks of any
/// length; a token is returned when it has ended.
class CtcTokens {
 public:
  /// Begins a sequence; `blank` is the class of the blank, `labels` are as those of `GreedyCtc`.
  explicit CtcTokens(int blank = 0, ConfidenceMeasure measure = ConfidenceMeasure::max_probability,
                     std::span<const int> labels = {})
      : blank_(blank), measure_(measure), labels_(labels) {}

  /// Takes logits (frames, classes), normalised or not, and appends the tokens that have ended, and to `begun`, unless
  /// it is null, the classes of those that have begun. Throws `Error` for a frame that holds NaN. Allocates only in
  /// `out` and `begun`.
  void operator()(MatrixView<const float> logits, std::vector<CtcToken>& out, std::vector<int>* begun = nullptr) {
    require(blank_ >= 0 && blank_ < logits.cols(), "ctc: blank ", blank_, " given for ", logits.cols(), " classes");
    for (Index t = 0; t < logits.rows(); ++t, ++frame_) {
      const Index best = detail::likeliest_class(logits, t, "ctc", frame_);
      const int label = labels_.empty() ? static_cast<int>(best) : labels_[static_cast<std::size_t>(best)];
      if (open_ && open_->token != label) finish(out);
      silent_ = label == blank_ ? silent_ + 1 : 0;
      if (label == blank_) continue;
      if (!open_) {
        open_ = CtcToken{label, frame_, frame_, 0};
        if (begun != nullptr) begun->push_back(label);
      }
      open_->confidence += detail::frame_confidence(logits.row(t), best, measure_);
      open_->end = frame_ + 1;
    }
  }
  /// Appends the token that has not ended yet, if there is one.
  void finish(std::vector<CtcToken>& out) {
    if (!open_) return;
    open_->confidence /= static_cast<double>(open_->end - open_->begin);
    out.push_back(*open_);
    open_.reset();
  }
  /// Returns the number of frames so far.
  Index frames() const { return frame_; }
  /// Returns the number of frames since the last token.
  Index silent_frames() const { return silent_; }

 private:
  int blank_;
  ConfidenceMeasure measure_;
  std::span<const int> labels_;
  Index frame_ = 0, silent_ = 0;
  std::optional<CtcToken> open_;  // its confidence is a sum
};

}  // namespace LACONIC_ABI
}  // namespace laconic
