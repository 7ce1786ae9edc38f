// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/recognition/train_config.hpp>

#include "cli.hpp"
#include "status_line.hpp"

#include <cmath>

/// Shows training as it goes, and a line an epoch.
class TrainingLine {
 public:
  explicit TrainingLine(std::string name = "") : name_(std::move(name)) {}

  void operator()(const laconic::TrainProgress& p) {
    using laconic::text;
    if (p.skipped) {
      line_.end();
      say_in_all(name_, name_.empty() ? "" : "  ", "step ", p.state.step,
                 ": the gradient was not finite; this step changed nothing");
    }
    const bool epoch_end = !std::isnan(p.valid_wer);
    if (!epoch_end && !line_.due()) return;
    std::string line = text(name_, name_.empty() ? "" : "  ", "epoch ", p.state.epoch + (epoch_end ? 0 : 1), "  step ",
                            p.state.step, '/', p.total_steps, "  loss ", fixed(p.loss, 3));
    line += epoch_end ? text("  valid WER ", fixed(100 * p.valid_wer, 2), '%',
                             p.state.best_epoch == p.state.epoch ? " (best)" : "")
                      : text("  lr ", fixed(p.learning_rate * 1e3, 3), "e-3  ", fixed(p.audio_speed, 0), "x real time");
    line_.show(line + text("  ", fixed(p.seconds_left, 0), " s left"));
    if (epoch_end) line_.end();
  }

 private:
  std::string name_;
  StatusLine line_;
};
