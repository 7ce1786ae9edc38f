// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/extent.hpp>

#include <string>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// One attention layer before and after; errors are relative (Frobenius) where nothing else is said.
struct LayerReport {
  std::string layer;       ///< its name among the parameters: "layers.0.self_attn"
  Index num_kv_heads = 0;  ///< of the converted layer
  Index kv_lora_rank = 0;  ///< of the converted layer, 0 where it has no latent
  double k_factor_error = 0,
         v_factor_error = 0;  ///< of the weights of keys and of values, |W - up down| / |W|, as others print them
  double predicted_error =
      0;  ///< of keys and values, from the weights: right for white inputs, or for those of the calibration
  double key_value_error = 0;  ///< of keys and values without their biases, measured by a forward pass
  double output_error = 0;     ///< of the layer's output, measured by a forward pass
  double output_mse = 0;       ///< mean squared error of the same
  double output_mae = 0;       ///< mean absolute error
  double output_cosine = 1;    ///< of the angle between both outputs, as one vector each
};

/// What a conversion did.
struct ConversionReport {
  std::string input;                ///< what was measured on: "white noise" or "features"
  std::vector<LayerReport> layers;  ///< each layer on the input that it has in the source model (or on white noise)
  double predicted_error = 0;       ///< these six: all layers together
  double key_value_error = 0;
  double output_error = 0;
  double output_mse = 0;
  double output_mae = 0;
  double output_cosine = 1;
  double logits_error = 0;  ///< of the whole model's output
};

}  // namespace LACONIC_ABI
}  // namespace laconic
