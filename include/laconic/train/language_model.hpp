// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/autodiff.hpp>
#include <laconic/train/adamw.hpp>
#include <laconic/train/cross_entropy_loss.hpp>
#include <laconic/train/schedule.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Holds the settings of the training of a language model.
struct LanguageModelTraining {
  std::int64_t steps = 2000;                   ///< updates
  Index batch = 16;                            ///< windows of an update
  Index window = 0;                            ///< tokens of a window; 0: the model's max_positions
  double learning_rate = 1e-3;                 ///< peak learning rate
  double warmup = 0.05;                        ///< fraction of the steps in which the learning rate grows
  AdamWConfig adamw{0.9, 0.99, 1e-8, 0.1, 1};  ///< the optimiser
  std::int64_t valid_steps = 250;              ///< updates between two validations
  Index valid_tokens = 0;                      ///< tokens of a validation; 0: all
  Seed seed{};                                 ///< the source of all randomness

  /// Throws `Error` for a number that makes no sense.
  void check() const {
    const auto within = [](std::int64_t value, std::int64_t min, std::int64_t max, const char* name) {
      require(value >= min && value <= max, "train: ", name, ' ', value, " given, ", min, " to ", max, " expected");
    };
    within(steps, 1, std::int64_t{1} << 40, "steps");
    within(batch, 1, 1 << 20, "batch");
    within(window, 0, 1 << 24, "window");
    within(valid_steps, 1, std::int64_t{1} << 40, "valid_steps");
    within(valid_tokens, 0, Index{1} << 40, "valid_tokens");
    require(learning_rate >= 0 && learning_rate <= 1e3, "train: learning_rate ", learning_rate,
            " given, 0 to 1000 expected");
    require(warmup >= 0 && warmup <= 1, "train: warmup ", warmup, " given, 0 to 1 expected");
    adamw.check();
  }
};

/// Holds the values of a progress line.
struct LanguageModelProgress {
  std::int64_t step;      ///< updates done
  double loss,            ///< training loss of the update, nats a token
      valid_loss,         ///< validation loss, nats a token; NaN where there was none
      learning_rate,      ///< learning rate of the update
      tokens_per_second,  ///< training speed so far
      seconds_left;       ///< estimated time to the end
  bool best;              ///< whether this validation was the best so far
  bool skipped;           ///< whether the gradient was not finite and the step changed nothing
};

/// Holds what a training has come to.
struct LanguageModelResult {
  double valid_loss = std::numeric_limits<double>::infinity();  ///< validation loss of the best model, nats a token
  std::int64_t best_step = 0;                                   ///< its step; 0: the model as it was given
  double seconds = 0;                                           ///< training time, without validation
  double tokens_per_second = 0;                                 ///< training speed
};

/// Returns the mean loss, in nats, of each token but the first of every window, given the tokens before it in the
/// window. The text is cut into windows that overlap by one token. The context must have a form of the model that it
/// can run. Allocates. Throws `Error` for fewer than two tokens.
template <class Model, class Context>
double evaluate_language_model(Context& context, const Model& model, std::span<const int> tokens, Index window = 0) {
  const Index max = model.config().max_positions;
  const auto count = static_cast<Index>(tokens.size());
  require(count >= 2, "evaluate: ", count, " tokens given, at least two expected");
  require(window >= 0 && window <= max, "evaluate: window ", window, " given, 1 to max_positions = ", max,
          " expected, or 0 for these");
  if (window == 0) window = max;
  const Index rows_together = std::min<Index>(4096, (Index{1} << 25) / model.config().vocab_size);
  double sum = 0;
  std::vector<int> ids, targets;
  std::vector<Index> lengths;
  std::vector<typename Model::Scalar> losses;
  for (Index begin = 0; begin < count - 1; begin += window) {
    const Index length = std::min(window, count - 1 - begin);
    const auto from = tokens.begin() + begin;
    ids.insert(ids.end(), from, from + length);
    targets.insert(targets.end(), from + 1, from + length + 1);
    lengths.push_back(length);
    if (static_cast<Index>(ids.size()) + window <= rows_together && begin + window < count - 1) continue;
    losses.resize(ids.size());
    context.read(context.cross_entropy(model(context, TokenRows{ids, Sequences(lengths)}), targets, {}),
                 std::span(losses));
    for (const auto loss : losses) sum += static_cast<double>(loss);
    ids.clear();
    targets.clear();
    lengths.clear();
  }
  return sum / static_cast<double>(count - 1);
}

