// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/convert/convert.hpp>
#include <laconic/convert/spectra.hpp>
#include <laconic/recognition/recognizer/run.hpp>
#include <laconic/train/progressive.hpp>

#include <optional>

// Conversion of the models behind Recognizer, at once or in steps.

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

// Conversions of attention layers, which laconic::recognizer compiles once for all encoders (`extern`).
#define LACONIC_CONVERSIONS_OF_ATTENTION(extern)                                                                       \
  extern template LayerConversion convert_attention<true>(                                                             \
      Recorder<Cpu<float>>&, std::string_view, AnyAttentionLayer<float>&, const AnyAttentionLayer<float>&,             \
      const Matrix<float>&, const Sequences&, const Mask&, const Fitting&);                                            \
  extern template void observe_attention(Recorder<Cpu<float>>&, const AnyAttentionLayer<float>&, const Matrix<float>&, \
                                         const Sequences&, bool, LayerStatistics&);                                    \
  extern template KeyValueMap map_of_attention(std::string_view, const AnyAttentionLayer<float>&);                     \
  extern template bool cut_attention(std::string_view, AnyAttentionLayer<float>&, const AnyAttentionLayer<float>&,     \
                                     const LayerStatistics&, LatentCut<float>&)
#ifdef LACONIC_RECOGNIZER_SOURCES
LACONIC_CONVERSIONS_OF_ATTENTION(extern);
#endif

/// Calls f(method) with the method that is named.
template <class F>
auto with_method(const ConversionChoice& how, F&& f) {
  using enum ConversionMethod;
  if (how.method == svd) return f(JointSvd{});
  if (how.method == randomized) return f(RandomizedSvd{.seed = how.seed});
  require(how.calibration != nullptr, "convert: ", to_name(how.method), " given without speech to calibrate on");
  return f(ActivationPca<float>{{how.calibration->features, how.calibration->sequences}, how.method == score_aware});
}

/// Returns the weights of layers for the allocation of ranks. A calibrated method's spectra are those of outputs, so
/// the weights' information is divided by the energy of inputs. Throws `Error` for the score-aware method, whose
/// spectra are in different units for each layer, and without labelled calibration speech.
template <class Model>
std::vector<double> layer_weights(const Model& model, const ConversionChoice& how) {
  require(how.method != ConversionMethod::score_aware,
          "convert: allocation fisher by score-aware given, a method expected that counts errors of keys and values as "
          "they are");
  require(how.calibration != nullptr && !how.calibration->labels.tokens.empty(),
          "convert: allocation fisher given without calibration speech that has its text");
  const SpeechBatch& speech = *how.calibration;
  std::vector<double> out = layer_information(model, speech, how.threads);
  if (how.method == ConversionMethod::svd || how.method == ConversionMethod::randomized) return out;
  Recorder<Cpu<float>> recorder;
  const auto statistics = calibrate(recorder, model, Calibration<float>{speech.features, speech.sequences}, false);
  for (std::size_t l = 0; l < out.size(); ++l)
    out[l] *= static_cast<double>(statistics[l].value_input.rows()) / statistics[l].value_input.trace();
  return out;
}

template <class Model>
ConvertedModel<Model> convert_model(const Model& source, const AttentionChoice& choice, const ConversionChoice& how,
                                    const SpeechBatch* speech) {
  const EncoderConfig wanted = with_attention(source.config(), choice);
  ConversionConfig numbers{wanted.num_kv_heads, wanted.kv_lora_rank, wanted.v_lora_rank, wanted.attention};
  numbers.hadamard = how.hadamard;
  const bool allocates = how.allocation != RankAllocation::uniform;
  require(!allocates || choice.attention == AttentionName::mla || choice.attention == AttentionName::mla_simple,
          "convert: allocation ", to_name(how.allocation), ": ", to_name(choice.attention),
          " given, mla or mla-simple expected");
  return with_method(how, [&](const auto& method) -> ConvertedModel<Model> {
    if (allocates) {
      const auto weights =
          how.allocation == RankAllocation::fisher ? layer_weights(source, how) : std::vector<double>();
      for (const Index rank : allocate_ranks(key_value_spectra(source, method),
                                             numbers.kv_lora_rank * wanted.num_layers, 8, how.allocation, weights))
        numbers.kv_lora_ranks.push_back(rank);
    }
    auto [model, report] = speech != nullptr
                               ? laconic::convert<Model>(source, method, numbers, speech->features, speech->sequences)
                               : laconic::convert<Model>(source, method, numbers);
    return {std::move(model), std::move(report)};
  });
}

template <class Model>
std::vector<std::vector<double>> model_spectra(const Model& model, const ConversionChoice& how) {
  return with_method(how, [&](const auto& method) { return key_value_spectra(model, method); });
}

template <class Model>
double cut_latents(Model& model, Index rank, OptimizerState<float>& learnt, const SpeechBatch* calibration) {
  std::optional<Calibration<float>> speech;
  if (calibration != nullptr) speech = Calibration<float>{calibration->features, calibration->sequences};
  auto cut = truncate<Model>(model, {.kv_lora_rank = rank}, learnt, speech ? &*speech : nullptr);
  model = std::move(cut.model);
  learnt = std::move(cut.optimizer);
  return cut.predicted_error;
}

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
