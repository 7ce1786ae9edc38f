// laconic: attention for speech models. SPDX-License-Identifier: MIT
// Training of a small Conformer: it learns, and a run is a function of model, data and configuration alone, however
// often it was stopped or killed.
#include <laconic/model/conformer.hpp>
#include <laconic/recognition/trainer.hpp>

#include "message_of.hpp"
#include "ridge_speech.hpp"
#include "temporary_folder.hpp"
#include "thread_processes.hpp"

#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <map>

using namespace laconic;

namespace {

using Model = Conformer<Mha<2>>;
Model small_model() {
  return Model({.num_mels = mels,
                .d_model = 16,
                .num_layers = 2,
                .vocab_size = 5,
                .ffn_expansion = 2,
                .conv_kernel = 5,
                .subsampling = 2,
                .subsampling_channels = 4,
                .dropout = 0.1},
               Seed(3));
}

TrainConfig small_config() {
  TrainConfig config;
  config.epochs = 3;
  config.batch_frames = 250;
  config.learning_rate = 5e-3;
  config.spec_augment = {
      .num_time_masks = 1, .max_time_width = 3, .max_time_fraction = 0.1, .num_freq_masks = 1, .max_freq_width = 1};
  config.seed = 7;
  return config;
}

/// All parameters, statistics too, to be compared bit for bit.
std::map<std::string, std::vector<float>> values(const Model& model) {
  std::map<std::string, std::vector<float>> out;
  model.parameters([&](std::string_view name, const Parameter<float>& p) {
    out[std::string(name)].assign(p.host().data(), p.host().data() + p.size());
  });
  return out;
}
bool same_bits(const std::map<std::string, std::vector<float>>& a, const std::map<std::string, std::vector<float>>& b) {
  if (a.size() != b.size()) return false;
  for (const auto& [name, numbers] : a) {
    const auto other = b.find(name);
    if (other == b.end() || other->second.size() != numbers.size()) return false;
    if (std::memcmp(numbers.data(), other->second.data(), numbers.size() * sizeof(float)) != 0) return false;
  }
  return true;
}

const auto silent = [](const TrainProgress&) {};
const auto never = [](const TrainState&) { return false; };

/// The corpora that most tests use, and what an unbroken run on them gives.
struct Runs {
  Dataset train = corpus(40, Seed(1)), valid = corpus(12, Seed(2));
  Vocabulary vocabulary = Vocabulary::words(words);
  Cpu<float> cpu{1};

  struct Result {
    std::map<std::string, std::vector<float>> values;
    std::string losses;
    TrainState state;
  };
  Result unbroken(const TrainConfig& config, Cpu<float>& on, const std::filesystem::path& folder) const {
    Model model = small_model();
    Trainer trainer(model, on, train, valid, vocabulary, config, folder);
    trainer.run(silent);
    return {values(model), read_file(trainer.losses_path(), 1 << 20), trainer.state()};
  }
};

}  // namespace

