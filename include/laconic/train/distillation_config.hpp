// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/error.hpp>

#include <cmath>

namespace laconic {
inline namespace LACONIC_ABI {

/// Says how much a student follows its teacher in addition to its labels. The loss of a batch is
///   (1 - weight) CTC + weight temperature^2 KL(teacher || student) + layer_weight E
/// KL compares the tokens' probabilities at the temperature. It is summed over the frames of an utterance, as CTC's
/// loss is, and averaged over utterances (Hinton et al. 2015, section 2). Comparing frame by frame suits a student that
/// was converted from its teacher and emits at the same frames. E is the squared error of the blocks' outputs relative
/// to the teacher's squares, averaged over blocks.
struct DistillationConfig {
  double weight = 0;        ///< weight of the teacher's probabilities, 0 to 1
  double temperature = 1;   ///< divides the logits of both, more than 0
  double layer_weight = 0;  ///< weight of the blocks' outputs, at least 0

  /// Says whether there is anything to follow.
  bool any() const { return weight > 0 || layer_weight > 0; }
  /// Throws `Error` for a number that makes no sense.
  void check() const {
    require(weight >= 0 && weight <= 1, "distillation: weight ", weight, " given, 0 to 1 expected");
    require(temperature > 0 && std::isfinite(temperature), "distillation: temperature ", temperature,
            " given, a positive number expected");
    require(layer_weight >= 0 && std::isfinite(layer_weight), "distillation: layer_weight ", layer_weight,
            " given, at least 0 expected");
  }

  /// Lists the members for JSON.
  static constexpr void fields(auto& self, auto&& visit) {
    visit("weight", self.weight);
    visit("temperature", self.temperature);
    visit("layer_weight", self.layer_weight);
  }
};

}  // namespace LACONIC_ABI
}  // namespace laconic
