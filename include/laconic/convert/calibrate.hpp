// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/convert/activation.hpp>
#include <laconic/convert/report.hpp>

#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

/// f(layer) with the layer that an AnyAttentionLayer holds, or with the layer itself.
template <class Layer, class F>
decltype(auto) with_layer(Layer& layer, F&& f) {
  if constexpr (requires { layer.layer; })
    return std::visit(std::forward<F>(f), layer.layer);
  else
    return f(layer);
}

template <class Values>
void add_second_moment(Matrix<double>& sum, const Values& values) {
  const Matrix<double> x = values.template cast<double>();
  if (sum.size() == 0) sum.setZero(x.cols(), x.cols());
  sum.noalias() += x.transpose() * x;
}

/// What queries and keys of this layer are computed from: x, or x as its position turns it.
template <class Policy, class T>
Matrix<T> key_input(Cpu<T>& cpu, const AttentionLayer<Policy, T>& layer, const Matrix<T>& x,
                    const Sequences& sequences) {
  if constexpr (Policy::Position::turns_input) {
    Pass<Tensor<T>> pass{sequences, {}};
    pass.table = layer.table(cpu, pass);
    return cpu.rotate(cpu.input(x), pass.table, Policy::Position::pairs).view();
  }
  return x;
}

/// Adds what keys and values of this layer are computed from for its input x, and its queries if they are wanted.
template <class Policy, class T>
void observe(Cpu<T>& cpu, const AttentionLayer<Policy, T>& layer, const Matrix<T>& x, const Sequences& sequences,
             bool queries, LayerStatistics& sums) {
  using Position = typename Policy::Position;
  const Matrix<T> turned = key_input(cpu, layer, x, sequences);
  add_second_moment(sums.value_input, x);
  if (Position::turns_input) add_second_moment(sums.key_input, turned);
  if (!queries) return;
  auto q = layer.query(cpu, cpu.input(turned)).content;
  if constexpr (Position::is_relative) q = cpu.add_row(q, layer.position.pos_bias_u);
  const AttentionDims& d = layer.dims();
  if (sums.key_metric.size() == 0) sums.key_metric.setZero(d.q_dim(), d.head_dim);
  for (Index h = 0; h < d.num_heads; ++h) {
    const Matrix<double> head = q.view().middleCols(h * d.head_dim, d.head_dim).template cast<double>();
    sums.key_metric.middleRows(h * d.head_dim, d.head_dim) += head.transpose() * head;
  }
}

/// What the attention layers of this model get from this speech. Utterance by utterance, so that it takes little
/// memory.
template <class Source, class T>
std::vector<LayerStatistics> calibrate(const Source& source, const Calibration<T>& speech, bool score_aware) {
  require(speech.features.rows() == speech.sequences.rows(), "calibration: ", speech.features.rows(),
          " rows of features given, their sequences have ", speech.sequences.rows());
  InputRecorder<T> cpu;
  std::vector<LayerStatistics> out;
  Source::each_attention(source, [&](std::string_view, const auto& layer) {
    out.emplace_back();
    cpu.inputs[&layer.input_weight()];
  });
  Index frames = 0;
  for (Index n = 0; n < speech.sequences.size(); ++n) {
    const Matrix<T> features = speech.features.middleRows(speech.sequences.begin(n), speech.sequences.length(n));
    const Sequences sequences = source(cpu, features, Sequences{features.rows()}).sequences;
    if (sequences.rows() == 0) continue;
    frames += sequences.rows();
    auto sums = out.begin();
    Source::each_attention(source, [&](std::string_view, const auto& any) {
      with_layer(any, [&](const auto& layer) {
        observe(cpu, layer, cpu.inputs[&any.input_weight()], sequences, score_aware, *sums);
      });
      ++sums;
    });
  }
  require(frames > 0, "calibration: ", speech.features.rows(), " rows of features given in ", speech.sequences.size(),
          " sequences, of which the subsampling leaves none");

  auto sums = out.begin();
  Source::each_attention(source, [&](std::string_view name, const auto& any) {
    LayerStatistics& s = *sums++;
    if (s.key_input.size() == 0) s.key_input = s.value_input;
    for (Matrix<double>* sum : {&s.key_input, &s.value_input, &s.key_metric}) *sum /= static_cast<double>(frames);
    require(s.key_input.allFinite() && s.key_metric.allFinite(), "calibration: ", name,
            " has inputs or queries that are not finite");
    if (!score_aware) return;
    const Matrix<double> weight = with_layer(
        any, [](const auto& layer) { return layer.linear_out.weight.host().template cast<double>().eval(); });
    const Index dim = s.key_metric.cols();
    s.value_metric.resize(weight.cols(), dim);
    for (Index at = 0; at < weight.cols(); at += dim)
      s.value_metric.middleRows(at, dim) = weight.middleCols(at, dim).transpose() * weight.middleCols(at, dim);
  });
  return out;
}

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
