// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/attention.hpp>
#include <laconic/backend/cpu.hpp>
#include <laconic/convert/conversion_report.hpp>
#include <laconic/convert/deviation.hpp>
#include <laconic/core/white_noise.hpp>

#include <map>
#include <optional>
#include <string>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// What a layer's report, or that of all, says of outputs.
void set_output(auto& report, const Deviation& of_output) {
  report.output_error = of_output.relative();
  report.output_mse = of_output.mean_squared();
  report.output_mae = of_output.mean_absolute();
  report.output_cosine = of_output.cosine();
}

/// The CPU, keeping what flows into chosen linear layers: `inputs[&layer.weight]` is filled where it exists.
template <class T>
class InputRecorder : public Cpu<T> {
 public:
  using typename Cpu<T>::Tensor;

  Tensor linear(const Tensor& x, const Parameter<T>& weight, const Parameter<T>* bias,
                std::optional<Activation> activation = {}) {
    if (const auto at = inputs.find(&weight); at != inputs.end()) at->second = x.view();
    return Cpu<T>::linear(x, weight, bias, activation);
  }

  std::map<const Parameter<T>*, Matrix<T>> inputs;
};

/// Keys and values of some rows as each query head reads them, (rows, num_heads * head_dim).
template <class T>
struct KeyValueRows {
  Matrix<T> k, v;
};

/// Those that a layer computes from rows x (rows, d_model); keys are computed from rows of their own where positions
/// turn these. Biases are left out, for a conversion may move them: one on the keys changes no probability, one on the
/// values is one on the output.
template <class Policy, class T>
KeyValueRows<T> key_value_rows(Cpu<T>& cpu, const AttentionLayer<Policy, T>& layer, const Matrix<T>& x,
                               const Matrix<T>& turned) {
  const auto with_zeros = [](const Matrix<T>& from) {  // the row of zeros gives the biases
    Matrix<T> rows = Matrix<T>::Zero(from.rows() + 1, from.cols());
    rows.topRows(from.rows()) = from;
    return rows;
  };
  const Matrix<T> of_values = with_zeros(x), of_keys = with_zeros(turned);
  const auto all = layer.key_value.expand(cpu, layer.key_value.remember(cpu, cpu.input(of_keys), cpu.input(of_values)));
  const AttentionDims& d = layer.dims();
  const auto of_heads = [&](const auto& rows) {
    Matrix<T> out(x.rows(), d.q_dim());
    for (Index h = 0; h < d.num_heads; ++h) {
      const auto head = rows.view().middleCols(h / (d.num_heads / d.num_kv_heads) * d.head_dim, d.head_dim);
      out.middleCols(h * d.head_dim, d.head_dim) = head.topRows(x.rows()).rowwise() - head.row(x.rows());
    }
    return out;
  };
  return {of_heads(all.k), of_heads(all.v)};
}
template <class T>
Deviation deviation(const KeyValueRows<T>& value, const KeyValueRows<T>& expected) {
  Deviation out = deviation(value.k, expected.k);
  return out += deviation(value.v, expected.v);
}

/// Keys and values of both layers for the same rows x (rows, d_model).
template <class To, class From, class T>
Deviation key_value_deviation(Cpu<T>& cpu, const AttentionLayer<To, T>& target, const AttentionLayer<From, T>& source,
                              const Matrix<T>& x) {
  return deviation(key_value_rows(cpu, target, x, x), key_value_rows(cpu, source, x, x));
}

/// Outputs of both attention layers for the same rows x (rows, d_model) of these sequences.
template <class To, class From, class T>
Deviation output_deviation(Cpu<T>& cpu, const To& target, const From& source, const Matrix<T>& x,
                           const Sequences& sequences, const Mask& mask) {
  const auto rows = cpu.input(x);
  const auto output_of = [&](const auto& layer) {
    Pass<Tensor<T>> pass{sequences, mask};
    pass.table = layer.table(cpu, pass);
    return layer(cpu, rows, pass);
  };
  return deviation(output_of(target).view(), output_of(source).view());
}

}  // namespace LACONIC_ABI
}  // namespace laconic
