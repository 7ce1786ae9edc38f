// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/autodiff.hpp>
#include <laconic/train/adamw.hpp>
#include <laconic/train/schedule.hpp>

#include <chrono>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>

namespace laconic {
inline namespace LACONIC_ABI {

/// Holds the values of a progress line.
struct TrainingProgress {
  std::int64_t step;     ///< updates done
  double loss,           ///< training loss of the update
      valid_loss,        ///< measure of the validation; NaN where there was none
      learning_rate,     ///< learning rate of the update
      items_per_second,  ///< training speed so far, in tokens or samples
      seconds_left;      ///< estimated time to the end
  bool best;             ///< whether this validation was the best so far
  bool skipped;          ///< whether the gradient was not finite and the step changed nothing
};

/// Holds what a training has come to.
struct TrainingResult {
  double valid_loss = std::numeric_limits<double>::infinity();  ///< measure of the best model
  std::int64_t best_step = 0;                                   ///< its step; 0: the model as it was given
  double seconds = 0;                                           ///< training time, without validation
  double items_per_second = 0;                                  ///< training speed, in tokens or samples
};

namespace detail {

/// Throws `Error` for a setting of `train_steps` that makes no sense.
template <class Config>
void check_steps(const Config& config) {
  const auto within = [](std::int64_t value, const char* name) {
    require(value >= 1 && value <= std::int64_t{1} << 40, "train: ", name, ' ', value, " given, 1 to ",
            std::int64_t{1} << 40, " expected");
  };
  within(config.steps, "steps");
  within(config.valid_steps, "valid_steps");
  require(config.learning_rate >= 0 && config.learning_rate <= 1e3, "train: learning_rate ", config.learning_rate,
          " given, 0 to 1000 expected");
  require(config.warmup >= 0 && config.warmup <= 1, "train: warmup ", config.warmup, " given, 0 to 1 expected");
  config.adamw.check();
}

/// Trains a model by config.steps updates: loss(tape, step) returns the loss of one, of `items` tokens or samples. Each
/// config.valid_steps updates, measure() returns what is to become small. Leaves the best model in `model`, which is on
/// the host, before and afterwards. Allocates. Throws `Error` if no measure was finite, where the model is that of the
/// last step.
template <class Model, TrainingContext Context, class Config, class Loss, class Measure, class Progress>
TrainingResult train_steps(Context& context, Model& model, const Config& config, Index items, Loss&& loss_of,
                           Measure&& measure, Progress&& progress) {
  const Schedule schedule{config.learning_rate,
                          static_cast<std::int64_t>(config.warmup * static_cast<double>(config.steps)), Decay::cosine,
                          config.steps};
  TrainingResult result;
  struct OnDevice {
    Context& context;
    Model& model;
    OnDevice(Context& c, Model& m) : context(c), model(m) { context.prepare_training(model); }
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;
    ~OnDevice() {
      try {
        context.fetch(model);
      } catch (const Error&) {  // a device that failed: the error that is on its way says why
      }
    }
  };
  const OnDevice trained(context, model);
  AdamW<Context> optimizer(context, config.adamw);
  Model best = model;
  const auto seconds_since = [](auto begin) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  };
  for (std::int64_t step = 1; step <= config.steps; ++step) {
    const auto begin = std::chrono::steady_clock::now();
    Autodiff<Context> tape(context, config.seed / "dropout" / static_cast<Index>(step));
    const auto loss = loss_of(tape, step);
    tape.backward(loss);
    const double rate = schedule(step);
    const double norm = optimizer.step(model, rate);
    result.seconds += seconds_since(begin);
    result.items_per_second = static_cast<double>(step * items) / result.seconds;

    const double left = result.seconds / static_cast<double>(step) * static_cast<double>(config.steps - step);
    TrainingProgress now{step,  tape.number(loss),       std::numeric_limits<double>::quiet_NaN(),
                         rate,  result.items_per_second, left,
                         false, !std::isfinite(norm)};
    if (step % config.valid_steps == 0 || step == config.steps) {
      now.valid_loss = measure();
      now.best = now.valid_loss < result.valid_loss;
      if (now.best) {
        result.valid_loss = now.valid_loss;
        result.best_step = step;
        best = model;
      }
    }
    progress(now);
  }
  require(result.best_step > 0, "train: no validation loss was finite in ", config.steps,
          " steps; a lower learning rate may help");
  model = std::move(best);
  return result;
}

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
