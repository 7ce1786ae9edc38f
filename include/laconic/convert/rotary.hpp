// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/convert/convert.hpp>

#include <algorithm>
#include <numeric>

// Models whose queries and keys are turned by position after their projections: position then stands between a latent
// and its keys, so part of each key is set aside for it.

namespace laconic {
inline namespace LACONIC_ABI {

/// Says which of the pairs that rotary positions rotate keep their position (Ji et al. 2025, "Towards economical
/// inference", section 3.1).
enum class RotaryChoice {
  high,     ///< pairs that rotate fastest
  low,      ///< pairs that rotate slowest
  uniform,  ///< pairs at equal distances
  norm      ///< pairs with the largest product of the 2-norms of queries and keys
};

/// Holds the sizes of the decoupled latent that its type leaves open (`dyn`); 0 means "as the type says".
struct DecouplingConfig {
  Index kv_lora_rank = 0,    ///< rank of the latent
      qk_rope_head_dim = 0;  ///< channels of the rotary key that all heads share
};

namespace detail {

/// Returns the channels of a head of this width that hold the real and the imaginary part of a pair.
inline std::pair<Index, Index> pair_places(RotaryPairs layout, Index width, Index pair) {
  return layout == RotaryPairs::interleaved ? std::pair(2 * pair, 2 * pair + 1) : std::pair(pair, pair + width / 2);
}

/// Holds the real and imaginary rows of one pair of every head, (heads, inputs + 1) each: biases are the last column.
struct PairRows {
  Matrix<double> real, imaginary;
};
template <class Linear>
PairRows pair_rows(const Linear& linear, RotaryPairs layout, Index head_dim, Index pair) {
  const Matrix<double> all = weight_and_bias(linear);
  const Index heads = all.rows() / head_dim;
  const auto [first, second] = pair_places(layout, head_dim, pair);
  PairRows out{Matrix<double>(heads, all.cols()), Matrix<double>(heads, all.cols())};
  for (Index h = 0; h < heads; ++h) {
    out.real.row(h) = all.row(h * head_dim + first);
    out.imaginary.row(h) = all.row(h * head_dim + second);
  }
  return out;
}

/// Returns the mean squares of each head's pair, (heads, 1), for inputs of this second moment.
inline Matrix<double> pair_energies(const PairRows& rows, const Matrix<double>& moment) {
  return (rows.real * moment).cwiseProduct(rows.real).rowwise().sum() +
         (rows.imaginary * moment).cwiseProduct(rows.imaginary).rowwise().sum();
}

/// Returns the inputs' second moment with the constant that biases meet; inputs after a norm are taken as of mean 0.
inline Matrix<double> with_constant(const Matrix<double>& moment, Index inputs) {
  Matrix<double> out = Matrix<double>::Identity(inputs + 1, inputs + 1);
  if (moment.size() > 0) out.topLeftCorner(inputs, inputs) = moment;
  return out;
}

/// Holds one pair for all heads, k_g = c_g z for key-value head g. Complex numbers commute with rotations, so z is
/// cached, and the queries of head g take conj(c_g). The best z is the first principal component over heads, each of
/// which counts by the energy of the queries that meet it (TransMLA's RoRoPE rotates heads alike, Meng et al. 2025).
struct SharedPair {
  Matrix<double> key;              ///< (2, inputs + 1): real and imaginary part of z
  Matrix<double> real, imaginary;  ///< parts of c, (kv_heads, 1)
};
template <std::same_as<double> D>
SharedPair shared_pair(const PairRows& keys, const Matrix<D>& query_energies, const Matrix<D>& moment) {
  const Index heads = keys.real.rows(), group = query_energies.rows() / heads;
  Matrix<D> weight(heads, 1);
  for (Index g = 0; g < heads; ++g)
    weight(g, 0) = std::sqrt(std::max(query_energies.middleRows(g * group, group).sum(), D{1e-300}));
  const Matrix<D> a = weight.col(0).asDiagonal() * keys.real, b = weight.col(0).asDiagonal() * keys.imaginary;
  // The Hermitian matrix of products as a real one of twice the size: [[Re, -Im], [Im, Re]].
  const Matrix<D> re = a * moment * a.transpose() + b * moment * b.transpose(),
                  im = b * moment * a.transpose() - a * moment * b.transpose();
  Matrix<D> both(2 * heads, 2 * heads);
  both << re, -im, im, re;
  const Matrix<D> first = columns_of(principal_directions(both), 0, 1), yr = first.topRows(heads),
                  yi = first.bottomRows(heads);
  SharedPair out;
  out.key.resize(2, a.cols());
  out.key << yr.transpose() * a + yi.transpose() * b, yr.transpose() * b - yi.transpose() * a;
  out.real = yr.cwiseQuotient(weight);
  out.imaginary = yi.cwiseQuotient(weight);
  return out;
}

template <class KeyValue>
inline constexpr bool is_decoupled = false;
template <Index R, Index RopeDim, template <class> class Norm>
inline constexpr bool is_decoupled<DecoupledLatent<R, RopeDim, Norm>> = true;

/// Returns the pairs that keep their position, in order: one choice for all layers, because they share the table of
/// positions. `moments` are the inputs' second moments by layer, with the constant.
template <class Source>
std::vector<Index> choose_pairs(const Source& source, RotaryChoice choice, Index chosen,
                                const std::vector<Matrix<double>>& moments) {
  using From = typename Source::Policy;
  const Index head_dim = From::dims(source.config().attention_config()).head_dim, pairs = head_dim / 2;
  std::vector<Index> order(static_cast<std::size_t>(pairs));
  std::iota(order.begin(), order.end(), Index{0});
  if (choice == RotaryChoice::low) std::reverse(order.begin(), order.end());
  if (choice == RotaryChoice::uniform)
    for (Index i = 0; i < chosen; ++i) order[static_cast<std::size_t>(i)] = i * pairs / chosen;
  if (choice == RotaryChoice::norm) {
    std::vector<double> products(order.size());
    std::size_t l = 0;
    Source::each_attention(source, [&](std::string_view, const auto& layer) {
      const Matrix<double>& moment = moments[l++];
      for (Index p = 0; p < pairs; ++p) {
        const auto lengths = [&](const auto& linear) {
          return Matrix<double>(
              pair_energies(pair_rows(linear, From::Position::pairs, head_dim, p), moment).cwiseSqrt());
        };
        const Matrix<double> q = lengths(layer.query.linear_q), k = lengths(layer.key_value.linear_k);
        for (Index h = 0; h < q.rows(); ++h)
          products[static_cast<std::size_t>(p)] += q(h, 0) * k(h * k.rows() / q.rows(), 0);
      }
    });
    std::stable_sort(order.begin(), order.end(), [&](Index a, Index b) {
      return products[static_cast<std::size_t>(a)] > products[static_cast<std::size_t>(b)];
    });
  }
  order.resize(static_cast<std::size_t>(chosen));
  std::sort(order.begin(), order.end());
  return order;
}

/// Sets queries, keys and values of one layer of decoupled latents from a layer with rotary positions, of which these
/// pairs keep their position. `moment` is the inputs' second moment with the constant.
template <class To, class From, class T, class Method>
void decouple_layer(AttentionLayer<To, T>& to, const AttentionLayer<From, T>& from, const std::vector<Index>& pairs,
                    const Matrix<double>& moment, const Method& method, const LayerStatistics& statistics) {
  constexpr RotaryPairs from_layout = From::Position::pairs;
  const Index heads = to.dims().num_heads, head_dim = to.dims().head_dim, rope = to.dims().qk_rope_head_dim,
              inputs = moment.rows() - 1;
  const double scale = std::sqrt(static_cast<double>(head_dim + rope) / static_cast<double>(head_dim)),
               amplitude = from.dims().rope.amplitude();  // of rotated queries and keys, whatever their position
  KeyValueMap without_position = repeat_heads(key_value_map(FullRank(), from.key_value), from.dims());
  Matrix<double> rope_keys(rope, inputs + 1), rope_queries(heads * rope, inputs + 1);
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    const PairRows queries = pair_rows(from.query.linear_q, from_layout, head_dim, pairs[i]);
    const SharedPair shared = shared_pair(pair_rows(from.key_value.linear_k, from_layout, head_dim, pairs[i]),
                                          pair_energies(queries, moment), moment);
    const auto [first, second] = pair_places(To::Position::pairs, rope, static_cast<Index>(i));
    const auto [real, imaginary] = pair_places(from_layout, head_dim, pairs[i]);
    rope_keys.row(first) = shared.key.row(0);
    rope_keys.row(second) = shared.key.row(1);
    for (Index h = 0; h < heads; ++h) {
      const Index g = h * shared.real.rows() / heads;
      rope_queries.row(h * rope + first) =
          scale * (shared.real(g, 0) * queries.real.row(h) + shared.imaginary(g, 0) * queries.imaginary.row(h));
      rope_queries.row(h * rope + second) =
          scale * (shared.real(g, 0) * queries.imaginary.row(h) - shared.imaginary(g, 0) * queries.real.row(h));
      without_position.k.row(h * head_dim + real).setZero();
      without_position.k.row(h * head_dim + imaginary).setZero();
    }
  }
  set_weight_and_bias(to.query.linear_q, amplitude * amplitude * scale * weight_and_bias(from.query.linear_q));
  set_weight_and_bias(to.query.linear_q_rope, rope_queries);
  set_weight_and_bias(to.key_value.linear_k_rope, rope_keys);

  // Without its position, a bias on the keys changes no probability; one on the values is one on the output.
  const JointFactors factors = factorize(method, without_position.k_weight(), without_position.v_weight(),
                                         to.key_value.linear_kv_down.out(), statistics);
  assign_weight(to.key_value.linear_kv_down, factors.down);
  assign_weight(to.key_value.linear_k_up, factors.k_up);
  assign_weight(to.key_value.linear_v_up, factors.v_up);
  if constexpr (requires { to.key_value.kv_norm.weight; }) {
    const Matrix<double> second_moment = moment.topLeftCorner(inputs, inputs);
    to.key_value.kv_norm.weight.host().setConstant(static_cast<T>(
        std::sqrt(output_energy(factors.down, second_moment) / static_cast<double>(factors.down.rows()))));
  }
  const Matrix<double> moved = from.linear_out.weight.host().template cast<double>() * without_position.v_bias();
  if (to.linear_out.has_bias()) to.linear_out.bias.host() += moved.transpose().template cast<T>();
}

template <class Target, class Context, class Source, class Method, class Input>
Conversion<Target> decouple(const Source& source, const Method& method, RotaryChoice choice,
                            const DecouplingConfig& numbers, const Input& input) {
  using T = typename Source::Scalar;
  using From = typename Source::Policy;
  using To = typename Target::Policy;
  static_assert(same_model<Target, Source>,
                "laconic: decouple_rotary changes a model's attention, neither its kind nor its number type");
  static_assert(std::is_same_v<typename From::KeyValue, FullRank> && From::Position::turns_keys &&
                    is_decoupled<typename To::KeyValue>,
                "laconic: decouple_rotary makes MlaDecoupled of full or grouped attention with Rotary positions");
  static_assert(std::is_same_v<typename From::Query, FullQuery> && std::is_same_v<typename To::Query, FullQuery>,
                "laconic: decouple_rotary knows full queries alone");
  auto config = source.config();
  config.num_kv_heads = 0;
  config.kv_lora_rank = numbers.kv_lora_rank;
  config.qk_rope_head_dim = numbers.qk_rope_head_dim;
  const AttentionDims dims = To::dims(config.attention_config());
  const Index rope = dims.qk_rope_head_dim;
  require(rope / 2 <= IndexList::capacity, "decouple_rotary: qk_rope_head_dim ", rope, " given, at most ",
          2 * IndexList::capacity, " expected");
  require(rope <= dims.head_dim, "decouple_rotary: qk_rope_head_dim ", rope,
          " given, at most head_dim = ", dims.head_dim, " expected");

  Recorder<Context> recorder;
  Context& context = recorder;
  std::vector<const AttentionLayer<From, T>*> layers;
  std::vector<Matrix<T>*> inputs;
  Source::each_attention(source, [&](std::string_view, const auto& layer) { layers.push_back(&layer); });
  const Runnable run(recorder, source);
  Source::each_attention(*run, [&](std::string_view, const auto& layer) { recorder.record(layer.input_weight()); });
  Source::each_attention(
      *run, [&](std::string_view, const auto& layer) { inputs.push_back(&recorder.input_of(layer.input_weight())); });
  std::vector<LayerStatistics> statistics = statistics_of(recorder, source, method);
  statistics.resize(layers.size());
  std::vector<Matrix<double>> moments;
  for (const LayerStatistics& s : statistics) moments.push_back(with_constant(s.value_input, config.d_model));
  const std::vector<Index> pairs = choose_pairs(source, choice, rope / 2, moments);
  for (const Index p : pairs) config.rope_pairs.push_back(p);

  Conversion<Target> out{Target(config, Seed()), {}};
  copy_parameters(out.model, source);
  const auto logits = run_on(recorder, *run, input);
  const Mask mask = source.config().mask();
  Deviation output;
  std::size_t l = 0;
  Target::each_attention(out.model, [&](std::string_view name, AttentionLayer<To, T>& to) {
    const AttentionLayer<From, T>& from = *layers[l];
    decouple_layer(to, from, pairs, moments[l], method, statistics[l]);
    const Matrix<T> x = std::move(*inputs[l]);
    const Deviation of_output = deviation(attention_output(context, to, x, logits.sequences, mask),
                                          attention_output(recorder, from, x, logits.sequences, mask));
    LayerReport& layer = out.report.layers.emplace_back();
    layer.layer = name;
    layer.num_kv_heads = dims.num_heads;
    layer.kv_lora_rank = dims.kv_lora_rank;
    set_output(layer, of_output);
    output += of_output;
    ++l;
  });
  constexpr bool is_speech = requires { input.features; };
  out.report.input = is_speech ? "features" : "tokens";
  set_output(out.report, output);
  const Runnable converted(context, out.model);
  const auto converted_logits = run_on(context, *converted, input);
  out.report.logits_error = deviation(context.output(converted_logits.rows), context.output(logits.rows)).relative();
  return out;
}

}  // namespace detail

/// Converts a model with rotary positions (`Attention<Heads, FullRank, Rotary>`) to one with decoupled latents
/// (`MlaDecoupled`). The chosen pairs of all heads become one rotary key by principal components. The other pairs lose
/// their position, and with the values they become the latent, by `method`. Scores keep their scale. The conversion is
/// lossless if the heads' keys differ by complex factors, all pairs are chosen and the latent holds the values;
/// otherwise the model needs fine-tuning. A norm on the latent gets the gain that keeps its mean square.
///
///     using Small = Conformer<MlaDecoupled<8, 64, 16, FullQuery, NoNorm>>;  // or numbers in the configuration
///     auto [small, report] = decouple_rotary<Small>(model, JointSvd(), RotaryChoice::norm, {}, features, sequences);
///
/// The report has the errors of outputs on these features (rows, num_mels) of packed sequences. Allocates. Throws
/// `Error` where the sizes do not fit.
template <class Target, class Source, class Method, class Context = Cpu<typename Source::Scalar>>
Conversion<Target> decouple_rotary(const Source& source, const Method& method, RotaryChoice choice,
                                   const DecouplingConfig& numbers, const Matrix<typename Source::Scalar>& features,
                                   const Sequences& sequences) {
  return detail::decouple<Target, Context>(source, method, choice, numbers,
                                           detail::SpeechInput<typename Source::Scalar>{features, sequences});
}
/// Converts a language model, such as Llama, likewise. The report has the errors of outputs on this text.
template <class Target, class Source, class Method, class Context = Cpu<typename Source::Scalar>>
Conversion<Target> decouple_rotary(const Source& source, const Method& method, RotaryChoice choice,
                                   const DecouplingConfig& numbers, const TokenRows& tokens) {
  return detail::decouple<Target, Context>(source, method, choice, numbers, tokens);
}

}  // namespace LACONIC_ABI
}  // namespace laconic
