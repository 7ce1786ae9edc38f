// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/convert/calibrate.hpp>
#include <laconic/convert/known_pairs.hpp>
#include <laconic/convert/merge.hpp>
#include <laconic/convert/report.hpp>

#include <algorithm>
#include <cmath>
#include <functional>
#include <string_view>

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

/// Identifies a key-value policy whatever its numbers are.
template <template <Index...> class KeyValue>
inline constexpr char family_of_numbers = 0;
template <class>
inline constexpr const char* key_value_family = nullptr;
template <template <Index...> class KeyValue, Index... Numbers>
inline constexpr const char* key_value_family<KeyValue<Numbers...>> = &family_of_numbers<KeyValue>;

/// Holds the part of a source's layer that a conversion needs, without the layer's policy: a conversion then compiles
/// the steps that follow once for each policy, not once for each pair of policies.
template <class T>
struct SourceLayer {
  AttentionDims dims{};
  const char* family = nullptr;
  KeyValueMap map;       ///< keys and values of every query head
  Matrix<T> turned;      ///< rows that keys are computed from, (rows, d_model)
  KeyValueRows<T> rows;  ///< keys and values of the rows that are measured
  Matrix<T> output;      ///< outputs of the layer for these rows, (rows, d_model)
};
/// Reads keys and values of a layer for every query head.
template <class Policy, class T>
KeyValueMap full_map(std::string_view name, const AttentionLayer<Policy, T>& layer) {
  KeyValueMap out = repeat_heads(key_value_map(typename Policy::KeyValue{}, layer.key_value), layer.dims());
  require(all_finite(out.k) && all_finite(out.v), "convert: keys or values of ", name,
          " have weights that are not finite");
  return out;
}
/// Reads a source's layer, and measures it on rows x (rows, d_model) of these sequences.
template <class Context, class Policy, class T>
SourceLayer<T> open_layer(Context& context, std::string_view name, const AttentionLayer<Policy, T>& layer,
                          const Matrix<T>& x, const Sequences& sequences, const Mask& mask) {
  SourceLayer<T> out;
  out.dims = layer.dims();
  out.family = key_value_family<typename Policy::KeyValue>;
  if constexpr (is_linear_map<typename Policy::KeyValue>) {
    out.map = full_map(name, layer);
    out.turned = key_input(context, *Runnable(context, layer), x, sequences);
    out.rows = key_value_rows(context, layer, x, out.turned);
  }
  out.output = attention_output(context, layer, x, sequences, mask);
  return out;
}

/// Holds the predicted deviation of a converted layer, and how its heads were merged.
struct ConvertedLayer {
  Deviation deviation;
  HeadMerge merge;
  double k_factor_error = 0, v_factor_error = 0;
};

/// Returns |merged rows for every query head - expected| / |expected| of weights; the last column holds biases.
template <std::same_as<double> T>
T weight_error(const Matrix<T>& turn, const Matrix<T>& merged, const Matrix<T>& expected, const AttentionDims& d) {
  const Index inputs = expected.cols() - 1;
  const Matrix<T> weights = columns_of(expected, 0, inputs);
  Matrix<T> off = columns_of(HeadMerge::spread(turn, merged, d), 0, inputs);
  std::transform(off.data(), off.data() + off.size(), weights.data(), off.data(), std::minus<>());
  const T norm = std::sqrt(energy(weights));
  return norm > 0 ? std::sqrt(energy(off)) / norm : 0;
}

