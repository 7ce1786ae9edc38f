// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/attention.hpp>
#include <laconic/backend/recorder.hpp>
#include <laconic/convert/conversion_report.hpp>
#include <laconic/convert/deviation.hpp>
#include <laconic/core/white_noise.hpp>

#include <algorithm>

namespace laconic {
inline namespace LACONIC_ABI {

/// Sets the errors of outputs in the report of a layer or of a whole conversion.
void set_output(auto& report, const Deviation& of_output) {
  report.output_error = of_output.relative();
  report.output_mse = of_output.mean_squared();
  report.output_mae = of_output.mean_absolute();
  report.output_cosine = of_output.cosine();
}

/// Holds keys and values of some rows as each query head reads them.
template <class T>
struct KeyValueRows {
  Matrix<T> k,  ///< keys, (rows, num_heads * head_dim)
      v;        ///< values, (rows, num_heads * head_dim)
};

/// Returns the keys that a layer computes from rows `turned` (rows, d_model), which differ from x if positions rotate
/// inputs, and the values that it computes from rows x (rows, d_model). Biases are left out, because a conversion may
/// move them: one on the keys changes no probability, one on the values is one on the output. Allocates.
template <class Context, class Policy, class T>
KeyValueRows<T> key_value_rows(Context& context, const AttentionLayer<Policy, T>& on_host, const Matrix<T>& x,
                               const Matrix<T>& turned) {
  const Runnable run(context, on_host);
  const auto& key_value = (*run).key_value;
  const auto with_zeros = [](const Matrix<T>& from) {  // the row of zeros gives the biases
    Matrix<T> rows = Matrix<T>::Zero(from.rows() + 1, from.cols());
    std::copy_n(from.data(), from.size(), rows.data());
    return rows;
  };
  const Matrix<T> of_values = with_zeros(x), of_keys = with_zeros(turned);
  const auto all =
      key_value.expand(context, key_value.remember(context, context.input(of_keys), context.input(of_values)));
  const AttentionDims& d = on_host.dims();
  const auto of_heads = [&](const Matrix<T>& rows) {
    Matrix<T> out(x.rows(), d.q_dim());
    for (Index r = 0; r < out.rows(); ++r)
      for (Index h = 0; h < d.num_heads; ++h) {
        const Index begin = h / (d.num_heads / d.num_kv_heads) * d.head_dim;
        for (Index c = 0; c < d.head_dim; ++c)
          out(r, h * d.head_dim + c) = rows(r, begin + c) - rows(x.rows(), begin + c);
      }
    return out;
  };
  return {of_heads(context.output(all.k)), of_heads(context.output(all.v))};
}
/// Compares keys and values with expected ones of the same shape.
template <class T>
Deviation deviation(const KeyValueRows<T>& value, const KeyValueRows<T>& expected) {
  Deviation out = deviation(value.k, expected.k);
  return out += deviation(value.v, expected.v);
}

/// Compares keys and values of both layers for the same rows x (rows, d_model).
template <class Context, class To, class From, class T>
Deviation key_value_deviation(Context& context, const AttentionLayer<To, T>& target,
                              const AttentionLayer<From, T>& source, const Matrix<T>& x) {
  return deviation(key_value_rows(context, target, x, x), key_value_rows(context, source, x, x));
}

/// Returns the output of an attention layer for rows x (rows, d_model) of these sequences.
template <class Context, class Layer, class T>
Matrix<T> attention_output(Context& context, const Layer& on_host, const Matrix<T>& x, const Sequences& sequences,
                           const Mask& mask) {
  const Runnable run(context, on_host);
  const Layer& layer = *run;
  Pass<typename Context::Tensor> pass{sequences, mask};
  pass.table = layer.table(context, pass);
  return context.output(layer(context, context.input(x), pass));
}

}  // namespace LACONIC_ABI
}  // namespace laconic
