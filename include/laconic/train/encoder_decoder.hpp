// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/matrix.hpp>
#include <laconic/model/encoder.hpp>
#include <laconic/train/cross_entropy_loss.hpp>
#include <laconic/train/ctc_loss.hpp>
#include <laconic/train/steps.hpp>

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Holds inputs, such as features of utterances or patches of images, and what a decoder is to write down of each.
template <class T>
struct EncoderDecoderBatch {
  Matrix<T> input;                       ///< (rows, channels), packed
  Sequences sequences;                   ///< the rows of each input
  std::vector<std::vector<int>> tokens;  ///< the tokens of each, without the one that begins and ends a sequence
};

/// Says how the losses of decoder and encoder are combined.
struct JointLoss {
  int boundary = 0;            ///< the token that begins and ends a sequence; for CTC it is the blank
  double ctc_weight = 0;       ///< weight of the encoder's CTC loss, 0 to 1: lambda of the paper
  double label_smoothing = 0;  ///< label smoothing of the decoder's cross entropy
};

/// Returns the mean loss of a batch, (1, 1): (1 - lambda) times the cross entropy of each token given those before it,
/// plus lambda times the CTC loss of the encoder's head, lambda = ctc_weight (Watanabe et al. 2017, equation 3). With a
/// weight of 1, the decoder is not run. The batch must outlive the tape. Allocates. Throws Error for a weight out of
/// range, or one without a CTC head, and for tokens that do not fit.
template <class Context, class Model, class T>
auto joint_loss(Context& tape, const Model& model, const EncoderDecoderBatch<T>& batch, const JointLoss& config) {
  constexpr bool has_ctc = requires { model.encoder.lm_head; };
  require(config.ctc_weight >= 0 && config.ctc_weight <= 1, "joint loss: ctc_weight ", config.ctc_weight,
          " given, 0 to 1 expected");
  require(has_ctc || config.ctc_weight == 0, "joint loss: ctc_weight ", config.ctc_weight,
          " given, but this encoder has no CTC head");
  require(static_cast<Index>(batch.tokens.size()) == batch.sequences.size(), "joint loss: tokens of ",
          batch.tokens.size(), " inputs given for ", batch.sequences.size(), " inputs");
  std::vector<int> ids, targets, labels;
  std::vector<Index> written, lengths;
  for (const std::vector<int>& tokens : batch.tokens) {
    ids.push_back(config.boundary);
    ids.insert(ids.end(), tokens.begin(), tokens.end());
    targets.insert(targets.end(), tokens.begin(), tokens.end());
    targets.push_back(config.boundary);
    labels.insert(labels.end(), tokens.begin(), tokens.end());
    lengths.push_back(static_cast<Index>(tokens.size()));
    written.push_back(lengths.back() + 1);
  }
  auto [rows, sources] = model.encoder.hidden(tape, batch.input, batch.sequences);
  typename Context::Tensor loss;
  if (config.ctc_weight < 1) {
    loss = cross_entropy_loss(
        tape,
        model.decoder(tape, TokenRows{ids, Sequences(written)}, model.decoder.remember(tape, rows, sources), sources),
        targets, {.label_smoothing = config.label_smoothing});
  }
  if constexpr (has_ctc) {
    if (config.ctc_weight > 0) {
      const Logits<decltype(rows)> logits{model.encoder.lm_head(tape, rows), sources};
      auto ctc = ctc_loss(tape, logits, Labels{std::move(labels), Sequences(lengths)}, config.boundary);
      if (config.ctc_weight == 1) return ctc;
      loss = tape.add(tape.scale(std::move(loss), 1 - config.ctc_weight), ctc, config.ctc_weight);
    }
  }
  return loss;
}

/// Holds the settings of the training of an encoder-decoder.
struct EncoderDecoderTraining {
  std::int64_t steps = 2000;                    ///< updates
  Index batch = 32;                             ///< inputs of an update
  double learning_rate = 1e-3;                  ///< peak learning rate
  double warmup = 0.05;                         ///< fraction of the steps in which the learning rate grows
  AdamWConfig adamw{0.9, 0.98, 1e-8, 0.05, 1};  ///< the optimiser
  std::int64_t valid_steps = 250;               ///< updates between two validations
  JointLoss loss{};                             ///< the loss that is minimised
  Seed seed{};                                  ///< the source of all randomness

  /// Throws `Error` for a number that makes no sense.
  void check() const {
    require(batch >= 1 && batch <= 1 << 20, "train: batch ", batch, " given, 1 to ", 1 << 20, " expected");
    detail::check_steps(*this);
  }
};

/// Trains an EncoderDecoder on batches: next(step) returns the EncoderDecoderBatch of an update, and measure() what is
/// to become small, such as the error rate on inputs that are kept aside. Leaves the best model in `model`, which is on
/// the host, before and afterwards. `progress(TrainingProgress)` is called for each update. Allocates. Throws `Error`
/// for numbers that make no sense, and if no measure was finite.
template <class Model, TrainingContext Context, class Next, class Measure, class Progress>
TrainingResult train_encoder_decoder(Context& context, Model& model, const EncoderDecoderTraining& config, Next&& next,
                                     Measure&& measure, Progress&& progress) {
  config.check();
  decltype(next(std::int64_t{})) batch;  // lives as long as the tape
  const auto loss = [&](auto& tape, std::int64_t step) {
    batch = next(step);
    return joint_loss(tape, model, batch, config.loss);
  };
  return detail::train_steps(context, model, config, config.batch, loss, measure, progress);
}

}  // namespace LACONIC_ABI
}  // namespace laconic
