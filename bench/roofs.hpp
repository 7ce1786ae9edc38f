// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// Measures what bounds a kernel on this machine: multiply-adds in registers, and reading bytes from the caches or from
// memory. The program that measures the kernels measures these roofs, so that both meet the same conditions.
#pragma once

#include <laconic/backend/cpu/kernels/simd.hpp>
#include <laconic/backend/cpu/weights.hpp>
#include <laconic/core/parallel.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "fma_peak.hpp"
#include "serve.hpp"

namespace bench {

/// Describes the min work of one call: each operand is read once and each result written once.
struct Work {
  double flop = 0, bytes = 0;
  bool int8 = false;       // multiplies bytes if the processor can
  double working_set = 0;  // bytes touched before the same ones are read again; 0: those of one call
};

/// Returns the max of several measurements, since other programs can only slow them down.
template <class Measure>
double best_of(int times, Measure&& measure) {
  double best = 0;
  for (int i = 0; i < times; ++i) best = std::max(best, measure());
  return best;
}

/// Reads x (n) `passes` times. It is not inlined, so that no pass is left out.
[[gnu::noinline]] inline float read_run(const float* x, laconic::Index n, laconic::Index passes) {
  using Batch = laconic::kernels::Batch<float>;
  constexpr laconic::Index width = laconic::kernels::lanes<float>, chains = 8;
  Batch max[chains];
#pragma GCC unroll 8
  for (laconic::Index c = 0; c < chains; ++c) max[c] = Batch(0.0f);
  for (laconic::Index pass = 0; pass < passes; ++pass)
    for (laconic::Index i = 0; i + chains * width <= n; i += chains * width) {
#pragma GCC unroll 8
      for (laconic::Index c = 0; c < chains; ++c)
        max[c] = xsimd::max(max[c], laconic::kernels::load(x + i + c * width));
    }
  for (laconic::Index c = 1; c < chains; ++c) max[0] += max[c];
  return laconic::kernels::sum_lanes<float>(max[0]);
}

/// Returns the GB/s of reading the first `bytes` of x repeatedly over some 5 ms, or once. Each thread reads its own
/// range.
inline double read_gbs(int threads, const std::vector<float>& x, double bytes) {
  const auto part = static_cast<laconic::Index>(bytes / 4) / threads;
  const auto passes = std::max<laconic::Index>(1, static_cast<laconic::Index>(3e8 / bytes));
  std::vector<float> results(static_cast<std::size_t>(threads));
  const double seconds = seconds_of([&] {
    laconic::kernels::parallel_for(threads, threads, [&](laconic::Index i, int) {
      results[static_cast<std::size_t>(i)] = read_run(x.data() + i * part, part, passes);
    });
  });
  [[maybe_unused]] const volatile float kept = results.front();
  return 4e-9 * static_cast<double>(part * passes * threads) / seconds;
}

#if LACONIC_WHOLE_PRODUCTS
/// Runs `steps` multiply-adds of bytes in each chain, as `fma_run` does with floats.
[[gnu::noinline]] inline std::int32_t int8_run(laconic::Index steps, const volatile std::int32_t* from) {
  namespace kernels = laconic::kernels;
  const auto a = kernels::spread_group(from[0]), b = kernels::spread_group(from[1]);
  kernels::WholeVector chain[fma_chains];
#pragma GCC unroll 24
  for (int c = 0; c < fma_chains; ++c) chain[c] = kernels::spread_group(from[2] + c);  // equal ones would be one chain
  for (laconic::Index i = 0; i < steps; ++i) {
#pragma GCC unroll 24
    for (int c = 0; c < fma_chains; ++c) chain[c] = kernels::add_products(chain[c], a, b);
  }
  kernels::WholeVector sum(0);
#pragma GCC unroll 24
  for (int c = 0; c < fma_chains; ++c) sum += chain[c];
  return kernels::sum_lanes<std::int32_t>(sum);
}
#endif

/// Returns the GOP/s of multiply-adds of bytes, or 0 if the instruction set has none that are faster than of floats.
inline double int8_peak_gops([[maybe_unused]] int threads) {
#if LACONIC_WHOLE_PRODUCTS
  static const volatile std::int32_t from[4] = {0x00010002, 0x00020001, 1, 200'000};
  const laconic::Index steps = from[3];  // a known number made GCC 12 spill the chains
  constexpr laconic::Index products = laconic::kernels::lanes<float> * laconic::kernels::bytes_group;
  std::vector<std::int32_t> results(static_cast<std::size_t>(threads));
  const double seconds = seconds_of([&] {
    laconic::kernels::parallel_for(
        threads, threads, [&](laconic::Index i, int) { results[static_cast<std::size_t>(i)] = int8_run(steps, from); });
  });
  [[maybe_unused]] const volatile std::int32_t kept = results.front();
  return 2e-9 * static_cast<double>(steps * fma_chains * products * threads) / seconds;
#else
  return 0;
#endif
}

/// Holds the roofs of a number of threads.
struct Roofs {
  static constexpr double mib = 1 << 20, l2_bytes = 0.5 * mib, memory_bytes = 256 * mib;

  /// Measures the roofs of `count` threads. x has memory_bytes.
  Roofs(int count, const std::vector<float>& x)
      : threads(count),
        fma_gflops(best_of(7, [&] { return fma_peak_gflops(count); })),
        int8_gops(best_of(7, [&] { return int8_peak_gops(count); })) {
    const std::pair<double, const char*> sizes[] = {{count * l2_bytes, "L2"},
                                                    {4 * mib, "4 MiB"},
                                                    {16 * mib, "16 MiB"},
                                                    {64 * mib, "64 MiB"},
                                                    {memory_bytes, "memory"}};
    for (const auto& size : sizes)
      if (reading.empty() || size.first > reading.back().bytes)
        reading.push_back({size.first, best_of(7, [&] { return read_gbs(count, x, size.first); }), size.second});
  }

  /// Returns the GB/s of reading so many bytes repeatedly. Between two measured sizes it interpolates over their
  /// logarithms.
  double gbs(double bytes) const {
    if (bytes <= reading.front().bytes) return reading.front().gbs;
    std::size_t i = 1;
    while (i + 1 < reading.size() && bytes > reading[i].bytes) ++i;
    const Reading &low = reading[i - 1], &high = reading[i];
    const double along = std::log(bytes / low.bytes) / std::log(high.bytes / low.bytes);
    return low.gbs + (high.gbs - low.gbs) * std::min(1.0, along);
  }

  struct Bound {
    double seconds;    // min time of a call
    const char* name;  // the bottleneck
  };
  Bound bound(const Work& work) const {
    const double touched = std::max(work.bytes, work.working_set);
    const bool by_bytes = work.int8 && int8_gops > 0;
    const double to_compute = 1e-9 * work.flop / (by_bytes ? int8_gops : fma_gflops),
                 to_read = 1e-9 * work.bytes / gbs(touched);
    if (to_compute >= to_read) return {to_compute, by_bytes ? "int8" : "FMA"};
    return {to_read, touched <= threads * l2_bytes ? "L2" : touched < 64 * mib ? "L3" : "memory"};
  }

  struct Reading {
    double bytes, gbs;
    const char* from;
  };
  int threads;
  double fma_gflops, int8_gops;
  std::vector<Reading> reading;  // in order of size
};

/// Returns the name of the processor.
inline std::string cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (const auto colon = line.find(": "); line.starts_with("model name") && colon != std::string::npos)
      return line.substr(colon + 2);
  return "unknown processor";
}

}  // namespace bench
