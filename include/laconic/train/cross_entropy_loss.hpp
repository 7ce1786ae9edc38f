// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/shapes.hpp>

#include <algorithm>
#include <span>

namespace laconic {
inline namespace LACONIC_ABI {

/// Returns the mean cross entropy, (1, 1), in nats, of the rows whose target is not ignored: `cross_entropy_loss(tape,
/// model(tape, tokens), targets)`. logits (rows, classes), one target a row. Without any such row it is 0. An
/// infinite loss, of logits that overflowed, counts as 0.
template <class Context, class Tensor>
auto cross_entropy_loss(Context& context, const Tensor& logits, std::span<const int> targets,
                        const CrossEntropyShape& shape = {}) {
  const auto ignored = std::count(targets.begin(), targets.end(), shape.ignored);
  const auto rows = static_cast<double>(targets.size()), counted = rows - static_cast<double>(ignored);
  const auto mean = context.mean_finite(context.cross_entropy(logits, targets, shape));
  return ignored == 0 ? mean : context.scale(mean, rows / std::max(1.0, counted));
}

}  // namespace LACONIC_ABI
}  // namespace laconic
