// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/matrix.hpp>
#include <laconic/core/sequences.hpp>

#include <cmath>
#include <span>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

namespace detail {

/// Returns the likeliest class in row t of logits (frames, classes), the first of equal ones. Throws `Error`, which
/// begins with `who` and names the frame, if the row holds NaN.
template <class Logits>
Index likeliest_class(const Logits& logits, Index t, const char* who, Index frame) {
  Index best = 0;
  for (Index c = 0; c < logits.cols(); ++c) {
    require(!std::isnan(logits(t, c)), who, ": frame ", frame, ", class ", c, " is NaN");
    if (logits(t, c) > logits(t, best)) best = c;
  }
  return best;
}

}  // namespace detail

/// Decodes CTC greedily (best path) while frames come: takes the likeliest class of each frame, collapses runs of one
/// class and drops blanks (Graves et al. 2006, section 3.2). The first of equal logits wins. Throws `Error` if a frame
/// holds NaN, because such a frame must not read as silence.
class GreedyCtc {
 public:
  /// Begins a sequence; `blank` is the class of the blank. Classes of one label in `labels`, which must stay, are one;
  /// empty: each is its own.
  explicit GreedyCtc(int blank = 0, std::span<const int> labels = {})
      : blank_(blank), previous_(blank), labels_(labels) {}

  /// Appends the labels of frames whose likeliest classes are `best`, as `Context::argmax` gives them.
  void operator()(std::span<const Index> best, std::vector<int>& labels) {
    for (std::size_t t = 0; t < best.size(); ++t) {
      require(best[t] >= 0, "greedy_ctc: frame ", t, ", class ", -1 - best[t], " is NaN");
      const int label = labels_.empty() ? static_cast<int>(best[t]) : labels_[static_cast<std::size_t>(best[t])];
      if (label != previous_ && label != blank_) labels.push_back(label);
      previous_ = label;
    }
  }

  /// Appends the labels of logits (frames, classes) on the host, normalised or not. Throws `Error` if the blank is no
  /// class.
  template <class Logits>
  requires requires(const Logits& logits) { logits(Index(), Index()); }
  void operator()(const Logits& logits, std::vector<int>& labels) {
    require(blank_ >= 0 && blank_ < logits.cols(), "greedy_ctc: blank ", blank_, " given for ", logits.cols(),
            " classes");
    for (Index t = 0; t < logits.rows(); ++t) {
      const Index best = detail::likeliest_class(logits, t, "greedy_ctc", t);
      (*this)(std::span<const Index>(&best, 1), labels);
    }
  }

 private:
  int blank_, previous_;
  std::span<const int> labels_;
};

/// Returns the labels of one sequence of logits (frames, classes) on the host.
inline std::vector<int> greedy_ctc(MatrixView<const float> logits, int blank = 0, std::span<const int> labels = {}) {
  std::vector<int> out;
  GreedyCtc decoder(blank, labels);
  decoder(logits, out);
  return out;
}

/// Returns the labels of each sequence of logits (rows, classes), normalised or not. Throws `Error` if the sequences do
/// not have as many rows, or if the blank is no class. Allocates.
template <class Context>
std::vector<std::vector<int>> greedy_ctc(Context& context, const typename Context::Tensor& logits,
                                         const Sequences& sequences, int blank = 0, std::span<const int> labels = {}) {
  require(sequences.rows() == logits.rows(), "greedy_ctc: ", logits.rows(), " frames given, the sequences have ",
          sequences.rows());
  require(blank >= 0 && blank < logits.cols(), "greedy_ctc: blank ", blank, " given for ", logits.cols(), " classes");
  std::vector<Index> best(static_cast<std::size_t>(logits.rows()));
  context.argmax(logits, best);
  std::vector<std::vector<int>> out(static_cast<std::size_t>(sequences.size()));
  for (Index n = 0; n < sequences.size(); ++n)
    GreedyCtc(blank, labels)(
        std::span<const Index>(best.data() + sequences.begin(n), static_cast<std::size_t>(sequences.length(n))),
        out[static_cast<std::size_t>(n)]);
  return out;
}

}  // namespace LACONIC_ABI
}  // namespace laconic
