// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/convert/allocate.hpp>
#include <laconic/convert/calibrate.hpp>
#include <laconic/convert/conversion.hpp>
#include <laconic/convert/convert_layer.hpp>
#include <laconic/convert/copy_parameters.hpp>
#include <laconic/convert/spectra.hpp>
#include <laconic/core/random.hpp>

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

/// Converts with a method that is no template argument, so that another method compiles nothing of this again.
/// `statistics` holds those of each layer for a calibrated method and is empty for others. With `measure_on_noise`, the
/// attention layers are measured on white noise instead of their inputs for this speech or text.
template <class Target, class Context, class Source, class Input>
Conversion<Target> convert_model(Recorder<Context>& recorder, const Source& source, Fitting how,
                                 const std::vector<LayerStatistics>& statistics, const ConversionConfig& numbers,
                                 const Input& input, bool measure_on_noise) {
  static_assert(types_fit<Target, Source>());
  using T = typename Source::Scalar;
  using From = typename Source::Policy::template Layer<T>;
  using To = typename Target::Policy::template Layer<T>;
  constexpr bool may_merge = can_merge<typename Target::Policy, typename Source::Policy>;

  auto config = with_ranks(source.config(), numbers);
  config.num_kv_heads = numbers.num_kv_heads;
  config.attention = numbers.attention;
  require_known<typename Target::Policy, typename Source::Policy>(config.attention_config(),
                                                                  source.config().attention_config());
  Conversion<Target> out{Target(config, Seed()), {}};
  copy_parameters(out.model, source);

  Context& context = recorder;
  std::vector<const From*> layers;
  std::vector<Matrix<T>*> inputs;
  Source::each_attention(source, [&](std::string_view, const From& layer) { layers.push_back(&layer); });
  const Runnable run(recorder, source);
  Source::each_attention(*run, [&](std::string_view, const From& layer) { recorder.record(layer.input_weight()); });
  Source::each_attention(
      *run, [&](std::string_view, const From& layer) { inputs.push_back(&recorder.input_of(layer.input_weight())); });
  const auto logits = run_on(recorder, *run, input);
  require_rows("convert", input, logits.rows.rows());
  const auto source_logits = context.output(logits.rows);

  const Mask mask = source.config().mask();
  Deviation predicted, key_value, output;
  Target::each_attention(out.model, [&](std::string_view name, To& any_target) {
    const std::size_t l = out.report.layers.size();
    const From& any_source = *layers[l];
    Matrix<T> x = std::move(*inputs[l]);
    if (measure_on_noise) x = white_noise<T>(x.rows(), x.cols(), name);
    if (!statistics.empty()) how.statistics = statistics[l];
    const LayerConversion layer =
        convert_attention<may_merge>(recorder, name, any_target, any_source, x, logits.sequences, mask, how);
    out.report.layers.push_back(layer.report);
    predicted += layer.predicted;
    key_value += layer.key_value;
    output += layer.output;
  });
  out.model.parameters([](std::string_view name, const Parameter<T>& p) {
    require(all_finite(p.host()), "convert: ", name,
            " would hold values that are not finite: the source's weights are "
            "too large, smaller ones expected");
  });
  require(all_finite(source_logits),
          "convert: logits of the source that are not finite given: its weights are too "
          "large to compute with, smaller ones expected");
  constexpr bool is_speech = requires { input.features; };
  out.report.input = measure_on_noise ? "white noise" : is_speech ? "features" : "tokens";
  out.report.predicted_error = predicted.relative();
  out.report.key_value_error = key_value.relative();
  set_output(out.report, output);
  const Runnable converted(context, out.model);
  const auto converted_logits = run_on(context, *converted, input);
  out.report.logits_error = deviation(context.output(converted_logits.rows), source_logits).relative();
  return out;
}

template <class Target, class Context, class Method, class Source, class Input>
Conversion<Target> convert_on(Recorder<Context>& recorder, const Source& source, const Method& method,
                              const ConversionConfig& numbers, const Input& input, bool measure_on_noise) {
  static_assert(types_fit<Target, Source>());
  const Fitting how{[&method](const auto&... problem) { return factorize(method, problem...); },
                    numbers.singular_values,
                    numbers.balance,
                    numbers.hadamard,
                    {}};
  return convert_model<Target>(recorder, source, how, statistics_of(recorder, source, method), numbers, input,
                               measure_on_noise);
}

}  // namespace detail

