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

/// The settings of a training run.
struct TrainConfig {
  Index epochs = 20;
  Index batch_frames = 5000;    ///< feature frames a batch, about 100 a second
  Index accumulate = 1;         ///< batches summed before each update
  double learning_rate = 2e-3;  ///< at its peak
  double warmup = 0.1;          ///< of all steps
  Decay decay = Decay::cosine;
  Index patience = 0;  ///< epochs without a lower validation WER before stopping; 0: never
  AdamWConfig adamw;
  SpecAugmentConfig spec_augment;
  bool dynamic_chunks = false;          ///< each batch sees chunks of another size, or whole utterances
  DistillationConfig distillation;      ///< of the teacher, where there is one
  std::vector<std::string> train_only;  ///< if any: a parameter stays fixed whose name contains none of these
  std::vector<std::string> freeze;      ///< a parameter stays fixed whose name contains one of these
  std::int64_t seed = 0;
  /// Blocks are computed again in the backward pass (Autodiff::recompute_blocks). Changes memory and time alone, so it
  /// is not among `fields`: a run may be taken up with the other choice.
  bool recompute = false;

  /// Throws where a number makes no sense.
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

/// Where a training run stands; all that a resumed run needs beside parameters and moments.
struct TrainState {
  std::int64_t step = 0;               ///< updates done
  Index epoch = 0;                     ///< epochs done
  Index batch = 0;                     ///< batches done in this epoch
  Index best_epoch = 0;                ///< with the best model; 0: none yet
  Index lower_epoch = 0;               ///< the last whose WER was lower than all before
  double best_wer = 0, best_loss = 0;  ///< on the validation set
  double epoch_loss = 0;               ///< sum over `epoch_counted`
  Index epoch_counted = 0;             ///< batches of this epoch whose step was not skipped
  double seconds = 0;                  ///< of training, over all runs

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

/// What a progress line says.
struct TrainProgress {
  const TrainState& state;
  std::int64_t total_steps;
  double loss, learning_rate, gradient_norm;
  double audio_speed;  ///< seconds of speech trained on a second
  double seconds_left;
  double valid_wer;   ///< these two: NaN except at the end of an epoch
  double valid_loss;  ///< mean CTC loss of an utterance
  bool skipped;       ///< the gradient was not finite and the step was left out
};

}  // namespace LACONIC_ABI
}  // namespace laconic