TEST_CASE("Killed and resumed equals unbroken, bit for bit", "[trainer]") {
  Runs r;
  // One that the model cannot learn (more labels than frames) and one without any frame after the subsampling.
  r.train.examples[3].labels.assign(200, 1);
  r.train.examples[5].features = Matrix<float>(r.train.examples[5].features.topRows(3));
  const TrainConfig config = small_config();
  TemporaryFolder folder;
  const Runs::Result whole = r.unbroken(config, r.cpu, folder / "whole");
  const Index updates = whole.state.step / config.epochs;
  REQUIRE(updates >= 4);
  const auto finish = [&](const std::filesystem::path& run) { return r.unbroken(config, r.cpu, run); };
  const auto check_same = [&](const Runs::Result& got) {
    CHECK(same_bits(got.values, whole.values));
    CHECK(got.losses == whole.losses);
    CHECK(got.state.best_epoch == whole.state.best_epoch);
    CHECK(got.state.best_wer == whole.state.best_wer);
    CHECK(got.state.best_loss == whole.state.best_loss);
  };

  SECTION("without a folder") {
    Model model = small_model();
    Trainer(model, r.cpu, r.train, r.valid, r.vocabulary, config).run(silent);
    CHECK(same_bits(values(model), whole.values));
  }
  SECTION("stopped") {
    // In the middle of an epoch, at the end of one, and after every single update.
    for (const std::int64_t step : {std::int64_t{1}, updates + 2, 2 * updates}) {
      const auto run = folder / text("stopped", step);
      {
        Model model = small_model();
        Trainer trainer(model, r.cpu, r.train, r.valid, r.vocabulary, config, run);
        trainer.run(
            silent, [] {}, [&](const TrainState& s) { return s.step >= step; });
        CHECK(trainer.state().step == step);
      }
      check_same(finish(run));
    }
    const auto run = folder / "often";
    for (int part = 0;; ++part) {
      REQUIRE(part < 100);
      Model model = small_model();
      Trainer trainer(model, r.cpu, r.train, r.valid, r.vocabulary, config, run);
      if (trainer.finished()) break;
      trainer.run(
          silent, [] {}, [](const TrainState&) { return true; });
    }
    check_same(finish(run));
  }
  SECTION("killed") {
    for (const std::int64_t every : {1, 3}) {
      const auto run = folder / text("killed", every);
      const std::int64_t fatal = updates + 3;
      const pid_t child = ::fork();
      if (child == 0) {
        Model model = small_model();
        Trainer trainer(model, r.cpu, r.train, r.valid, r.vocabulary, config, run);
        trainer.run(
            [&](const TrainProgress& p) {
              if (p.state.step == fatal) ::_exit(9);
            },
            [] {}, never, every);
        ::_exit(0);
      }
      int status = 0;
      REQUIRE(::waitpid(child, &status, 0) == child);
      REQUIRE((WIFEXITED(status) && WEXITSTATUS(status) == 9));
      {
        Model model = small_model();
        const Trainer trainer(model, r.cpu, r.train, r.valid, r.vocabulary, config, run);
        CHECK(trainer.state().step == (fatal - 1) / every * every);  // not from the start
      }
      check_same(finish(run));
    }
  }
  SECTION("killed between the losses and the checkpoint") {
    const auto run = folder / "between";
    {
      Model model = small_model();
      Trainer trainer(model, r.cpu, r.train, r.valid, r.vocabulary, config, run);
      trainer.run(
          silent, [] {}, [&](const TrainState& s) { return s.step >= 2; });
    }
    write_file(run / "losses.csv", read_file(run / "losses.csv", 1 << 20) + "3,0,1.5,0.001,2,\n");
    check_same(finish(run));
  }
}

TEST_CASE("A run does not depend on the number of threads, nor on what is computed again", "[trainer]") {
  Runs r;
  TrainConfig config = small_config();
  config.epochs = 2;
  TemporaryFolder folder;
  Cpu<float> two(2), three(3);
  const auto one = r.unbroken(config, r.cpu, folder / "one"), other = r.unbroken(config, three, folder / "three");
  CHECK(same_bits(one.values, r.unbroken(config, two, folder / "two").values));
  CHECK(same_bits(one.values, other.values));
  CHECK(one.losses == other.losses);
  config.recompute = true;
  CHECK(same_bits(one.values, r.unbroken(config, two, folder / "again").values));
  config.seed = 8;
  CHECK_FALSE(same_bits(one.values, r.unbroken(config, r.cpu, folder / "seed").values));
}

TEST_CASE("A small model learns", "[trainer]") {
  Runs r;
  TrainConfig config = small_config();
  config.epochs = 40;
  Model model = small_model();
  std::vector<double> losses, wers;
  Index better = 0;
  Trainer trainer(model, r.cpu, r.train, r.valid, r.vocabulary, config);
  std::int64_t steps = 0;
  trainer.run(
      [&](const TrainProgress& p) {
        CHECK(p.total_steps == trainer.total_steps());
        CHECK(std::isfinite(p.loss));
        if (std::isnan(p.valid_wer)) {
          CHECK(p.state.step == ++steps);
          CHECK(p.gradient_norm > 0);
          CHECK_FALSE(p.skipped);
          return;
        }
        losses.push_back(p.loss);
        wers.push_back(p.valid_wer);
      },
      [&] { ++better; }, never);
  REQUIRE(losses.size() == 40);
  CHECK(steps == trainer.total_steps());
  CHECK(losses.back() < 0.2 * losses.front());
  const double best = *std::min_element(wers.begin(), wers.end());
  CHECK(best <= 0.05);
  CHECK(trainer.state().best_wer == best);
  CHECK(better >= 1);
  const Evaluation evaluation = evaluate(model, r.cpu, r.valid, r.vocabulary);
  CHECK(evaluation.wer() == best);
  CHECK(evaluation.loss() == Approx(trainer.state().best_loss).epsilon(1e-9));
}

