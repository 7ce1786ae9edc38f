// laconic: attention for speech models. SPDX-License-Identifier: MIT
// Distillation: its losses against their formulas, and training that follows a teacher or touches attention alone.
#include "gradient_check.hpp"

#include <laconic/model/conformer.hpp>
#include <laconic/recognition/trainer.hpp>
#include <laconic/train/fisher.hpp>

#include "ridge_speech.hpp"
#include "temporary_folder.hpp"

using namespace laconic;

namespace {

using Model = Conformer<Mha<2>>;
Model small_model(std::uint64_t seed) {
  return Model({.num_mels = mels,
                .d_model = 16,
                .num_layers = 2,
                .vocab_size = 5,
                .ffn_expansion = 2,
                .conv_kernel = 5,
                .subsampling = 2,
                .subsampling_channels = 4,
                .dropout = 0},
               Seed(seed));
}

struct Speech {
  Dataset train = corpus(40, Seed(1)), valid = corpus(12, Seed(2));
  Vocabulary vocabulary = Vocabulary::words(words);
  Cpu<float> cpu{1};
};
TrainConfig config_of(Index epochs, double rate) {
  TrainConfig config;
  config.epochs = epochs;
  config.batch_frames = 250;
  config.learning_rate = rate;
  config.spec_augment = {
      .num_time_masks = 0, .max_time_width = 0, .max_time_fraction = 0, .num_freq_masks = 0, .max_freq_width = 0};
  return config;
}
const auto silent = [](const TrainProgress&) {};

/// Mean squared difference of the log probabilities.
double distance(const Model& a, const Model& b, const Dataset& data) {
  Cpu<float> cpu(1);
  std::vector<Index> all(static_cast<std::size_t>(data.size()));
  std::iota(all.begin(), all.end(), Index{0});
  const SpeechBatch batch = make_batch(data, all, nullptr, Seed());
  const auto probabilities = [&](const Model& m) {
    return cpu.log_softmax(m(cpu, batch.features, batch.sequences).rows);
  };
  const auto x = probabilities(a), y = probabilities(b);
  return static_cast<double>((x.view() - y.view()).squaredNorm()) / static_cast<double>(x.size());
}

}  // namespace

TEST_CASE("the loss of probabilities is their divergence", "[distill]") {
  const Sequences sequences{4, 3};
  const Matrix<double> student = random_matrix(7, 5, 1), teacher = random_matrix(7, 5, 2);
  for (const double temperature : {1.0, 2.5}) {
    Cpu<double> cpu(1);
    const Logits<Tensor<double>> taught{cpu.input(teacher), sequences};
    double expected = 0;
    for (Index r = 0; r < 7; ++r) {
      const auto softmax = [&](const Matrix<double>& x) {
        Eigen::ArrayXd p = (x.row(r).transpose().array() / temperature).exp();
        return Eigen::ArrayXd(p / p.sum());
      };
      const Eigen::ArrayXd p = softmax(teacher), q = softmax(student);
      expected += temperature * temperature * (p * (p / q).log()).sum() / 2;
    }
    Autodiff<Cpu<double>> tape(cpu);
    CHECK(distillation_loss(tape, Logits<Autodiff<Cpu<double>>::Tensor>{tape.variable(student), sequences}, taught,
                            temperature)
              .value.row(0)[0] == Approx(expected).epsilon(1e-12));
    CHECK(std::abs(distillation_loss(tape, Logits<Autodiff<Cpu<double>>::Tensor>{tape.variable(teacher), sequences},
                                     taught, temperature)
                       .value.row(0)[0]) < 1e-13);
    const GradientCheck check;
    CHECK(check({student}, {}, [&](auto& on, const auto& v) {
            return distillation_loss(on, Logits<std::decay_t<decltype(v[0])>>{v[0], sequences}, taught, temperature);
          }) < 1e-7);
  }
}

TEST_CASE("the loss of blocks is their relative squared error", "[distill]") {
  const Matrix<double> a = random_matrix(7, 4, 1), b = random_matrix(7, 4, 2), x = random_matrix(7, 4, 3),
                       y = random_matrix(7, 4, 4);
  Cpu<double> cpu(1);
  const std::vector<Tensor<double>> taught{cpu.input(a), cpu.input(b)};
  const auto loss = [&](auto& tape, const auto& v) { return block_loss(tape, std::vector{v[0], v[1]}, taught); };
  Autodiff<Cpu<double>> tape(cpu);
  CHECK(loss(tape, std::vector{tape.variable(x), tape.variable(y)}).value.row(0)[0] ==
        Approx(((x - a).squaredNorm() / a.squaredNorm() + (y - b).squaredNorm() / b.squaredNorm()) / 2).epsilon(1e-12));
  const GradientCheck check;
  CHECK(check({x, y}, {}, loss) < 1e-7);
  CHECK_THROWS_WITH(block_loss(tape, std::vector{tape.variable(x)}, taught),
                    "distillation: the teacher has 2 blocks, the student 1");
}

