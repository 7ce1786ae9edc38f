// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// Measures one kernel next to its roofline bound, for kernels.cpp.
#pragma once

#include <laconic/backend/cpu.hpp>

#include <benchmark/benchmark.h>

#include <string>
#include <utility>
#include <vector>

#include "roofs.hpp"
#include "serve.hpp"

namespace bench {

using laconic::Cpu, laconic::Index, laconic::Matrix, laconic::text;

inline constexpr double float_bytes = 4;

inline Matrix<float> noise(Index rows, Index cols) { return Matrix<float>::Random(rows, cols); }
inline double size_of(Index rows, Index cols) { return static_cast<double>(rows * cols); }

/// Registers benchmarks for each number of threads whose roofs were measured.
class Suite {
 public:
  explicit Suite(std::vector<Roofs> roofs) : roofs_(std::move(roofs)) {}

  /// Registers the benchmark of a kernel. setup(cpu) returns the call to time, which owns its operands.
  template <class Setup>
  void add(const std::string& name, const Work& work, Setup setup) const {
    for (const Roofs& roofs : roofs_)
      add_one(text(name, "/threads:", roofs.threads), [=, &roofs](benchmark::State& state) {
        Cpu<float> cpu(roofs.threads);
        auto call = setup(cpu);
        const double seconds = seconds_a_call(state, call);
        if (work.flop > 0) state.counters["GFLOP/s"] = 1e-9 * work.flop / seconds;
        state.counters["GB/s"] = 1e-9 * work.bytes / seconds;
        const auto bound = roofs.bound(work);
        state.counters["of_roof"] = 100 * bound.seconds / seconds;
        state.SetLabel(bound.name);
      });
  }
  /// Registers a benchmark of one thread that reports its time relative to the duration of the speech.
  template <class Setup>
  static void add_speech(const std::string& name, double speech_seconds, Setup setup) {
    add_one(name, [=](benchmark::State& state) {
      auto call = setup();
      state.counters["real_time_factor"] = seconds_a_call(state, call) / speech_seconds;
    });
  }

 private:
  template <class Run>
  static void add_one(const std::string& name, Run run) {
    benchmark::RegisterBenchmark(name.c_str(), run)->UseRealTime()->Unit(benchmark::kMicrosecond);
  }
  template <class Call>
  static double seconds_a_call(benchmark::State& state, Call& call) {
    benchmark::DoNotOptimize(call());  // warm
    const double seconds = seconds_of([&] {
      for (auto _ : state) benchmark::DoNotOptimize(call());
    });
    return seconds / static_cast<double>(state.iterations());
  }

  std::vector<Roofs> roofs_;
};

}  // namespace bench
