// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// Shared by the benches that bench/peers/compare.py runs. Each answers a line "run K" of standard input by one line of
// JSON: "seconds" of K measurements, as a list or as {name: {work: list}}, and other facts.
#pragma once

#include <laconic/core/error.hpp>
#include <laconic/core/parallel.hpp>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#ifdef __GLIBC__
#include <malloc.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif

#include <algorithm>
#include <atomic>
#include <chrono>
#include <fstream>
#include <iostream>
#include <sstream>
#include <string>

namespace bench {

using Json = nlohmann::ordered_json;

/// Holds the options that all these benches share.
struct Options {
  int threads = laconic::hardware_threads();
  bool serves = false;

  void add_to(CLI::App& app) {
    app.add_flag("--serve", serves, "answer lines \"run K\" of standard input");
    app.add_option("--threads", threads, "threads")->capture_default_str()->check(CLI::PositiveNumber);
  }
};

template <class Run>
double seconds_of(Run&& run) {
  const auto start = std::chrono::steady_clock::now();
  run();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Returns how many calls take about 3 ms together, so that the resolution of the clock does not matter. run(i) is call
/// number i; caches are warm afterwards.
template <class Run>
laconic::Index calls_for(Run&& run) {
  run(0);
  laconic::Index calls = 1;
  while (calls < 1'000'000) {
    const double seconds = seconds_of([&] {
      for (laconic::Index i = 0; i < calls; ++i) run(i);
    });
    if (seconds > 1e-3)
      return std::max<laconic::Index>(1, static_cast<laconic::Index>(3e-3 / seconds * static_cast<double>(calls)));
    calls *= 4;
  }
  return calls;
}

/// Returns the nanoseconds that a cache line takes from the thread that writes it to a thread that waits for it: about
/// 30 for cores that share an L3, several times as many for cores that do not. In a virtual machine it may change at
/// any time. It measures the first two threads of the team that kernels use, and returns 0 with one thread.
inline double hand_over_ns([[maybe_unused]] int threads) {
  double nanoseconds = 0;
#ifdef _OPENMP
  struct alignas(64) Line {
    std::atomic<int> value{0};
  } line;
  constexpr int warm_up = 1000, trips = 20000, ended = -1;
#pragma omp parallel num_threads(threads)
  if (omp_get_num_threads() > 1 && omp_get_thread_num() == 0) {
    using Clock = std::chrono::steady_clock;
    const auto passed = [](auto since) { return std::chrono::duration<double>(Clock::now() - since).count(); };
    const auto begin = Clock::now();
    auto start = begin;
    int trip = 0;
    // Threads that must share a core take milliseconds each time.
    while (trip < warm_up + trips && (trip % 16 != 0 || passed(begin) < 0.1)) {
      if (trip == warm_up) start = Clock::now();
      line.value.store(2 * trip + 1, std::memory_order_release);
      while (line.value.load(std::memory_order_acquire) != 2 * trip + 2) {
      }
      ++trip;
    }
    nanoseconds = 1e9 * passed(start) / (2 * (trip > warm_up ? trip - warm_up : trip));
    line.value.store(ended, std::memory_order_release);
  } else if (omp_get_thread_num() == 1) {
    for (int seen = 0; seen != ended; seen = line.value.load(std::memory_order_acquire))
      if (seen % 2 == 1) line.value.store(seen + 1, std::memory_order_release);
  }
#endif
  return nanoseconds;
}

/// Returns a value of /proc/self/status in MB: "VmHWM" is the peak memory, "VmRSS" the current memory. Returns 0 if
/// there is no such file.
inline double memory_mb(const std::string& what) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with(what + ":")) return std::stod(line.substr(what.size() + 1)) * 1024e-6;
  return 0;
}

/// Resets the peak memory to the current memory, after returning freed memory to the system.
inline void reset_peak() {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
  std::ofstream("/proc/self/clear_refs") << '5';
}

/// Returns the peak memory of run() above the memory before it, in MB.
template <class Run>
double peak_over(Run&& run) {
  reset_peak();
  const double before = memory_mb("VmRSS");
  run();
  return std::max(0.0, memory_mb("VmHWM") - before);
}

/// Answers the lines of standard input until it ends, with run(K) and the time between cores (see hand_over_ns).
/// Returns the exit code.
template <class Run>
int serve(const Options& options, Run&& run) {
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    std::string command, rest;
    laconic::Index count = 0;
    if (!(words >> command >> count) || command != "run" || count < 1 || words >> rest) {
      std::cerr << '"' << line << "\" given, \"run K\" with K at least 1 expected\n";
      return 2;
    }
    const double before = hand_over_ns(options.threads);
    Json answer = run(count);
    if (before > 0) answer["hand_over_ns"] = std::max(before, hand_over_ns(options.threads));
    std::cout << answer.dump() << std::endl;
  }
  return 0;
}

/// Runs the body of `main`, prints the message of an `Error`, and returns the exit code.
template <class Body>
int guarded(Body&& body) {
  try {
    return body();
  } catch (const laconic::Error& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}

}  // namespace bench
