// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/recognition/recognizer/run.hpp>
#include <laconic/recognition/trainer.hpp>
#include <laconic/train/fisher.hpp>

#include <functional>

// Training of the models behind Recognizer.

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

/// Cuts the latents of a model to a rank, best for the calibration speech if that is given, and returns the predicted
/// error. What the optimiser has learnt goes along. Defined in convert.hpp, whose source has the forward passes that
/// calibration records.
template <class Model>
double cut_latents(Model& model, Index rank, OptimizerState<float>& learnt, const SpeechBatch* calibration);

/// Implements `train_model` on one kind of context.
template <class Model, class Context>
TrainState train_on(Model& model, Context& context, const Dataset& training, const Dataset& validation,
                    const Vocabulary& vocabulary, const TrainConfig& config, const RecognizerTraining& how,
                    const Model* teacher) {
  Teacher<Context> follows;
  std::optional<Model> on_device;  // the teacher, where the context computes elsewhere than on the host
  if (teacher != nullptr && Context::computes_on_host) {
    follows = teacher_of<Model, Context>(*teacher);
  } else if (teacher != nullptr) {
    follows = teacher_of<Model, Context>(on_device.emplace(*teacher));
    context.prepare(*on_device);
  }
  const auto once = [&](const std::filesystem::path& folder, const std::function<void()>& better,
                        OptimizerState<float>& learnt) {
    Trainer trainer(model, context, training, validation, vocabulary, config, folder, follows, std::move(learnt),
                    how.communicator);
    trainer.run(
        how.progress, better, [](const TrainState&) { return false; }, how.checkpoint_steps);
    learnt = trainer.optimizer();
    return trainer.state();
  };
  OptimizerState<float> learnt;
  if (how.ranks.empty()) return once(how.folder, how.better, learnt);
  TrainState last;
  double seconds = 0;
  for (const Index rank : how.ranks) {
    const double error = cut_latents(model, rank, learnt, how.calibration);
    how.cut(rank, error);
    last = once(
        how.folder.empty() ? how.folder : how.folder / text("rank-", rank),
        rank == how.ranks.back() ? how.better : [] {}, learnt);
    seconds += last.seconds;
  }
  last.seconds = seconds;
  return last;
}

template <class Model>
TrainState train_model(Model& model, Workspace::Context& context, const Dataset& training, const Dataset& validation,
                       const Vocabulary& vocabulary, const TrainConfig& config, const RecognizerTraining& how,
                       const Model* teacher) {
  return context.visit(
      [&](auto& on) { return train_on(model, on, training, validation, vocabulary, config, how, teacher); });
}

template <class Model>
std::vector<double> layer_information(const Model& model, const SpeechBatch& speech, int threads) {
  Cpu<float> cpu(threads);
  return fisher_information(model, cpu, speech.features, speech.sequences, speech.labels, speech.blank);
}

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
