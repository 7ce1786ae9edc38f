// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/any.hpp>
#include <laconic/backend/autodiff.hpp>
#include <laconic/backend/cpu.hpp>
#include <laconic/convert/calibrate.hpp>
#include <laconic/train/ctc_loss.hpp>

#include <set>
#include <vector>

namespace laconic::inline LACONIC_ABI {

/// How much the loss of transcribed speech minds errors in the key and value weights of each attention layer: the mean over these
/// weights of the squared derivative of an utterance's CTC loss, the diagonal of the empirical Fisher information. (Palu, Chang et
/// al. 2024, section 3.3, takes the mean of its root.) features (rows, num_mels), sequences packed, a label sequence for each.
/// Where errors are those of outputs for calibration speech, divide by the mean square of the layer's inputs. Allocates.
template <class Model, class T>
std::vector<double> fisher_information(const Model& model, Cpu<T>& cpu, const Matrix<T>& features, const Sequences& sequences, const Labels& labels) {
  std::vector<std::set<const Parameter<T>*>> layers;
  Model::each_attention(model, [&](std::string_view, const auto& any) {
    layers.emplace_back();
    detail::with_layer(any, [&](const auto& layer) {
      layer.key_value.parameters([&](std::string_view, const Parameter<T>& p) {
        if (p.shape().size() > 1) layers.back().insert(&p);
      });
    });
  });
  require(labels.sequences.size() == sequences.size() && sequences.size() > 0, "fisher_information: ", labels.sequences.size(),
          " label sequences given for ", sequences.size(), " sequences of features, equal numbers of at least 1 expected");
  std::vector<double> sums(layers.size()), sizes(layers.size());
  for (Index n = 0; n < sequences.size(); ++n) {
    const Matrix<T> rows = features.middleRows(sequences.begin(n), sequences.length(n));
    const auto first = labels.tokens.begin() + labels.sequences.begin(n);
    const Labels own{{first, first + labels.sequences.length(n)}, Sequences{labels.sequences.length(n)}};
    Autodiff<Cpu<T>> tape(cpu, Seed(), false);
    const auto logits = model(tape, rows, Sequences{rows.rows()});
    if (logits.rows.rows() == 0) continue;
    tape.backward(ctc_loss(tape, logits, own));
    model.parameters([&](std::string_view, const Parameter<T>& p) {
      for (std::size_t l = 0; l < layers.size(); ++l)
        if (layers[l].contains(&p) && p.has_gradient()) {
          sums[l] += static_cast<double>(p.gradient().squaredNorm());
          if (n == 0) sizes[l] += static_cast<double>(p.size());
        }
      p.clear_gradient();
    });
  }
  for (std::size_t l = 0; l < sums.size(); ++l) sums[l] /= std::max(1.0, sizes[l]) * static_cast<double>(sequences.size());
  return sums;
}

}  // namespace laconic
