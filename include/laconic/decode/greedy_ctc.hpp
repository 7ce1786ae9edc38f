// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/matrix.hpp>
#include <laconic/core/sequences.hpp>

#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Greedy (best path) CTC decoding of frames as they come: the likeliest class of each frame, runs of one class
/// collapsed, blanks dropped (Graves et al. 2006, section 3.2). Of equal logits the first wins. Throws where a frame
/// holds NaN: such a model says nothing, and it must not read as silence.
class GreedyCtc {
 public:
  explicit GreedyCtc(int blank = 0) : blank_(blank), previous_(blank) {}

  /// Adds the labels of these frames `(frames, classes)`, unnormalised or not.
  template <class Logits>
  void operator()(const Logits& logits, std::vector<int>& labels) {
    require(blank_ >= 0 && blank_ < logits.cols(), "greedy_ctc: blank ", blank_, " given for ", logits.cols(),
            " classes");
    for (Index t = 0; t < logits.rows(); ++t) {
      Index best = 0;
      for (Index c = 0; c < logits.cols(); ++c) {
        const auto value = logits(t, c);
        require(value == value, "greedy_ctc: frame ", t, ", class ", c, " is NaN");
        if (value > logits(t, best)) best = c;
      }
      const int label = static_cast<int>(best);
      if (label != previous_ && label != blank_) labels.push_back(label);
      previous_ = label;
    }
  }

 private:
  int blank_, previous_;
};

/// All frames at once.
inline std::vector<int> greedy_ctc(MatrixView<const float> logits, int blank = 0) {
  std::vector<int> out;
  GreedyCtc decoder(blank);
  decoder(logits, out);
  return out;
}

/// The same for each sequence of a packed batch.
inline std::vector<std::vector<int>> greedy_ctc(MatrixView<const float> logits, const Sequences& sequences,
                                                int blank = 0) {
  require(sequences.rows() == logits.rows(), "greedy_ctc: ", logits.rows(), " frames given, the sequences have ",
          sequences.rows());
  std::vector<std::vector<int>> out;
  for (Index n = 0; n < sequences.size(); ++n)
    out.push_back(greedy_ctc(matrix_view(logits.data() + sequences.begin(n) * logits.outerStride(), sequences.length(n),
                                         logits.cols(), logits.outerStride()),
                             blank));
  return out;
}

}  // namespace LACONIC_ABI
}  // namespace laconic
