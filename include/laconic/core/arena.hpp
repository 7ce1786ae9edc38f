// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/extent.hpp>
#include <laconic/core/memory.hpp>

#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <new>
#include <utility>

namespace laconic {
inline namespace LACONIC_ABI {

class Buffer;

/// Says where an arena takes its memory from, if not from the host's: the functions of a device.
struct MemorySource {
  /// Returns memory of a device, or throws. Null: there is only memory of the host.
  void* (*allocate)(int device, std::size_t bytes) = nullptr;
  void (*release)(int device, void* memory) = nullptr;  ///< frees it
  int device = 0;                                       ///< the device
};

namespace detail {

struct ArenaBlock;

/// Holds what an arena shares with its blocks. It is deleted with the last of them, so that a block may outlive its
/// arena.
struct ArenaState {
  std::array<ArenaBlock*, 256> free{};  ///< heads of the free lists, by size class
  std::size_t reserved = 0,             ///< bytes taken from the system
      used = 0,                         ///< bytes in use now
      peak = 0;                         ///< max bytes in use at any time
  bool orphaned = false;                ///< the arena is gone, blocks in use are not
  bool settled = false;                 ///< a request may take a block of a larger class
  MemorySource source{};                ///< takes and frees the memory of blocks
};

/// Describes a block. On the host it precedes the memory; memory of a device is apart from it.
struct alignas(line_bytes) ArenaBlock {
  ArenaState* state;         ///< the state that counts this block
  ArenaBlock* next;          ///< the next block of the free list, if this one is free
  void* memory;              ///< the memory
  std::size_t bytes;         ///< size of the memory
  std::uint32_t size_class;  ///< index of its free list
  /// Gives the number of Buffers that refer to it. Threads may copy one that another keeps.
  std::atomic<std::uint32_t> owners;
};

}  // namespace detail

/// Recycles memory. A freed block goes to the free list of its size class and serves the next request of that class, so
/// that a computation repeated with the same shapes allocates only the first time. An arena belongs to one thread:
/// other threads may read its blocks and copy Buffers that it keeps meanwhile, but not take or free blocks.
class Arena {
 public:
  /// Makes an arena without blocks. Allocates its state.
  Arena() : state_(new detail::ArenaState) {}
  /// Makes an arena without blocks that takes memory from a source. Allocates its state.
  explicit Arena(const MemorySource& source) : Arena() { state_->source = source; }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  /// Frees the blocks that are not in use. Each of the others is freed with its last Buffer.
  ~Arena() {
    trim();
    if (state_->used == 0)
      delete state_;
    else
      state_->orphaned = true;
  }

  /// Returns an uninitialised block of at least `bytes` bytes, aligned to 64. Throws std::bad_alloc, or what the source
  /// of memory throws.
  Buffer allocate(std::size_t bytes);

  /// Returns the number of bytes taken from the system, in use or kept for reuse.
  std::size_t reserved_bytes() const { return state_->reserved; }
  /// Returns the number of bytes in use now.
  std::size_t used_bytes() const { return state_->used; }
  /// Returns the max number of bytes that were in use at any time.
  std::size_t peak_bytes() const { return state_->peak; }

  /// Prepares a computation that must not allocate from now on, after its largest cases have run: doubles the free
  /// blocks of every size, and lets requests take larger blocks where those of their own size have run out.
  void settle() { settle(*this); }
  /// Prepares the same as another arena, which has run such cases and may be settled already.
  void settle(const Arena& like);

  /// Puts the blocks that are not in use in the order of their addresses, so that a computation which is repeated with
  /// the same sizes gets the same memory again.
  void sort() {
    for (auto& list : state_->free) {
      detail::ArenaBlock *unsorted = std::exchange(list, nullptr), *latest = nullptr;
      while (unsorted != nullptr) {
        detail::ArenaBlock* const block = unsorted;
        unsorted = block->next;
        const bool is_after = latest != nullptr && std::less<>()(latest->memory, block->memory);
        detail::ArenaBlock** place = is_after ? &latest->next : &list;  // most are in order already
        while (*place != nullptr && std::less<>()((*place)->memory, block->memory)) place = &(*place)->next;
        block->next = std::exchange(*place, block);
        latest = block;
      }
    }
  }
  /// Returns the blocks that are not in use to the system.
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
    const MemorySource& source = block->state->source;
    if (source.allocate == nullptr) return detail::free_aligned(block, block->bytes + sizeof(detail::ArenaBlock));
    source.release(source.device, block->memory);
    delete block;
  }

  /// Returns the class of a size. Four classes to each power of two leave at most a quarter of a block unused, beyond
  /// the smallest of 256 bytes.
  static constexpr std::uint32_t size_class_of(std::size_t bytes) {
    const std::size_t steps = (bytes < 256 ? 256 : bytes) - 1;
    const auto power = static_cast<std::uint32_t>(std::bit_width(steps) - 1);
    return 4 * power + static_cast<std::uint32_t>((steps >> (power - 2)) & 3);
  }
  /// Returns the size of the blocks of a class.
  static constexpr std::size_t class_bytes(std::uint32_t size_class) {
    return (std::size_t{5} + size_class % 4) << (size_class / 4 - 2);
  }

  detail::ArenaState* state_;
};

/// Refers to a block of an arena and counts the references. Copies share the block. The last one returns it to the
/// arena, or to the system if the arena is gone.
class Buffer {
 public:
  /// Makes a buffer without a block.
  Buffer() = default;
  /// Shares the block of the other.
  Buffer(const Buffer& other) : block_(other.block_) {
    if (block_ != nullptr) block_->owners.fetch_add(1, std::memory_order_relaxed);
  }
  /// Takes over the block of the other, which is empty afterwards.
  Buffer(Buffer&& other) noexcept : block_(std::exchange(other.block_, nullptr)) {}
  /// Drops its block and takes that of the other.
  Buffer& operator=(Buffer other) noexcept {
    std::swap(block_, other.block_);
    return *this;
  }
  /// Returns the block if this is its last reference.
  ~Buffer() {
    if (block_ == nullptr || block_->owners.fetch_sub(1, std::memory_order_acq_rel) > 1) return;
    detail::ArenaState& state = *block_->state;
    state.used -= block_->bytes;
    if (!state.orphaned) {
      block_->next = std::exchange(state.free[block_->size_class], block_);
      return;
    }
    Arena::release(block_);
    if (state.used == 0) delete &state;
  }

