// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// What this machine can do at most: multiply-adds of floats in registers, on so many threads.
#pragma once

#include <laconic/backend/cpu/kernels/simd.hpp>
#include <laconic/core/parallel.hpp>

#include <vector>

#include "serve.hpp"

namespace bench {

/// As many independent chains as hide the latency of a multiply-add and fit into the registers.
#if defined(__AVX512F__) || defined(__aarch64__)
inline constexpr int fma_chains = 24;
#else
inline constexpr int fma_chains = 12;
#endif

/// `steps` multiply-adds in each chain. Not inlined, and from numbers that the compiler cannot know, so that it must do
/// them all.
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

/// GFLOP/s over some 3 ms.
inline double fma_peak_gflops(int threads) {
  static const volatile float from[3] = {0.5f, 0.25f, 0.125f};
  constexpr laconic::Index steps = 200'000;
  std::vector<float> results(static_cast<std::size_t>(threads));
  const double seconds = seconds_of([&] {
    laconic::kernels::parallel_for(
        threads, threads, [&](laconic::Index i, int) { results[static_cast<std::size_t>(i)] = fma_run(steps, from); });
  });
  [[maybe_unused]] const volatile float kept = results.front();  // so that nobody may leave out the work
  return 2e-9 * static_cast<double>(steps * fma_chains * laconic::kernels::lanes<float> * threads) / seconds;
}

}  // namespace bench
