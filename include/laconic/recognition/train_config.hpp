// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/speech/spec_augment.hpp>
#include <laconic/train/adamw_config.hpp>
#include <laconic/train/distillation_config.hpp>
#include <laconic/train/schedule.hpp>

#include <cstdint>
#include <string>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Holds the settings of a training run.
struct TrainConfig {
  Index epochs = 20;                    ///< passes over the data
  Index batch_frames = 5000;            ///< max feature frames of a batch, about 100 a second
  Index accumulate = 1;                 ///< batches summed before each update
  double learning_rate = 2e-3;          ///< peak learning rate
  double warmup = 0.1;                  ///< fraction of all steps in which the learning rate grows
  Decay decay = Decay::cosine;          ///< how it falls afterwards
  Index patience = 0;                   ///< epochs without a lower validation WER before stopping; 0: never stops early
  AdamWConfig adamw;                    ///< the optimiser
  SpecAugmentConfig spec_augment;       ///< masks on the features
  bool dynamic_chunks = false;          ///< each batch sees chunks of another size, or whole utterances
  DistillationConfig distillation;      ///< how much to follow the teacher, if there is one
  std::vector<std::string> train_only;  ///< if any: freezes parameters whose names contain none of these
  std::vector<std::string> freeze;      ///< freezes parameters whose names contain one of these
  std::int64_t seed = 0;                ///< seed of all randomness, at least 0
  /// Computes blocks again in the backward pass (Autodiff::recompute_blocks). Only memory and time depend on it, so it
  /// is not among `fields`: a run may resume with the other choice.
  bool recompute = false;

  /// Throws `Error` for a number that makes no sense.
  void check() const {
    const auto at_least_one = [](Index value, Index most, const char* name) {
      require(value >= 1 && value <= most, "train: ", name, ' ', value, " given, 1 to ", most, " expected");
    };
    const auto within = [](double value, double least, double most, const char* name) {
      require(value >= least && value <= most, "train: ", name, ' ', value, " given, ", least, " to ", most,
              " expected");
    };
    at_least_one(epochs, 10'000, "epochs");
    at_least_one(batch_frames, 100'000'000, "batch_frames");
    at_least_one(accumulate, 1'000'000, "accumulate");
    require(patience >= 0, "train: patience ", patience, " given, at least 0 expected");
    within(learning_rate, 0, 1e3, "learning_rate");
    within(warmup, 0, 1, "warmup");
    adamw.check();
    distillation.check();
    require(seed >= 0, "train: seed ", seed, " given, at least 0 expected");
  }

  /// Lists the members for JSON.
  static constexpr void fields(auto& self, auto&& visit) {
    visit("epochs", self.epochs);
    visit("batch_frames", self.batch_frames);
    visit("accumulate", self.accumulate);
    visit("learning_rate", self.learning_rate);
    visit("warmup", self.warmup);
    visit("decay", self.decay);
    visit("patience", self.patience);
    visit("adamw", self.adamw);
    visit("spec_augment", self.spec_augment);
    visit("dynamic_chunks", self.dynamic_chunks);
    visit("distillation", self.distillation);
    visit("train_only", self.train_only);
    visit("freeze", self.freeze);
    visit("seed", self.seed);
  }
};

/// Holds the position of a training run: all that a resumed run needs in addition to parameters and moments.
struct TrainState {
  std::int64_t step = 0;    ///< updates done
  Index epoch = 0;          ///< epochs done
  Index batch = 0;          ///< batches done in this epoch
  Index best_epoch = 0;     ///< epoch of the best model; 0: none yet
  Index lower_epoch = 0;    ///< last epoch whose WER was lower than all before
  double best_wer = 0,      ///< validation WER of the best model
      best_loss = 0;        ///< validation loss of the best model
  double epoch_loss = 0;    ///< sum of the losses of `epoch_counted` batches
  Index epoch_counted = 0;  ///< batches of this epoch whose step was not skipped
  double seconds = 0;       ///< training time over all runs

  /// Lists the members for JSON.
  static constexpr void fields(auto& self, auto&& visit) {
    visit("step", self.step);
    visit("epoch", self.epoch);
    visit("batch", self.batch);
    visit("best_epoch", self.best_epoch);
    visit("lower_epoch", self.lower_epoch);
    visit("best_wer", self.best_wer);
    visit("best_loss", self.best_loss);
    visit("epoch_loss", self.epoch_loss);
    visit("epoch_counted", self.epoch_counted);
    visit("seconds", self.seconds);
  }
};

/// Holds the values of a progress line.
struct TrainProgress {
  const TrainState& state;   ///< position of the run
  std::int64_t total_steps;  ///< updates of all epochs
  double loss,               ///< mean loss of the update's batches, or of the epoch's
      learning_rate,         ///< learning rate of the update
      gradient_norm;         ///< norm of its gradient before clipping
  double audio_speed;        ///< seconds of speech processed a second
  double seconds_left;       ///< estimated time to the end
  double valid_wer;          ///< validation WER; NaN except at the end of an epoch
  double valid_loss;         ///< mean validation loss of an utterance; NaN except at the end of an epoch
  bool skipped;              ///< the gradient was not finite and the step was skipped
};

}  // namespace LACONIC_ABI
}  // namespace laconic
