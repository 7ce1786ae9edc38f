// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/convert/factorize.hpp>
#include <laconic/convert/report.hpp>

#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace laconic::inline LACONIC_ABI {

/// Numbers of the converted attention that its type leaves open (`dyn`). 0 means "as the type says", and otherwise a
/// key-value head for every head.
struct ConversionConfig {
  Index num_kv_heads = 0;
  Index kv_lora_rank = 0;
};

/// `auto [small, report] = convert<Small>(model);`
template <class Target>
struct Conversion {
  Target model;
  ConversionReport report;
};

namespace detail {

template <class Target, class Source>
inline constexpr bool same_model = false;
template <template <class, class> class Model, class To, class From, class T>
inline constexpr bool same_model<Model<To, T>, Model<From, T>> = true;

template <class From, class To>
inline constexpr bool conversion_known = false;
template <>
inline constexpr bool conversion_known<FullRank, FullRank> = true;
template <Index R>
inline constexpr bool conversion_known<FullRank, SharedLatent<R>> = true;
template <Index A, Index B>
inline constexpr bool conversion_known<SharedLatent<A>, SharedLatent<B>> = true;

/// Keys and values as functions of the layer's input: weights (heads * head_dim, d_model), biases as one more column.
struct KeyValueMap {
  Matrix<double> k, v;
  auto k_weight() const { return k.leftCols(k.cols() - 1); }
  auto v_weight() const { return v.leftCols(v.cols() - 1); }
  auto v_bias() const { return v.rightCols(1); }
};

template <class T>
Matrix<double> with_bias(const Linear<T>& linear) {
  Matrix<double> out(linear.out(), linear.in() + 1);
  out << linear.weight.value.template cast<double>(), linear.bias.value.transpose().template cast<double>();
  return out;
}
template <class T>
void assign(Linear<T>& linear, const Matrix<double>& with_bias) {
  linear.weight.value = with_bias.leftCols(linear.in()).template cast<T>();
  linear.bias.value = with_bias.rightCols(1).transpose().template cast<T>();
}
template <class T>
void assign_weight(Linear<T>& linear, const Matrix<double>& weight) {
  linear.weight.value = weight.template cast<T>();
  linear.bias.value.setZero();
}

template <class Layer>
KeyValueMap key_value_map(FullRank, const Layer& layer) {
  return {with_bias(layer.linear_k), with_bias(layer.linear_v)};
}
template <Index R, class Layer>
KeyValueMap key_value_map(SharedLatent<R>, const Layer& layer) {
  const Matrix<double> down = with_bias(layer.linear_kv_down);
  const Matrix<double> k_up = with_bias(layer.linear_k_up), v_up = with_bias(layer.linear_v_up);
  const Index rank = down.rows();
  KeyValueMap out{k_up.leftCols(rank) * down, v_up.leftCols(rank) * down};
  out.k.rightCols(1) += k_up.rightCols(1);
  out.v.rightCols(1) += v_up.rightCols(1);
  return out;
}

/// Every head's rows from those of the key-value head that it reads.
inline Matrix<double> repeat_heads(const Matrix<double>& rows, const AttentionDims& d) {
  Matrix<double> out(d.d_model, rows.cols());
  const Index dim = d.head_dim(), group = d.num_heads / d.num_kv_heads;
  for (Index h = 0; h < d.num_heads; ++h) out.middleRows(h * dim, dim) = rows.middleRows(h / group * dim, dim);
  return out;
}
/// The mean of the heads that will read one key-value head (Ainslie et al. 2023, section 2.1).
inline Matrix<double> mean_heads(const Matrix<double>& rows, const AttentionDims& d) {
  Matrix<double> out = Matrix<double>::Zero(d.kv_dim(), rows.cols());
  const Index dim = d.head_dim(), group = d.num_heads / d.num_kv_heads;
  for (Index h = 0; h < d.num_heads; ++h) out.middleRows(h / group * dim, dim) += rows.middleRows(h * dim, dim);
  return out / static_cast<double>(group);
}
inline KeyValueMap repeat_heads(const KeyValueMap& map, const AttentionDims& d) {
  return {repeat_heads(map.k, d), repeat_heads(map.v, d)};
}
inline KeyValueMap mean_heads(const KeyValueMap& map, const AttentionDims& d) {
  return {mean_heads(map.k, d), mean_heads(map.v, d)};
}

/// Makes the layer's keys and values as near to `wanted` as it can; returns the squared error of its weights.
template <class Layer, class Method>
double fit(FullRank, Layer& layer, const KeyValueMap& wanted, const Method&) {
  assign(layer.linear_k, wanted.k);
  assign(layer.linear_v, wanted.v);
  return 0;
}
template <Index R, class Layer, class Method>
double fit(SharedLatent<R>, Layer& layer, const KeyValueMap& wanted, const Method& method) {
  const Matrix<double> k = wanted.k_weight(), v = wanted.v_weight();
  const JointFactors factors = method.factorize(k, v, layer.linear_kv_down.out());
  assign_weight(layer.linear_kv_down, factors.down);
  assign_weight(layer.linear_k_up, factors.k_up);
  assign_weight(layer.linear_v_up, factors.v_up);
  return factors.discarded;
}

/// Converts keys and values of one layer whose other parameters are already copied. Returns the predicted deviation.
template <class To, class From, class T, class Method>
Deviation convert_layer(std::string_view name, AttentionLayer<To, T>& target, const AttentionLayer<From, T>& source,
                        const Method& method) {
  const AttentionDims &to = target.dims(), &from = source.dims();
  const KeyValueMap before = repeat_heads(key_value_map(typename From::KeyValue{}, source.key_value), from);
  require(before.k.allFinite() && before.v.allFinite(), "convert: keys or values of ", name,
          " have weights that are not finite");
  const KeyValueMap wanted = mean_heads(before, to), shared = repeat_heads(wanted, to);
  Deviation out = deviation(shared.k_weight(), before.k_weight());
  out += deviation(shared.v_weight(), before.v_weight());
  const bool same_latent = from.kv_lora_rank > 0 && from.kv_lora_rank == to.kv_lora_rank;
  if (same_latent && from.num_kv_heads == to.num_kv_heads) return out;  // copied already

  // The mean is a projection: what it discards is orthogonal to what the fit discards, once for each head of a group.
  const double discarded = fit(typename To::KeyValue{}, target.key_value, wanted, method);
  out.error += static_cast<double>(to.num_heads / to.num_kv_heads) * discarded;

  // Probabilities sum to 1, so a bias on the values is one on the output.
  const KeyValueMap now = repeat_heads(key_value_map(typename To::KeyValue{}, target.key_value), to);
  const Matrix<double> moved =
      target.linear_out.weight.value.template cast<double>() * (before.v_bias() - now.v_bias());
  target.linear_out.bias.value += moved.transpose().template cast<T>();
  return out;
}

/// Copies by name. Only keys and values may be missing in the source or have another shape there.
template <class Target, class Source>
void copy_parameters(Target& target, const Source& source) {
  using P = Parameter<typename Source::Scalar>;
  std::map<std::string, const P*, std::less<>> from;
  source.parameters([&](std::string_view name, const P& p) { from.emplace(name, &p); });
  std::vector<const P*> converted;
  Target::each_attention(target, [&](std::string_view, const auto& layer) {
    layer.key_value.parameters([&](std::string_view, const P& p) { converted.push_back(&p); });
  });
  target.parameters([&](std::string_view name, P& p) {
    const auto found = from.find(name);
    if (found != from.end() && found->second->shape() == p.shape())
      p.value = found->second->value;
    else
      require(std::find(converted.begin(), converted.end(), &p) != converted.end(),
              "convert: the source has no parameter ", name, " of the target's shape");
  });
}

template <class Target, class Source>
constexpr bool types_fit() {
  static_assert(same_model<Target, Source>,
                "laconic: convert changes a model's attention, neither its kind nor its number type");
  using From = typename Source::Policy;
  using To = typename Target::Policy;
  constexpr Index before = From::Heads::num_heads, after = To::Heads::num_heads;
  static_assert(before == after || before == dyn || after == dyn, "laconic: convert keeps the number of query heads");
  static_assert(std::is_same_v<typename From::Position, typename To::Position>,
                "laconic: convert keeps the position policy");
  static_assert(conversion_known<typename From::KeyValue, typename To::KeyValue>,
                "laconic: no conversion is known between these two key-value policies");
  static_assert(To::Position::key_bias_cancels || std::is_same_v<typename To::KeyValue, FullRank>,
                "laconic: a latent drops the bias of the keys, which matters under this position policy");
  return true;
}

/// `measure_on_noise`: the attention layers are measured on white noise, not on what they get from these features.
template <class Target, class Method, class Source>
Conversion<Target> convert(const Source& source, const Method& method, const ConversionConfig& numbers,
                           const Matrix<typename Source::Scalar>& features, const Sequences& sequences,
                           bool measure_on_noise) {
  static_assert(types_fit<Target, Source>());
  using T = typename Source::Scalar;
  using From = AttentionLayer<typename Source::Policy, T>;
  using To = AttentionLayer<typename Target::Policy, T>;

  auto config = source.config();
  config.num_kv_heads = numbers.num_kv_heads;
  config.kv_lora_rank = numbers.kv_lora_rank;
  Conversion<Target> out{Target(config, Seed()), {}};
  copy_parameters(out.model, source);

  InputRecorder<T> cpu;
  std::vector<const From*> layers;
  Source::each_attention(source, [&](std::string_view, const From& layer) {
    layers.push_back(&layer);
    cpu.inputs[&layer.linear_q.weight];
  });
  const auto logits = source(cpu, features, sequences);
  require(logits.rows.rows() > 0, "convert: ", features.rows(), " rows of features given in ", sequences.size(),
          " sequences, of which the subsampling leaves none");

  Deviation predicted, key_value, output;
  auto layer = layers.begin();
  Target::each_attention(out.model, [&](std::string_view name, To& to) {
    const From& from = **layer++;
    Matrix<T>& x = cpu.inputs[&from.linear_q.weight];
    if (measure_on_noise) x = white_noise<T>(x.rows(), x.cols(), name);
    const Deviation of_weights = convert_layer(name, to, from, method);
    const Deviation of_key_value = key_value_deviation(cpu, to, from, x);
    const Deviation of_output = output_deviation(cpu, to, from, x, logits.sequences);
    out.report.layers.push_back({std::string(name), to.dims().num_kv_heads, to.dims().kv_lora_rank,
                                 of_weights.relative(), of_key_value.relative(), of_output.relative()});
    predicted += of_weights;
    key_value += of_key_value;
    output += of_output;
  });
  out.report.input = measure_on_noise ? "white noise" : "features";
  out.report.predicted_error = predicted.relative();
  out.report.key_value_error = key_value.relative();
  out.report.output_error = output.relative();
  out.report.logits_error = deviation(out.model(cpu, features, sequences).rows.view(), logits.rows.view()).relative();
  return out;
}

}  // namespace detail

