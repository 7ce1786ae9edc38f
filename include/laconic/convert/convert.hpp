// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/any.hpp>
#include <laconic/convert/factorize.hpp>
#include <laconic/convert/report.hpp>
#include <laconic/model/encoder.hpp>

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
  Index v_lora_rank = 0;
  AttentionName attention = AttentionName::by_type;
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
template <class Kind, class To, class From, class T>
inline constexpr bool same_model<Encoder<Kind, To, T>, Encoder<Kind, From, T>> = true;

/// Whether keys and values are linear functions of the layer's input, which can be read off and fitted.
template <class KeyValue>
inline constexpr bool is_linear_map = false;
template <>
inline constexpr bool is_linear_map<FullRank> = true;
template <>
inline constexpr bool is_linear_map<InputLatent> = true;
template <Index R>
inline constexpr bool is_linear_map<SharedLatent<R>> = true;
template <Index R>
inline constexpr bool is_linear_map<TwoStageLatent<R>> = true;
template <Index RK, Index RV>
inline constexpr bool is_linear_map<SplitLatent<RK, RV>> = true;
template <Index R>
inline constexpr bool is_linear_map<HeadLatent<R, 0>> = true;

/// The same scores, and keys and values that can be carried over.
template <class From, class To>
inline constexpr bool conversion_known =
    is_linear_map<typename From::KeyValue> && is_linear_map<typename To::KeyValue> &&
    std::is_same_v<typename From::Position, typename To::Position> && std::is_same_v<typename From::Score, typename To::Score>;

/// Whether two policies are one with different numbers.
template <class, class>
inline constexpr bool same_kind = false;
template <template <Index...> class KeyValue, Index... A, Index... B>
inline constexpr bool same_kind<KeyValue<A...>, KeyValue<B...>> = true;

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
  out.leftCols(linear.in()) = linear.weight.value.template cast<double>();
  out.rightCols(1).setZero();
  if (linear.has_bias()) out.rightCols(1) = linear.bias.value.transpose().template cast<double>();
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
  if (linear.has_bias()) linear.bias.value.setZero();
}

/// `second` after `first`, both with a bias as their last column; where `second` has a matrix for every block of rows of
/// `first`, each after its block.
inline Matrix<double> composed(const Matrix<double>& second, const Matrix<double>& first) {
  const Index in = second.cols() - 1, blocks = first.rows() / in, out = second.rows() / blocks;
  Matrix<double> both(second.rows(), first.cols());
  for (Index b = 0; b < blocks; ++b) {
    both.middleRows(b * out, out) = second.block(b * out, 0, out, in) * first.middleRows(b * in, in);
    both.block(b * out, first.cols() - 1, out, 1) += second.block(b * out, in, out, 1);
  }
  return both;
}
/// The same where every block of rows of `first` meets all of `second`.
inline Matrix<double> composed_each(const Matrix<double>& second, const Matrix<double>& first) {
  const Index in = second.cols() - 1, blocks = first.rows() / in, out = second.rows();
  Matrix<double> both(blocks * out, first.cols());
  for (Index b = 0; b < blocks; ++b) both.middleRows(b * out, out) = composed(second, first.middleRows(b * in, in));
  return both;
}

template <class Layer>
KeyValueMap key_value_map(FullRank, const Layer& layer) {
  return {with_bias(layer.linear_k), with_bias(layer.linear_v)};
}
template <class Layer>
KeyValueMap key_value_map(InputLatent, const Layer& layer) {
  return key_value_map(FullRank(), layer);
}
template <Index R, class Layer>
KeyValueMap key_value_map(SharedLatent<R>, const Layer& layer) {
  const Matrix<double> down = with_bias(layer.linear_kv_down);
  return {composed(with_bias(layer.linear_k_up), down), composed(with_bias(layer.linear_v_up), down)};
}
template <Index R, class Layer>
KeyValueMap key_value_map(TwoStageLatent<R>, const Layer& layer) {
  const Matrix<double> down = with_bias(layer.linear_kv_down);
  return {composed(with_bias(layer.linear_k_b), composed(with_bias(layer.linear_k_a), down)),
          composed(with_bias(layer.linear_v_b), composed(with_bias(layer.linear_v_a), down))};
}
template <Index RK, Index RV, class Layer>
KeyValueMap key_value_map(SplitLatent<RK, RV>, const Layer& layer) {
  return {composed(with_bias(layer.linear_k_up), with_bias(layer.linear_k_down)),
          composed(with_bias(layer.linear_v_up), with_bias(layer.linear_v_down))};
}
template <Index R, class Layer>
KeyValueMap key_value_map(HeadLatent<R, 0>, const Layer& layer) {
  return {composed_each(with_bias(layer.k_expand), with_bias(layer.linear_k_down)),
          composed_each(with_bias(layer.v_expand), with_bias(layer.linear_v_down))};
}

