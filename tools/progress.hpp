// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include "cli.hpp"

#include <unistd.h>

#include <cmath>
#include <ctime>

/// A line on stderr about work that goes on: rewritten every second on a terminal, repeated every 20 s elsewhere.
class StatusLine {
 public:
  StatusLine() = default;
  StatusLine(const StatusLine&) = delete;
  StatusLine& operator=(const StatusLine&) = delete;
  ~StatusLine() { end(); }

  /// True when it is time for another one.
  bool due() const { return std::time(nullptr) - shown_ >= (terminal_ ? 1 : 20); }
  void show(const std::string& line) {
    shown_ = std::time(nullptr);
    std::fprintf(stderr, terminal_ ? "\r\033[K%s" : "%s\n", line.c_str());
    open_ = terminal_;
  }
  /// What is said next has a line of its own.
  void end() {
    if (std::exchange(open_, false)) std::fprintf(stderr, "\n");
  }

 private:
  bool terminal_ = ::isatty(STDERR_FILENO) == 1, open_ = false;
  std::time_t shown_ = 0;
};

/// Shows training as it goes, and a line an epoch.
class ProgressLine {
 public:
  explicit ProgressLine(std::string name = "") : name_(std::move(name)) {}

  void operator()(const laconic::TrainProgress& p) {
    using laconic::text;
    if (p.skipped) {
      line_.end();
      say("step ", p.state.step, ": the gradient was not finite; this step changed nothing");
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

/// Utterances whose labels cannot fit the frames have an infinite loss and teach nothing.
inline void say_infeasible(const laconic::Dataset& data, const laconic::RecognizerConfig& config) {
  laconic::Index count = 0;
  for (const laconic::Example& e : data.examples) {
    laconic::Index needed = static_cast<laconic::Index>(e.labels.size());
    for (std::size_t i = 1; i < e.labels.size(); ++i) needed += e.labels[i] == e.labels[i - 1] ? 1 : 0;
    const laconic::Index frames = laconic::with_model(
        config.model, [&]<class M>(std::type_identity<M>) { return M::out_length(config.encoder, e.frames()); });
    count += needed > frames ? 1 : 0;
  }
  if (count > 0)
    say("note: ", count, " of ", data.size(),
        " utterances have more labels than frames after subsampling and teach nothing");
}
