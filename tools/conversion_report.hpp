// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include "common/cli.hpp"
#include "common/table.hpp"

#include <laconic/convert/conversion_report.hpp>
#include <laconic/io/json.hpp>

#include <algorithm>

/// Returns what a conversion did, for --json.
inline nlohmann::json conversion_json(const laconic::ConversionReport& report) {
  nlohmann::json layers = nlohmann::json::array();
  for (const laconic::LayerReport& layer : report.layers)
    layers.push_back({{"layer", layer.layer},
                      {"num_kv_heads", layer.num_kv_heads},
                      {"kv_lora_rank", layer.kv_lora_rank},
                      {"v_lora_rank", layer.v_lora_rank},
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

/// Prints a line for each layer and the error of the logits. A rank of R/S is one of R for keys and of S for values.
inline void print_conversion(const laconic::ConversionReport& report, const std::string& measured_on) {
  print("relative errors, measured on ", measured_on,
        "; of outputs also mean squared and absolute errors, and the cosine; K and V: of the weights\n");
  Table table({{"layer", 0, true, 0},
               {"rank", 5},
               {"K", 7},
               {"V", 7},
               {"predicted", 10},
               {"keys+values", 11},
               {"output", 10},
               {"squared", 10},
               {"absolute", 10},
               {"cosine", 8}});
  const auto add = [&](const std::string& name, const std::string& rank, const std::string& k, const std::string& v,
                       const auto& r) {
    table.add({name, rank, k, v, fixed(r.predicted_error, 4), fixed(r.key_value_error, 4), fixed(r.output_error, 4),
               general(r.output_mse, 3), general(r.output_mae, 3), fixed(r.output_cosine, 5)});
  };
  std::size_t width = 0;
  for (const laconic::LayerReport& layer : report.layers) {
    width = std::max(width, layer.layer.size());
    std::string rank = layer.kv_lora_rank > 0 ? laconic::text(layer.kv_lora_rank) : "";
    if (layer.v_lora_rank > 0 && layer.v_lora_rank != layer.kv_lora_rank) rank += laconic::text('/', layer.v_lora_rank);
    add(layer.layer, rank, fixed(layer.k_factor_error, 4), fixed(layer.v_factor_error, 4), layer);
  }
  add("all layers", "", "", "", report);
  const std::string logits = fixed(report.logits_error, 4);
  const std::string padding(width + 49 - std::min(width + 49, logits.size()), ' ');
  print(Lines{table.lines()}, "logits ", padding, logits, '\n');
}
