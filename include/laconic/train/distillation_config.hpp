// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/error.hpp>

#include <cmath>

namespace laconic {
inline namespace LACONIC_ABI {

/// How much a student follows its teacher, beside its labels. The loss of a batch is
///   (1 - weight) CTC + weight temperature^2 KL(teacher || student) + layer_weight E
/// KL is that of the tokens' probabilities at the temperature, summed over an utterance's frames as CTC's loss is, its
/// mean over utterances (Hinton et al. 2015, section 2; frame by frame it suits a student that was converted from its
/// teacher and spells at the same frames). E is the squared error of the blocks' outputs over the teacher's squares,
/// its mean over blocks.
struct DistillationConfig {
  double weight = 0;  ///< of the teacher's probabilities, 0 to 1
  double temperature = 1;
  double layer_weight = 0;  ///< of the blocks' outputs

  bool any() const { return weight > 0 || layer_weight > 0; }
  /// Throws where a number makes no sense.
  void check() const {
    require(weight >= 0 && weight <= 1, "distillation: weight ", weight, " given, 0 to 1 expected");
    require(temperature > 0 && std::isfinite(temperature), "distillation: temperature ", temperature,
            " given, a positive number expected");
    require(layer_weight >= 0 && std::isfinite(layer_weight), "distillation: layer_weight ", layer_weight,
            " given, at least 0 expected");
  }

  static constexpr void fields(auto& self, auto&& visit) {
    visit("weight", self.weight);
    visit("temperature", self.temperature);
    visit("layer_weight", self.layer_weight);
  }
};

}  // namespace LACONIC_ABI
}  // namespace laconic
