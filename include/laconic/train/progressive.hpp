// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/convert/convert.hpp>
#include <laconic/train/adamw.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

// Progressive conversion: a latent is not cut to its final rank at once, but in steps, with training between them.

namespace laconic {
inline namespace LACONIC_ABI {

/// Holds a model with smaller latents, and the moments of its optimiser in the new basis.
template <class Model>
struct Truncation {
  Model model;                                       ///< the smaller model
  OptimizerState<typename Model::Scalar> optimizer;  ///< moments and steps for its training to continue
  double predicted_error = 0;  ///< relative error of keys and values for the calibration's inputs, or else white ones
};

namespace detail {

/// Maps a latent of r dimensions to one of fewer, and back: down' = narrow down, up' = up widen, narrow widen = 1.
struct LatentBasis {
  Matrix<double> narrow,  ///< to the smaller latent, (rank, r)
      widen;              ///< and back, (r, rank)
  double discarded = 0,   ///< sum of the squares of the discarded singular values
      energy = 0;         ///< sum of the squares of all singular values
};

/// Returns the best basis for W = up down, without forming W. With a root R of down down^T = R^T R, core = up R^T has
/// the singular values of W, and its right singular vectors V, (r, r), are all that is needed: widen = R^T V, narrow =
/// V^T R^-T, whose product is 1. `down_transposed` may have been multiplied from the left by a root of the second
/// moment of the inputs.
template <std::same_as<double> D>
LatentBasis truncated_basis(const Matrix<D>& up, const Matrix<D>& down_transposed, Index rank) {
  const Index r = up.cols();
  const SymmetricEigen<D> channels = eigenvectors(gram(down_transposed));
  // A channel that holds nothing has a place, too.
  const D least = std::max<D>(1e-14 * *std::max_element(channels.values.begin(), channels.values.end()),
                              std::numeric_limits<D>::min());
  Matrix<D> lengths(1, r), inverses(1, r);
  for (Index i = 0; i < r; ++i) {
    lengths(0, i) = std::sqrt(std::max(channels.values[static_cast<std::size_t>(i)], least));
    inverses(0, i) = 1 / lengths(0, i);
  }
  const Matrix<D> core = scaled_columns(product_by_columns(up, channels.vectors), lengths);
  const SymmetricEigen<D> eigen = eigenvectors(gram(core));
  Matrix<D> kept(r, rank);
  for (Index i = 0; i < r; ++i)
    for (Index c = 0; c < rank; ++c) kept(i, c) = eigen.vectors(i, r - 1 - c);
  LatentBasis out;
  out.widen = product_by_columns(scaled_columns(channels.vectors, lengths), kept);
  out.narrow = product_by_columns(scaled_columns(transposed(kept), inverses), transposed(channels.vectors));
  const Eigen::Map<const Eigen::Matrix<D, Eigen::Dynamic, 1>> energies(eigen.values.data(), r);
  out.energy = energies.cwiseMax(0).sum();
  out.discarded = energies.head(r - rank).cwiseMax(0).sum();
  return out;
}

/// Returns a root of the second moment of the inputs. A 1e-10th of the mean eigenvalue is added to each, so that
/// channels that the calibration never saw have some weight.
template <std::same_as<double> D>
Matrix<D> input_root(const Matrix<D>& second_moment) {
  const SymmetricEigen<D> eigen = eigenvectors(second_moment);
  const D little = 1e-10 * second_moment.trace() / static_cast<D>(second_moment.rows());
  Matrix<D> roots(1, second_moment.rows());
  for (Index i = 0; i < roots.size(); ++i)
    roots(0, i) = std::sqrt(std::max(eigen.values[static_cast<std::size_t>(i)], D{0}) + little);
  return transposed(scaled_columns(eigen.vectors, roots));
}

/// Describes a latent of a layer.
template <class LinearPointer>
struct LatentPlace {
  LinearPointer down;             ///< the projection into it
  std::vector<LinearPointer> up;  ///< the projections out of it
  Matrix<double> map;             ///< all that comes out of it as one matrix (channels, rank)
  bool of_keys = false;           ///< whether only keys come from it
};
/// Returns the weights of two projections, those of a above those of b.
template <class T>
Matrix<double> weights_above(const Linear<T>& a, const Linear<T>& b) {
  return above(to_double(a.weight.host()), to_double(b.weight.host()));
}
/// Returns the one latent of keys and values.
template <Index R, class Layer>
auto latent_places(SharedLatent<R>, Layer& layer) {
  using Place = LatentPlace<decltype(&layer.linear_kv_down)>;
  return std::vector<Place>{{&layer.linear_kv_down,
                             {&layer.linear_k_up, &layer.linear_v_up},
                             weights_above(layer.linear_k_up, layer.linear_v_up)}};
}
/// Returns the one latent of keys and values. Its map composes both stages of each projection.
template <Index R, class Layer>
auto latent_places(TwoStageLatent<R>, Layer& layer) {
  using Place = LatentPlace<decltype(&layer.linear_kv_down)>;
  const Matrix<double> k = composed(weight_and_bias(layer.linear_k_b), weight_and_bias(layer.linear_k_a)),
                       v = composed(weight_and_bias(layer.linear_v_b), weight_and_bias(layer.linear_v_a));
  return std::vector<Place>{
      {&layer.linear_kv_down, {&layer.linear_k_a, &layer.linear_v_a}, columns_of(above(k, v), 0, k.cols() - 1)}};
}
/// Returns the two latents of a layer that has one for keys and one for values.
template <class Layer, class K, class V>
auto separate_places(Layer& layer, K& k_up, V& v_up) {
  using Place = LatentPlace<decltype(&layer.linear_k_down)>;
  return std::vector<Place>{{&layer.linear_k_down, {&k_up}, to_double(k_up.weight.host()), true},
                            {&layer.linear_v_down, {&v_up}, to_double(v_up.weight.host())}};
}
/// Returns the latents of keys and of values.
template <Index RK, Index RV, class Layer>
auto latent_places(SplitLatent<RK, RV>, Layer& layer) {
  return separate_places(layer, layer.linear_k_up, layer.linear_v_up);
}
/// Returns the latents of keys and of values, which expand for each head.
template <Index RK, Index RV, class Layer>
auto latent_places(HeadLatent<RK, RV>, Layer& layer) {
  return separate_places(layer, layer.k_expand, layer.v_expand);
}

/// Multiplies each block of rows by a matrix; a block has as many rows as the matrix has columns.
template <std::same_as<double> D>
Matrix<D> each_block(const Matrix<D>& matrix, const Matrix<D>& rows) {
  const Index blocks = rows.rows() / matrix.cols();
  Matrix<D> out(blocks * matrix.rows(), rows.cols());
  for (Index b = 0; b < blocks; ++b)
    set_rows(out, b * matrix.rows(), product_by_columns(matrix, rows_of(rows, b * matrix.cols(), matrix.cols())));
  return out;
}

/// Changes the basis of a parameter of a latent and of its moments. Gradients transform inversely to weights: where
/// weights into the latent are multiplied by `narrow`, gradients are multiplied by widen^T, and so is the first moment,
/// a mean of them. The second moment, a mean of squares, is multiplied by the squares of widen^T, which is exact if
/// gradients of different channels are uncorrelated.
struct ParameterChange {
  Matrix<double> of_value,  ///< transforms values: from the left for weights into the latent, else from the right
      of_gradient;          ///< transforms gradients, from the same side
  bool into;                ///< whether the parameter maps into the latent
  bool is_bias = false;     ///< whether it is a row

  template <std::same_as<double> D>
  Matrix<D> apply(const Matrix<D>& matrix, const Matrix<D>& values) const {
    if (!into) return product(values, transposed(matrix));
    return is_bias ? transposed(each_block(matrix, transposed(values))) : each_block(matrix, values);
  }
};

/// Gathers how the parameters of a model change when its latents are cut, and the energy that is lost.
template <class T>
struct LatentCut {
  std::map<const Parameter<T>*, ParameterChange> changes{};  ///< by parameter of the target
  double discarded = 0, energy = 0;
};
/// Cuts the latents of one attention layer to the ranks of `small`. Returns whether it has latents that can be cut.
template <class A, class B, class T>
bool cut_layer(std::string_view name, AttentionLayer<A, T>& small, const AttentionLayer<B, T>& large,
               const LayerStatistics& seen, LatentCut<T>& cut) {
  if constexpr (!has_linear_latent<typename A::KeyValue> || !same_kind<typename A::KeyValue, typename B::KeyValue>) {
    return false;
  } else {
    const Matrix<double> before = full_map(name, large).v_bias();
    const auto old = latent_places(typename B::KeyValue(), large.key_value);
    auto now = latent_places(typename A::KeyValue(), small.key_value);
    for (std::size_t i = 0; i < old.size(); ++i) {
      const Matrix<double>& input = old[i].of_keys ? seen.key_input : seen.value_input;
      const Index r = old[i].map.cols(), rank = now[i].map.cols(), inputs = old[i].down->in(),
                  blocks = old[i].down->out() / r;
      const Matrix<double> down = to_double(old[i].down->weight.host()),
                           root = input.size() > 0 ? input_root(input) : input;
      Matrix<double> columns(blocks * inputs, r);
      for (Index b = 0; b < blocks; ++b) {
        const Matrix<double> block = transposed(rows_of(down, b * r, r));
        set_rows(columns, b * inputs, root.size() > 0 ? product(root, block) : block);
      }
      require(rank > 0 && rank <= r, "truncate: ", name, ": a rank of ", rank, old[i].of_keys ? " for keys" : "",
              " given, 1 to ", r, " expected");
      const LatentBasis basis = truncated_basis(old[i].map, columns, rank);
      const Matrix<double> widen = transposed(basis.widen);
      cut.discarded += basis.discarded;
      cut.energy += basis.energy;
      const auto change = [&](Parameter<T>& p, const Parameter<T>& was, ParameterChange by) {
        round_to(p.host(), by.apply(by.of_value, to_double(was.host())));
        cut.changes.emplace(&p, std::move(by));
      };
      change(now[i].down->weight, old[i].down->weight, {basis.narrow, widen, true});
      if (old[i].down->has_bias()) change(now[i].down->bias, old[i].down->bias, {basis.narrow, widen, true, true});
      for (std::size_t u = 0; u < old[i].up.size(); ++u)
        change(now[i].up[u]->weight, old[i].up[u]->weight, {widen, basis.narrow, false});
    }
    // Probabilities sum to 1, so what is lost of the values' bias goes to the output.
    const Matrix<double> lost = before - full_map(name, small).v_bias();
    add_to_bias(small.linear_out, product(to_double(small.linear_out.weight.host()), lost));
    return true;
  }
}
/// Cuts the latents of a layer that may hold any attention.
template <class To, class From, class T>
bool cut_attention(std::string_view name, To& to, const From& from, const LayerStatistics& seen, LatentCut<T>& cut) {
  return with_layer(to, [&](auto& small) {
    return with_layer(from, [&](const auto& large) { return cut_layer(name, small, large, seen, cut); });
  });
}

}  // namespace detail

/// Lists ranks as an EncoderConfig has them: one for all layers, or one for each.
struct LatentRanks {
  Index kv_lora_rank = 0,     ///< rank of keys, or of the shared latent, in all layers
      v_lora_rank = 0;        ///< rank of values in all layers; 0: that of the keys
  IndexList kv_lora_ranks{},  ///< kv_lora_rank for each layer, instead of one for all
      v_lora_ranks{};         ///< v_lora_rank for each layer, instead of one for all
};

/// Cuts the latents of a model to smaller ranks, each by the best basis for it (Eckart and Young 1936; with calibration
/// speech, for the inputs in that speech), and transforms the moments of its optimiser to the new basis, so that
/// training goes on:
///
///     auto [smaller, learnt, error] = truncate<Model>(model, {.kv_lora_rank = 32}, trainer.optimizer());
///     Trainer(smaller, cpu, train, valid, vocabulary, config, folder, {}, learnt).run(progress);
///
/// The work is done in the latent's own r dimensions, so it costs little compared to a conversion. At equal ranks the
/// model stays the same function. The attentions mla, mla-simple, mla-split and mla-head can be cut; others throw
/// `Error`. The up-projections carry the singular values, and channels that were mixed (`ConversionConfig::hadamard`)
/// are mixed no longer. Allocates.
template <class Target, class Source, class Context = Cpu<typename Source::Scalar>>
Truncation<Target> truncate(const Source& source, const LatentRanks& ranks,
                            const OptimizerState<typename Source::Scalar>& learnt = {},
                            const Calibration<typename Source::Scalar>* calibration = nullptr) {
  static_assert(detail::same_model<Target, Source>,
                "laconic: truncate changes the ranks of a model, neither its kind nor its number type");
  using T = typename Source::Scalar;
  using From = typename Source::Policy::template Layer<T>;
  using To = typename Target::Policy::template Layer<T>;
  const auto config = detail::with_ranks(source.config(), ranks);
  Truncation<Target> out{Target(config, Seed()), {}};
  detail::copy_parameters(out.model, source);

  std::vector<LayerStatistics> statistics;
  if (calibration != nullptr) {
    Recorder<Context> recorder;
    statistics = detail::calibrate(recorder, source, *calibration, false);
  }
  std::vector<const From*> layers;
  Source::each_attention(source, [&](std::string_view, const From& layer) { layers.push_back(&layer); });

  detail::LatentCut<T> cut;
  std::size_t l = 0;
  Target::each_attention(out.model, [&](std::string_view name, To& to) {
    const From& from = *layers[l];
    const LayerStatistics seen = statistics.empty() ? LayerStatistics() : statistics[l];
    ++l;
    const bool is_done = detail::cut_attention(name, to, from, seen, cut);
    require(is_done, "truncate: ", name, " has no latent that is known to be cut (", to_name(config.attention), ')');
  });
  out.predicted_error = cut.energy > 0 ? std::sqrt(cut.discarded / cut.energy) : 0;

  out.optimizer.steps = learnt.steps;
  learnt.require_of(source, "truncate");
  std::size_t i = 0;
  out.model.parameters([&](std::string_view, const Parameter<T>& p) {
    if (i >= learnt.moments.size()) return;
    const auto& was = learnt.moments[i++];
    auto& m = out.optimizer.moments.emplace_back(was);
    const auto found = cut.changes.find(&p);
    if (was.first.size() == 0 || found == cut.changes.end()) return;
    const detail::ParameterChange& by = found->second;
    const Matrix<double> squares = by.of_gradient.cwiseAbs2();
    detail::round_to(m.first, by.apply(by.of_gradient, detail::to_double(was.first)));
    detail::round_to(m.second, by.apply(squares, detail::to_double(was.second)));
  });
  return out;
}

}  // namespace LACONIC_ABI
}  // namespace laconic
