// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#if defined(__CUDACC__)
#include <laconic/backend/cuda/block_gpu.hpp>
#else
#include <laconic/backend/cuda/block_emulated.hpp>
#endif

#include <type_traits>

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

namespace laconic {
inline namespace LACONIC_ABI {
namespace cuda {

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
