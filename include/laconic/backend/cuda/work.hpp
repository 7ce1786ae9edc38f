// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/extent.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

// Work that a device does: the starts of kernels, copies and zeroings, as values that can be kept and compared. Graphs
// are made of lists of them.

namespace laconic {
inline namespace LACONIC_ABI {
namespace cuda {

/// Numbers the blocks of a launch: (x, y).
struct Grid {
  Index x;      ///< blocks along x, at most 2^31 - 1
  Index y = 1;  ///< blocks along y, at most 65535
};

/// Points to the code of a kernel: on a GPU its `__global__` function, emulated an `EmulatedKernel`.
using KernelFunction = void (*)();
/// Runs a kernel, whose arguments these are, for every block of a grid.
using EmulatedKernel = void (*)(const void* arguments, Grid grid, std::size_t shared_bytes);

/// Describes one piece of work. Some of it is bytes of the host, its payload: the arguments of a kernel, or what is
/// uploaded.
struct Work {
  enum class Kind : std::uint64_t { kernel, upload, copy, zero };
  Kind kind;                          ///< the kind of work
  void* to = nullptr;                 ///< target of an upload, a copy or zeros
  const void* from = nullptr;         ///< source of a copy
  std::size_t bytes = 0;              ///< bytes of the payload, of a copy, or of the zeros
  KernelFunction function = nullptr;  ///< the code of a kernel
  const char* name = "";              ///< the name of a kernel, for messages
  Grid grid{0, 0};                    ///< its blocks
  int threads = 0;                    ///< threads of a block
  std::size_t shared_bytes = 0;       ///< shared memory of a block

  /// Says whether this is the same work as another one but for addresses and arguments, so that a graph of one can be
  /// made to do the other.
  bool has_shape_of(const Work& other) const {
    return kind == other.kind && bytes == other.bytes && function == other.function && grid.x == other.grid.x &&
           grid.y == other.grid.y && threads == other.threads && shared_bytes == other.shared_bytes;
  }
};

/// Holds pieces of work, in their order, with their payloads.
class WorkList {
 public:
  /// Appends work, and a copy of its payload.
  void add(const Work& work, const void* payload) {
    std::vector<std::byte>* const kept = payloads_of(work.kind);
    std::size_t at = 0;
    if (kept != nullptr) {
      at = (kept->size() + 63) / 64 * 64;
      kept->resize(at + work.bytes);
      std::memcpy(kept->data() + at, payload, work.bytes);
    }
    works_.push_back({work, at});
    for (const std::uint64_t part : {static_cast<std::uint64_t>(work.kind), std::uint64_t{work.bytes},
                                     static_cast<std::uint64_t>(reinterpret_cast<std::uintptr_t>(work.function)),
                                     static_cast<std::uint64_t>(work.grid.x), static_cast<std::uint64_t>(work.grid.y),
                                     std::uint64_t{work.shared_bytes}})
      hash_ = (hash_ ^ part) * 0x9e3779b97f4a7c15u ^ hash_ >> 29;
  }
  /// Puts work before all other, with a copy of its payload.
  void add_first(const Work& work, const void* payload) {
    add(work, payload);
    std::rotate(works_.begin(), works_.end() - 1, works_.end());
  }
  /// Removes all work. Keeps the memory.
  void clear() {
    works_.clear();
    arguments_.clear();
    uploads_.clear();
    hash_ = 0;
  }

  /// Returns how many pieces there are.
  std::size_t size() const { return works_.size(); }
  /// Says whether there are none.
  bool empty() const { return works_.empty(); }
  /// Returns piece i.
  const Work& operator[](std::size_t i) const { return works_[i].work; }
  /// Returns the payload of piece i.
  const std::byte* payload(std::size_t i) const {
    return (works_[i].work.kind == Work::Kind::kernel ? arguments_ : uploads_).data() + works_[i].payload;
  }
  /// Returns where in `uploads` the payload of piece i is, which is an upload.
  std::size_t upload_at(std::size_t i) const { return works_[i].payload; }
  /// Returns the payloads of all uploads, as one block.
  const std::vector<std::byte>& uploads() const { return uploads_; }

  /// Returns a number that is the same for lists of the same shape.
  std::uint64_t hash() const { return hash_; }
  /// Says whether all pieces have the shapes of those of another list.
  bool has_shape_of(const WorkList& other) const {
    if (hash_ != other.hash_ || size() != other.size()) return false;
    for (std::size_t i = 0; i < size(); ++i)
      if (!works_[i].work.has_shape_of(other[i])) return false;
    return true;
  }
  /// Says whether piece i does exactly what that of another list of this shape does. What is uploaded does not count.
  bool is_equal(std::size_t i, const WorkList& other) const {
    const Work &a = (*this)[i], &b = other[i];
    return a.to == b.to && a.from == b.from &&
           (a.kind != Work::Kind::kernel || std::memcmp(payload(i), other.payload(i), a.bytes) == 0);
  }

 private:
  struct Entry {
    Work work;
    std::size_t payload;  // where it begins
  };
  std::vector<std::byte>* payloads_of(Work::Kind kind) {
    return kind == Work::Kind::kernel ? &arguments_ : kind == Work::Kind::upload ? &uploads_ : nullptr;
  }

  std::vector<Entry> works_{};
  std::vector<std::byte> arguments_{}, uploads_{};
  std::uint64_t hash_ = 0;
};

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
