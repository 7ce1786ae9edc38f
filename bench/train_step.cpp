// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// Times a training step of a Conformer: forward, backward and update. Two sizes:
//   144    16 utterances of 3 s, d 144, 4 layers, 4 heads
//   512    8 utterances of 8 s, d 512, 8 layers, 8 heads
//
//   build/release/bench/train_step                  Google Benchmark: the whole step, with and without recomputation of
//                                                   blocks, and its forward pass
//   build/release/bench/train_step --serve [--threads N] [--size 144|512]     for bench/peers/compare.py train_step
#include <laconic/laconic.hpp>
#include <laconic/train/adamw.hpp>
#include <laconic/train/ctc_loss.hpp>

#include <benchmark/benchmark.h>

#include <algorithm>
#include <string>
#include <string_view>

#include "serve.hpp"

namespace {

using namespace laconic;

/// Describes a model and its data, as bench/peers/train_step.py does under the same name.
struct Size {
  Index d_model, num_layers, num_heads, num_utterances, num_frames, labels_each, num_parameters;

  EncoderConfig config() const {
    return {.num_mels = 80,
            .d_model = d_model,
            .num_layers = num_layers,
            .vocab_size = 29,
            .num_heads = num_heads,
            .dropout = 0.1};
  }
};
constexpr Size size_144{144, 4, 4, 16, 298, 36, 2'611'469};
constexpr Size size_512{512, 8, 8, 8, 798, 96, 57'935'389};
constexpr const Size& size_of(Index d_model) { return d_model == 144 ? size_144 : size_512; }

/// Holds the model, its data and its optimiser, as bench/peers/train_step.py does.
struct TrainStep {
  TrainStep(const Size& size, int threads, bool recompute_blocks = false)
      : cpu(threads),
        recompute(recompute_blocks),
        model(size.config(), Seed(1)),
        optimizer(cpu, {.weight_decay = 0.01, .clip_norm = 0}),
        features(size.num_utterances * size.num_frames, 80) {
    require(model.count_parameters() == size.num_parameters, "train_step: a model of ", model.count_parameters(),
            " parameters, ", size.num_parameters, " expected as in bench/peers/train_step.py");
    const Random random(Seed(2), 0);
    for (Index i = 0; i < features.size(); ++i)
      features.data()[i] = static_cast<float>(random.normal(static_cast<std::uint64_t>(i)));
    const auto count = static_cast<std::size_t>(size.num_utterances);
    const std::vector<Index> lengths(count, size.num_frames), label_lengths(count, size.labels_each);
    sequences = Sequences(lengths);
    labels.sequences = Sequences(label_lengths);
    for (Index i = 0; i < labels.sequences.rows(); ++i)
      labels.tokens.push_back(1 + static_cast<int>(random.below(28, static_cast<std::uint64_t>(i))));
  }

  void operator()() {
    Autodiff tape(cpu, Seed(static_cast<std::uint64_t>(optimizer.steps())));
    tape.recompute_blocks = recompute;
    const auto loss = ctc_loss(tape, model(tape, features, sequences), labels);
    tape.backward(loss);
    optimizer.step(model, 1e-4);
  }

  Cpu<float> cpu;
  bool recompute;
  Conformer<Mha<dyn>> model;
  AdamW<Cpu<float>> optimizer;
  Matrix<float> features;
  Sequences sequences;
  Labels labels;
};

void count(benchmark::State& state, TrainStep& step) {
  state.counters["audio_s/s"] = benchmark::Counter(0.01 * static_cast<double>(step.sequences.rows()),
                                                   benchmark::Counter::kIsIterationInvariantRate);
  state.counters["activations_MiB"] = static_cast<double>(step.cpu.arena().peak_bytes()) * 0x1p-20;
}

void train_step(benchmark::State& state) {
  TrainStep step(size_of(state.range(0)), static_cast<int>(state.range(1)), state.range(2) != 0);
  step();
  for (auto _ : state) step();
  count(state, step);
}
BENCHMARK(train_step)
    ->ArgsProduct({{144, 512}, {1, 2}, {0, 1}})
    ->ArgNames({"d", "threads", "recompute"})
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

void forward(benchmark::State& state) {
  TrainStep step(size_of(state.range(0)), static_cast<int>(state.range(1)));
  for (auto _ : state) benchmark::DoNotOptimize(step.model(step.cpu, step.features, step.sequences).rows.data());
  count(state, step);
}
BENCHMARK(forward)
    ->ArgsProduct({{144, 512}, {1, 2}})
    ->ArgNames({"d", "threads"})
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

int serve(const Size& size, const bench::Options& options) {
  TrainStep step(size, options.threads);
  bench::reset_peak();
  return bench::serve(options, [&](Index steps) {
    bench::Json answer{{"name", "laconic"}, {"parameters", size.num_parameters}};
    for (Index i = 0; i < steps; ++i) answer["seconds"].push_back(bench::seconds_of(step));
    answer["peak_mb"] = bench::memory_mb("VmHWM");
    return answer;
  });
}

}  // namespace

int main(int argc, char** argv) {
  const bool serving =
      std::any_of(argv + 1, argv + argc, [](const char* word) { return std::string_view(word) == "--serve"; });
  if (!serving) {
    benchmark::Initialize(&argc, argv);
    if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
    benchmark::RunSpecifiedBenchmarks();
    return 0;
  }
  CLI::App app("one training step of a Conformer");
  bench::Options options;
  std::string size = "144";
  options.add_to(app);
  app.add_option("--size", size, "d_model")->capture_default_str()->check(CLI::IsMember({"144", "512"}));
  CLI11_PARSE(app, argc, argv);
  return bench::guarded([&] { return serve(size_of(std::stoi(size)), options); });
}
