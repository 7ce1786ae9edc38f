// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/shapes.hpp>

#include <span>

// The checks of arguments of losses, which all backends share. Each throws `Error` for sizes that do not fit and for
// classes that there are not.

namespace laconic {
inline namespace LACONIC_ABI {
namespace checks {

/// Checks the arguments of `ctc`.
template <class Tensor>
void ctc(const Tensor& logits, const Sequences& sequences, const Labels& labels, int blank) {
  require(labels.sequences.size() == sequences.size(), "ctc: ", labels.sequences.size(), " label sequences given for ",
          sequences.size(), " sequences of logits");
  require(static_cast<Index>(labels.tokens.size()) == labels.sequences.rows(), "ctc: ", labels.tokens.size(),
          " labels given, their sequences hold ", labels.sequences.rows());
  require(logits.rows() == sequences.rows(), "ctc: ", logits.rows(), " rows of logits given, their sequences have ",
          sequences.rows());
  require(blank >= 0 && blank < logits.cols(), "ctc: blank ", blank, " given, expected 0 .. ", logits.cols() - 1);
  for (const int token : labels.tokens)
    require(token >= 0 && token < logits.cols() && token != blank, "ctc: label ", token, " given, expected 0 .. ",
            logits.cols() - 1, " except the blank ", blank);
}
/// Checks the arguments of `cross_entropy`.
template <class Tensor>
void cross_entropy(const Tensor& logits, std::span<const int> targets, const CrossEntropyShape& shape) {
  require(static_cast<Index>(targets.size()) == logits.rows(), "cross_entropy: ", targets.size(), " targets given for ",
          logits.rows(), " rows of logits");
  require(shape.label_smoothing >= 0 && shape.label_smoothing < 1, "cross_entropy: label_smoothing ",
          shape.label_smoothing, " given, expected from 0 to less than 1");
  for (const int target : targets)
    require(target == shape.ignored || (target >= 0 && target < logits.cols()), "cross_entropy: target ", target,
            " given, expected 0 .. ", logits.cols() - 1, ", or ", shape.ignored, ", which is ignored");
}

}  // namespace checks
}  // namespace LACONIC_ABI
}  // namespace laconic
