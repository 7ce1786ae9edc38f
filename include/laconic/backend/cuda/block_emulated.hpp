// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/emulation.hpp>
#include <laconic/backend/cuda/stream.hpp>

#include <algorithm>
#include <cstddef>
#include <typeinfo>

// A block of threads that the host emulates: the half of block.hpp that every compiler but nvcc compiles.

namespace laconic {
inline namespace LACONIC_ABI {
namespace cuda {

class Block;

/// Holds one value in each thread of a block. On a GPU these are registers.
template <class V>
class PerThread {
 public:
  /// Makes unspecified values.
  explicit PerThread(const Block& block);
  /// Returns the value of a thread, which only that thread may name.
  V& operator[](int thread) { return values_[thread]; }

 private:
  friend class Block;
  V* values_;
};

/// Is one block of threads, which runs a kernel.
class Block {
 public:
  /// Makes the block (x, y) of `threads` threads with `shared_bytes` of shared memory.
  Block(Index x, Index y, int threads, std::size_t shared_bytes)
      : x_(x), y_(y), threads_(threads), shared_left_(shared_bytes) {}
  /// Returns the number of the block along x.
  Index x() const { return x_; }
  /// Returns the number of the block along y.
  Index y() const { return y_; }
  /// Returns the threads of the block.
  int threads() const { return threads_; }

  /// Calls f(thread) for every thread of the block, then waits for all.
  template <class F>
  void each(F&& f) {
    each_unordered(f);
    barrier();
  }
  /// Calls f(thread) for every thread of the block, and does not wait: what one thread writes to memory, no other may
  /// read before the next barrier.
  template <class F>
  void each_unordered(F&& f) {
    const bool forward = emulated_order() == Order::forward;
    AsThread thread(all_threads);
    for (int i = 0; i < threads_; ++i) {
      const int t = forward ? i : threads_ - 1 - i;
      thread.become(t);
      f(t);
    }
  }
  /// Calls f(thread) for every thread of the block, then waits for those of its warp: what one thread writes to memory,
  /// only threads of its warp may read before the next barrier.
  template <class F>
  void each_in_warps(F&& f) {
    each_unordered(f);
    if (auto* observer = kernel_observer()) observer->on_warp_barrier();
  }
  /// Calls f() for one thread of the block, then waits for all.
  template <class F>
  void one(F&& f) {
    {
      const AsThread first(0);
      f();
    }
    barrier();
  }
  /// Begins to copy 16 bytes of the device's memory to shared memory: `bytes` of them, then zeros. Both addresses are
  /// multiples of 16. Called within `each`. The bytes are there after the `wait_for_copies` of their group.
  void copy(void* to, const void* from, int bytes) {
    if (auto* observer = kernel_observer()) observer->on_copy(to, from, bytes);
    detail::emulated_copies().add({static_cast<std::byte*>(to), static_cast<const std::byte*>(from), bytes});
  }
  /// Ends a group of copies, which may be empty.
  void end_copies() {
    if (auto* observer = kernel_observer()) observer->on_copies_end();
    detail::emulated_copies().end_group();
  }
  /// Waits until all groups of copies are done but for the last `unfinished`, and then for all threads.
  template <int unfinished>
  void wait_for_copies() {
    if (auto* observer = kernel_observer()) observer->on_copies_done(unfinished);
    detail::emulated_copies().finish(unfinished);
    barrier();
  }
  /// Returns the sum of the values of all threads, in every thread. The order of the sum is fixed. The values are lost.
  template <class V>
  V sum(PerThread<V>& values) {
    return reduced(values, [](V a, V b) { return a + b; });
  }
  /// Returns the max of the values of all threads, in every thread; NaN if one is NaN. The values are lost.
  template <class V>
  V max(PerThread<V>& values) {
    return reduced(values, [](V a, V b) { return a != a || a > b ? a : b; });
  }
  /// Returns shared memory for `count` values, which are unspecified. All memory that a kernel takes must have been
  /// asked for at its launch.
  template <class V>
  V* shared(Index count) {
    const std::size_t bytes = (static_cast<std::size_t>(count) * sizeof(V) + 15) / 16 * 16;
    require(bytes <= shared_left_, "Cuda: a kernel takes ", bytes, " bytes of shared memory, ", shared_left_,
            " are left of what its launch asked for");
    shared_left_ -= bytes;
    void* const memory = detail::emulated_memory().take(bytes);
    if (auto* observer = kernel_observer()) observer->on_shared(memory, bytes);
    return static_cast<V*>(memory);
  }

 private:
  static void barrier() {
    if (auto* observer = kernel_observer()) observer->on_barrier();
  }
  template <class V, class F>
  V reduced(PerThread<V>& values, F f) {
    // The order is that of shuffles within each warp, then within the first one over the results of all.
    const int warps = threads_ / warp_threads;
    V lanes[warp_threads], parts[warp_threads];
    for (int w = 0; w < warps; ++w) {
      for (int lane = 0; lane < warp_threads; ++lane) {
        const AsThread thread(w * warp_threads + lane);
        lanes[lane] = values[w * warp_threads + lane];
      }
      parts[w] = butterfly(lanes, warp_threads, f);
    }
    barrier();
    return butterfly(parts, warps, f);
  }
  template <class V, class F>
  static V butterfly(const V* from, int count, F f) {
    V now[warp_threads], next[warp_threads];
    std::copy_n(from, count, now);
    for (int offset = warp_threads / 2; offset > 0; offset /= 2) {
      for (int t = 0; t < count; ++t) next[t] = (t ^ offset) < count ? f(now[t], now[t ^ offset]) : now[t];
      std::copy_n(next, count, now);
    }
    return now[0];
  }

  Index x_, y_;
  int threads_;
  std::size_t shared_left_;
};

template <class V>
PerThread<V>::PerThread(const Block& block)
    : values_(
          static_cast<V*>(detail::emulated_registers().take(static_cast<std::size_t>(block.threads()) * sizeof(V)))) {
  if (auto* observer = kernel_observer()) observer->on_registers(values_, sizeof(V), block.threads());
}

#if defined(LACONIC_CUDA_EMULATED)

/// Runs a kernel for every block of a grid.
template <class Kernel>
void run(const void* arguments, Grid grid, std::size_t shared_bytes) {
  const Kernel& kernel = *static_cast<const Kernel*>(arguments);
  auto* const observer = kernel_observer();
  const AsThread all(all_threads);
  if (observer != nullptr) observer->on_launch(typeid(Kernel).name(), grid);
  for (Index y = 0; y < grid.y; ++y)
    for (Index x = 0; x < grid.x; ++x) {
      {
        const struct Emptied {
          ~Emptied() {  // also where the kernel throws
            detail::emulated_copies().clear();
            detail::emulated_memory().reset();
            detail::emulated_registers().reset();
            if (auto* observer = kernel_observer()) observer->on_block_end();
          }
        } emptied{};
        Block block(x, y, Kernel::threads, shared_bytes);
        if (observer != nullptr) observer->on_block(x, y);
        kernel(block);
        require(detail::emulated_copies().empty(), "Cuda: a kernel ends before its copies");
      }
      if (observer != nullptr) observer->check();
    }
}

/// Returns the code of a kernel.
template <class Kernel>
KernelFunction function_of(const Stream&, const char*, std::size_t) {
  return reinterpret_cast<KernelFunction>(static_cast<EmulatedKernel>(&run<Kernel>));
}

#endif

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
