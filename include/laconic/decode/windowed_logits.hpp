// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/error.hpp>
#include <laconic/core/matrix.hpp>

#include <algorithm>
#include <cmath>
#include <functional>
#include <span>
#include <utility>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Computes the logits of a recording of any length by a model that hears a whole utterance, in bounded memory: the
/// model hears overlapping windows, and two neighbours are joined in the middle of the longest pause (frames whose
/// likeliest class is the blank in both) of the middle half of their overlap. So no word is cut, lost or doubled unless
/// it fills that half. A recording of one window gives the logits of the model.
class WindowedLogits {
 public:
  using Model = std::function<Matrix<float>(std::span<const float>)>;  ///< samples to logits (frames, classes)
  using Take = std::function<void(MatrixView<const float>)>;           ///< takes logits that are final

  /// Holds the sizes of windows, in samples.
  struct Sizes {
    Index frame = 1,  ///< from one frame of logits to the next
        window = 1,   ///< length of a window
        overlap = 0;  ///< length that two neighbours share
  };

  /// Begins a recording. `window` and `overlap` are rounded down to whole frames. Throws `Error` unless
  /// 0 < frame <= window and 0 <= overlap <= window / 2.
  WindowedLogits(Model model, Sizes sizes, int blank = 0)
      : model_(std::move(model)), frame_(sizes.frame), blank_(blank) {
    require(sizes.frame > 0 && sizes.frame <= sizes.window, "windows: of ", sizes.window,
            " samples given, at least one frame of ", sizes.frame, " expected");
    require(0 <= sizes.overlap && sizes.overlap <= sizes.window / 2, "windows: an overlap of ", sizes.overlap,
            " samples given, 0 to half of the window's ", sizes.window, " expected");
    window_ = sizes.window / frame_ * frame_;
    hop_ = window_ - sizes.overlap / frame_ * frame_;
  }

  /// Takes the samples that follow, and gives logits that became final to `take`. Allocates.
  void push(std::span<const float> samples, const Take& take) {
    samples_.insert(samples_.end(), samples.begin(), samples.end());
    while (static_cast<Index>(samples_.size()) > window_) {  // more is to come
      hear(std::span<const float>(samples_).first(static_cast<std::size_t>(window_)), take);
      samples_.erase(samples_.begin(), samples_.begin() + hop_);
      window_begin_ += hop_ / frame_;
    }
  }
  /// Ends the recording, and gives the logits that are left to `take`. Allocates.
  void finish(const Take& take) {
    hear(samples_, take);
    give(held_.rows(), take);
  }

 private:
  /// Hears a window and gives the frames before its join with the window before to `take`.
  void hear(std::span<const float> samples, const Take& take) {
    const Matrix<float> logits = model_(samples);
    const Index held_end = held_begin_ + held_.rows(), end = window_begin_ + logits.rows();
    if (end <= held_end) return;  // the window hears nothing new
    require(window_begin_ <= held_end,
            "windows: an overlap is shorter than what the model loses at the end of a window");
    const Index cut = join(logits, held_end);
    give(cut - held_begin_, take);
    held_ = logits.bottomRows(end - cut).eval();
    held_begin_ = cut;
  }
  /// Gives the first `count` frames that are held to `take`.
  void give(Index count, const Take& take) {
    if (count > 0) take(matrix_view(std::as_const(held_).data(), count, held_.cols()));
  }
  /// Returns the frame in which the frames that are held are joined with those of a window.
  Index join(const Matrix<float>& logits, Index held_end) const {
    if (window_begin_ == 0) return 0;
    const Index begin = std::max(window_begin_, held_begin_), end = std::min(held_end, window_begin_ + logits.rows());
    const Index quarter = std::max<Index>(0, (end - begin) / 4), middle = (begin + end) / 2;
    if (end <= begin) return std::min(window_begin_, held_end);
    Index best = 0, pause = middle, run = 0, alike = -1;
    for (Index t = begin + quarter; t < std::max(end - quarter, begin + 1); ++t) {
      const Index left = likeliest(held_, t - held_begin_), right = likeliest(logits, t - window_begin_);
      if (left == right && (alike < 0 || std::abs(t - middle) < std::abs(alike - middle))) alike = t;
      run = left == blank_ && right == blank_ ? run + 1 : 0;
      if (run > best) {
        best = run;
        pause = t - run / 2;
      }
    }
    if (best > 0) return pause;
    return alike >= 0 ? alike : middle;
  }
  static Index likeliest(const Matrix<float>& logits, Index frame) {
    Index best = 0;
    logits.row(frame).maxCoeff(&best);
    return best;
  }

  Model model_;
  Index frame_, window_ = 0, hop_ = 0;  // samples
  int blank_;
  std::vector<float> samples_;  // from the begin of the window on
  Index window_begin_ = 0;      // frame
  Matrix<float> held_;          // logits that may still be joined
  Index held_begin_ = 0;        // frame
};

}  // namespace LACONIC_ABI
}  // namespace laconic
