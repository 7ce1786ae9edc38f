// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/error.hpp>
#include <laconic/core/version.hpp>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

namespace laconic {
inline namespace LACONIC_ABI {

/// Requires what the processes of a job need to work together. Process `rank` of `size` calls each function when all
/// others do, with as many values as they have.
template <class C>
concept Communicator = requires(C& c, std::span<float> floats, std::span<double> doubles, std::span<std::byte> bytes,
                                int root) {
  // rank: returns the number of this process, from 0.
  { std::as_const(c).rank() } -> std::same_as<int>;
  // size: returns the number of processes.
  { std::as_const(c).size() } -> std::same_as<int>;
  // sum: replaces the values by their sums over all processes, added as `add_in_pairs` says: bit for bit the same in
  // each.
  c.sum(floats);
  c.sum(doubles);
  // begin_sum: begins to replace the values by their sums. They belong to the communicator until `end_sums` returns.
  c.begin_sum(floats);
  c.begin_sum(doubles);
  // advance: goes on with sums that were begun, without waiting. Others need not call it as often.
  c.advance();
  // end_sums: returns when all sums that were begun are done.
  c.end_sums();
  // broadcast: replaces the bytes by those of process `root`.
  c.broadcast(bytes, root);
  // barrier: returns when all processes have called it.
  c.barrier();
};

/// Implements a communicator for a process that works alone.
struct Alone {
  /// Returns 0.
  int rank() const { return 0; }
  /// Returns 1.
  int size() const { return 1; }
  /// Leaves the values as they are: a sum of one.
  template <class T>
  void sum(std::span<T>) {}
  /// Leaves the values as they are.
  template <class T>
  void begin_sum(std::span<T>) {}
  /// Does nothing.
  void advance() {}
  /// Returns at once.
  void end_sums() {}
  /// Leaves the bytes as they are.
  void broadcast(std::span<std::byte>, int) {}
  /// Returns at once.
  void barrier() {}
};

/// Refers to a communicator whose type is known at run time only, or to none: then it is `Alone`. The communicator must
/// outlive it.
class AnyCommunicator {
 public:
  /// Works alone.
  AnyCommunicator() = default;
  /// Refers to a communicator.
  template <Communicator C>
  requires(!std::same_as<std::remove_const_t<C>, AnyCommunicator>) explicit AnyCommunicator(C& communicator)
      : held_(&communicator), calls_(&calls_of<C>) {}

  /// Returns the number of this process, from 0.
  int rank() const { return held_ == nullptr ? 0 : calls_->rank(held_); }
  /// Returns the number of processes.
  int size() const { return held_ == nullptr ? 1 : calls_->size(held_); }
  /// Replaces the values by their sums over all processes.
  void sum(std::span<float> values) {
    if (held_ != nullptr) calls_->sum_floats(held_, values);
  }
  /// Replaces the values by their sums over all processes.
  void sum(std::span<double> values) {
    if (held_ != nullptr) calls_->sum_doubles(held_, values);
  }
  /// Begins to replace the values by their sums over all processes.
  void begin_sum(std::span<float> values) {
    if (held_ != nullptr) calls_->begin_sum_of_floats(held_, values);
  }
  /// Begins to replace the values by their sums over all processes.
  void begin_sum(std::span<double> values) {
    if (held_ != nullptr) calls_->begin_sum_of_doubles(held_, values);
  }
  /// Goes on with sums that were begun, without waiting.
  void advance() {
    if (held_ != nullptr) calls_->advance(held_);
  }
  /// Returns when all sums that were begun are done.
  void end_sums() {
    if (held_ != nullptr) calls_->end_sums(held_);
  }
  /// Replaces the bytes by those of process `root`.
  void broadcast(std::span<std::byte> bytes, int root) {
    if (held_ != nullptr) calls_->broadcast(held_, bytes, root);
  }
  /// Returns when all processes have called it.
  void barrier() {
    if (held_ != nullptr) calls_->barrier(held_);
  }

 private:
  struct Calls {
    int (*rank)(void*);
    int (*size)(void*);
    void (*sum_floats)(void*, std::span<float>);
    void (*sum_doubles)(void*, std::span<double>);
    void (*begin_sum_of_floats)(void*, std::span<float>);
    void (*begin_sum_of_doubles)(void*, std::span<double>);
    void (*advance)(void*);
    void (*end_sums)(void*);
    void (*broadcast)(void*, std::span<std::byte>, int);
    void (*barrier)(void*);
  };
  template <class C>
  static constexpr Calls calls_of{
      [](void* c) { return static_cast<C*>(c)->rank(); },
      [](void* c) { return static_cast<C*>(c)->size(); },
      [](void* c, std::span<float> values) { static_cast<C*>(c)->sum(values); },
      [](void* c, std::span<double> values) { static_cast<C*>(c)->sum(values); },
      [](void* c, std::span<float> values) { static_cast<C*>(c)->begin_sum(values); },
      [](void* c, std::span<double> values) { static_cast<C*>(c)->begin_sum(values); },
      [](void* c) { static_cast<C*>(c)->advance(); },
      [](void* c) { static_cast<C*>(c)->end_sums(); },
      [](void* c, std::span<std::byte> bytes, int root) { static_cast<C*>(c)->broadcast(bytes, root); },
      [](void* c) { static_cast<C*>(c)->barrier(); }};

  void* held_ = nullptr;
  const Calls* calls_ = nullptr;
};

/// Adds lists of values, `terms[i]` of n values each, into the first: neighbours first, then neighbours of these sums,
/// and so on. So a sum over blocks of 2^k terms is that of the blocks' sums, bit for bit. Changes the other lists. No
/// allocation.
template <class T>
void add_in_pairs(std::span<T* const> terms, std::size_t n) {
  for (std::size_t step = 1; step < terms.size(); step *= 2)
    for (std::size_t i = 0; i + step < terms.size(); i += 2 * step)
      for (std::size_t k = 0; k < n; ++k) terms[i][k] += terms[i + step][k];
}

/// Names the part of a list of tasks that one process does: those from `begin` to `end`.
struct Share {
  std::ptrdiff_t begin = 0, end = 0;
};
/// Returns the part of `count` tasks that process `rank` of `size` does: equally long blocks in the order of ranks, of
/// which the last may be shorter or empty.
inline Share share_of(std::ptrdiff_t count, int rank, int size) {
  const std::ptrdiff_t each = (count + size - 1) / size;
  return {std::min(count, rank * each), std::min(count, (rank + 1) * each)};
}

/// Replaces a text by that of process `root`. Allocates.
template <Communicator C>
void broadcast_text(C& communicator, std::string& text, int root) {
  std::size_t size = text.size();
  communicator.broadcast(std::as_writable_bytes(std::span(&size, 1)), root);
  text.resize(size);
  communicator.broadcast(std::as_writable_bytes(std::span(text.data(), size)), root);
}

/// Throws `Error` in each process whose text is not that of process 0. `what` says in the message what differs.
template <Communicator C>
void require_equal_in_all(C& communicator, const std::string& text, std::string_view what) {
  if (communicator.size() == 1) return;
  std::string first = text;
  broadcast_text(communicator, first, 0);
  require(first == text, "process ", communicator.rank(), " of ", communicator.size(), ": other ", what,
          " than in process 0 given, the same expected in all");
}

}  // namespace LACONIC_ABI
}  // namespace laconic
