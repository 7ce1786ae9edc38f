// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/stream.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#if !defined(__CUDACC__)
#include <memory>
#include <vector>
#endif

// How a kernel of the CUDA backend is written. A kernel is a struct of pointers and sizes, with the number of threads
// of a block, `static constexpr int threads`, and a call operator that computes one block (and, where registers are
// scarce, with `static constexpr int at_once`, the blocks that a multiprocessor runs at once):
//
//   template <class T>
//   struct RowSums {                                                  // one block a row
//     static constexpr int threads = 128;
//     const T* x;
//     T* sums;
//     Index cols;
//     LACONIC_DEVICE void operator()(cuda::Block& block) const {
//       cuda::PerThread<T> part(block);                               // one value in each thread
//       block.each([&](int t) {                                       // all threads, then a barrier
//         part[t] = 0;
//         for (Index c = t; c < cols; c += threads) part[t] += x[block.x() * cols + c];
//       });
//       const T all = block.sum(part);                                // the same in every thread
//       block.one([&] { sums[block.x()] = all; });
//     }
//   };
//
// What is between two calls of `each` is computed by every thread alike, so it may only depend on values that are the
// same in all of them. `each` ends with a barrier, which no thread can miss: without it, one thread would read what
// another has not written yet. The emulation calls the function of `each` for one thread after the other; run in the
// opposite order (`emulated_order`), a kernel with a race gives something else.

#if defined(__CUDACC__)
#define LACONIC_DEVICE __device__ __forceinline__
/// Unrolls the loop after it, so that the elements of an array that it numbers can be registers.
#define LACONIC_UNROLL_DEVICE _Pragma("unroll")
/// Does not unroll the loop after it, which needs fewer registers so.
#define LACONIC_LOOP_DEVICE _Pragma("unroll 1")
#else
#define LACONIC_DEVICE inline
#define LACONIC_UNROLL_DEVICE
#define LACONIC_LOOP_DEVICE
#endif

namespace laconic {
inline namespace LACONIC_ABI {
namespace cuda {

inline constexpr int warp_threads = 32;  ///< threads that a multiprocessor runs together
/// Gives the shared memory that a block may take on every GPU from compute capability 8.0 on.
inline constexpr std::size_t max_shared_bytes = 99 * 1024;

/// Returns how many pieces of `size` cover n.
constexpr Index pieces(Index n, Index size) { return (n + size - 1) / size; }

/// Writes 16 bytes to device memory, at a multiple of 16, by one instruction. The compiler may split an assignment.
template <class V>
LACONIC_DEVICE void write_16_bytes(void* to, const V& values) {
  static_assert(sizeof(V) == 16);
#if defined(__CUDACC__)
  uint4 bits;
  memcpy(&bits, &values, 16);
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(bits.x), "r"(bits.y),
               "r"(bits.z), "r"(bits.w)
               : "memory");
#else
  std::memcpy(to, &values, 16);
#endif
}

#if !defined(__CUDACC__)

/// Says in which order the emulation runs the threads of a block.
enum class Order { forward, backward };
/// Gives that order for this thread of the host. Only tests change it.
inline Order& emulated_order() {
  thread_local Order order = Order::forward;
  return order;
}

namespace detail {

/// Gives memory to one emulated block after the other. Only the first blocks allocate.
class EmulatedMemory {
 public:
  /// Returns `bytes` of memory until `reset`, filled so that a float read before it is written is NaN.
  void* take(std::size_t bytes) {
    const std::size_t rounded = (bytes + 63) / 64 * 64;
    while (current_ < blocks_.size() && used_ + rounded > blocks_[current_].size) {
      ++current_;
      used_ = 0;
    }
    if (current_ == blocks_.size()) {
      const std::size_t size = std::max<std::size_t>(rounded, 1 << 20);
      blocks_.push_back({std::make_unique<std::byte[]>(size + 64), size});
    }
    auto* begin = blocks_[current_].data.get();
    begin += (64 - reinterpret_cast<std::uintptr_t>(begin) % 64) % 64 + used_;
    used_ += rounded;
    std::memset(begin, 0xff, bytes);
    return begin;
  }
  /// Takes all memory back.
  void reset() { current_ = used_ = 0; }

 private:
  struct Piece {
    std::unique_ptr<std::byte[]> data;
    std::size_t size;
  };
  std::vector<Piece> blocks_{};
  std::size_t current_ = 0, used_ = 0;
};
inline EmulatedMemory& emulated_memory() {
  thread_local EmulatedMemory memory;
  return memory;
}

/// Holds copies to shared memory that have begun. They are made when they are waited for, and not before, so that a
/// kernel which does not wait reads what was there before.
class EmulatedCopies {
 public:
  struct Copy {
    std::byte* to;
    const std::byte* from;
    int bytes;
  };
  void add(const Copy& copy) {
    require(
        reinterpret_cast<std::uintptr_t>(copy.to) % 16 == 0 && (reinterpret_cast<std::uintptr_t>(copy.from) % 16 == 0),
        "Cuda: a kernel copies between addresses that are not multiples of 16");
    copies_.push_back(copy);
  }
  void end_group() { ends_.push_back(copies_.size()); }
  void finish(int unfinished) {
    const auto kept = static_cast<std::size_t>(unfinished);
    if (ends_.size() <= kept) return;
    const auto groups = static_cast<std::ptrdiff_t>(ends_.size() - kept);
    const std::size_t done = ends_[static_cast<std::size_t>(groups) - 1];
    for (std::size_t i = 0; i < done; ++i) {
      const Copy& copy = copies_[i];
      std::memset(copy.to, 0, 16);
      if (copy.bytes > 0) std::memcpy(copy.to, copy.from, static_cast<std::size_t>(copy.bytes));
    }
    copies_.erase(copies_.begin(), copies_.begin() + static_cast<std::ptrdiff_t>(done));
    ends_.erase(ends_.begin(), ends_.begin() + groups);
    for (std::size_t& end : ends_) end -= done;
  }
  bool empty() const { return copies_.empty(); }

 private:
  std::vector<Copy> copies_{};
  std::vector<std::size_t> ends_{};  // of groups, in `copies_`
};
inline EmulatedCopies& emulated_copies() {
  thread_local EmulatedCopies copies;
  return copies;
}

}  // namespace detail

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
    if (emulated_order() == Order::forward)
      for (int t = 0; t < threads_; ++t) f(t);
    else
      for (int t = threads_ - 1; t >= 0; --t) f(t);
  }
  /// Calls f(thread) for every thread of the block, and does not wait: what one thread writes to memory, no other may
  /// read before the next barrier.
  template <class F>
  void each_unordered(F&& f) {
    each(f);
  }
  /// Calls f(thread) for every thread of the block, then waits for those of its warp: what one thread writes to memory,
  /// only threads of its warp may read before the next barrier.
  template <class F>
  void each_in_warps(F&& f) {
    each(f);
  }
  /// Calls f() for one thread of the block, then waits for all.
  template <class F>
  void one(F&& f) {
    f();
  }
  /// Begins to copy 16 bytes of the device's memory to shared memory: `bytes` of them, then zeros. Both addresses are
  /// multiples of 16. Called within `each`. The bytes are there after the `wait_for_copies` of their group.
  void copy(void* to, const void* from, int bytes) {
    detail::emulated_copies().add({static_cast<std::byte*>(to), static_cast<const std::byte*>(from), bytes});
  }
  /// Ends a group of copies, which may be empty.
  void end_copies() { detail::emulated_copies().end_group(); }
  /// Waits until all groups of copies are done but for the last `unfinished`, and then for all threads.
  template <int unfinished>
  void wait_for_copies() {
    detail::emulated_copies().finish(unfinished);
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
    return static_cast<V*>(detail::emulated_memory().take(bytes));
  }

