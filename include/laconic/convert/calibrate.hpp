// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/attention.hpp>
#include <laconic/backend/cpu.hpp>
#include <laconic/backend/recorder.hpp>
#include <laconic/convert/activation.hpp>
#include <laconic/convert/copy_parameters.hpp>
#include <laconic/model/encoder.hpp>

#include <algorithm>
#include <cstddef>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

/// Adds x^T x to `sum`, which is empty before the first rows.
template <class T>
void add_second_moment(Matrix<double>& sum, const Matrix<T>& x) {
  if (sum.size() == 0) sum.setZero(x.cols(), x.cols());
  const Matrix<double> rows = to_double(x);
  add_product(sum, transposed(rows), rows);
}

/// Returns what queries and keys of this layer are computed from: x, or x as its position turns it.
template <class Context, class Policy, class T>
Matrix<T> key_input(Context& context, const AttentionLayer<Policy, T>& layer, const Matrix<T>& x,
                    const Sequences& sequences) {
  if constexpr (Policy::Position::turns_input) {
    Pass<typename Context::Tensor> pass{sequences, {}};
    pass.table = layer.table(context, pass);
    return context.output(context.rotate(context.input(x), pass.table, Policy::Position::pairs));
  }
  return x;
}

/// Adds what keys and values of this layer are computed from for its input x, and its queries if they are wanted.
template <class Context, class Policy, class T>
void observe(Context& context, const AttentionLayer<Policy, T>& layer, const Matrix<T>& x, const Sequences& sequences,
             bool queries, LayerStatistics& sums) {
  using Position = typename Policy::Position;
  const Matrix<T> turned = key_input(context, layer, x, sequences);
  add_second_moment(sums.value_input, x);
  if (Position::turns_input) add_second_moment(sums.key_input, turned);
  if (!queries) return;
  auto q = layer.query(context, context.input(turned)).content;
  if constexpr (Position::is_relative) q = context.add_row(q, layer.position.pos_bias_u);
  const AttentionDims& d = layer.dims();
  if (sums.key_metric.size() == 0) sums.key_metric.setZero(d.q_dim(), d.head_dim);
  const Matrix<double> rows = to_double(context.output(q));
  for (Index h = 0; h < d.num_heads; ++h) {
    const Matrix<double> head = gram_by_columns(columns_of(rows, h * d.head_dim, d.head_dim));
    for (Index i = 0; i < head.size(); ++i) sums.key_metric.data()[h * head.size() + i] += head.data()[i];
  }
}

/// Adds the same for a layer that may hold any attention.
template <class Context, class Layer, class T>
void observe_attention(Context& context, const Layer& any, const Matrix<T>& x, const Sequences& sequences, bool queries,
                       LayerStatistics& sums) {
  with_layer(any, [&](const auto& layer) { observe(context, layer, x, sequences, queries, sums); });
}

/// Refers to speech that a model is run on.
template <class T>
struct SpeechInput {
  const Matrix<T>& features;   ///< packed rows, (rows, num_mels)
  const Sequences& sequences;  ///< the utterances of the rows
};

/// Returns the logits of a model for speech, which has `features`, or for tokens, which have `ids`.
template <class Context, class Model, class Input>
auto run_on(Context& context, const Model& model, const Input& input) {
  if constexpr (requires { input.features; })
    return model(context, input.features, input.sequences);
  else
    return Logits<typename Context::Tensor>{model(context, TokenRows{input.ids, input.sequences}), input.sequences};
}
/// Returns the input's rows: of features, or tokens.
template <class Input>
Index rows_of_input(const Input& input) {
  if constexpr (requires { input.features; })
    return input.features.rows();
  else
    return static_cast<Index>(input.ids.size());
}
/// Throws `Error`, in the name of `who`, if a model gave no rows for this input.
template <class Input>
void require_rows(const char* who, const Input& input, Index rows) {
  constexpr bool is_speech = requires { input.features; };
  require(rows > 0, who, ": ", rows_of_input(input), is_speech ? " rows of features" : " tokens", " given in ",
          input.sequences.size(), " sequences, ",
          is_speech ? "of which the subsampling leaves none" : "at least one expected");
}

/// Returns the statistics of each attention layer of this model on this speech or text. Runs the model sequence by
/// sequence, so that it takes little memory. Throws `Error` if the model has no rows for it or a statistic is not
/// finite.
template <class Context, class Source, class Input>
std::vector<LayerStatistics> calibrate(Recorder<Context>& recorder, const Source& source, const Input& input,
                                       bool score_aware) {
  using T = typename Source::Scalar;
  constexpr bool is_speech = requires { input.features; };
  require(rows_of_input(input) == input.sequences.rows(), "calibration: ", rows_of_input(input),
          is_speech ? " rows of features" : " tokens", " given, their sequences have ", input.sequences.rows());
  const Runnable run(recorder, source);
  std::vector<LayerStatistics> out;
  Source::each_attention(*run, [&](std::string_view, const auto& layer) {
    out.emplace_back();
    recorder.record(layer.input_weight());
  });
  Index frames = 0;
  for (Index n = 0; n < input.sequences.size(); ++n) {
    const Index begin = input.sequences.begin(n), length = input.sequences.length(n);
    const Sequences one{length};
    Sequences sequences;
    if constexpr (requires { input.features; }) {
      const Matrix<T> features = rows_of(input.features, begin, length);
      sequences = run_on(recorder, *run, SpeechInput<T>{features, one}).sequences;
    } else {
      const auto ids = std::span(input.ids).subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(length));
      sequences = run_on(recorder, *run, TokenRows{ids, one}).sequences;
    }
    if (sequences.rows() == 0) continue;
    frames += sequences.rows();
    auto sums = out.begin();
    Source::each_attention(*run, [&](std::string_view, const auto& any) {
      const Matrix<T> x = std::move(recorder.input_of(any.input_weight()));
      observe_attention(recorder, any, x, sequences, score_aware, *sums++);
    });
  }
  require_rows("calibration", input, frames);

  auto sums = out.begin();
  Source::each_attention(source, [&](std::string_view name, const auto& any) {
    LayerStatistics& s = *sums++;
    if (s.key_input.size() == 0) s.key_input = s.value_input;
    for (Matrix<double>* sum : {&s.key_input, &s.value_input, &s.key_metric})
      std::for_each_n(sum->data(), sum->size(), [=](double& x) { x /= static_cast<double>(frames); });
    require(all_finite(s.key_input) && all_finite(s.key_metric), "calibration: ", name,
            " has inputs or queries that are not finite");
    if (!score_aware) return;
    const Matrix<double> weight =
        with_layer(any, [](const auto& layer) { return to_double(layer.linear_out.weight.host()); });
    const Index dim = s.key_metric.cols();
    s.value_metric.resize(weight.cols(), dim);
    for (Index at = 0; at < weight.cols(); at += dim)
      set_rows(s.value_metric, at, gram_by_columns(columns_of(weight, at, dim)));
  });
  return out;
}

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
