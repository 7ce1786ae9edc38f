// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/train/steps.hpp>

#include <cmath>
#include <functional>

#include "cli.hpp"
#include "status_line.hpp"

/// Shows training that is counted in steps as it goes, and a line a validation.
class StepsLine {
 public:
  /// `items` names what a step takes, and measured(x) says what a validation measured.
  StepsLine(std::int64_t steps, std::string items, std::function<std::string(double)> measured, std::string name = "")
      : steps_(steps), items_(std::move(items)), measured_(std::move(measured)), name_(std::move(name)) {}

  void operator()(const laconic::TrainingProgress& p) {
    using laconic::text;
    if (p.skipped) {
      line_.end();
      say("step ", p.step, ": the gradient was not finite; this step changed nothing");
    }
    const bool valid = !std::isnan(p.valid_loss);
    if (!valid && !line_.due()) return;
    std::string line =
        text(name_, name_.empty() ? "" : "  ", "step ", p.step, '/', steps_, "  loss ", fixed(p.loss, 3));
    line += valid ? text("  ", measured_(p.valid_loss), p.best ? " (best)" : "")
                  : text("  ", fixed(p.items_per_second, 0), ' ', items_, "/s");
    line_.show(line + text("  ", fixed(p.seconds_left, 0), " s left"));
    if (valid) line_.end();
  }

 private:
  std::int64_t steps_;
  std::string items_;
  std::function<std::string(double)> measured_;
  std::string name_;
  StatusLine line_;
};
