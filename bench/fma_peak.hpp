// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// Measures the peak of this machine: multiply-adds of floats in registers, on so many threads.
#pragma once

#include <laconic/backend/cpu/kernels/simd.hpp>
#include <laconic/core/parallel.hpp>

#include <vector>

#include "serve.hpp"

namespace bench {

/// Gives the number of independent chains of multiply-adds: enough to hide the latency of one, and few enough to fit
/// into the registers.
#if defined(__AVX512F__) || defined(__aarch64__)
inline constexpr int fma_chains = 24;
#else
inline constexpr int fma_chains = 12;
#endif

/// Runs `steps` multiply-adds in each chain. It is not inlined and starts from values that the compiler cannot know, so
/// that all of them are computed.
[[gnu::noinline]] inline float fma_run(laconic::Index steps, const volatile float* from) {
  using Batch = laconic::kernels::Batch<float>;
  const Batch factor(from[0]), term(from[1]);
  Batch chain[fma_chains];
#pragma GCC unroll 24
  for (int c = 0; c < fma_chains; ++c) chain[c] = Batch(from[2]);
  for (laconic::Index i = 0; i < steps; ++i) {
#pragma GCC unroll 24
    for (int c = 0; c < fma_chains; ++c) chain[c] = xsimd::fma(chain[c], factor, term);
  }
  Batch sum(0.0f);
#pragma GCC unroll 24
  for (int c = 0; c < fma_chains; ++c) sum += chain[c];
  return laconic::kernels::sum_lanes<float>(sum);
}

/// Returns the GFLOP/s of some 3 ms of multiply-adds.
inline double fma_peak_gflops(int threads) {
  static const volatile float from[3] = {0.5f, 0.25f, 0.125f};
  constexpr laconic::Index steps = 200'000;
  std::vector<float> results(static_cast<std::size_t>(threads));
  const double seconds = seconds_of([&] {
    laconic::kernels::parallel_for(
        threads, threads, [&](laconic::Index i, int) { results[static_cast<std::size_t>(i)] = fma_run(steps, from); });
  });
  [[maybe_unused]] const volatile float kept = results.front();  // keeps the compiler from leaving out the work
  return 2e-9 * static_cast<double>(steps * fma_chains * laconic::kernels::lanes<float> * threads) / seconds;
}

}  // namespace bench
