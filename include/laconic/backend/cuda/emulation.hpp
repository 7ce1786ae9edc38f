// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/macros.hpp>
#include <laconic/backend/cuda/work.hpp>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

// What the emulation of a GPU consists of in addition to its blocks: memory, copies, and who watches.

namespace laconic {
inline namespace LACONIC_ABI {
namespace cuda {

/// Says in which order the emulation runs the threads of a block.
enum class Order { forward, backward };
/// Gives that order for this thread of the host. Only tests change it.
inline Order& emulated_order() {
  thread_local Order order = Order::forward;
  return order;
}

inline constexpr int all_threads = -1;  ///< stands for all threads of a block, which do the same between `each`

namespace detail {
inline int& emulated_thread() {
  thread_local int thread = all_threads;
  return thread;
}
}  // namespace detail

/// Returns the emulated thread that this thread of the host runs, or `all_threads`.
inline int emulated_thread() { return detail::emulated_thread(); }

/// Runs what follows as one emulated thread, as long as it lives.
class AsThread {
 public:
  /// Begins to be that thread.
  explicit AsThread(int thread) : before_(emulated_thread()) { become(thread); }
  AsThread(const AsThread&) = delete;
  AsThread& operator=(const AsThread&) = delete;
  ~AsThread() { become(before_); }
  /// Goes on as another thread.
  void become(int thread) {
    std::atomic_signal_fence(std::memory_order_seq_cst);  // what one thread reads and writes stays with it
    detail::emulated_thread() = thread;
    std::atomic_signal_fence(std::memory_order_seq_cst);
  }

 private:
  int before_;
};

/// Is told what emulated kernels do, in the order in which they do it. A test program that looks for races has one
/// (tests/support/kernel_races.cpp).
class KernelObserver {
 public:
  KernelObserver() = default;
  KernelObserver(const KernelObserver&) = delete;
  KernelObserver& operator=(const KernelObserver&) = delete;
  virtual ~KernelObserver() = default;
  /// Memory of the device was allocated.
  virtual void on_allocation(void* memory, std::size_t bytes) = 0;
  /// Memory of `on_allocation` is about to be freed.
  virtual void on_release(void* memory) = 0;
  /// A kernel, a type of this name, begins to run for a grid of blocks.
  virtual void on_launch(const char* kernel, Grid grid) = 0;
  /// A block of it begins.
  virtual void on_block(Index x, Index y) = 0;
  /// The block has ended, or has thrown.
  virtual void on_block_end() noexcept = 0;
  /// Throws `Error` if something was wrong in the block that ended last.
  virtual void check() = 0;
  /// The block has taken shared memory.
  virtual void on_shared(void* memory, std::size_t bytes) = 0;
  /// The block has taken registers, `each` bytes a thread, one thread after the other.
  virtual void on_registers(void* memory, std::size_t each, int threads) = 0;
  /// All threads of the block have waited for each other.
  virtual void on_barrier() = 0;
  /// The threads of each warp have waited for each other.
  virtual void on_warp_barrier() = 0;
  /// The calling thread begins to copy 16 bytes, `bytes` of them from memory, the others zeros.
  virtual void on_copy(void* to, const void* from, int bytes) = 0;
  /// A group of copies ends.
  virtual void on_copies_end() = 0;
  /// All groups of copies but for the last `unfinished` are done.
  virtual void on_copies_done(int unfinished) = 0;
};
/// Gives the observer, null if there is none. It is set before the first kernel.
inline KernelObserver*& kernel_observer() {
  static KernelObserver* observer = nullptr;
  return observer;
}

namespace detail {

/// Gives memory to one emulated block after the other. Only the first blocks allocate.
class EmulatedMemory {
 public:
  static constexpr std::size_t gap = 64;  ///< bytes between one piece and the next, which nobody may use
  /// Returns `bytes` of memory until `reset`, filled so that a float read before it is written is NaN.
  void* take(std::size_t bytes) {
    const std::size_t rounded = (bytes + gap + 63) / 64 * 64;
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
/// Gives the shared memory of emulated blocks of this thread of the host.
inline EmulatedMemory& emulated_memory() {
  thread_local EmulatedMemory memory;
  return memory;
}
/// Gives their registers.
inline EmulatedMemory& emulated_registers() {
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
  /// Makes all groups of copies but for the last `unfinished`.
  __attribute__((no_sanitize("thread"))) void finish(int unfinished) {  // no thread of the block does it
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
  /// Drops all copies and groups.
  void clear() {
    copies_.clear();
    ends_.clear();
  }

 private:
  std::vector<Copy> copies_{};
  std::vector<std::size_t> ends_{};  // of groups, in `copies_`
};
inline EmulatedCopies& emulated_copies() {
  thread_local EmulatedCopies copies;
  return copies;
}

}  // namespace detail

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
