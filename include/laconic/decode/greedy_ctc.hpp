// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/extent.hpp>
#include <laconic/core/sequences.hpp>

#include <span>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Greedy (best path) CTC decoding of frames as they come: the likeliest class of each frame, runs of one class
/// collapsed, blanks dropped (Graves et al. 2006, section 3.2). Of equal logits the first wins. Throws where a frame
/// holds NaN: such a model says nothing, and it must not read as silence.
class GreedyCtc {
 public:
  explicit GreedyCtc(int blank = 0) : blank_(blank), previous_(blank) {}

  /// Adds the labels of frames whose likeliest classes are `best`, as `Context::argmax` gives them.
  void operator()(std::span<const Index> best, std::vector<int>& labels) {
    for (std::size_t t = 0; t < best.size(); ++t) {
      require(best[t] >= 0, "greedy_ctc: frame ", t, ", class ", -1 - best[t], " is NaN");
      const int label = static_cast<int>(best[t]);
      if (label != previous_ && label != blank_) labels.push_back(label);
      previous_ = label;
    }
  }

 private:
  int blank_, previous_;
};

/// Returns the labels of each sequence of logits (rows, classes), unnormalised or not.
template <class Context>
std::vector<std::vector<int>> greedy_ctc(Context& context, const typename Context::Tensor& logits,
                                         const Sequences& sequences, int blank = 0) {
  require(sequences.rows() == logits.rows(), "greedy_ctc: ", logits.rows(), " frames given, the sequences have ",
          sequences.rows());
  require(blank >= 0 && blank < logits.cols(), "greedy_ctc: blank ", blank, " given for ", logits.cols(), " classes");
  std::vector<Index> best(static_cast<std::size_t>(logits.rows()));
  context.argmax(logits, best);
  std::vector<std::vector<int>> out(static_cast<std::size_t>(sequences.size()));
  for (Index n = 0; n < sequences.size(); ++n)
    GreedyCtc(blank)(std::span(best).subspan(static_cast<std::size_t>(sequences.begin(n)),
                                             static_cast<std::size_t>(sequences.length(n))),
                     out[static_cast<std::size_t>(n)]);
  return out;
}

}  // namespace LACONIC_ABI
}  // namespace laconic
