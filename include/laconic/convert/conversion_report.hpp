// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/extent.hpp>

#include <string>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Compares one attention layer before and after a conversion. Errors are relative, |new - old| / |old| (Frobenius),
/// unless their note says otherwise.
struct LayerReport {
  std::string layer;           ///< name among the parameters: "layers.0.self_attn"
  Index num_kv_heads = 0;      ///< key-value heads of the converted layer
  Index kv_lora_rank = 0;      ///< rank of the converted layer's latent; 0: no latent
  Index v_lora_rank = 0;       ///< rank of the values' latent; 0: they have none of their own
  double k_factor_error = 0,   ///< error of the key weights, |W - up down| / |W|
      v_factor_error = 0;      ///< error of the value weights, |W - up down| / |W|
  double predicted_error = 0;  ///< expected error of keys and values for white inputs, or those of the calibration
  double key_value_error = 0;  ///< error of keys and values without their biases, measured by a forward pass
  double output_error = 0;     ///< error of the layer's output, measured by a forward pass
  double output_mse = 0;       ///< mean squared error of the output
  double output_mae = 0;       ///< mean absolute error of the output
  double output_cosine = 1;    ///< cosine of the angle between both outputs, each as one vector
};

/// Compares a converted model with its source.
struct ConversionReport {
  std::string input;                ///< "white noise", "features" or "tokens": the input of the forward passes
  std::vector<LayerReport> layers;  ///< each layer on the input that it has in the source model (or on white noise)
  double predicted_error = 0;       ///< LayerReport::predicted_error over all layers
  double key_value_error = 0;       ///< LayerReport::key_value_error over all layers
  double output_error = 0;          ///< LayerReport::output_error over all layers
  double output_mse = 0;            ///< LayerReport::output_mse over all layers
  double output_mae = 0;            ///< LayerReport::output_mae over all layers
  double output_cosine = 1;         ///< LayerReport::output_cosine over all layers
  double logits_error = 0;          ///< relative error of the model's logits
};

}  // namespace LACONIC_ABI
}  // namespace laconic