/// Trains a language model, such as Gpt, on windows that are drawn at random from a text of tokens, and leaves the
/// model of the lowest validation loss in `model`. `progress(LanguageModelProgress)` is called for each update. The
/// model is on the host, before and afterwards. Allocates. Throws `Error` for a text shorter than a window, and for
/// numbers that make no sense; and if no validation loss was finite, where the model is that of the last step.
template <class Model, TrainingContext Context, class Progress>
LanguageModelResult train_language_model(Context& context, Model& model, std::span<const int> train,
                                         std::span<const int> valid, const LanguageModelTraining& config,
                                         Progress&& progress) {
  config.check();
  const Index window = config.window > 0 ? config.window : model.config().max_positions;
  require(window <= model.config().max_positions, "train: window ", window,
          " given, at most max_positions = ", model.config().max_positions, " expected");
  const Index room = static_cast<Index>(train.size()) - window;  // beginnings of a window and its targets
  require(room > 0, "train: a text of ", train.size(), " tokens given, more than a window of ", window, " expected");
  if (config.valid_tokens > 0)
    valid = valid.first(std::min(valid.size(), static_cast<std::size_t>(config.valid_tokens)));
  require(valid.size() >= 2, "train: ", valid.size(), " tokens to validate on given, at least two expected");

  const Schedule schedule{config.learning_rate,
                          static_cast<std::int64_t>(config.warmup * static_cast<double>(config.steps)), Decay::cosine,
                          config.steps};
  const Random draw(config.seed, "windows");
  const Sequences sequences(std::vector<Index>(static_cast<std::size_t>(config.batch), window));
  std::vector<int> ids(static_cast<std::size_t>(config.batch * window)), targets(ids.size());
  LanguageModelResult result;
  struct OnDevice {
    Context& context;
    Model& model;
    OnDevice(Context& c, Model& m) : context(c), model(m) { context.prepare_training(model); }
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;
    ~OnDevice() { context.fetch(model); }
  };
  const OnDevice trained(context, model);
  AdamW<Context> optimizer(context, config.adamw);
  Model best = model;
  const auto seconds_since = [](auto begin) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  };
  for (std::int64_t step = 1; step <= config.steps; ++step) {
    const auto begin = std::chrono::steady_clock::now();
    for (Index b = 0; b < config.batch; ++b) {
      const auto number = static_cast<std::uint64_t>((step - 1) * config.batch + b);
      const auto from = train.begin() + draw.below(room, number);
      std::copy_n(from, window, ids.begin() + b * window);
      std::copy_n(from + 1, window, targets.begin() + b * window);
    }
    Autodiff<Context> tape(context, config.seed / "dropout" / static_cast<Index>(step));
    const auto loss = cross_entropy_loss(tape, model(tape, TokenRows{ids, sequences}), targets);
    tape.backward(loss);
    const double rate = schedule(step);
    const double norm = optimizer.step(model, rate);
    result.seconds += seconds_since(begin);
    result.tokens_per_second = static_cast<double>(step * config.batch * window) / result.seconds;

    const double left = result.seconds / static_cast<double>(step) * static_cast<double>(config.steps - step);
    LanguageModelProgress now{step,  tape.number(loss),        std::numeric_limits<double>::quiet_NaN(),
                              rate,  result.tokens_per_second, left,
                              false, !std::isfinite(norm)};
    if (step % config.valid_steps == 0 || step == config.steps) {
      now.valid_loss = evaluate_language_model(context, model, valid, window);
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

}  // namespace LACONIC_ABI
}  // namespace laconic
