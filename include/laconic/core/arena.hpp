// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/extent.hpp>
#include <laconic/core/memory.hpp>

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <new>
#include <utility>

namespace laconic {
inline namespace LACONIC_ABI {

class Buffer;

namespace detail {

struct ArenaBlock;

/// What an arena and its blocks share. It goes with the last of them, so that a block may outlive its arena.
struct ArenaState {
  std::array<ArenaBlock*, 256> free{};
  std::size_t reserved = 0, used = 0, peak = 0;
  bool orphaned = false;
  bool settled = false;  // requests may take larger blocks
};

struct alignas(line_bytes) ArenaBlock {
  ArenaState* state;
  ArenaBlock* next;
  std::size_t bytes;
  std::uint32_t size_class;
  std::uint32_t owners;
};

}  // namespace detail

/// Recycles memory: a freed block goes to the list of its size class and serves the next request of that class,
/// so that a computation repeated with the same shapes allocates only the first time.
/// One arena belongs to one thread; kernels may share its blocks among threads, but not take or free them.
class Arena {
 public:
  Arena() : state_(new detail::ArenaState) {}
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena() {
    trim();
    if (state_->used == 0)
      delete state_;
    else
      state_->orphaned = true;
  }

  /// A block of at least `bytes` bytes, aligned to 64. Uninitialised. Throws std::bad_alloc.
  Buffer allocate(std::size_t bytes);

  /// Bytes taken from the system, in use or kept for reuse.
  std::size_t reserved_bytes() const { return state_->reserved; }
  /// Bytes in use now, and the most that ever were.
  std::size_t used_bytes() const { return state_->used; }
  std::size_t peak_bytes() const { return state_->peak; }

  /// For a computation that must not ask the system for memory from now on, after its largest cases have run: doubles
  /// the free blocks of every size, and lets requests take larger ones where their own size has run out.
  void settle();

  /// Gives back what is not in use.
  void trim() {
    for (auto& list : state_->free)
      while (list != nullptr) {
        detail::ArenaBlock* block = std::exchange(list, list->next);
        state_->reserved -= block->bytes;
        release(block);
      }
  }

 private:
  friend class Buffer;

  detail::ArenaBlock* take(std::uint32_t size_class);
  static void release(detail::ArenaBlock* block) {
    detail::free_aligned(block, block->bytes + sizeof(detail::ArenaBlock));
  }

  /// Four classes to each power of two: at most a quarter of a block is unused.
  static constexpr std::uint32_t size_class_of(std::size_t bytes) {
    const std::size_t steps = (bytes < 256 ? 256 : bytes) - 1;
    const auto power = static_cast<std::uint32_t>(std::bit_width(steps) - 1);
    return 4 * power + static_cast<std::uint32_t>((steps >> (power - 2)) & 3);
  }
  static constexpr std::size_t class_bytes(std::uint32_t size_class) {
    return (std::size_t{5} + size_class % 4) << (size_class / 4 - 2);
  }

  detail::ArenaState* state_;
};

/// A counted reference to a block of an arena. Copies share the block; the last one gives it back, to the system if the
/// arena is gone.
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer& other) : block_(other.block_) {
    if (block_ != nullptr) ++block_->owners;
  }
  Buffer(Buffer&& other) noexcept : block_(std::exchange(other.block_, nullptr)) {}
  Buffer& operator=(Buffer other) noexcept {
    std::swap(block_, other.block_);
    return *this;
  }
  ~Buffer() {
    if (block_ == nullptr || --block_->owners > 0) return;
    detail::ArenaState& state = *block_->state;
    state.used -= block_->bytes;
    if (!state.orphaned) {
      block_->next = std::exchange(state.free[block_->size_class], block_);
      return;
    }
    Arena::release(block_);
    if (state.used == 0) delete &state;
  }

  void* data() const { return block_ == nullptr ? nullptr : static_cast<void*>(block_ + 1); }
  bool empty() const { return block_ == nullptr; }
  /// True when nobody else holds the block, so that it may be overwritten.
  bool unique() const { return block_ != nullptr && block_->owners == 1; }

 private:
  friend class Arena;
  explicit Buffer(detail::ArenaBlock* block) : block_(block) {}
  detail::ArenaBlock* block_ = nullptr;
};

/// A free block of this size, or one from the system.
inline detail::ArenaBlock* Arena::take(std::uint32_t size_class) {
  detail::ArenaBlock* block = state_->free[size_class];
  if (block != nullptr) {
    state_->free[size_class] = block->next;
    return block;
  }
  const std::size_t size = class_bytes(size_class);
  block = new (detail::allocate_aligned(size + sizeof(detail::ArenaBlock)))
      detail::ArenaBlock{state_, nullptr, size, size_class, 0};
  state_->reserved += size;
  return block;
}

inline void Arena::settle() {
  if (state_->settled) return;
  for (std::uint32_t size_class = 0; size_class < state_->free.size(); ++size_class) {
    detail::ArenaBlock*& list = state_->free[size_class];
    Index count = 0;
    for (const auto* block = list; block != nullptr; block = block->next) ++count;
    for (; count > 0; --count) {
      detail::ArenaBlock* kept = std::exchange(list, nullptr);
      list = take(size_class);
      list->next = kept;
    }
  }
  state_->settled = true;
}

inline Buffer Arena::allocate(std::size_t bytes) {
  if (bytes > std::numeric_limits<std::size_t>::max() / 4) throw std::bad_alloc();
  std::uint32_t size_class = size_class_of(bytes);
  if (state_->settled && state_->free[size_class] == nullptr)
    for (std::uint32_t larger = size_class + 1; larger < state_->free.size(); ++larger)
      if (state_->free[larger] != nullptr) {
        size_class = larger;
        break;
      }
  detail::ArenaBlock* block = take(size_class);
  block->owners = 1;
  state_->used += block->bytes;
  if (state_->used > state_->peak) state_->peak = state_->used;
  return Buffer(block);
}

}  // namespace LACONIC_ABI
}  // namespace laconic
