// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/error.hpp>

#include <cmath>

namespace laconic {
inline namespace LACONIC_ABI {

/// Holds the settings of AdamW (Loshchilov and Hutter 2019, algorithm 2).
struct AdamWConfig {
  double beta1 = 0.9,          ///< decay of the running mean of the gradient, 0 to less than 1
      beta2 = 0.98;            ///< decay of the running mean of its square, 0 to less than 1
  double eps = 1e-9;           ///< added to the root of the second moment
  double weight_decay = 0.01;  ///< decay of matrices and kernels; vectors (biases, norms) do not decay
  double clip_norm = 5;        ///< max norm of all gradients together; 0: no clipping

  /// Throws `Error` for a number that makes no sense.
  void check() const {
    require(beta1 >= 0 && beta1 < 1 && beta2 >= 0 && beta2 < 1, "adamw: beta1 ", beta1, " and beta2 ", beta2,
            " given, expected from 0 to less than 1");
    require(eps > 0 && std::isfinite(eps), "adamw: eps ", eps, " given, a positive number expected");
    require(weight_decay >= 0 && std::isfinite(weight_decay), "adamw: weight_decay ", weight_decay,
            " given, at least 0 expected");
    require(clip_norm >= 0 && std::isfinite(clip_norm), "adamw: clip_norm ", clip_norm, " given, at least 0 expected");
  }

  /// Lists the members for JSON.
  static constexpr void fields(auto& self, auto&& visit) {
    visit("beta1", self.beta1);
    visit("beta2", self.beta2);
    visit("eps", self.eps);
    visit("weight_decay", self.weight_decay);
    visit("clip_norm", self.clip_norm);
  }
};

}  // namespace LACONIC_ABI
}  // namespace laconic
