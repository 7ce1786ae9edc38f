// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/shapes.hpp>

namespace laconic {
inline namespace LACONIC_ABI {

/// Returns the mean CTC loss of a batch, (1, 1), from the logits of a model (Graves et al. 2006): `ctc_loss(tape,
/// model(tape, x, sequences), labels)`. Utterances whose labels do not fit their frames add nothing, as with PyTorch's
/// zero_infinity.
template <class Context, class Logits>
auto ctc_loss(Context& context, const Logits& logits, const Labels& labels, int blank = 0) {
  return context.mean_finite(context.ctc(logits.rows, logits.sequences, labels, blank));
}

}  // namespace LACONIC_ABI
}  // namespace laconic