TEST_CASE("a student comes to its teacher, whatever the labels say", "[distill]") {
  Speech s;
  const Model teacher = small_model(3);
  Dataset other = s.train;
  for (Example& e : other.examples) std::fill(e.labels.begin(), e.labels.end(), 1);
  TrainConfig config = config_of(6, 5e-3);
  config.distillation = {.weight = 1};
  const auto trained = [&](const Dataset& data) {
    Model student = small_model(4);
    Trainer trainer(student, s.cpu, data, s.valid, s.vocabulary, config, {}, teacher_of(teacher));
    trainer.run(silent);
    return student;
  };
  const Model student = trained(s.train), same = trained(other);
  CHECK(distance(student, teacher, s.valid) < 0.2 * distance(small_model(4), teacher, s.valid));
  CHECK(Fingerprint::of_parameters(student) == Fingerprint::of_parameters(same));
}

TEST_CASE("one that is its teacher has nothing to learn from it", "[distill]") {
  Speech s;
  const Model teacher = small_model(3);
  Model student = teacher;
  TrainConfig config = config_of(1, 1e-3);
  config.distillation = {.weight = 1, .temperature = 2, .layer_weight = 1};
  // Batch norm computes with the batch in training, with its running statistics in the teacher: frozen, it does as the
  // teacher.
  config.train_only = {"self_attn"};
  std::vector<double> losses;
  Trainer trainer(student, s.cpu, s.train, s.valid, s.vocabulary, config, {}, teacher_of(teacher));
  trainer.run([&](const TrainProgress& p) { losses.push_back(p.loss); });
  CHECK(std::abs(losses.front()) < 1e-4);
}

TEST_CASE("blocks that are computed again learn the same from a teacher's blocks", "[distill]") {
  Speech s;
  const Model teacher = small_model(3);
  TrainConfig config = config_of(1, 1e-3);
  config.distillation = {.weight = 0.5, .layer_weight = 1};
  const auto trained = [&](bool recompute) {
    Model student = small_model(4);
    config.recompute = recompute;
    Trainer trainer(student, s.cpu, s.train, s.valid, s.vocabulary, config, {}, teacher_of(teacher));
    trainer.run(silent);
    return Fingerprint::of_parameters(student);
  };
  CHECK(trained(true) == trained(false));
}

TEST_CASE("training touches attention alone where that is asked for", "[distill]") {
  Speech s;
  const Model before = small_model(3);
  Model model = before;
  TrainConfig config = config_of(1, 1e-3);
  config.train_only = {"self_attn."};
  config.freeze = {"linear_pos"};
  Trainer trainer(model, s.cpu, s.train, s.valid, s.vocabulary, config);
  trainer.run(silent);
  std::vector<const Parameter<float>*> was;
  before.parameters([&](std::string_view, const Parameter<float>& p) { was.push_back(&p); });
  std::size_t i = 0;
  model.parameters([&](std::string_view name, const Parameter<float>& p) {
    CAPTURE(name);
    const bool changed = p.host() != was[i++]->host();
    const bool is_key_bias = name.ends_with("linear_k.bias");  // changes no probability, and may stay
    if (!is_key_bias)
      CHECK(changed ==
            (name.find("self_attn.") != std::string_view::npos && name.find("linear_pos") == std::string_view::npos));
  });
  config.train_only = {"decoder"};
  CHECK_THROWS_WITH(Trainer(model, s.cpu, s.train, s.valid, s.vocabulary, config),
                    "train_only: no parameter's name contains \"decoder\"");
}

TEST_CASE("training goes on with what the optimiser had learnt", "[distill]") {
  Speech s;
  const TrainConfig config = config_of(1, 1e-3);
  Model first = small_model(3);
  Trainer before(first, s.cpu, s.train, s.valid, s.vocabulary, config);
  before.run(silent);
  const auto trained_on = [&](OptimizerState<float> learnt) {
    Model model = first;
    Trainer trainer(model, s.cpu, s.train, s.valid, s.vocabulary, config, {}, {}, std::move(learnt));
    trainer.run(silent);
    return std::pair(Fingerprint::of_parameters(model), trainer.optimizer().steps);
  };
  const auto [with, steps] = trained_on(before.optimizer());
  CHECK(steps == 2 * before.optimizer().steps);
  CHECK(with == trained_on(before.optimizer()).first);
  CHECK(with != trained_on({}).first);
  OptimizerState<float> wrong = before.optimizer();
  wrong.moments[0].second.resize(1, 2);
  CHECK_THROWS_WITH(trained_on(wrong), Catch::Matchers::ContainsSubstring("train: moments of (1, 2) given for "));
  wrong.moments.resize(1000);
  wrong.moments[0] = {};
  CHECK_THROWS_WITH(trained_on(wrong), "train: moments of 1000 parameters given for a model of fewer");
}

