// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/extent.hpp>
#include <laconic/core/memory.hpp>
#include <laconic/core/thread_team.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <exception>
#include <memory>
#include <type_traits>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace laconic {
inline namespace LACONIC_ABI {

/// Returns the number of threads that OpenMP offers this process (OMP_NUM_THREADS sets it), or without OpenMP the
/// number of the machine's processors.
inline int hardware_threads() {
#ifdef _OPENMP
  return omp_get_max_threads();
#else
  return laconic::detail::processors();
#endif
}

/// Returns the number of threads that a context or an optimiser shall use: `threads`, or all that the machine offers
/// for 0. Throws `Error` for a number that is negative or beyond 4096.
inline int checked_threads(int threads) {
  constexpr int most = 4096;
  require(threads >= 0 && threads <= most, "threads: ", threads, " given, 1 to ", most,
          " expected, or 0 for all that the machine offers");
  return threads > 0 ? threads : hardware_threads();
}

namespace kernels {

/// Returns part i of `count` of [0, size), in whole units. The parts are as equal as they can be.
inline Range equal_part(Index size, Index unit, Index i, Index count) {
  const Index units = (size + unit - 1) / unit;
  return {units * i / count * unit, std::min(size, units * (i + 1) / count * unit)};
}

/// Holds the tasks next .. end - 1, which threads take from the front.
struct alignas(laconic::detail::line_bytes) TaskQueue {
  std::atomic<Index> next{0};  ///< the next task to take
  Index end = 0;               ///< one past the last task
};

/// Returns whether a region opened here would run within another one, of laconic or of the user's OpenMP.
inline bool is_nested() {
#ifdef _OPENMP
  if (omp_in_parallel() != 0) return true;
#endif
  return laconic::detail::InsideRegion::here();
}

namespace detail {

/// Does what `parallel_for` says of run(body, task, thread), compiled once for all bodies.
inline void run_tasks(int threads, Index tasks, void (*run)(void* body, Index task, int thread), void* body) {
  using laconic::detail::ThreadTeam;
  struct Region {
    void (*run)(void*, Index, int);
    void* body;
    int team;
    std::array<TaskQueue, ThreadTeam::max_threads> queues;
  };
  const int team = static_cast<int>(std::min<Index>(std::min(threads, ThreadTeam::max_threads), tasks));
  if (team <= 1 || is_nested()) {
    for (Index task = 0; task < tasks; ++task) run(body, task, 0);
    return;
  }
  Region region{run, body, team, {}};
  for (int i = 0; i < team; ++i) {
    const Range stretch = equal_part(tasks, 1, i, team);
    region.queues[static_cast<std::size_t>(i)].next.store(stretch.begin, std::memory_order_relaxed);
    region.queues[static_cast<std::size_t>(i)].end = stretch.end;
  }
  const auto work = [](void* what, int thread) {
    Region& its = *static_cast<Region*>(what);
    for (int i = 0; i < its.team; ++i) {
      TaskQueue& queue = its.queues[static_cast<std::size_t>((thread + i) % its.team)];
      while (queue.next.load(std::memory_order_relaxed) < queue.end) {
        const Index task = queue.next.fetch_add(1, std::memory_order_relaxed);
        if (task < queue.end) its.run(its.body, task, thread);
      }
    }
  };
  ThreadTeam::of_process().run(team, work, &region);
}

}  // namespace detail

/// Runs `body(task, thread)` for every task in [0, tasks) on at most `threads` threads, with thread < threads, or on
/// this thread alone within another region. Bodies must write to disjoint places and not throw, so the result cannot
/// depend on which thread runs which task. Each thread starts on its own contiguous range of tasks and then steals from
/// the others. From kernel to kernel that range is the same rows, which the caches of its core then hold. Reading what
/// another core wrote is slow, above all between cores that do not share an L3. The first regions start threads, which
/// allocates (see ThreadTeam).
template <class Body>
void parallel_for(int threads, Index tasks, Body&& body) {
  using Given = std::remove_reference_t<Body>;
  const auto run = [](void* what, Index task, int thread) { (*static_cast<Given*>(what))(task, thread); };
  detail::run_tasks(threads, tasks, run, const_cast<void*>(static_cast<const void*>(std::addressof(body))));
}

/// Splits [0, size) into blocks of `grain` and runs `body(begin, end)` for each, as `parallel_for` does.
template <class Body>
void parallel_blocks(int threads, Index size, Index grain, Body&& body) {
  parallel_for(threads, (size + grain - 1) / grain,
               [&](Index block, int) { body(block * grain, std::min(size, (block + 1) * grain)); });
}

/// Splits [0, size) into blocks of whole units whose sizes differ by at most one unit. Every thread gets the same
/// number of blocks, unless there are fewer units than that.
class Blocks {
 public:
  /// Splits into blocks of at most `block` elements, which must be at least 1 and a multiple of `unit`.
  Blocks(Index size, Index block, Index unit, int threads) : size_(size), unit_(unit) {
    const Index units = (size + unit - 1) / unit, count = (size + block - 1) / block;
    most_ = std::min(block, units * unit);
    count_ = std::min(units, (count + threads - 1) / threads * threads);
  }
  /// Returns the number of blocks.
  Index count() const { return count_; }
  /// Returns an upper bound of a block's size. It never shrinks as `size` grows, so memory for the largest case is
  /// enough for all others.
  Index most() const { return most_; }
  /// Returns block i.
  Range operator[](Index i) const { return equal_part(size_, unit_, i, count_); }

 private:
  Index size_, unit_, most_ = 0, count_ = 0;
};

/// Runs `body(i)`, or `body(i, thread)` as `parallel_for` does, for every i in [0, tasks), which may throw. After all
/// have run, throws the failure of the lowest index again. Allocates.
template <class Body>
void parallel_or_throw(int threads, Index tasks, Body&& body) {
  const auto failures = std::make_unique<std::exception_ptr[]>(static_cast<std::size_t>(tasks));
  parallel_for(threads, tasks, [&](Index i, int thread) {
    try {
      if constexpr (std::is_invocable_v<Body&, std::size_t, std::size_t>)
        body(static_cast<std::size_t>(i), static_cast<std::size_t>(thread));
      else
        body(static_cast<std::size_t>(i));
    } catch (...) {
      failures[static_cast<std::size_t>(i)] = std::current_exception();
    }
  });
  for (Index i = 0; i < tasks; ++i)
    if (const auto& failure = failures[static_cast<std::size_t>(i)]) std::rethrow_exception(failure);
}

}  // namespace kernels
}  // namespace LACONIC_ABI
}  // namespace laconic
