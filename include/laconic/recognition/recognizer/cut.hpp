// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/recognition/recognizer/train.hpp>
#include <laconic/train/fisher.hpp>
#include <laconic/train/progressive.hpp>

#include <optional>

// Ranks in training and conversion of the models behind Recognizer: cuts of latents, weights of layers.

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

template <class Model>
double cut_latents(Model& model, Index rank, OptimizerState<float>& learnt, const SpeechBatch* calibration) {
  std::optional<Calibration<float>> speech;
  if (calibration != nullptr) speech = Calibration<float>{calibration->features, calibration->sequences};
  auto cut = truncate<Model>(model, {.kv_lora_rank = rank}, learnt, speech ? &*speech : nullptr);
  model = std::move(cut.model);
  learnt = std::move(cut.optimizer);
  return cut.predicted_error;
}

template <class Model>
std::vector<double> layer_information(const Model& model, const SpeechBatch& speech, int threads) {
  Cpu<float> cpu(threads);
  return fisher_information(model, cpu, speech.features, speech.sequences, speech.labels);
}

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