TEST_CASE("Fisher information is the mean square of utterances' derivatives", "[fisher]") {
  Speech s;
  const Model model = small_model(3);
  const std::vector<Index> three{0, 4, 7};
  const SpeechBatch batch = make_batch(s.train, three, nullptr, Seed());
  const std::vector<double> information =
      fisher_information(model, s.cpu, batch.features, batch.sequences, batch.labels);
  REQUIRE(information.size() == 2);
  for (std::size_t l = 0; l < 2; ++l) {
    double sum = 0;
    for (const Index i : three) {
      const SpeechBatch one = make_batch(s.train, std::span(&i, 1), nullptr, Seed());
      Autodiff<Cpu<float>> tape(s.cpu, Seed(), false);
      tape.backward(ctc_loss(tape, model(tape, one.features, one.sequences), one.labels));
      const auto& kv = model.layers[l].self_attn.key_value;
      sum += static_cast<double>(kv.linear_k.weight.gradient().squaredNorm() +
                                 kv.linear_v.weight.gradient().squaredNorm());
      model.parameters([](std::string_view, const Parameter<float>& p) { p.clear_gradient(); });
    }
    CHECK(information[l] == Approx(sum / (3 * 2 * 16 * 16)).epsilon(1e-5));
    CHECK(information[l] > 0);
  }
  // An utterance without frames first: it says nothing, and counts as one.
  Matrix<float> more(batch.features.rows() + 1, batch.features.cols());
  more << Matrix<float>::Zero(1, batch.features.cols()), batch.features;
  std::vector<Index> lengths{1}, label_lengths{0};
  for (Index n = 0; n < batch.sequences.size(); ++n) {
    lengths.push_back(batch.sequences.length(n));
    label_lengths.push_back(batch.labels.sequences.length(n));
  }
  const std::vector<double> of_four =
      fisher_information(model, s.cpu, more, Sequences(lengths), {batch.labels.tokens, Sequences(label_lengths)});
  for (std::size_t l = 0; l < 2; ++l) CHECK(of_four[l] == Approx(0.75 * information[l]).epsilon(1e-5));
  CHECK_THROWS_WITH(
      fisher_information(model, s.cpu, batch.features, batch.sequences, Labels()),
      "fisher_information: 0 label sequences given for 3 sequences of features, equal numbers of at least 1 expected");
}

TEST_CASE("a teacher goes with its weights, and a run with its teacher", "[distill]") {
  Speech s;
  const Model teacher = small_model(3), another = small_model(5);
  Model student = small_model(4);
  TrainConfig config = config_of(2, 1e-3);
  CHECK_THROWS_WITH(Trainer(student, s.cpu, s.train, s.valid, s.vocabulary, config, {}, teacher_of(teacher)),
                    "train: a teacher given, but its weight and layer_weight are 0; one must be more");
  config.distillation.layer_weight = 0.5;
  CHECK_THROWS_WITH(Trainer(student, s.cpu, s.train, s.valid, s.vocabulary, config),
                    "train: distillation with weight 0 and layer_weight 0.5 given without a teacher, which it needs");
  const TemporaryFolder folder;
  Model stopped = student;
  Trainer trainer(stopped, s.cpu, s.train, s.valid, s.vocabulary, config, folder / "run", teacher_of(teacher));
  trainer.run(
      silent, [] {}, [](const TrainState& state) { return state.step == 2; });
  Model resumed = student;
  CHECK_THROWS_WITH(
      Trainer(resumed, s.cpu, s.train, s.valid, s.vocabulary, config, folder / "run", teacher_of(another)),
      Catch::Matchers::ContainsSubstring("belongs to a run with other settings or data (teacher: "));
  Trainer(resumed, s.cpu, s.train, s.valid, s.vocabulary, config, folder / "run", teacher_of(teacher)).run(silent);
  Model unbroken = student;
  Trainer(unbroken, s.cpu, s.train, s.valid, s.vocabulary, config, {}, teacher_of(teacher)).run(silent);
  CHECK(Fingerprint::of_parameters(resumed) == Fingerprint::of_parameters(unbroken));
  config.distillation.weight = 2;
  CHECK_THROWS_WITH(config.check(), "distillation: weight 2 given, 0 to 1 expected");
}