/// Returns the model with another attention: parameters that both have are copied, keys and values are converted.
///
///     auto [small, report] = convert<Conformer<MlaSimple<8, 64>>>(model);             // MHA to MLA by the joint SVD
///     auto grouped = convert<Conformer<Gqa<8, dyn>>>(model, JointSvd{}, {.num_kv_heads = 2}).model;
///
/// All attentions can be converted whose keys and values are linear functions of the input. `method` makes latents, in
/// the form that the target has: joint, split into keys and values, or per head. `JointSvd` and `RandomizedSvd` look at
/// the weights only, `ActivationPca` also at speech; any class with their `factorize` is a method. Key-value heads
/// that are merged become their mean (Ainslie et al. 2023), and a calibrated method first rotates them to agree; fewer
/// heads are repeated to give more. A conversion that loses nothing (rank = d_model, equal heads, a size that moves
/// between type and configuration) gives the outputs of the source up to rounding. A latent gets no biases: softmax
/// ignores one on the keys, and one on the values goes to `linear_out`.
///
/// The report compares both models by forward passes on white noise: features for 64 frames (a language model: 64
/// random tokens), and as many rows of noise into every attention layer. Allocates. Throws `Error` where the sizes do
/// not fit (a latent larger than d_model), weights are not finite, or parameters are not on the host.
template <class Target, class Source, class Method = JointSvd, class Context = Cpu<typename Source::Scalar>>
Conversion<Target> convert(const Source& source, const Method& method = {}, const ConversionConfig& numbers = {}) {
  Recorder<Context> recorder;
  return convert<Target>(recorder, source, method, numbers);
}

/// Converts as above. The report compares both models on these features (rows, num_mels) of packed sequences, every
/// attention layer on the input that it has in the source model.
template <class Target, class Source, class Method, class Context = Cpu<typename Source::Scalar>>
Conversion<Target> convert(const Source& source, const Method& method, const ConversionConfig& numbers,
                           const Matrix<typename Source::Scalar>& features, const Sequences& sequences) {
  Recorder<Context> recorder;
  return convert<Target>(recorder, source, method, numbers, features, sequences);
}

/// Converts a language model. The report compares both models on this text, every attention layer on the input that it
/// has in the source model.
template <class Target, class Source, class Method, class Context = Cpu<typename Source::Scalar>>
Conversion<Target> convert(const Source& source, const Method& method, const ConversionConfig& numbers,
                           const TokenRows& tokens) {
  Recorder<Context> recorder;
  return convert<Target>(recorder, source, method, numbers, tokens);
}

/// Converts as the first function does; forward passes of calibration and report run in this context.
template <class Target, class Context, class Source, class Method>
Conversion<Target> convert(Recorder<Context>& context, const Source& source, const Method& method,
                           const ConversionConfig& numbers) {
  static_assert(detail::types_fit<Target, Source>());
  if constexpr (requires { source.subsampling; }) {
    const Index rows = source.subsampling.window() + 63 * source.subsampling.factor();
    const auto noise = white_noise<typename Source::Scalar>(rows, source.config().num_mels, "features");
    const Sequences one{noise.rows()};
    return detail::convert_on<Target>(context, source, method, numbers,
                                      detail::SpeechInput<typename Source::Scalar>{noise, one}, true);
  } else {
    const Random random(Seed(), "tokens");
    std::vector<int> ids(static_cast<std::size_t>(std::min<Index>(64, source.config().max_positions)));
    for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int>(random.below(source.config().vocab_size, i));
    return detail::convert_on<Target>(context, source, method, numbers,
                                      TokenRows{ids, Sequences{static_cast<Index>(ids.size())}}, true);
  }
}
/// Converts a language model and reports on this text; forward passes of calibration and report run in this context.
template <class Target, class Context, class Source, class Method>
Conversion<Target> convert(Recorder<Context>& context, const Source& source, const Method& method,
                           const ConversionConfig& numbers, const TokenRows& tokens) {
  return detail::convert_on<Target>(context, source, method, numbers, tokens, false);
}
/// Converts and reports on these features (rows, num_mels) of packed sequences; forward passes of calibration and
/// report run in this context.
template <class Target, class Context, class Source, class Method>
Conversion<Target> convert(Recorder<Context>& context, const Source& source, const Method& method,
                           const ConversionConfig& numbers, const Matrix<typename Source::Scalar>& features,
                           const Sequences& sequences) {
  return detail::convert_on<Target>(context, source, method, numbers,
                                    detail::SpeechInput<typename Source::Scalar>{features, sequences}, false);
}

}  // namespace LACONIC_ABI
}  // namespace laconic
