// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/convert/conversion_report.hpp>
#include <laconic/io/json.hpp>

/// Returns what a conversion did, for --json.
inline nlohmann::json conversion_json(const laconic::ConversionReport& report) {
  nlohmann::json layers = nlohmann::json::array();
  for (const laconic::LayerReport& layer : report.layers)
    layers.push_back({{"layer", layer.layer},
                      {"num_kv_heads", layer.num_kv_heads},
                      {"kv_lora_rank", layer.kv_lora_rank},
                      {"k_factor_error", layer.k_factor_error},
                      {"v_factor_error", layer.v_factor_error},
                      {"predicted_error", layer.predicted_error},
                      {"key_value_error", layer.key_value_error},
                      {"output_error", layer.output_error},
                      {"output_mse", layer.output_mse},
                      {"output_mae", layer.output_mae},
                      {"output_cosine", layer.output_cosine}});
  return {{"measured_on", report.input},
          {"layers", layers},
          {"predicted_error", report.predicted_error},
          {"key_value_error", report.key_value_error},
          {"output_error", report.output_error},
          {"output_mse", report.output_mse},
          {"output_mae", report.output_mae},
          {"output_cosine", report.output_cosine},
          {"logits_error", report.logits_error}};
}