/// Every head's rows from those of the key-value head that it reads.
inline Matrix<double> repeat_heads(const Matrix<double>& rows, const AttentionDims& d) {
  Matrix<double> out(d.d_model, rows.cols());
  const Index dim = d.head_dim, group = d.num_heads / d.num_kv_heads;
  for (Index h = 0; h < d.num_heads; ++h) out.middleRows(h * dim, dim) = rows.middleRows(h / group * dim, dim);
  return out;
}
/// The mean of the heads that will read one key-value head (Ainslie et al. 2023, section 2.1).
inline Matrix<double> mean_heads(const Matrix<double>& rows, const AttentionDims& d) {
  Matrix<double> out = Matrix<double>::Zero(d.kv_dim(), rows.cols());
  const Index dim = d.head_dim, group = d.num_heads / d.num_kv_heads;
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
template <class Layer, class Method>
double fit(InputLatent, Layer& layer, const KeyValueMap& wanted, const Method& method) {
  return fit(FullRank(), layer, wanted, method);
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
template <Index R, class Layer, class Method>
double fit(TwoStageLatent<R>, Layer& layer, const KeyValueMap& wanted, const Method& method) {
  const Matrix<double> k = wanted.k_weight(), v = wanted.v_weight();
  const JointFactors factors = method.factorize(k, v, layer.linear_kv_down.out());
  const Index dim = layer.linear_k_b.in();
  const Matrix<double> identities = Matrix<double>::Identity(dim, dim).replicate(k.rows() / dim, 1);
  assign_weight(layer.linear_kv_down, factors.down);
  assign_weight(layer.linear_k_a, factors.k_up);
  assign_weight(layer.linear_k_b, identities);
  assign_weight(layer.linear_v_a, factors.v_up);
  assign_weight(layer.linear_v_b, identities);
  return factors.discarded;
}
template <Index RK, Index RV, class Layer, class Method>
double fit(SplitLatent<RK, RV>, Layer& layer, const KeyValueMap& wanted, const Method& method) {
  const Matrix<double> k = wanted.k_weight(), v = wanted.v_weight(), nothing(0, k.cols());
  const JointFactors keys = method.factorize(k, nothing, layer.linear_k_down.out());
  const JointFactors values = method.factorize(nothing, v, layer.linear_v_down.out());
  assign_weight(layer.linear_k_down, keys.down);
  assign_weight(layer.linear_k_up, keys.k_up);
  assign_weight(layer.linear_v_down, values.down);
  assign_weight(layer.linear_v_up, values.v_up);
  return keys.discarded + values.discarded;
}
/// The heads' matrices side by side, (head_dim, heads * d_model): their best common column space is spanned by the left
/// singular vectors, with which each head's latent is its projection.
template <class Method, class T>
double fit_heads(Linear<T>& down, Linear<T>& expand, const Matrix<double>& weight, const Method& method) {
  const Index dim = expand.out(), rank = expand.in(), heads = weight.rows() / dim, d_model = weight.cols();
  Matrix<double> stacked(heads * d_model, dim);
  for (Index h = 0; h < heads; ++h) stacked.middleRows(h * d_model, d_model) = weight.middleRows(h * dim, dim).transpose();
  const JointFactors factors = method.factorize(stacked, Matrix<double>(0, dim), rank);
  Matrix<double> latents(heads * rank, d_model);
  for (Index h = 0; h < heads; ++h) latents.middleRows(h * rank, rank) = factors.down * weight.middleRows(h * dim, dim);
  assign_weight(down, latents);
  assign_weight(expand, factors.down.transpose());
  return factors.discarded;
}
template <Index R, class Layer, class Method>
double fit(HeadLatent<R, 0>, Layer& layer, const KeyValueMap& wanted, const Method& method) {
  const Matrix<double> k = wanted.k_weight(), v = wanted.v_weight();
  return fit_heads(layer.linear_k_down, layer.k_expand, k, method) + fit_heads(layer.linear_v_down, layer.v_expand, v, method);
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
  const bool same_latent = same_kind<typename To::KeyValue, typename From::KeyValue> && from.kv_lora_rank > 0 &&
                           from.kv_lora_rank == to.kv_lora_rank && from.v_lora_rank == to.v_lora_rank;
  if (same_latent && from.num_kv_heads == to.num_kv_heads) return out;  // copied already

  // The mean is a projection: what it discards is orthogonal to what the fit discards, once for each head of a group.
  const double discarded = fit(typename To::KeyValue{}, target.key_value, wanted, method);
  out.error += static_cast<double>(to.num_heads / to.num_kv_heads) * discarded;

  // Probabilities sum to 1, so a bias on the values is one on the output.
  const KeyValueMap now = repeat_heads(key_value_map(typename To::KeyValue{}, target.key_value), to);
  const Matrix<double> moved =
      target.linear_out.weight.value.template cast<double>() * (before.v_bias() - now.v_bias());
  if (target.linear_out.has_bias()) target.linear_out.bias.value += moved.transpose().template cast<T>();
  return out;
}

/// f(layer) with the layer that an AnyAttentionLayer holds, or with the layer itself.
template <class Layer, class F>
decltype(auto) with_layer(Layer& layer, F&& f) {
  if constexpr (requires { layer.layer; })
    return std::visit(std::forward<F>(f), layer.layer);
  else
    return f(layer);
}

/// f(std::type_identity<Policy>()) with the policy that an open type has by this name, or with the type's own.
template <class Policy, class F>
constexpr decltype(auto) with_policy(AttentionName name, F&& f) {
  if constexpr (std::is_same_v<Policy, AnyAttention>)
    return AnyAttention::with_policy(name, std::forward<F>(f));
  else
    return f(std::type_identity<Policy>());
}
/// Types that leave the attention open are looked at here.
template <class To, class From>
void require_known(AttentionName to, AttentionName from) {
  const bool known = with_policy<To>(to, [&]<class A>(std::type_identity<A>) {
    return with_policy<From>(from, []<class B>(std::type_identity<B>) { return conversion_known<B, A>; });
  });
  require(known, "convert: no conversion is known between these two attentions (", to_name(from), " to ", to_name(to), ")");
}

/// Copies by name. Only keys and values may be missing in the source or have another shape there.
template <class Target, class Source>
void copy_parameters(Target& target, const Source& source) {
  using P = Parameter<typename Source::Scalar>;
  std::map<std::string, const P*, std::less<>> from;
  source.parameters([&](std::string_view name, const P& p) { from.emplace(name, &p); });
  std::vector<const P*> converted;
  Target::each_attention(target, [&](std::string_view, const auto& any) {
    with_layer(any, [&](const auto& layer) { layer.key_value.parameters([&](std::string_view, const P& p) { converted.push_back(&p); }); });
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
  if constexpr (!std::is_same_v<From, AnyAttention> && !std::is_same_v<To, AnyAttention>) {
    constexpr Index before = From::Heads::num_heads, after = To::Heads::num_heads;
    static_assert(before == after || before == dyn || after == dyn, "laconic: convert keeps the number of query heads");
    static_assert(std::is_same_v<typename From::Position, typename To::Position>,
                  "laconic: convert keeps the position policy");
    static_assert(conversion_known<From, To>, "laconic: no conversion is known between these two attentions");
    static_assert(To::Position::key_bias_cancels || std::is_same_v<typename To::KeyValue, FullRank>,
                  "laconic: a latent drops the bias of the keys, which matters under this position policy");
  }
  return true;
}

/// `measure_on_noise`: the attention layers are measured on white noise, not on what they get from these features.
template <class Target, class Method, class Source>
Conversion<Target> convert(const Source& source, const Method& method, const ConversionConfig& numbers,
                           const Matrix<typename Source::Scalar>& features, const Sequences& sequences,
                           bool measure_on_noise) {
  static_assert(types_fit<Target, Source>());
  using T = typename Source::Scalar;
  using From = typename Source::Policy::template Layer<T>;
  using To = typename Target::Policy::template Layer<T>;

  require_known<typename Target::Policy, typename Source::Policy>(numbers.attention, source.config().attention);
  auto config = source.config();
  config.num_kv_heads = numbers.num_kv_heads;
  config.kv_lora_rank = numbers.kv_lora_rank;
  config.v_lora_rank = numbers.v_lora_rank;
  config.attention = numbers.attention;
  Conversion<Target> out{Target(config, Seed()), {}};
  copy_parameters(out.model, source);

  InputRecorder<T> cpu;
  std::vector<const From*> layers;
  Source::each_attention(source, [&](std::string_view, const From& layer) {
    layers.push_back(&layer);
    cpu.inputs[&layer.input_weight()];
  });
  const auto logits = source(cpu, features, sequences);
  require(logits.rows.rows() > 0, "convert: ", features.rows(), " rows of features given in ", sequences.size(),
          " sequences, of which the subsampling leaves none");

  Deviation predicted, key_value, output;
  auto layer = layers.begin();
  Target::each_attention(out.model, [&](std::string_view name, To& to) {
    const From& from = **layer++;
    Matrix<T>& x = cpu.inputs[&from.input_weight()];
    if (measure_on_noise) x = white_noise<T>(x.rows(), x.cols(), name);
    Deviation of_weights, of_key_value;
    with_layer(to, [&](auto& to_layer) {
      with_layer(from, [&](const auto& from_layer) {
        using A = typename std::remove_cvref_t<decltype(to_layer)>::Policy;
        using B = typename std::remove_cvref_t<decltype(from_layer)>::Policy;
        if constexpr (conversion_known<B, A>) {
          of_weights = convert_layer(name, to_layer, from_layer, method);
          of_key_value = key_value_deviation(cpu, to_layer, from_layer, x);
        }
      });
    });
    const Deviation of_output = output_deviation(cpu, to, from, x, logits.sequences, source.config().mask());
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
/// Between all attentions whose keys and values are linear functions of the input. To a latent: by `method`, for all heads
/// together, or for keys and values, or for what heads have in common, as the latent has it. More key-value heads to fewer: the mean of
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
