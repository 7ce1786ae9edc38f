// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/autodiff.hpp>
#include <laconic/distributed/communicator.hpp>
#include <laconic/io/json.hpp>
#include <laconic/io/parameters.hpp>
#include <laconic/recognition/batch_loader.hpp>
#include <laconic/recognition/evaluate.hpp>
#include <laconic/recognition/fingerprint.hpp>
#include <laconic/recognition/teacher.hpp>
#include <laconic/recognition/train_config.hpp>
#include <laconic/train/adamw.hpp>
#include <laconic/train/ctc_loss.hpp>
#include <laconic/train/dynamic_chunks.hpp>
#include <laconic/train/gradient_sum.hpp>
#include <laconic/train/schedule.hpp>

#include <bit>
#include <charconv>
#include <limits>

namespace laconic {
inline namespace LACONIC_ABI {

/// Freezes the parameters whose names contain one of `fixed`, and, unless `only` is empty, those whose names contain
/// none of `only`; all others can be trained. Frozen batch norms use their running statistics as they are. Throws
/// `Error` for a pattern that matches no name.
template <class Model>
void freeze(Model& model, std::span<const std::string> fixed, std::span<const std::string> only = {}) {
  std::vector<bool> used(fixed.size() + only.size(), false);
  model.parameters([&](std::string_view name, auto& p) {
    const auto matches = [&](std::span<const std::string> patterns, std::size_t first) {
      bool any = false;
      for (std::size_t i = 0; i < patterns.size(); ++i)
        if (name.find(patterns[i]) != std::string_view::npos) any = used[first + i] = true;
      return any;
    };
    const bool is_fixed = matches(fixed, 0), is_chosen = matches(only, fixed.size());
    p.trainable = (only.empty() || is_chosen) && !is_fixed;
  });
  for (std::size_t i = 0; i < used.size(); ++i)
    require(used[i], i < fixed.size() ? "freeze" : "train_only", ": no parameter's name contains \"",
            i < fixed.size() ? fixed[i] : only[i - fixed.size()], '"');
}

/// Trains a CTC model on a dataset and keeps the parameters of the epoch with the lowest validation WER, then loss. A
/// run is a function of model, data and configuration only. With a run folder it is saved after every epoch (and every
/// `checkpoint_steps` updates) as DIR/checkpoint.safetensors and DIR/losses.csv, each whole or not at all, and the same
/// call resumes it. The end is bit for bit that of an unbroken run, for any number of threads. A teacher is followed as
/// the configuration says; it sees the same masked features, without dropout. `optimizer` is the state at the end of an
/// earlier training of this model (at the end of its last epoch, which need not be the best).
///
/// Several processes train one model together: they share the batches of each update, and the utterances of each
/// validation, and every process has the whole data and ends with the same model. A run is the same for any number of
/// them, to rounding; bit for bit if accumulate / processes is a power of two (`GradientSum`). Process 0 calls the
/// callbacks and writes the folder, which all read. A process that throws must end the others.
///
/// The model is on the host before and after `run`, and whenever `better` is called; a context that computes elsewhere
/// has it in between.
template <class Model, TrainingContext Context = Cpu<typename Model::Scalar>>
class Trainer {
 public:
  using T = typename Model::Scalar;  ///< the type of an element

  /// Prepares a run, and resumes it if `folder` has a checkpoint. Everything given by reference must outlive this
  /// object. Throws `Error` for settings that make no sense, for empty datasets, for a teacher without weight or a
  /// weight without teacher, for a checkpoint of another run, and for processes with different models, data or
  /// settings.
  Trainer(Model& model, Context& context, const Dataset& train, const Dataset& valid, const Vocabulary& vocabulary,
          const TrainConfig& config, std::filesystem::path folder = {}, Teacher<Context> teacher = {},
          OptimizerState<T> optimizer = {}, AnyCommunicator communicator = {})
      : model_(model),
        context_(context),
        train_(train),
        valid_(valid),
        vocabulary_(vocabulary),
        config_(config),
        folder_(std::move(folder)),
        teacher_(std::move(teacher)),
        communicator_(communicator),
        best_(model),
        optimizer_(context, config.adamw) {
    require(train.size() > 0, "train: no utterances to train on");
    require(valid.size() > 0, "train: no utterances to validate on");
    config.check();
    require(!teacher_ || config.distillation.any(),
            "train: a teacher given, but its weight and layer_weight are 0; one must be more");
    require(teacher_ || !config.distillation.any(), "train: distillation with weight ", config.distillation.weight,
            " and layer_weight ", config.distillation.layer_weight, " given without a teacher, which it needs");
    require(config_.accumulate >= communicator_.size(), "train: accumulate ", config_.accumulate, " given for ",
            communicator_.size(), " processes, which share the batches of an update; at least ", communicator_.size(),
            " expected");
    freeze(model_, config_.freeze, config_.train_only);
    optimizer.require_of(model_, "train");
    optimizer_.set_state(std::move(optimizer));
    for (Index epoch = 0; epoch < config_.epochs; ++epoch)
      total_steps_ += updates(static_cast<Index>(batches(epoch).size()));
    schedule_ = {config_.learning_rate, static_cast<std::int64_t>(config_.warmup * static_cast<double>(total_steps_)),
                 config_.decay, total_steps_};
    if (folder_.empty() && communicator_.size() == 1) return;
    description_ = run_description();
    if (!folder_.empty() && detail::is_there(checkpoint_path())) resume();
    require_equal_in_all(communicator_, LACONIC_ABI_NAME, "instruction set");
    require_equal_in_all(communicator_, text(description_, state_.step, Fingerprint::of_parameters(model_)),
                         "model, data, settings or folder");
  }

  /// Returns the position of the run.
  const TrainState& state() const { return state_; }
  /// Returns the state of the optimiser, on the host. Allocates.
  OptimizerState<T> optimizer() const { return optimizer_.state(); }
  /// Returns the number of updates of all epochs.
  std::int64_t total_steps() const { return total_steps_; }
  /// Returns the path of the checkpoint.
  std::filesystem::path checkpoint_path() const { return folder_ / "checkpoint.safetensors"; }
  /// Returns the path of the table of losses.
  std::filesystem::path losses_path() const { return folder_ / "losses.csv"; }

  /// Trains to the end and puts the best parameters into the model. If `stop(state)` returns true after an update, a
  /// checkpoint is left in the run folder and training ends there. `progress(TrainProgress)` is called after every
  /// update and every epoch, and `better()` when the model, as it then is, is the best so far. Throws `Error` if ten
  /// gradients in a row, or all of an epoch, are not finite.
  template <class Progress, class Better, class Stop>
  void run(Progress&& progress, Better&& better, Stop&& stop, std::int64_t checkpoint_steps = 0) {
    Index failures = 0;
    const Resident resident(*this);
    GradientSum<Context> gradients(context_, communicator_, model_);
    while (!finished()) {
      const auto plan = batches(state_.epoch);
      const auto count = static_cast<Index>(plan.size());
      std::vector<std::vector<Index>> own;  // what this process does of the updates that are left
      for (Index b = state_.batch; b < count; b += config_.accumulate)
        for (const Index i : own_batches(plan, b, std::min(count, b + config_.accumulate)))
          own.push_back(plan[static_cast<std::size_t>(i)]);
      BatchLoader loader(train_, std::move(own), 0, config_.spec_augment, seed() / "augment" / state_.epoch,
                         std::max(1, context_.threads() / 4));
      while (state_.batch < count) {
        const auto start = std::chrono::steady_clock::now();
        TrainProgress report{state_, total_steps_, 0, schedule_(state_.step + 1), 0, 0, 0, unknown, unknown, false};
        const Index end = std::min(count, state_.batch + config_.accumulate);
        const double audio = add_gradients(own_batches(plan, state_.batch, end), end, loader, gradients, report.loss);
        report.gradient_norm = optimizer_.step(model_, report.learning_rate);
        report.skipped = !std::isfinite(report.gradient_norm);
        failures = report.skipped ? failures + 1 : 0;
        if (failures == 10) fail_diverged(failures);
        if (!report.skipped) {
          state_.epoch_loss += report.loss * static_cast<double>(end - state_.batch);
          state_.epoch_counted += end - state_.batch;
        }
        state_.batch = end;
        ++state_.step;
        const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        state_.seconds += seconds;
        report.audio_speed = audio / seconds;
        report.seconds_left =
            state_.seconds / static_cast<double>(state_.step) * static_cast<double>(total_steps_ - state_.step);
        log_row(report);
        if (is_first()) progress(report);
        const bool last = state_.batch == count;
        if (!last && checkpoint_steps > 0 && state_.step % checkpoint_steps == 0) on_host([&] { save(); });
        if (!last && stops(stop)) return on_host([&] { save(); });
      }
      if (state_.epoch_counted == 0) fail_diverged(failures);
      end_epoch(progress, better);
      if (!finished() && stops(stop)) return;
    }
    copy_values(best_, model_);
  }
  /// Trains to the end without stopping.
  template <class Progress>
  void run(Progress&& progress) {
    run(
        progress, [] {}, [](const TrainState&) { return false; });
  }

  /// Says whether all epochs are done or the WER has not fallen for `patience` epochs.
  bool finished() const {
    return state_.epoch >= config_.epochs ||
           (config_.patience > 0 && state_.epoch - state_.lower_epoch >= config_.patience);
  }

 private:
  static constexpr double unknown = std::numeric_limits<double>::quiet_NaN();

  /// Moves the model, and the best one so far, to a context that computes elsewhere than on the host.
  void enter_context() {
    if constexpr (!Context::computes_on_host) {
      context_.prepare_training(model_);
      try {
        context_.prepare_training(best_);
      } catch (...) {  // no memory for both
        leave_context();
        throw;
      }
    }
  }
  /// Moves them back to the host.
  void leave_context() {
    if constexpr (!Context::computes_on_host) {
      context_.fetch(model_);
      context_.fetch(best_);
    }
  }
  /// Keeps the models in the context until the end of a scope.
  struct Resident {
    explicit Resident(Trainer& t) : trainer(t) { trainer.enter_context(); }
    Resident(const Resident&) = delete;
    Resident& operator=(const Resident&) = delete;
    ~Resident() {
      try {
        trainer.leave_context();
      } catch (const Error&) {  // a device that failed: the error that is on its way says why
      }
    }
    Trainer& trainer;
  };
  /// Calls f while the models are on the host.
  template <class F>
  void on_host(F&& f) {
    leave_context();
    f();
    enter_context();
  }

  /// Throws `Error` about gradients that are not finite.
  [[noreturn]] void fail_diverged(Index failures) const {
    throw Error(text("train: the gradient was not finite ", failures, " times in a row at step ", state_.step,
                     "; a lower learning rate may help"));
  }

  /// Returns the seed of the run.
  Seed seed() const { return Seed(static_cast<std::uint64_t>(config_.seed)); }
  /// Returns the batches of an epoch as indices of examples.
  std::vector<std::vector<Index>> batches(Index epoch) const {
    return length_buckets(train_, config_.batch_frames, seed() / "order" / epoch);
  }
  /// Returns the number of updates that so many batches make.
  Index updates(Index batch_count) const { return (batch_count + config_.accumulate - 1) / config_.accumulate; }

  /// Says whether this is the process that calls back and writes.
  bool is_first() const { return communicator_.rank() == 0; }
  /// Says whether process 0 wants to stop.
  template <class Stop>
  bool stops(Stop& stop) {
    std::byte decided{is_first() && stop(state_)};
    communicator_.broadcast(std::span(&decided, 1), 0);
    return decided != std::byte{0};
  }

  /// Returns the batches that this process does of an update, `begin` to `end` of the epoch's plan: one block of those
  /// that are sorted so that equally many are about the same work.
  std::vector<Index> own_batches(const std::vector<std::vector<Index>>& plan, Index begin, Index end) const {
    std::vector<double> frames;
    for (Index b = begin; b < end; ++b) {
      double& sum = frames.emplace_back(0);
      for (const Index i : plan[static_cast<std::size_t>(b)])
        sum += static_cast<double>(train_.examples[static_cast<std::size_t>(i)].frames());
    }
    const auto order = in_even_blocks(frames);
    // The last update of an epoch has fewer batches. It is summed as the others are: in blocks of 2^k, if those are.
    const auto each_of = [&](Index count) { return (count + communicator_.size() - 1) / communicator_.size(); };
    std::size_t each = static_cast<std::size_t>(each_of(end - begin));
    if (std::has_single_bit(static_cast<std::size_t>(each_of(config_.accumulate)))) each = std::bit_ceil(each);
    const auto first = std::min(order.size(), each * static_cast<std::size_t>(communicator_.rank())),
               last = std::min(order.size(), first + each);
    std::vector<Index> out(order.begin() + static_cast<std::ptrdiff_t>(first),
                           order.begin() + static_cast<std::ptrdiff_t>(last));
    for (Index& b : out) b += begin;
    return out;
  }

  /// Computes the gradient of the update whose last batch is before `end`, in all processes. Writes the mean loss of
  /// its batches, and returns the seconds of their audio.
  double add_gradients(const std::vector<Index>& own, Index end, BatchLoader& loader, GradientSum<Context>& gradients,
                       double& loss) {
    const Index begin = state_.batch;
    const double weight = 1.0 / static_cast<double>(end - begin);
    std::vector<double> measured(static_cast<std::size_t>(end - begin) + 1);  // losses, then seconds
    for (const Index b : own) {
      const SpeechBatch batch = loader.next();
      GradientSum<Context>* const last = config_.accumulate > 1 && b == own.back() ? &gradients : nullptr;
      measured[static_cast<std::size_t>(b - begin)] = train_batch(batch, b, weight, last, end - 1 - b);
      measured.back() += batch.seconds;
      if (config_.accumulate > 1 && last == nullptr) gradients.add(end - 1 - b);
    }
    if (config_.accumulate > 1) gradients.finish();
    communicator_.sum(std::span(measured));
    for (std::size_t i = 0; i + 1 < measured.size(); ++i) loss += weight * measured[i];
    return measured.back();
  }

  /// Adds the gradients of batch b of the epoch, times `weight`, and returns its loss. If there is a sum whose last
  /// batch this is, it takes them while they are computed; in all processes, `later` batches of the update have a
  /// higher number.
  double train_batch(const SpeechBatch& batch, Index b, double weight, GradientSum<Context>* last, Index later) {
    Autodiff<Context> tape(context_, seed() / "dropout" / state_.epoch / b);
    tape.recompute_blocks = config_.recompute;
    const auto loss = batch_loss(tape, batch, b);
    if (last == nullptr) {
      tape.backward(loss, weight);
    } else {
      last->begin_last(later);
      tape.backward(loss, weight, [&](auto parameters) { last->computed(parameters); });
    }
    return tape.number(loss);
  }

  /// Returns the loss of batch b of the epoch, (1, 1).
  auto batch_loss(Autodiff<Context>& tape, const SpeechBatch& batch, Index b) {
    if constexpr (requires { model_.config().subsampling; }) {
      const auto& config = model_.config();
      const Mask mask =
          config_.dynamic_chunks
              ? dynamic_chunk_mask(batch.sequences.max_length() / config.subsampling, config.left_context >= 0,
                                   Random(seed() / "chunks" / state_.epoch, static_cast<std::uint64_t>(b)))
              : config.mask();
      if (!teacher_)
        return ctc_loss(tape, model_(tape, batch.features, batch.sequences, mask), batch.labels, vocabulary_.blank());
      return loss_with_teacher(tape, batch, mask);
    } else {
      require(!teacher_, "train: a teacher given for a model that takes no mask and shows no blocks");
      return ctc_loss(tape, model_(tape, batch.features, batch.sequences), batch.labels, vocabulary_.blank());
    }
  }

  /// Returns the loss of a batch as DistillationConfig defines it, (1, 1).
  auto loss_with_teacher(Autodiff<Context>& tape, const SpeechBatch& batch, const Mask& mask) {
    const DistillationConfig& d = config_.distillation;
    const auto taught = teacher_.output(context_, batch.features, batch.sequences, mask);
    std::vector<typename Autodiff<Context>::Tensor> blocks;
    const auto logits = model_(tape, batch.features, batch.sequences, mask, d.layer_weight > 0 ? &blocks : nullptr);
    auto loss = tape.scale(ctc_loss(tape, logits, batch.labels, vocabulary_.blank()), 1 - d.weight);
    if (d.weight > 0) loss = tape.add(loss, distillation_loss(tape, logits, taught.logits, d.temperature), d.weight);
    if (d.layer_weight > 0) loss = tape.add(loss, block_loss(tape, blocks, taught.blocks), d.layer_weight);
    return loss;
  }

  /// Validates the model, keeps it if it is the best so far, reports and saves.
  template <class Progress, class Better>
  void end_epoch(Progress& progress, Better& better) {
    const Evaluation validation = evaluate(model_, context_, valid_, vocabulary_, evaluation_frames, communicator_);
    const double wer = validation.wer(), loss = state_.epoch_loss / static_cast<double>(state_.epoch_counted);
    const bool lower = state_.best_epoch == 0 || wer < state_.best_wer;
    ++state_.epoch;
    state_.batch = 0;
    state_.epoch_loss = 0;
    state_.epoch_counted = 0;
    if (lower) state_.lower_epoch = state_.epoch;
    if (lower || (wer == state_.best_wer && validation.loss() < state_.best_loss)) {
      state_.best_epoch = state_.epoch;
      state_.best_wer = wer;
      state_.best_loss = validation.loss();
      copy_values(model_, best_);
      on_host([&] {
        if (is_first()) better();
      });
    }
    const double left =
        state_.seconds / static_cast<double>(state_.step) * static_cast<double>(total_steps_ - state_.step);
    const TrainProgress report{state_, total_steps_, loss, schedule_(state_.step), 0,
                               0,      left,         wer,  validation.loss(),      false};
    log_row(report);
    if (is_first()) progress(report);
    on_host([&] {
      save();
      if (communicator_.size() > 1)
        require_equal_in_all(communicator_, Fingerprint::of_parameters(model_), "parameters after an epoch");
    });
  }

  /// Copies the values of all parameters within the context.
  void copy_values(const Model& from, Model& to) {
    std::vector<const Parameter<T>*> values;
    from.parameters([&](std::string_view, const Parameter<T>& p) { values.push_back(&p); });
    std::size_t i = 0;
    to.parameters([&](std::string_view, Parameter<T>& p) { context_.copy_values(*values[i++], p); });
  }

  /// Appends a row to the table of losses.
  void log_row(const TrainProgress& r) {
    const bool epoch_end = !std::isnan(r.valid_wer);
    rows_ += text(state_.step, ',', state_.epoch, ',', r.loss, ',', r.learning_rate, ',',
                  epoch_end ? std::string() : text(r.gradient_norm), ',',
                  epoch_end ? text(r.valid_wer, ',', r.valid_loss) : std::string(","), '\n');
  }

  /// Returns the settings and fingerprints that a checkpoint must share with the run that resumes it. It is computed
  /// before the model changes.
  std::string run_description() const {
    nlohmann::json out{{"train", to_json(config_)},
                       {"utterances", train_.size()},
                       {"valid_utterances", valid_.size()},
                       {"steps", total_steps_},
                       {"data", Fingerprint::of(train_)},
                       {"valid_data", Fingerprint::of(valid_)},
                       {"initial_parameters", Fingerprint::of_parameters(model_)},
                       {"teacher", teacher_.fingerprint},
                       {"optimizer_steps", optimizer_.steps()}};
    if (config_.accumulate > 1) out["gradients"] = "summed in pairs";
    if constexpr (requires { model_.config(); }) out["model"] = to_json(model_.config());
    return out.dump();
  }

  /// Writes the table of losses and the checkpoint, in this order, if there is a run folder.
  void save() const {
    if (folder_.empty() || !is_first()) return;
    make_folder(folder_);
    write_file(losses_path(), text("step,epoch,loss,learning_rate,gradient_norm,valid_wer,valid_loss\n", rows_));
    const OptimizerState<T> learnt = optimizer_.state();
    SafetensorsWriter writer;
    writer.metadata = {{"laconic_run", description_},
                       {"laconic_state", to_json(state_).dump()},
                       {"adamw_steps", text(learnt.steps)},
                       {"losses_bytes", text(rows_.size())}};
    append_parameters(writer, model_, "model.");
    append_parameters(writer, best_, "best.");
    std::size_t i = 0;
    model_.parameters([&](std::string_view name, const Parameter<T>& p) {
      if (i >= learnt.moments.size()) return;
      const auto& m = learnt.moments[i++];
      if (m.first.size() == 0) return;
      writer.add(text("first.", name), p.shape(),
                 std::span<const T>(m.first.data(), static_cast<std::size_t>(m.first.size())));
      writer.add(text("second.", name), p.shape(),
                 std::span<const T>(m.second.data(), static_cast<std::size_t>(m.second.size())));
    });
    writer.write(checkpoint_path());
  }

  /// Reads the checkpoint and the table of losses. Throws `Error` if they are not of this run.
  void resume() {
    const SafetensorsFile file(checkpoint_path());
    const auto& metadata = file.metadata();
    const auto value = [&](const char* key) {
      const auto found = metadata.find(key);
      require(found != metadata.end(), file.path(), ": not a checkpoint of a training run: no \"", key,
              "\" in its metadata");
      return found->second;
    };
    const auto number = [&](const char* key) {
      const std::string written = value(key);
      std::int64_t out = -1;
      const auto end = std::from_chars(written.data(), written.data() + written.size(), out).ptr;
      require(end == written.data() + written.size() && out >= 0, file.path(), ": \"", key, "\" is \"", written,
              "\", a number expected");
      return out;
    };
    require_same_run(parse_json(value("laconic_run"), file.path()), nlohmann::json::parse(description_), file.path(),
                     "folder");
    load_parameters(model_, file, "model.");
    load_parameters(best_, file, "best.");
    state_ = json_value<TrainState>(parse_json(value("laconic_state"), file.path()), file.path());
    require(state_.epoch >= 0 && state_.epoch <= config_.epochs && state_.step >= 0 && state_.step <= total_steps_ &&
                state_.batch >= 0 &&
                (state_.epoch == config_.epochs ? state_.batch == 0
                                                : state_.batch < static_cast<Index>(batches(state_.epoch).size())) &&
                state_.lower_epoch >= 0 && state_.lower_epoch <= state_.best_epoch && state_.best_epoch <= state_.epoch,
            file.path(), ": its state is none of this run: step ", state_.step, ", epoch ", state_.epoch, ", batch ",
            state_.batch, ", best epoch ", state_.best_epoch);
    OptimizerState<T> learnt{{}, number("adamw_steps")};
    model_.parameters([&](std::string_view name, const Parameter<T>& p) {
      auto& m = learnt.moments.emplace_back();
      if (!file.contains(text("first.", name))) return;
      m.first.resize(p.rows(), p.cols());
      m.second.resize(p.rows(), p.cols());
      file.read(text("first.", name), std::span<T>(m.first.data(), static_cast<std::size_t>(m.first.size())));
      file.read(text("second.", name), std::span<T>(m.second.data(), static_cast<std::size_t>(m.second.size())));
    });
    optimizer_.set_state(std::move(learnt));
    const std::string csv = read_file(losses_path(), std::size_t{1} << 30);
    // A run killed between the two files leaves rows that are newer than the checkpoint.
    const std::size_t begin = std::min(csv.size(), csv.find('\n') + 1),
                      bytes = static_cast<std::size_t>(number("losses_bytes"));
    require(csv.size() - begin >= bytes, losses_path().string(), ": shorter than its checkpoint says");
    rows_ = csv.substr(begin, bytes);
  }

  Model& model_;
  Context& context_;
  const Dataset& train_;
  const Dataset& valid_;
  const Vocabulary& vocabulary_;
  TrainConfig config_;
  std::filesystem::path folder_;
  Teacher<Context> teacher_;
  AnyCommunicator communicator_;
  Model best_;
  AdamW<Context> optimizer_;
  Schedule schedule_;
  TrainState state_;
  std::int64_t total_steps_ = 0;
  std::string description_, rows_;
};

}  // namespace LACONIC_ABI
}  // namespace laconic
