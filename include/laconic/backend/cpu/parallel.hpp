// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/extent.hpp>

#include <algorithm>
#include <exception>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace laconic::inline LACONIC_ABI {

/// Threads the machine offers this process.
inline int hardware_threads() {
#ifdef _OPENMP
  return omp_get_max_threads();
#else
  return 1;
#endif
}

namespace kernels {

/// Runs `body(task, thread)` for every task in [0, tasks) on at most `threads` threads, thread < threads.
/// Bodies write to disjoint places and do not throw, so the result cannot depend on how tasks are dealt out.
template <class Body>
void parallel_for(int threads, Index tasks, Body&& body) {
#ifdef _OPENMP
  const int team = static_cast<int>(std::min<Index>(threads, tasks));
  if (team > 1) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(team)
    for (Index task = 0; task < tasks; ++task) body(task, omp_get_thread_num());
    return;
  }
#endif
  (void)threads;
  for (Index task = 0; task < tasks; ++task) body(task, 0);
}

/// Splits [0, size) into blocks of `grain` and runs `body(begin, end)` for each.
template <class Body>
void parallel_blocks(int threads, Index size, Index grain, Body&& body) {
  parallel_for(threads, (size + grain - 1) / grain,
               [&](Index block, int) { body(block * grain, std::min(size, (block + 1) * grain)); });
}

/// body(i) for all i in [0, tasks), which may throw; the first failure, by index, is thrown again here.
template <class Body>
void parallel_or_throw(int threads, Index tasks, Body&& body) {
  std::vector<std::exception_ptr> failures(static_cast<std::size_t>(tasks));
  parallel_for(threads, tasks, [&](Index i, int) {
    try {
      body(static_cast<std::size_t>(i));
    } catch (...) {
      failures[static_cast<std::size_t>(i)] = std::current_exception();
    }
  });
  for (const auto& failure : failures)
    if (failure) std::rethrow_exception(failure);
}

}  // namespace kernels
}  // namespace laconic