/// The model with another attention: what both have in common is copied, keys and values are converted.
///
///     auto [small, report] = convert<Conformer<MlaSimple<8, 64>>>(model);             // MHA to MLA by the joint SVD
///     auto grouped = convert<Conformer<Gqa<8, dyn>>>(model, JointSvd{}, {.num_kv_heads = 2}).model;
///
/// Full rank to a latent, and a latent to one of another rank: by `method`. More key-value heads to fewer: the mean of
/// those that become one; fewer to more: repeated. Where nothing is lost (rank = d_model, equal heads, a number that
/// moves between type and configuration) the outputs are those of the source up to rounding. A latent gets no biases:
/// softmax ignores one on the keys, and one on the values goes to `linear_out`.
///
/// The report compares both models by forward passes on white noise: 260 rows of features, and as many rows of noise
/// into every attention layer as these leave after the subsampling. Throws `Error` where the numbers do not fit (a
/// latent larger than d_model) or weights are not finite. Allocates.
template <class Target, class Source, class Method = JointSvd>
Conversion<Target> convert(const Source& source, const Method& method = {}, const ConversionConfig& numbers = {}) {
  const auto noise = white_noise<typename Source::Scalar>(260, source.config().num_mels, "features");
  return detail::convert<Target>(source, method, numbers, noise, Sequences{noise.rows()}, true);
}

/// The same, and the report compares both models on these features (rows, num_mels), sequences packed: every attention
/// layer on the input that it has in the source model.
template <class Target, class Source, class Method>
Conversion<Target> convert(const Source& source, const Method& method, const ConversionConfig& numbers,
                           const Matrix<typename Source::Scalar>& features, const Sequences& sequences) {
  return detail::convert<Target>(source, method, numbers, features, sequences, false);
}

}  // namespace laconic