  /// Returns the memory, or null without a block.
  void* data() const { return block_ == nullptr ? nullptr : block_->memory; }
  /// Says whether there is no block.
  bool empty() const { return block_ == nullptr; }
  /// Says whether this is the only reference to the block, so that it may be overwritten.
  bool unique() const { return block_ != nullptr && block_->owners.load(std::memory_order_acquire) == 1; }

 private:
  friend class Arena;
  explicit Buffer(detail::ArenaBlock* block) : block_(block) {}
  detail::ArenaBlock* block_ = nullptr;
};

/// Takes a free block of this class, or one from the system.
inline detail::ArenaBlock* Arena::take(std::uint32_t size_class) {
  detail::ArenaBlock* block = state_->free[size_class];
  if (block != nullptr) {
    state_->free[size_class] = block->next;
    return block;
  }
  const std::size_t size = class_bytes(size_class);
  if (state_->source.allocate == nullptr) {
    block = new (detail::allocate_aligned(size + sizeof(detail::ArenaBlock)))
        detail::ArenaBlock{state_, nullptr, nullptr, size, size_class, 0};
    block->memory = block + 1;
  } else {
    const MemorySource& source = state_->source;
    void* memory = nullptr;
    try {
      memory = source.allocate(source.device, size);
    } catch (...) {  // blocks of other sizes may be unused
      trim();
      memory = source.allocate(source.device, size);
    }
    block = new detail::ArenaBlock{state_, nullptr, memory, size, size_class, 0};
  }
  state_->reserved += size;
  return block;
}

/// Brings the free blocks of every size to twice those of an arena that has run the largest cases, or to as many as one
/// has that is settled.
inline void Arena::settle(const Arena& like) {
  if (state_->settled) return;
  const auto count = [](const detail::ArenaBlock* block) {
    Index blocks = 0;
    for (; block != nullptr; block = block->next) ++blocks;
    return blocks;
  };
  for (std::uint32_t size_class = 0; size_class < state_->free.size(); ++size_class) {
    auto& list = state_->free[size_class];
    const Index wanted = count(like.state_->free[size_class]) * (like.state_->settled ? 1 : 2);
    for (Index blocks = count(list); blocks < wanted; ++blocks) {
      detail::ArenaBlock* kept = std::exchange(list, nullptr);
      list = take(size_class);
      list->next = kept;
    }
  }
  state_->settled = true;
}

/// Takes a block of the class of `bytes`, or of a larger one if the arena is settled and that class is empty.
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
