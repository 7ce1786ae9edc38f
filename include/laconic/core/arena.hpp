// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/extent.hpp>

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>

namespace laconic::inline LACONIC_ABI {

class Buffer;

/// Recycles memory: a freed block goes to the list of its size class and serves the next request of that class,
/// so that a computation repeated with the same shapes allocates only the first time.
/// One arena belongs to one thread; kernels may share its blocks among threads, but not take or free them.
class Arena {
 public:
  Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena() { trim(); }

  /// A block of at least `bytes` bytes, aligned to 64. Uninitialised.
  Buffer allocate(std::size_t bytes);

  /// Bytes taken from the system, in use or kept for reuse.
  std::size_t reserved_bytes() const { return reserved_; }
  /// Bytes in use now, and the most that ever were.
  std::size_t used_bytes() const { return used_; }
  std::size_t peak_bytes() const { return peak_; }

  /// Gives back what is not in use.
  void trim() {
    for (auto& list : free_)
      while (list != nullptr) {
        Block* block = std::exchange(list, list->next);
        reserved_ -= block->bytes;
        ::operator delete(block, std::align_val_t(alignment));
      }
  }

 private:
  friend class Buffer;
  static constexpr std::size_t alignment = 64;

  struct alignas(alignment) Block {
    Arena* arena;
    Block* next;
    std::size_t bytes;
    std::uint32_t size_class;
    std::uint32_t owners;
  };

  /// Four classes to each power of two: at most a quarter of a block is unused.
  static constexpr std::uint32_t size_class_of(std::size_t bytes) {
    const std::size_t steps = (bytes < 256 ? 256 : bytes) - 1;
    const auto power = static_cast<std::uint32_t>(std::bit_width(steps) - 1);
    return 4 * power + static_cast<std::uint32_t>((steps >> (power - 2)) & 3);
  }
  static constexpr std::size_t class_bytes(std::uint32_t size_class) {
    return (std::size_t{5} + size_class % 4) << (size_class / 4 - 2);
  }

  std::array<Block*, 256> free_{};
  std::size_t reserved_ = 0, used_ = 0, peak_ = 0;
};

/// A counted reference to a block of an arena. Copies share the block; the last one gives it back.
/// The arena must live longer than its buffers.
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
    Arena& arena = *block_->arena;
    arena.used_ -= block_->bytes;
    block_->next = std::exchange(arena.free_[block_->size_class], block_);
  }

  void* data() const { return block_ == nullptr ? nullptr : static_cast<void*>(block_ + 1); }
  bool empty() const { return block_ == nullptr; }
  /// True when nobody else holds the block, so that it may be overwritten.
  bool unique() const { return block_ != nullptr && block_->owners == 1; }

 private:
  friend class Arena;
  explicit Buffer(Arena::Block* block) : block_(block) {}
  Arena::Block* block_ = nullptr;
};

inline Buffer Arena::allocate(std::size_t bytes) {
  const std::uint32_t size_class = size_class_of(bytes);
  Block* block = free_[size_class];
  if (block != nullptr) {
    free_[size_class] = block->next;
  } else {
    const std::size_t size = class_bytes(size_class);
    block = new (::operator new(size + sizeof(Block), std::align_val_t(alignment))) Block{};
    block->arena = this;
    block->bytes = size;
    block->size_class = size_class;
    reserved_ += size;
  }
  block->owners = 1;
  used_ += block->bytes;
  if (used_ > peak_) peak_ = used_;
  return Buffer(block);
}

}  // namespace laconic
