// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/train/cross_entropy_loss.hpp>
#include <laconic/train/steps.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
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
    within(batch, 1, 1 << 20, "batch");
    within(window, 0, 1 << 24, "window");
    within(valid_tokens, 0, Index{1} << 40, "valid_tokens");
    detail::check_steps(*this);
  }
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
/// model of the lowest validation loss in `model`. `progress(TrainingProgress)` is called for each update. The
/// model is on the host, before and afterwards. Allocates. Throws `Error` for a text shorter than a window, and for
/// numbers that make no sense; and if no validation loss was finite, where the model is that of the last step.
template <class Model, TrainingContext Context, class Progress>
TrainingResult train_language_model(Context& context, Model& model, std::span<const int> train,
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

  const Random draw(config.seed, "windows");
  const Sequences sequences(std::vector<Index>(static_cast<std::size_t>(config.batch), window));
  std::vector<int> ids(static_cast<std::size_t>(config.batch * window)), targets(ids.size());
  const auto loss = [&](auto& tape, std::int64_t step) {
    for (Index b = 0; b < config.batch; ++b) {
      const auto number = static_cast<std::uint64_t>((step - 1) * config.batch + b);
      const auto from = train.begin() + draw.below(room, number);
      std::copy_n(from, window, ids.begin() + b * window);
      std::copy_n(from + 1, window, targets.begin() + b * window);
    }
    return cross_entropy_loss(tape, model(tape, TokenRows{ids, sequences}), targets);
  };
  const auto measure = [&] { return evaluate_language_model(context, model, valid, window); };
  return detail::train_steps(context, model, config, config.batch * window, loss, measure, progress);
}

}  // namespace LACONIC_ABI
}  // namespace laconic
