// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/macros.hpp>
#include <laconic/backend/cuda/stream.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

// A block of threads on a GPU: the half of block.hpp that nvcc compiles.
#if defined(__CUDACC__)

namespace laconic {
inline namespace LACONIC_ABI {
namespace cuda {

/// Holds one value in each thread of a block, in registers.
template <class V>
class PerThread {
 public:
  /// Makes unspecified values.
  LACONIC_DEVICE explicit PerThread(const class Block&) {}
  /// Returns the value of a thread, which only that thread may name.
  LACONIC_DEVICE V& operator[](int) { return value_; }

 private:
  friend class Block;
  V value_;
};

/// Is one block of threads, which runs a kernel.
class Block {
 public:
  /// Makes the block that the calling thread belongs to.
  LACONIC_DEVICE Block() = default;
  /// Returns the number of the block along x.
  LACONIC_DEVICE Index x() const { return blockIdx.x; }
  /// Returns the number of the block along y.
  LACONIC_DEVICE Index y() const { return blockIdx.y; }
  /// Returns the threads of the block.
  LACONIC_DEVICE int threads() const { return static_cast<int>(blockDim.x); }

  /// Calls f(thread) for every thread of the block, then waits for all.
  template <class F>
  LACONIC_DEVICE void each(F&& f) {
    f(static_cast<int>(threadIdx.x));
    __syncthreads();
  }
  /// Calls f(thread) for every thread of the block, and does not wait: what one thread writes to memory, no other may
  /// read before the next barrier.
  template <class F>
  LACONIC_DEVICE void each_unordered(F&& f) {
    f(static_cast<int>(threadIdx.x));
  }
  /// Calls f(thread) for every thread of the block, then waits for those of its warp: what one thread writes to memory,
  /// only threads of its warp may read before the next barrier.
  template <class F>
  LACONIC_DEVICE void each_in_warps(F&& f) {
    f(static_cast<int>(threadIdx.x));
    __syncwarp();
  }
  /// Begins to copy 16 bytes of the device's memory to shared memory: `bytes` of them, then zeros. Both addresses are
  /// multiples of 16. Called within `each`. The bytes are there after the `wait_for_copies` of their group.
  LACONIC_DEVICE void copy(void* to, const void* from, int bytes) {
    asm volatile(
        "cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(static_cast<unsigned>(__cvta_generic_to_shared(to))),
        "l"(from), "r"(bytes)
        : "memory");
  }
  /// Ends a group of copies, which may be empty.
  LACONIC_DEVICE void end_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
  /// Waits until all groups of copies are done but for the last `unfinished`, and then for all threads.
  template <int unfinished>
  LACONIC_DEVICE void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(unfinished) : "memory");
    __syncthreads();
  }
  /// Calls f() for one thread of the block, then waits for all.
  template <class F>
  LACONIC_DEVICE void one(F&& f) {
    if (threadIdx.x == 0) f();
    __syncthreads();
  }
  /// Returns the sum of the values of all threads, in every thread. The order of the sum is fixed. The values are lost.
  template <class V>
  LACONIC_DEVICE V sum(PerThread<V>& values) {
    return reduced(values, [](V a, V b) { return a + b; });
  }
  /// Returns the max of the values of all threads, in every thread; NaN if one is NaN. The values are lost.
  template <class V>
  LACONIC_DEVICE V max(PerThread<V>& values) {
    return reduced(values, [](V a, V b) { return a != a || a > b ? a : b; });
  }
  /// Returns shared memory for `count` values, which are unspecified. All memory that a kernel takes must have been
  /// asked for at its launch.
  template <class V>
  LACONIC_DEVICE V* shared(Index count) {
    extern __shared__ __align__(16) unsigned char memory[];
    unsigned char* begin = memory + shared_used_;
    shared_used_ += (static_cast<std::size_t>(count) * sizeof(V) + 15) / 16 * 16;
    return reinterpret_cast<V*>(begin);
  }

 private:
  template <class V, class F>
  LACONIC_DEVICE V reduced(PerThread<V>& values, F f) {
    __shared__ V parts[warp_threads];
    V v = butterfly(values.value_, warp_threads, f);
    const int warps = static_cast<int>(blockDim.x) / warp_threads, thread = static_cast<int>(threadIdx.x);
    if (thread % warp_threads == 0) parts[thread / warp_threads] = v;
    __syncthreads();
    v = butterfly(parts[thread % warp_threads < warps ? thread % warp_threads : 0], warps, f);
    v = __shfl_sync(0xffffffffu, v, 0);
    __syncthreads();  // before another reduction writes to parts
    return v;
  }
  template <class V, class F>
  LACONIC_DEVICE static V butterfly(V v, int count, F f) {
    const int lane = static_cast<int>(threadIdx.x) % warp_threads;
    for (int offset = warp_threads / 2; offset > 0; offset /= 2) {
      const V other = __shfl_xor_sync(0xffffffffu, v, offset);
      if ((lane ^ offset) < count) v = f(v, other);
    }
    return v;
  }

  std::size_t shared_used_ = 0;
};

/// Returns the blocks of a kernel that a multiprocessor is to run at once, which limits their registers: its `at_once`
/// if it has one; 0 leaves that to the compiler.
template <class Kernel>
constexpr int blocks_at_once() {
  if constexpr (requires { Kernel::at_once; }) return Kernel::at_once;
  return 0;
}

template <class Kernel>
__global__ void __launch_bounds__(Kernel::threads, blocks_at_once<Kernel>())
    run(const __grid_constant__ Kernel kernel) {
  Block block;
  kernel(block);
}

/// Returns the code of a kernel, which may then take so much shared memory. Throws `Error` if the device does not allow
/// that.
template <class Kernel>
KernelFunction function_of(const Stream& stream, const char* name, std::size_t shared_bytes) {
  constexpr std::size_t without_asking = 47 * 1024;  // and 1 KiB for reductions
  if (shared_bytes > without_asking) {
    static std::array<std::atomic<std::size_t>, 64> allowed{};  // on each device
    const auto device = static_cast<std::size_t>(stream.device());
    if (device >= allowed.size() || allowed[device].load(std::memory_order_relaxed) < shared_bytes) {
      stream.queue().use();
      cudaFuncAttributes kernel{};
      check(cudaFuncGetAttributes(&kernel, run<Kernel>), "cudaFuncGetAttributes", " for ", name);
      // As much as there is at once, so that no thread lowers what another has asked for.
      const std::size_t bytes = std::max(shared_bytes, max_shared_bytes - kernel.sharedSizeBytes);
      check(cudaFuncSetAttribute(run<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
            "cudaFuncSetAttribute", " for ", name, " with ", bytes, " bytes of shared memory");
      if (device < allowed.size()) allowed[device].store(bytes, std::memory_order_relaxed);
    }
  }
  return reinterpret_cast<KernelFunction>(&run<Kernel>);
}

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic

#endif
