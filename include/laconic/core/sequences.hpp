// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/arena.hpp>

#include <algorithm>
#include <initializer_list>
#include <memory>
#include <span>

namespace laconic {
inline namespace LACONIC_ABI {

/// Where each sequence of a packed batch begins and ends. A batch is one matrix `(rows, channels)` in which
/// sequence n is the rows [begin(n), end(n)); nothing is padded.
class Sequences {
 public:
  Sequences() : offsets_(none) {}
  /// Makes sequences of these lengths. Allocates from the heap; copies share the memory.
  explicit Sequences(std::span<const Index> lengths)
      : own_(new Index[lengths.size() + 1]()), offsets_(own_.get(), lengths.size() + 1) {
    for (std::size_t n = 0; n < lengths.size(); ++n) {
      require(lengths[n] >= 0, "sequences: length ", lengths[n], " given for sequence ", n, ", at least 0 expected");
      own_[static_cast<std::ptrdiff_t>(n) + 1] = own_[static_cast<std::ptrdiff_t>(n)] + lengths[n];
    }
  }
  Sequences(std::initializer_list<Index> lengths) : Sequences(std::span(lengths.begin(), lengths.size())) {}

  /// `size` sequences, number n as long as length(n) says (less than 0: empty), in memory of the arena: once warm, it
  /// allocates nothing.
  template <class Length>
  static Sequences make(Arena& arena, Index size, Length&& length) {
    Sequences out(arena, size);
    auto* offsets = static_cast<Index*>(out.buffer_.data());
    offsets[0] = 0;
    for (Index n = 0; n < size; ++n) offsets[n + 1] = offsets[n] + std::max<Index>(0, length(n));
    return out;
  }
  /// The sequences whose lengths are `map(length)` of these.
  template <class Map>
  Sequences map_lengths(Arena& arena, Map&& map) const {
    return make(arena, size(), [&](Index n) { return map(length(n)); });
  }

  Index size() const { return static_cast<Index>(offsets_.size()) - 1; }
  Index rows() const { return offsets_.back(); }
  Index begin(Index n) const { return offsets_[static_cast<std::size_t>(n)]; }
  Index end(Index n) const { return offsets_[static_cast<std::size_t>(n) + 1]; }
  Index length(Index n) const { return end(n) - begin(n); }
  /// The sequence that a row belongs to.
  Index sequence_of(Index row) const {
    return std::upper_bound(offsets_.begin() + 1, offsets_.end() - 1, row) - (offsets_.begin() + 1);
  }
  Index max_length() const {
    Index longest = 0;
    for (Index n = 0; n < size(); ++n) longest = std::max(longest, length(n));
    return longest;
  }
  /// Identifies the memory of the offsets, which copies share and nobody changes: a backend that holds a copy of these
  /// sequences recognises them by it, and copies them to its device once.
  const void* identity() const { return offsets_.data(); }
  friend bool operator==(const Sequences& a, const Sequences& b) {
    return std::equal(a.offsets_.begin(), a.offsets_.end(), b.offsets_.begin(), b.offsets_.end());
  }

 private:
  Sequences(Arena& arena, Index size)
      : buffer_(arena.allocate(static_cast<std::size_t>(size + 1) * sizeof(Index))),
        offsets_(static_cast<const Index*>(buffer_.data()), static_cast<std::size_t>(size) + 1) {}

  static constexpr Index none[1] = {0};  // offsets of no sequences

  std::shared_ptr<Index[]> own_;
  Buffer buffer_;
  std::span<const Index> offsets_;
};

/// visit(n, rows of sequence n) for every sequence that has some among these rows, numbered as in all of them.
template <class Visit>
void each_part(const Sequences& sequences, Range rows, Visit&& visit) {
  while (rows.begin < rows.end) {
    const Index n = sequences.sequence_of(rows.begin), end = std::min(rows.end, sequences.end(n));
    visit(n, Range{rows.begin - sequences.begin(n), end - sequences.begin(n)});
    rows.begin = end;
  }
}

}  // namespace LACONIC_ABI
}  // namespace laconic