/// Fits keys and values of one layer to those of the source; its other parameters are already copied, and where both
/// have the same latent, these too. `may_merge`: whether the types leave room for fewer key-value heads than the source
/// has.
template <bool may_merge, class To, class T>
ConvertedLayer convert_layer(AttentionLayer<To, T>& target, const SourceLayer<T>& source, Fitting how) {
  const AttentionDims &to = target.dims(), &from = source.dims;
  const KeyValueMap& before = source.map;
  LayerStatistics& seen = how.statistics;
  const auto output_bias = [&](const KeyValueMap& map) {  // what biases of values come to in the output
    return product(to_double(target.linear_out.weight.host()), map.v_bias());
  };
  const Matrix<double> of_bias = output_bias(before);
  ConvertedLayer out;
  HeadMerge& merge = out.merge;
  if constexpr (may_merge && can_turn_heads<To>)
    if (from.num_kv_heads > to.num_kv_heads && seen.key_input.size() > 0)
      merge = align_heads(before, to, seen, to_double(target.linear_out.weight.host()));
  if (!merge.turns()) merge.wanted = mean_heads(before, to);
  const auto energies = [&](const Matrix<double>& k, const Matrix<double>& v) {
    return output_energy(k, seen.key_input) + output_energy(v, seen.value_input);
  };
  const auto error_of = [&](const KeyValueMap& merged) {
    const auto error = [&](const Matrix<double>& turn, const Matrix<double>& now, const Matrix<double>& expected) {
      Matrix<double> all = HeadMerge::spread(turn, now, to);
      for (Index i = 0; i < all.size(); ++i) all.data()[i] -= expected.data()[i];
      return columns_of(all, 0, all.cols() - 1);
    };
    return energies(error(merge.k_turn, merged.k, before.k), error(merge.v_turn, merged.v, before.v));
  };
  out.deviation = {error_of(merge.wanted), energies(before.k_weight(), before.v_weight())};
  require(can_mix<typename To::KeyValue> || !how.hadamard,
          "convert: hadamard given for an attention that has no latent whose channels can be mixed");
  const bool is_copied = source.family != nullptr && source.family == key_value_family<typename To::KeyValue> &&
                         from.kv_lora_rank > 0 && from.kv_lora_rank == to.kv_lora_rank &&
                         from.v_lora_rank == to.v_lora_rank && from.num_kv_heads == to.num_kv_heads;
  if (is_copied && !how.hadamard && how.singular_values == SingularValues::up) return out;

  for (const auto& [metric, turn] :
       {std::pair{&seen.key_metric, &merge.k_turn}, std::pair{&seen.value_metric, &merge.v_turn}}) {
    if (metric->size() == 0) continue;
    for (Index at = 0; may_merge && merge.turns() && at < metric->rows(); at += to.head_dim) {
      const Matrix<double> one = rows_of(*turn, at, to.head_dim);
      set_rows(*metric, at,
               product_by_columns(product_by_columns(transposed(one), rows_of(*metric, at, to.head_dim)), one));
    }
    *metric = mean_heads(*metric, to);
  }
  const double discarded = fit(typename To::KeyValue{}, target.key_value, merge.wanted, how);
  const KeyValueMap now = key_value_map(typename To::KeyValue{}, target.key_value);
  // The mean is a projection: what it discards is orthogonal to what the fit discards, once for each head of a group.
  // What heads that were turned lose is not.
  out.deviation.error = merge.turns()
                            ? error_of(now)
                            : out.deviation.error + static_cast<double>(to.num_heads / to.num_kv_heads) * discarded;
  out.k_factor_error = weight_error(merge.k_turn, now.k, before.k, to);
  out.v_factor_error = weight_error(merge.v_turn, now.v, before.v, to);

  if constexpr (may_merge && can_turn_heads<To>)
    if (merge.turns()) turn_heads(target, merge);
  // Probabilities sum to 1, so a bias on the values is one on the output.
  if (target.linear_out.has_bias()) {
    const Matrix<double> of_new_bias = output_bias(repeat_heads(now, to));
    Matrix<double> moved = of_bias;
    for (Index i = 0; i < moved.size(); ++i) moved.data()[i] -= of_new_bias.data()[i];
    add_to_bias(target.linear_out, moved);
  }
  return out;
}

/// Returns keys and values of the source's heads from those of merged ones.
template <class T>
void turn_back(KeyValueRows<T>& rows, const HeadMerge& merge) {
  const Index dim = merge.k_turn.cols();
  for (const auto& [values, turn] : {std::pair{&rows.k, &merge.k_turn}, std::pair{&rows.v, &merge.v_turn}})
    for (Index at = 0; at < turn->rows(); at += dim)
      values->middleCols(at, dim) =
          (values->middleCols(at, dim) * turn->middleRows(at, dim).transpose().template cast<T>()).eval();
}

/// Holds a layer's line of the report, and the deviations that add up over layers.
struct LayerConversion {
  LayerReport report;
  Deviation predicted, key_value, output;
};
/// Converts one attention layer, or one that holds any attention, and compares it with the source's on rows x (rows,
/// d_model) of these sequences. It does not depend on the encoder, which compiles nothing of this.
template <bool may_merge, class To, class From, class Context, class T>
LayerConversion convert_attention(Recorder<Context>& recorder, std::string_view name, To& target, const From& source,
                                  const Matrix<T>& x, const Sequences& sequences, const Mask& mask,
                                  const Fitting& how) {
  Context& context = recorder;
  const SourceLayer<T> from =
      with_layer(source, [&](const auto& layer) { return open_layer(recorder, name, layer, x, sequences, mask); });
  LayerConversion out;
  LayerReport& report = out.report;
  report.layer = name;
  with_layer(target, [&]<class Policy>(AttentionLayer<Policy, T>& to) {
    if constexpr (is_linear_map<typename Policy::KeyValue>) {
      const ConvertedLayer converted = convert_layer<may_merge>(to, from, how);
      KeyValueRows<T> rows = key_value_rows(context, to, x, from.turned);
      if constexpr (may_merge) turn_back(rows, converted.merge);
      out.predicted = converted.deviation;
      out.key_value = deviation(rows, from.rows);
      report.k_factor_error = converted.k_factor_error;
      report.v_factor_error = converted.v_factor_error;
      report.predicted_error = out.predicted.relative();
      report.key_value_error = out.key_value.relative();
    }
    out.output = deviation(attention_output(context, to, x, sequences, mask), from.output);
    report.num_kv_heads = to.dims().num_kv_heads;
    report.kv_lora_rank = to.dims().kv_lora_rank;
    report.v_lora_rank = to.dims().v_lora_rank;
    set_output(report, out.output);
  });
  return out;
}

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