TEST_CASE("Accumulated batches are one batch", "[trainer]") {
  // Equal lengths, so that each batch weighs the same, and neither dropout nor masks. Batch norm sees each batch alone,
  // so it must not see a difference: all utterances are the same one, under other texts.
  Runs r;
  Dataset train;
  for (std::size_t i = 0; i < 8; ++i) {
    Example e = r.train.examples[0];
    e.labels = {static_cast<int>(1 + i % 4), static_cast<int>(1 + i / 4)};
    train.examples.push_back(e);
  }
  const Index frames = train.examples[0].features.rows();
  const auto run = [&](Index utterances, Index accumulate, std::int64_t steps) {
    EncoderConfig shape = small_model().config();
    shape.dropout = 0;
    Model model(shape, Seed(3));
    TrainConfig config = small_config();
    config.epochs = 1;
    config.spec_augment = {.num_time_masks = 0, .num_freq_masks = 0};
    config.warmup = 1;
    config.adamw.eps = 1e-3;  // a step in proportion to the gradient also where that is rounding alone
    config.batch_frames = utterances * frames;
    config.accumulate = accumulate;
    Trainer trainer(model, r.cpu, train, train, r.vocabulary, config);
    CHECK(trainer.total_steps() == steps);
    std::vector<double> out;
    trainer.run([&](const TrainProgress& p) {
      if (std::isnan(p.valid_wer)) out.insert(out.end(), {p.loss, p.gradient_norm});
    });
    return std::pair(values(model), out);
  };
  const auto whole = run(8, 1, 1);
  const auto& at_once = whole.first;
  const auto& report = whole.second;
  const auto compare = [&](Index utterances, Index accumulate) {
    const auto [in_parts, other] = run(utterances, accumulate, 1);
    REQUIRE(other.size() == report.size());
    CHECK(other[0] == Approx(report[0]).epsilon(1e-5));
    CHECK(other[1] == Approx(report[1]).epsilon(1e-4));
    for (const auto& [name, numbers] : at_once) {
      if (name.find("running") != std::string::npos) continue;  // two gathered updates are not one
      double worst = 0;
      for (std::size_t i = 0; i < numbers.size(); ++i)
        worst = std::max(worst, static_cast<double>(std::abs(numbers[i] - in_parts.at(name)[i])));
      INFO(name);
      CHECK(worst < 1e-5);
    }
  };
  compare(4, 2);
  compare(2, 4);
  compare(1, 8);
  // What is left at an epoch's end makes an update of its own.
  run(1, 3, 3);
}

TEST_CASE("Patience counts epochs without a lower error, also where the loss still falls", "[trainer]") {
  Runs r;
  TrainConfig config = small_config();
  config.epochs = 50;
  config.learning_rate = 1e-5;  // too little to say a first word
  config.patience = 3;
  Model model = small_model();
  std::vector<double> wers, losses;
  Trainer trainer(model, r.cpu, r.train, r.valid, r.vocabulary, config);
  trainer.run([&](const TrainProgress& p) {
    if (std::isnan(p.valid_wer)) return;
    wers.push_back(p.valid_wer);
    losses.push_back(p.valid_loss);
  });
  REQUIRE(wers.size() == 4);
  for (const double wer : wers) CHECK(wer == wers[0]);
  // Of equal errors the lowest loss.
  CHECK(trainer.state().best_epoch == 1 + (std::min_element(losses.begin(), losses.end()) - losses.begin()));
}

TEST_CASE("Training stops early without progress", "[trainer]") {
  Runs r;
  TrainConfig config = small_config();
  config.epochs = 50;
  config.learning_rate = 0;  // nothing changes but by chance of dropout
  config.patience = 2;
  TemporaryFolder folder;
  Model model = small_model();
  Index epochs = 0;
  std::map<std::string, std::vector<float>> best, last;
  Trainer trainer(model, r.cpu, r.train, r.valid, r.vocabulary, config, folder / "run");
  const auto progress = [&](const TrainProgress& p) {
    epochs += !std::isnan(p.valid_wer);
    last = values(model);
  };
  trainer.run(
      progress, [&] { best = values(model); }, never);
  CHECK(trainer.state().epoch < 50);
  CHECK(trainer.state().epoch - trainer.state().lower_epoch == 2);
  CHECK(epochs == trainer.state().epoch);
  CHECK(trainer.finished());
  // What is left is the best model, not the last (batch norm has gathered since).
  CHECK(same_bits(values(model), best));
  CHECK_FALSE(same_bits(values(model), last));

  // Taken up again it has nothing to do and gives the same model.
  Model again = small_model();
  Trainer resumed(again, r.cpu, r.train, r.valid, r.vocabulary, config, folder / "run");
  CHECK(resumed.finished());
  resumed.run([](const TrainProgress&) { FAIL("nothing was left to do"); });
  CHECK(same_bits(values(again), values(model)));
}