 private:
  template <class V, class F>
  V reduced(PerThread<V>& values, F f) {
    // The order is that of shuffles within each warp, then within the first one over the results of all.
    V* v = values.values_;
    const int warps = threads_ / warp_threads;
    V parts[warp_threads];
    for (int w = 0; w < warps; ++w) parts[w] = butterfly(v + w * warp_threads, warp_threads, f);
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
    : values_(static_cast<V*>(detail::emulated_memory().take(static_cast<std::size_t>(block.threads()) * sizeof(V)))) {}

#if defined(LACONIC_CUDA_EMULATED)

/// Runs a kernel for every block of a grid.
template <class Kernel>
void run(const void* arguments, Grid grid, std::size_t shared_bytes) {
  const Kernel& kernel = *static_cast<const Kernel*>(arguments);
  for (Index y = 0; y < grid.y; ++y)
    for (Index x = 0; x < grid.x; ++x) {
      Block block(x, y, Kernel::threads, shared_bytes);
      kernel(block);
      require(detail::emulated_copies().empty(), "Cuda: a kernel ends before its copies");
      detail::emulated_copies().finish(0);  // groups without copies
      detail::emulated_memory().reset();
    }
}

/// Returns the code of a kernel.
template <class Kernel>
KernelFunction function_of(const Stream&, const char*, std::size_t) {
  return reinterpret_cast<KernelFunction>(static_cast<EmulatedKernel>(&run<Kernel>));
}

#endif

#else

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

#endif

/// Runs a kernel for every block of a grid, in the order of the stream. `shared_bytes` is the shared memory that a
/// block takes; `name` is for messages. Throws `Error` if the kernel cannot be started.
#if defined(__CUDACC__) || defined(LACONIC_CUDA_EMULATED)
// It is not inlined, so that laconic::cuda has it for who is not compiled by nvcc.
template <class Kernel>
[[gnu::noinline]] void launch(const Stream& stream, const char* name, Grid grid, const Kernel& kernel,
                              std::size_t shared_bytes = 0) {
  static_assert(Kernel::threads % warp_threads == 0 && Kernel::threads <= 1024, "laconic: a block has whole warps");
  static_assert(std::is_trivially_copyable_v<Kernel> && alignof(Kernel) <= 16 && sizeof(Kernel) <= 4096,
                "laconic: the arguments of a kernel are at most 4 KiB of plain values");
  if (grid.x == 0 || grid.y == 0) return;
  require(grid.x <= 0x7fffffff && grid.y <= 0xffff, "Cuda: ", name, " with (", grid.x, ", ", grid.y,
          ") blocks given, at most (2147483647, 65535) expected");
  stream.launch(name, function_of<Kernel>(stream, name, shared_bytes), grid, Kernel::threads, shared_bytes, &kernel,
                sizeof(Kernel));
}
#else
template <class Kernel>
void launch(const Stream& stream, const char* name, Grid grid, const Kernel& kernel, std::size_t shared_bytes = 0);
#endif

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
