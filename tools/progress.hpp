// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include "cli.hpp"

#include <unistd.h>

#include <cmath>
#include <ctime>

/// Shows training as it goes: one line, rewritten on a terminal and repeated every 20 s elsewhere; and a line an epoch.
class ProgressLine {
 public:
  explicit ProgressLine(std::string name = "") : name_(std::move(name)) {}

  void operator()(const laconic::TrainProgress& p) {
    using laconic::text;
    if (p.skipped) say("step ", p.state.step, ": the gradient was not finite; this step changed nothing");
    const bool epoch_end = !std::isnan(p.valid_wer);
    const std::time_t now = std::time(nullptr);
    if (!epoch_end && now - shown_ < (terminal_ ? 1 : 20)) return;
    shown_ = now;
    std::string line = text(name_, name_.empty() ? "" : "  ", "epoch ", p.state.epoch + (epoch_end ? 0 : 1), "  step ", p.state.step, '/',
                            p.total_steps, "  loss ", fixed(p.loss, 3));
    line += epoch_end ? text("  valid WER ", fixed(100 * p.valid_wer, 2), '%', p.state.best_epoch == p.state.epoch ? " (best)" : "")
                      : text("  lr ", fixed(p.learning_rate * 1e3, 3), "e-3  ", fixed(p.audio_speed, 0), "x real time");
    line += text("  ", fixed(p.seconds_left, 0), " s left");
    std::fprintf(stderr, terminal_ ? "\r\033[K%s%s" : "%s%s", line.c_str(), terminal_ && !epoch_end ? "" : "\n");
  }

 private:
  std::string name_;
  bool terminal_ = ::isatty(STDERR_FILENO) == 1;
  std::time_t shown_ = 0;
};

/// Utterances whose labels cannot fit the frames have an infinite loss and teach nothing.
inline void say_infeasible(const laconic::Dataset& data, const laconic::RecognizerConfig& config) {
  laconic::Index count = 0;
  for (const laconic::Example& e : data.examples) {
    laconic::Index needed = static_cast<laconic::Index>(e.labels.size());
    for (std::size_t i = 1; i < e.labels.size(); ++i) needed += e.labels[i] == e.labels[i - 1] ? 1 : 0;
    const laconic::Index frames = laconic::with_model(
        config.model, [&]<class M>(std::type_identity<M>) { return M::out_length(config.encoder, e.features.rows()); });
    count += needed > frames ? 1 : 0;
  }
  if (count > 0) say("note: ", count, " of ", data.size(), " utterances have more labels than frames after subsampling and teach nothing");
}
