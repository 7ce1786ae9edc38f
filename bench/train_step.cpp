// One training step of a small Conformer: 16 utterances of 3 s, d 144, 4 layers, forward, backward and update.
//
//   build/release/bench/train_step                    Google Benchmark, the whole step and its parts
//   build/release/bench/train_step --serve --threads N   answers "run K" on standard input by one JSON line, for
//                                                     bench/peers/compare_train_step.py
#include <laconic/laconic.hpp>

#include <benchmark/benchmark.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <string>

namespace {

using namespace laconic;

/// The model, its data and its optimiser, as bench/peers/train_step.py has them.
struct TrainStep {
  static constexpr Index num_utterances = 16, num_frames = 298, labels_each = 36;

  explicit TrainStep(int threads)
      : cpu(threads),
        model({.num_mels = 80, .d_model = 144, .num_layers = 4, .vocab_size = 29, .dropout = 0.1}, Seed(1)),
        optimizer({.weight_decay = 0.01, .clip_norm = 0}, threads),
        features(num_utterances * num_frames, 80) {
    require(model.count_parameters() == 2'611'469, "train_step: not the model of bench/peers/train_step.py");
    const Random random(Seed(2), 0);
    for (Index i = 0; i < features.size(); ++i)
      features.data()[i] = static_cast<float>(random.normal(static_cast<std::uint64_t>(i)));
    const std::vector<Index> lengths(num_utterances, num_frames), label_lengths(num_utterances, labels_each);
    sequences = Sequences(lengths);
    labels.sequences = Sequences(label_lengths);
    for (Index i = 0; i < num_utterances * labels_each; ++i)
      labels.tokens.push_back(1 + static_cast<int>(random.below(28, static_cast<std::uint64_t>(i))));
  }

  void operator()() {
    Autodiff tape(cpu, Seed(static_cast<std::uint64_t>(optimizer.state().steps)));
    const auto loss = ctc_loss(tape, model(tape, features, sequences), labels);
    tape.backward(loss);
    optimizer.step(model, 1e-4);
  }

  Cpu<float> cpu;
  Conformer<Mha<4>> model;
  AdamW<float> optimizer;
  Matrix<float> features;
  Sequences sequences;
  Labels labels;
};

void train_step(benchmark::State& state) {
  TrainStep step(static_cast<int>(state.range(0)));
  step();
  for (auto _ : state) step();
  state.counters["audio_s/s"] =
      benchmark::Counter(3.0 * TrainStep::num_utterances, benchmark::Counter::kIsIterationInvariantRate);
}
BENCHMARK(train_step)->Arg(1)->Arg(2)->Unit(benchmark::kMillisecond)->UseRealTime();

void forward(benchmark::State& state) {
  TrainStep step(static_cast<int>(state.range(0)));
  for (auto _ : state) benchmark::DoNotOptimize(step.model(step.cpu, step.features, step.sequences).rows.data());
  state.counters["audio_s/s"] =
      benchmark::Counter(3.0 * TrainStep::num_utterances, benchmark::Counter::kIsIterationInvariantRate);
}
BENCHMARK(forward)->Arg(1)->Arg(2)->Unit(benchmark::kMillisecond)->UseRealTime();

int serve(int threads) {
  TrainStep step(threads);
  std::string command;
  for (int steps; std::cin >> command >> steps;) {
    std::cout << "{\"seconds\": [";
    for (int i = 0; i < steps; ++i) {
      const auto start = std::chrono::steady_clock::now();
      step();
      std::cout << (i > 0 ? ", " : "")
                << std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    }
    std::cout << "]}" << std::endl;
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  bool serving = false;
  int threads = hardware_threads();
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--serve") == 0) serving = true;
    if (std::strcmp(argv[i], "--threads") == 0 && i + 1 < argc) threads = std::atoi(argv[i + 1]);
  }
  if (serving) return serve(threads);
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
}
