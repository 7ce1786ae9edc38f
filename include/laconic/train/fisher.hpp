// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/autodiff.hpp>
#include <laconic/convert/copy_parameters.hpp>
#include <laconic/train/ctc_loss.hpp>

#include <cmath>
#include <map>
#include <memory>
#include <string_view>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Returns how sensitive the loss of transcribed speech is to errors in the key and value weights of each attention
/// layer: the mean over these weights of the squared derivative of an utterance's CTC loss, which is the diagonal of
/// the empirical Fisher information. (Palu, Chang et al. 2024, section 3.3, takes the mean of its root.) The features
/// (rows, num_mels) are packed sequences, with a label sequence for each, and `blank` is the class of the blank. The
/// model has full or grouped attention, whose weights are those that a conversion approximates. Uses up the model's
/// gradients. Allocates. Throws `Error` unless there is a label sequence for each utterance and the derivatives have a
/// finite, positive sum.
template <class Model, class Context, class T = typename Model::Scalar>
std::vector<double> fisher_information(const Model& model_on_host, Context& context, const Matrix<T>& features,
                                       const Sequences& sequences, const Labels& labels, int blank = 0) {
  std::unique_ptr<Model> copy;
  if constexpr (!Context::computes_on_host) {
    copy = std::make_unique<Model>(model_on_host);
    context.prepare_training(*copy);
  }
  const Model& model = copy ? *copy : model_on_host;
  const auto take_square = [&](const Parameter<T>& p) {  // of the gradient, which is zero afterwards
    double square = 0;
    if constexpr (Context::computes_on_host) {
      if (p.has_gradient()) square = static_cast<double>(p.gradient().squaredNorm());
      p.clear_gradient();
    } else {
      const Parameter<T>* one[] = {&p};
      const double norm = context.gradient_norm(one);
      square = norm * norm;
      context.clear_gradients(one);
    }
    return square;
  };
  std::map<const Parameter<T>*, std::size_t> layer_of;
  std::vector<double> sums, sizes;
  Model::each_attention(model, [&](std::string_view, const auto& any) {
    detail::with_layer(any, [&](const auto& layer) {
      sizes.push_back(0);
      layer.key_value.parameters([&](std::string_view, const Parameter<T>& p) {
        if (p.shape().size() < 2) return;
        layer_of.emplace(&p, sizes.size() - 1);
        sizes.back() += static_cast<double>(p.size());
      });
    });
  });
  sums.resize(sizes.size());
  require(labels.sequences.size() == sequences.size() && sequences.size() > 0,
          "fisher_information: ", labels.sequences.size(), " label sequences given for ", sequences.size(),
          " sequences of features, equal numbers of at least 1 expected");
  model.parameters([&](std::string_view, const Parameter<T>& p) { take_square(p); });
  for (Index n = 0; n < sequences.size(); ++n) {
    const Matrix<T> rows = features.middleRows(sequences.begin(n), sequences.length(n));
    const auto first = labels.tokens.begin() + labels.sequences.begin(n);
    const Labels own{{first, first + labels.sequences.length(n)}, Sequences{labels.sequences.length(n)}};
    Autodiff<Context> tape(context, Seed(), false);
    const auto logits = model(tape, rows, Sequences{rows.rows()});
    if (logits.rows.rows() == 0) continue;
    tape.backward(ctc_loss(tape, logits, own, blank));
    model.parameters([&](std::string_view, const Parameter<T>& p) {
      const double square = take_square(p);
      if (const auto found = layer_of.find(&p); found != layer_of.end()) sums[found->second] += square;
    });
  }
  double all = 0;
  for (std::size_t l = 0; l < sums.size(); ++l) all += sums[l] /= sizes[l] * static_cast<double>(sequences.size());
  require(all > 0 && std::isfinite(all), "fisher_information: derivatives of ", sequences.size(),
          " utterances sum up to ", all,
          ", a positive number expected (texts that fit their frames, weights that can be trained)");
  return sums;
}

}  // namespace LACONIC_ABI
}  // namespace laconic
