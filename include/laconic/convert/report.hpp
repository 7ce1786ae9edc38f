// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/attention.hpp>
#include <laconic/backend/cpu.hpp>

#include <map>
#include <optional>
#include <string>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// How far one thing is from another, as sums, so that deviations add up over layers: of squared errors and squares of
/// what was expected; and, where numbers were compared one by one, of absolute errors, squares and products of both.
struct Deviation {
  double error = 0, reference = 0, absolute = 0, square = 0, product = 0;
  Index count = 0;

  void add(double value, double expected) {
    error += (value - expected) * (value - expected);
    reference += expected * expected;
    absolute += std::abs(value - expected);
    square += value * value;
    product += value * expected;
    ++count;
  }
  Deviation& operator+=(const Deviation& other) {
    error += other.error;
    reference += other.reference;
    absolute += other.absolute;
    square += other.square;
    product += other.product;
    count += other.count;
    return *this;
  }
  /// |value - expected| / |expected| (Frobenius).
  double relative() const { return error == 0 ? 0 : std::sqrt(error / reference); }
  double mean_squared() const { return count == 0 ? 0 : error / static_cast<double>(count); }
  double mean_absolute() const { return count == 0 ? 0 : absolute / static_cast<double>(count); }
  /// Of the angle between both. It does not see the scale: the relative error does.
  double cosine() const { return error == 0 ? 1 : product / std::sqrt(square * reference); }
};

/// Every number of `value` against that of `expected`.
template <class A, class B>
Deviation deviation(const A& value, const B& expected) {
  Deviation out;
  for (Index r = 0; r < expected.rows(); ++r)
    for (Index c = 0; c < expected.cols(); ++c)
      out.add(static_cast<double>(value(r, c)), static_cast<double>(expected(r, c)));
  return out;
}

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

/// Rows of independent standard normal numbers, the same for the same name.
template <class T>
Matrix<T> white_noise(Index rows, Index cols, std::string_view name) {
  const Random random(Seed(), name);
  Matrix<T> out(rows, cols);
  for (Index i = 0; i < out.size(); ++i) out.data()[i] = static_cast<T>(random.normal(static_cast<std::uint64_t>(i)));
  return out;
}

}  // namespace LACONIC_ABI
}  // namespace laconic