TEST_CASE("Checkpoints that do not fit are refused", "[trainer]") {
  Runs r;
  TrainConfig config = small_config();
  config.epochs = 1;
  TemporaryFolder folder;
  const auto run = folder / "run";
  r.unbroken(config, r.cpu, run);
  const std::string path = (run / "checkpoint.safetensors").string();
  Model model = small_model();
  const auto resume = [&](const TrainConfig& with, const Dataset& data) {
    return message_of([&] { Trainer(model, r.cpu, data, r.valid, r.vocabulary, with, run); });
  };
  using Catch::Matchers::ContainsSubstring;

  SECTION("of other settings") {
    TrainConfig other = config;
    other.learning_rate = 0.25;
    const std::string error = resume(other, r.train);
    CHECK_THAT(error, ContainsSubstring(path) && ContainsSubstring("other settings") &&
                          ContainsSubstring("learning_rate") && ContainsSubstring("0.25") &&
                          ContainsSubstring("0.005"));
    CHECK(error.find('\n') == std::string::npos);
    CHECK(error.find("batch_frames") == std::string::npos);  // only what differs
    other = config;
    other.freeze = {"subsampling"};
    CHECK_THAT(resume(other, r.train), ContainsSubstring("freeze"));
  }
  SECTION("of other data") {
    CHECK_THAT(resume(config, r.valid),
               ContainsSubstring(path) && ContainsSubstring("utterances: 40") && ContainsSubstring("12"));
  }
  SECTION("of as much other data, or another beginning") {
    Dataset other = r.train;
    other.examples[7].features(0, 0) += 1e-3F;
    CHECK_THAT(resume(config, other), ContainsSubstring(path) && ContainsSubstring("(data: "));
    other = r.train;
    other.examples[7].text += " more";
    CHECK_THAT(resume(config, other), ContainsSubstring("(data: "));
    model.lm_head.bias.host()(0, 0) += 1e-3F;
    CHECK_THAT(resume(config, r.train), ContainsSubstring("(initial_parameters: "));
  }
  SECTION("with a state that is none") {
    std::string bytes = read_file(path, 1 << 24);
    const std::size_t at = bytes.find(R"(\"batch\":0)");
    REQUIRE(at != std::string::npos);
    bytes[at + 10] = '9';
    write_file(path, bytes);
    CHECK_THAT(resume(config, r.train), ContainsSubstring(path) && ContainsSubstring("its state is none of this run") &&
                                            ContainsSubstring("batch 9"));
  }
  SECTION("cut short") {
    const std::string bytes = read_file(path, 1 << 24);
    for (const std::size_t size : {bytes.size() - 1, bytes.size() / 2, std::size_t{20}, std::size_t{0}}) {
      write_file(path, std::string_view(bytes).substr(0, size));
      CHECK_THAT(resume(config, r.train), ContainsSubstring(path));
    }
  }
  SECTION("no checkpoint at all") {
    save_parameters(model, path);
    CHECK_THAT(resume(config, r.train), ContainsSubstring(path) && ContainsSubstring("not a checkpoint"));
  }
  SECTION("without its losses") {
    std::filesystem::remove(run / "losses.csv");
    CHECK_THAT(resume(config, r.train), ContainsSubstring("losses.csv"));
  }
  CHECK(std::filesystem::exists(path));
}

