// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/any.hpp>
#include <laconic/convert/allocate.hpp>
#include <laconic/convert/calibrate.hpp>
#include <laconic/convert/fit.hpp>
#include <laconic/convert/merge.hpp>
#include <laconic/convert/report.hpp>
#include <laconic/model/encoder.hpp>

#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Numbers of the converted attention that its type leaves open (`dyn`). 0 means "as the type says", and otherwise a
/// key-value head for every head.
struct ConversionConfig {
  Index num_kv_heads = 0;
  Index kv_lora_rank = 0;
  Index v_lora_rank = 0;
  AttentionName attention = AttentionName::by_type;
  /// Of each layer its own (`allocate_ranks`); empty: the one above for all.
  IndexList kv_lora_ranks{}, v_lora_ranks{};
  /// Of whatever latents are made.
  SingularValues singular_values = SingularValues::up;
  /// In a latent for both, errors of keys and of values count in proportion to the energy of each (Meng et al. 2025).
  /// Else the stronger of the two takes the latent for itself.
  bool balance = false;
  /// Channels of a latent are mixed by a Hadamard matrix: SVD gives the first most of the energy, which wastes the
  /// range of 8 bits on the others. It costs nothing, for it lies in the weights. Not of mla-head.
  bool hadamard = false;
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

/// Whether keys and values come out of a latent by linear maps; and whether that latent's channels can be mixed.
template <class KeyValue>
inline constexpr bool has_linear_latent =
    is_linear_map<KeyValue>&& KeyValue::is_latent && !std::is_same_v<KeyValue, InputLatent>;
template <class KeyValue>
inline constexpr bool can_mix = has_linear_latent<KeyValue>;
template <Index R>
inline constexpr bool can_mix<HeadLatent<R, 0>> = false;

/// The configuration with the ranks that these numbers say.
template <class Config, class Numbers>
Config with_ranks(Config config, const Numbers& numbers) {
  config.kv_lora_rank = numbers.kv_lora_rank;
  config.v_lora_rank = numbers.v_lora_rank;
  config.kv_lora_ranks = numbers.kv_lora_ranks;
  config.v_lora_ranks = numbers.v_lora_ranks;
  return config;
}

/// The same scores, and keys and values that can be carried over.
template <class From, class To>
inline constexpr bool conversion_known =
    is_linear_map<typename From::KeyValue>&& is_linear_map<typename To::KeyValue>&& std::is_same_v<
        typename From::Position, typename To::Position>&& std::is_same_v<typename From::Score, typename To::Score>;

/// Whether two policies are one with different numbers.
template <class, class>
inline constexpr bool same_kind = false;
template <template <Index...> class KeyValue, Index... A, Index... B>
inline constexpr bool same_kind<KeyValue<A...>, KeyValue<B...>> = true;

/// Keys and values of a layer for every head; nothing where they are no linear functions of its input.
template <class Policy, class T>
KeyValueMap full_map(std::string_view name, const AttentionLayer<Policy, T>& layer) {
  if constexpr (is_linear_map<typename Policy::KeyValue>) {
    const KeyValueMap out = repeat_heads(key_value_map(typename Policy::KeyValue{}, layer.key_value), layer.dims());
    require(out.k.allFinite() && out.v.allFinite(), "convert: keys or values of ", name,
            " have weights that are not finite");
    return out;
  }
  return {};
}

/// What is to be done with one layer. Pairs of policies are looked at here alone: all else is compiled once for each
/// policy.
struct LayerPair {
  bool is_known = false, is_copied = false, is_merged = false;
};
template <class To, class From, class T>
LayerPair pair_of(const AttentionLayer<To, T>& target, const AttentionLayer<From, T>& source) {
  const AttentionDims &to = target.dims(), &from = source.dims();
  const bool same_latent = same_kind<typename To::KeyValue, typename From::KeyValue> && from.kv_lora_rank > 0 &&
                           from.kv_lora_rank == to.kv_lora_rank && from.v_lora_rank == to.v_lora_rank;
  return {conversion_known<From, To>, same_latent && from.num_kv_heads == to.num_kv_heads,
          from.num_kv_heads > to.num_kv_heads};
}

/// The predicted deviation of a layer, and how its heads were merged.
struct ConvertedLayer {
  Deviation deviation;
  HeadMerge merge;
  double k_factor_error = 0, v_factor_error = 0;
};

/// Fits keys and values of one layer to what they were `before`; its other parameters are already copied, and where
/// `is_copied`, these too.
template <class To, class T>
ConvertedLayer convert_layer(AttentionLayer<To, T>& target, const KeyValueMap& before, const LayerPair& pair,
                             Fitting how) {
  const AttentionDims& to = target.dims();
  LayerStatistics& seen = how.statistics;
  const auto output_weight = [&]() -> Matrix<double> {
    return target.linear_out.weight.host().template cast<double>();
  };
  const Matrix<double> of_bias = output_weight() * before.v_bias();
  ConvertedLayer out;
  if (can_turn_heads<To> && pair.is_merged && seen.key_input.size() > 0)
    out.merge = align_heads(before, to, seen, output_weight());
  else
    out.merge.wanted = mean_heads(before, to);
  const HeadMerge& merge = out.merge;
  const auto energies = [&](const Matrix<double>& k, const Matrix<double>& v) {
    return output_energy(k, seen.key_input) + output_energy(v, seen.value_input);
  };
  const auto error_of = [&](const KeyValueMap& merged) {
    const Index inputs = before.k.cols() - 1;
    return energies((HeadMerge::spread(merge.k_turn, merged.k, to) - before.k).leftCols(inputs),
                    (HeadMerge::spread(merge.v_turn, merged.v, to) - before.v).leftCols(inputs));
  };
  out.deviation = {error_of(merge.wanted), energies(before.k_weight(), before.v_weight())};
  require(can_mix<typename To::KeyValue> || !how.hadamard,
          "convert: hadamard given for an attention that has no latent whose channels can be mixed");
  if (pair.is_copied && !how.hadamard && how.singular_values == SingularValues::up) return out;

  for (const auto& [metric, turn] :
       {std::pair{&seen.key_metric, &merge.k_turn}, std::pair{&seen.value_metric, &merge.v_turn}}) {
    if (metric->size() == 0) continue;
    for (Index at = 0; merge.turns() && at < metric->rows(); at += to.head_dim) {
      const auto one = turn->middleRows(at, to.head_dim);
      metric->middleRows(at, to.head_dim) = (one.transpose() * metric->middleRows(at, to.head_dim) * one).eval();
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

  const auto factor_error = [&](const Matrix<double>& turn, const Matrix<double>& merged, const auto& expected) {
    const double norm = expected.norm();
    return norm > 0 ? (HeadMerge::spread(turn, merged, to).leftCols(expected.cols()) - expected).norm() / norm : 0;
  };
  out.k_factor_error = factor_error(merge.k_turn, now.k, before.k_weight());
  out.v_factor_error = factor_error(merge.v_turn, now.v, before.v_weight());

  if constexpr (can_turn_heads<To>) {
    if (merge.turns()) turn_heads(target, merge);
  }
  // Probabilities sum to 1, so a bias on the values is one on the output.
  const Matrix<double> moved = of_bias - output_weight() * repeat_heads(now, to).v_bias();
  if (target.linear_out.has_bias()) target.linear_out.bias.host() += moved.transpose().template cast<T>();
  return out;
}

/// Keys and values of the source's heads from those of merged ones.
template <class T>
void turn_back(KeyValueRows<T>& rows, const HeadMerge& merge) {
  if (!merge.turns()) return;
  const Index dim = merge.k_turn.cols();
  for (const auto& [numbers, turn] : {std::pair{&rows.k, &merge.k_turn}, std::pair{&rows.v, &merge.v_turn}})
    for (Index at = 0; at < turn->rows(); at += dim)
      numbers->middleCols(at, dim) =
          (numbers->middleCols(at, dim) * turn->middleRows(at, dim).transpose().template cast<T>()).eval();
}

/// f(std::type_identity<Policy>()) with the policy that the configuration names for an open type, or with the type's
/// own.
template <class Policy, class F>
constexpr decltype(auto) with_policy(const AttentionConfig& config, F&& f) {
  if constexpr (std::is_same_v<Policy, AnyAttention>)
    return AnyAttention::with_policy(config, std::forward<F>(f));
  else
    return f(std::type_identity<Policy>());
}
/// Types that leave the attention open are looked at here.
template <class To, class From>
void require_known(const AttentionConfig& to, const AttentionConfig& from) {
  const bool known = with_policy<To>(to, [&]<class A>(std::type_identity<A>) {
    return with_policy<From>(from, []<class B>(std::type_identity<B>) { return conversion_known<B, A>; });
  });
  require(known, "convert: no conversion is known between these two attentions (", to_name(from.attention), " to ",
          to_name(to.attention), ")");
}

/// Copies by name. Only keys and values, and a rotary part of queries, may be missing in the source or have another
/// shape there.
template <class Target, class Source>
void copy_parameters(Target& target, const Source& source) {
  require_on_host(source, "convert");
  using P = Parameter<typename Source::Scalar>;
  std::map<std::string, const P*, std::less<>> from;
  source.parameters([&](std::string_view name, const P& p) { from.emplace(name, &p); });
  std::vector<const P*> converted;
  Target::each_attention(target, [&](std::string_view, const auto& any) {
    with_layer(any, [&](const auto& layer) {
      layer.key_value.parameters([&](std::string_view, const P& p) { converted.push_back(&p); });
      if constexpr (requires { layer.query.linear_q_rope; })
        layer.query.linear_q_rope.parameters([&](std::string_view, const P& p) { converted.push_back(&p); });
    });
  });
  target.parameters([&](std::string_view name, P& p) {
    const auto found = from.find(name);
    if (found != from.end() && found->second->shape() == p.shape())
      p.host() = found->second->host();
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
/// `statistics` are those of the layers where the method is calibrated. The method is no template argument: so another
/// one compiles nothing of this again.
template <class Target, class Source>
Conversion<Target> convert(const Source& source, Fitting how, const std::vector<LayerStatistics>& statistics,
                           const ConversionConfig& numbers, const Matrix<typename Source::Scalar>& features,
                           const Sequences& sequences, bool measure_on_noise) {
  static_assert(types_fit<Target, Source>());
  using T = typename Source::Scalar;
  using From = typename Source::Policy::template Layer<T>;
  using To = typename Target::Policy::template Layer<T>;

  auto config = with_ranks(source.config(), numbers);
  config.num_kv_heads = numbers.num_kv_heads;
  config.attention = numbers.attention;
  require_known<typename Target::Policy, typename Source::Policy>(config.attention_config(),
                                                                  source.config().attention_config());
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
  auto next = layers.begin();
  Target::each_attention(out.model, [&](std::string_view name, To& to) {
    const From& from = **next++;
    Matrix<T>& x = cpu.inputs[&from.input_weight()];
    if (measure_on_noise) x = white_noise<T>(x.rows(), x.cols(), name);
    if (!statistics.empty()) how.statistics = statistics[out.report.layers.size()];
    Deviation of_key_value;
    ConvertedLayer converted;
    const LayerPair pair =
        with_layer(to, [&](const auto& a) { return with_layer(from, [&](const auto& b) { return pair_of(a, b); }); });
    if (pair.is_known) {
      const KeyValueMap before = with_layer(from, [&](const auto& layer) { return full_map(name, layer); });
      const Matrix<T> turned =
          with_layer(from, [&](const auto& layer) { return key_input(cpu, layer, x, logits.sequences); });
      const auto rows = [&](const auto& any) {
        return with_layer(any, [&](const auto& layer) { return key_value_rows(cpu, layer, x, turned); });
      };
      with_layer(to, [&]<class A>(AttentionLayer<A, T>& layer) {
        if constexpr (is_linear_map<typename A::KeyValue>) converted = convert_layer(layer, before, pair, how);
      });
      KeyValueRows<T> of_target = rows(to);
      turn_back(of_target, converted.merge);
      of_key_value = deviation(of_target, rows(from));
    }
    const Deviation of_output = output_deviation(cpu, to, from, x, logits.sequences, source.config().mask());
    LayerReport& layer = out.report.layers.emplace_back();
    layer.layer = name;
    layer.num_kv_heads = to.dims().num_kv_heads;
    layer.kv_lora_rank = to.dims().kv_lora_rank;
    layer.k_factor_error = converted.k_factor_error;
    layer.v_factor_error = converted.v_factor_error;
    layer.predicted_error = converted.deviation.relative();
    layer.key_value_error = of_key_value.relative();
    set_output(layer, of_output);
    predicted += converted.deviation;
    key_value += of_key_value;
    output += of_output;
  });
  out.report.input = measure_on_noise ? "white noise" : "features";
  out.report.predicted_error = predicted.relative();
  out.report.key_value_error = key_value.relative();
  set_output(out.report, output);
  out.report.logits_error = deviation(out.model(cpu, features, sequences).rows.view(), logits.rows.view()).relative();
  return out;
}

template <class Method>
JointFactors factorize(const Method& method, const Matrix<double>& k, const Matrix<double>& v, Index rank,
                       const LayerStatistics& statistics) {
  if constexpr (requires { method.calibration; })
    return method.factorize(k, v, rank, statistics);
  else
    return method.factorize(k, v, rank);
}
/// Of each layer; none where the method needs none.
template <class Source, class Method>
std::vector<LayerStatistics> statistics_of(const Source& source, const Method& method) {
  if constexpr (requires { method.calibration; })
    return calibrate(source, method.calibration, method.score_aware);
  else
    return {};
}

template <class Target, class Method, class Source>
Conversion<Target> convert(const Source& source, const Method& method, const ConversionConfig& numbers,
                           const Matrix<typename Source::Scalar>& features, const Sequences& sequences,
                           bool measure_on_noise) {
  static_assert(types_fit<Target, Source>());
  const Fitting how{[&method](const auto&... problem) { return factorize(method, problem...); },
                    numbers.singular_values,
                    numbers.balance,
                    numbers.hadamard,
                    {}};
  return convert<Target>(source, how, statistics_of(source, method), numbers, features, sequences, measure_on_noise);
}

}  // namespace detail

/// The model with another attention: what both have in common is copied, keys and values are converted.
///
///     auto [small, report] = convert<Conformer<MlaSimple<8, 64>>>(model);             // MHA to MLA by the joint SVD
///     auto grouped = convert<Conformer<Gqa<8, dyn>>>(model, JointSvd{}, {.num_kv_heads = 2}).model;
///
/// Between all attentions whose keys and values are linear functions of the input. To a latent: by `method`, for all
/// heads together, or for keys and values, or for what heads have in common, as the latent has it. `JointSvd` and
/// `RandomizedSvd` look at the weights alone, `ActivationPca` also at speech; any class will do that has their
/// `factorize`. More key-value heads to fewer: the mean of those that become one (Ainslie et al. 2023), after they were
/// turned to agree where the method is calibrated; fewer to more: repeated. Where nothing is lost (rank = d_model,
/// equal heads, a number that moves between type and configuration) the outputs are those of the source up to rounding.
/// A latent gets no biases: softmax ignores one on the keys, and one on the values goes to `linear_out`.
///
/// The report compares both models by forward passes on white noise: features for 64 frames, and as many rows of noise
/// into every attention layer. Throws `Error` where the numbers do not fit (a
/// latent larger than d_model) or weights are not finite. Allocates.
template <class Target, class Source, class Method = JointSvd>
Conversion<Target> convert(const Source& source, const Method& method = {}, const ConversionConfig& numbers = {}) {
  const Index rows = source.subsampling.window() + 63 * source.subsampling.factor();
  const auto noise = white_noise<typename Source::Scalar>(rows, source.config().num_mels, "features");
  return detail::convert<Target>(source, method, numbers, noise, Sequences{noise.rows()}, true);
}

/// The same, and the report compares both models on these features (rows, num_mels), sequences packed: every attention
/// layer on the input that it has in the source model.
template <class Target, class Source, class Method>
Conversion<Target> convert(const Source& source, const Method& method, const ConversionConfig& numbers,
                           const Matrix<typename Source::Scalar>& features, const Sequences& sequences) {
  return detail::convert<Target>(source, method, numbers, features, sequences, false);
}

/// What a latent for both keys and values has to hold of each layer: the singular values that the method cuts, falling.
/// By them `allocate_ranks` gives each layer its rank:
///
///     ConversionConfig numbers;
///     for (const Index rank : allocate_ranks(key_value_spectra(model), budget, 8, RankAllocation::water_filling))
///       numbers.kv_lora_ranks.push_back(rank);
template <class Source, class Method = JointSvd>
std::vector<std::vector<double>> key_value_spectra(const Source& source, const Method& method = {}) {
  require_on_host(source, "key_value_spectra");
  const std::vector<LayerStatistics> statistics = detail::statistics_of(source, method);
  std::vector<std::vector<double>> out;
  Source::each_attention(source, [&](std::string_view name, const auto& any) {
    detail::with_layer(any, [&]<class Policy, class T>(const AttentionLayer<Policy, T>& layer) {
      constexpr bool is_known = detail::is_linear_map<typename Policy::KeyValue>;
      require(is_known, "key_value_spectra: keys and values of ", name, " are no linear functions of its input");
      if constexpr (is_known) {
        const auto map =
            detail::repeat_heads(detail::key_value_map(typename Policy::KeyValue{}, layer.key_value), layer.dims());
        const Matrix<double> k = map.k_weight(), v = map.v_weight();
        const LayerStatistics& seen = statistics.empty() ? LayerStatistics() : statistics[out.size()];
        out.push_back(detail::factorize(method, k, v, k.cols(), seen).singular_values);
      }
    });
  });
  return out;
}

}  // namespace LACONIC_ABI
}  // namespace laconic