TEST_CASE("Trainer refuses what it cannot train", "[trainer]") {
  Runs r;
  Model model = small_model();
  const Dataset none;
  TrainConfig config = small_config();
  CHECK_THROWS_WITH(Trainer(model, r.cpu, none, r.valid, r.vocabulary, config), "train: no utterances to train on");
  CHECK_THROWS_WITH(Trainer(model, r.cpu, r.train, none, r.vocabulary, config), "train: no utterances to validate on");
  config.epochs = 0;
  CHECK_THROWS_WITH(Trainer(model, r.cpu, r.train, r.valid, r.vocabulary, config),
                    "train: epochs 0 given, 1 to 10000 expected");
  config = small_config();
  config.learning_rate = std::numeric_limits<double>::quiet_NaN();
  CHECK_THROWS_WITH(Trainer(model, r.cpu, r.train, r.valid, r.vocabulary, config),
                    "train: learning_rate nan given, 0 to 1000 expected");
}

TEST_CASE("A step whose gradient is not finite is left out, and its loss too", "[trainer]") {
  Runs r;
  r.train.examples[3].features.setConstant(std::numeric_limits<float>::quiet_NaN());
  TrainConfig config = small_config();
  config.epochs = 2;
  config.spec_augment = {.num_time_masks = 0, .num_freq_masks = 0};
  TemporaryFolder folder;
  Model model = small_model();
  Trainer trainer(model, r.cpu, r.train, r.valid, r.vocabulary, config, folder / "run");
  Index skipped = 0, epochs = 0;
  trainer.run(
      [&](const TrainProgress& p) {
        skipped += p.skipped;
        if (std::isnan(p.valid_wer)) return;
        ++epochs;
        CHECK(std::isfinite(p.loss));
        CHECK(std::isfinite(p.valid_loss));
      },
      [] {}, never, 1);
  CHECK(skipped == 2);  // one an epoch
  CHECK(epochs == 2);

  for (Example& e : r.train.examples) e.features.setConstant(std::numeric_limits<float>::quiet_NaN());
  Trainer hopeless(model, r.cpu, r.train, r.valid, r.vocabulary, config);
  const auto plan = hopeless.total_steps() / 2;
  CHECK_THROWS_WITH(hopeless.run(silent),
                    Catch::Matchers::StartsWith(text("train: the gradient was not finite ",
                                                     std::min<std::int64_t>(10, plan), " times in a row at step ")));
}

TEST_CASE("An utterance whose labels do not fit trains nothing and spoils nothing", "[trainer]") {
  Runs r;
  Dataset good, both, bad;
  for (std::size_t i = 0; i < 4; ++i) good.examples.push_back(r.train.examples[i]);
  bad.examples.push_back(r.train.examples[4]);
  bad.examples[0].labels.assign(100, 2);
  both = good;
  both.examples.push_back(bad.examples[0]);

  const Model model = small_model();
  const auto gradients = [&](const Dataset& data, double& loss) {
    model.parameters([](std::string_view, const Parameter<float>& p) { p.clear_gradient(); });
    std::vector<Index> all(data.examples.size());
    std::iota(all.begin(), all.end(), Index{0});
    const SpeechBatch batch = make_batch(data, all, nullptr, Seed());
    Autodiff<Cpu<float>> tape(r.cpu, Seed(1));
    const auto l = ctc_loss(tape, model(tape, batch.features, batch.sequences), batch.labels);
    tape.backward(l);
    loss = static_cast<double>(l.value.row(0)[0]);
    double square = 0;
    model.parameters([&](std::string_view, const Parameter<float>& p) {
      if (p.role() != Role::weight) return;
      REQUIRE(p.gradient().allFinite());
      square += static_cast<double>(p.gradient().squaredNorm());
    });
    return square;
  };
  double loss_bad = -1, loss_both = -1;
  CHECK(gradients(bad, loss_bad) == 0);
  CHECK(loss_bad == 0);
  CHECK(gradients(both, loss_both) > 0);
  CHECK(std::isfinite(loss_both));
  CHECK(loss_both > 0);

  // Alone it leaves the weights as they are but for their decay.
  TrainConfig config = small_config();
  config.adamw.weight_decay = 0;
  config.epochs = 1;
  Model trained = small_model();
  const auto before = values(trained);
  Trainer(trained, r.cpu, bad, r.valid, r.vocabulary, config).run(silent);
  for (const auto& [name, numbers] : values(trained)) {
    INFO(name);
    if (name.find("running") == std::string::npos) CHECK(numbers == before.at(name));
  }
}

TEST_CASE("Processes train the model that one trains", "[trainer]") {
  const Runs r;
  TrainConfig config = small_config();
  config.accumulate = 4;
  TemporaryFolder folder;
  const Runs::Result alone = r.unbroken(config, const_cast<Cpu<float>&>(r.cpu), folder / "alone");
  REQUIRE(alone.state.step >= 6);
  /// Trains in so many processes until `stop`, and returns what each came to.
  const auto train = [&](int size, const std::filesystem::path& run, auto&& stop) {
    std::vector<Runs::Result> out(static_cast<std::size_t>(size));
    std::vector<int> calls(out.size());
    const auto errors = in_processes(size, [&](ThreadProcess& process) {
      Cpu<float> cpu(1);
      Model model = small_model();
      const auto rank = static_cast<std::size_t>(process.rank());
      Trainer trainer(model, cpu, r.train, r.valid, r.vocabulary, config, run, {}, {}, AnyCommunicator(process));
      trainer.run([&](const TrainProgress&) { ++calls[rank]; }, [&] { ++calls[rank]; }, stop);
      out[rank] = {values(model), {}, trainer.state()};
    });
    for (std::size_t rank = 0; rank < out.size(); ++rank) {
      CHECK(errors[rank].empty());
      CHECK((calls[rank] > 0) == (rank == 0));
      CHECK(same_bits(out[rank].values, out[0].values));
      CHECK(out[rank].state.best_wer == out[0].state.best_wer);
    }
    out[0].losses = read_file(run / "losses.csv", 1 << 20);
    return out[0];
  };
  SECTION("bit for bit, if each has 1, 2 or 4 of the batches") {
    for (const Index accumulate : {4, 8}) {
      config.accumulate = accumulate;
      const Runs::Result one = r.unbroken(config, const_cast<Cpu<float>&>(r.cpu), folder / text("one", accumulate));
      for (const int size : {2, 4}) {
        const Runs::Result together = train(size, folder / text(accumulate, '-', size), never);
        CHECK(same_bits(together.values, one.values));
        CHECK(together.losses == one.losses);
        CHECK(together.state.best_loss == one.state.best_loss);
      }
    }
    // The last update of an epoch has blocks that are not equal.
    const auto last = length_buckets(r.train, config.batch_frames, Seed(1)).size() % 8;
    CHECK((last == 5 || last == 6));
  }
  SECTION("to rounding, if not") {
    config.accumulate = 6;
    const Runs::Result one = r.unbroken(config, const_cast<Cpu<float>&>(r.cpu), folder / "one"),
                       two = train(2, folder / "two", never);
    CHECK(one.state.step == two.state.step);
    for (const auto& [name, list] : one.values)
      for (std::size_t i = 0; i < list.size(); ++i) CHECK(two.values.at(name)[i] == Approx(list[i]).margin(2e-3));
  }
  SECTION("and go on with another number of processes") {
    train(4, folder / "run", [](const TrainState& s) { return s.step == 2; });
    train(1, folder / "run", [](const TrainState& s) { return s.step == 3; });
    const Runs::Result rest = train(2, folder / "run", never);
    CHECK(same_bits(rest.values, alone.values));
    CHECK(rest.losses == alone.losses);
  }
}

TEST_CASE("Processes that cannot train together say so", "[trainer]") {
  const Runs r;
  const auto begin = [&](int size, auto&& change) {
    return in_processes(size, [&](ThreadProcess& process) {
      Cpu<float> cpu(1);
      Model model = small_model();
      TrainConfig config = small_config();
      config.accumulate = 2;
      change(process.rank(), config, model);
      Trainer(model, cpu, r.train, r.valid, r.vocabulary, config, {}, {}, {}, AnyCommunicator(process));
    });
  };
  const auto as_it_is = [](int, TrainConfig&, Model&) {};
  CHECK(begin(2, as_it_is) == std::vector<std::string>(2));
  CHECK(begin(3, as_it_is)[1] ==
        "train: accumulate 2 given for 3 processes, which share the batches of an update; at least 3 expected");
  const std::string differs =
      "process 1 of 2: other model, data, settings or folder than in process 0 given, the same expected in all";
  CHECK(begin(2, [](int rank, TrainConfig& config, Model&) { config.seed += rank; })[1] == differs);
  CHECK(begin(2, [](int rank, TrainConfig&, Model& model) {
          if (rank == 1) model.parameters([](std::string_view, Parameter<float>& p) { p.host().data()[0] += 1; });
        })[1] == differs);
}
