// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/arena.hpp>

#include <algorithm>
#include <initializer_list>
#include <span>

namespace laconic {
inline namespace LACONIC_ABI {

/// Says at which row each sequence of a packed batch begins and ends. A batch is one matrix `(rows, channels)` in which
/// sequence n is the rows [begin(n), end(n)); nothing is padded.
class Sequences {
 public:
  /// Makes a batch of no sequences.
  Sequences() = default;
  /// Makes sequences of these lengths, in rows. Throws `Error` for a negative one. Allocates; copies share the memory.
  explicit Sequences(std::span<const Index> lengths) {
    Arena own;  // its one block outlives it, and ends on whatever thread the last copy does
    *this = make(own, static_cast<Index>(lengths.size()), [&](Index n) {
      const Index length = lengths[static_cast<std::size_t>(n)];
      require(length >= 0, "sequences: length ", length, " given for sequence ", n, ", at least 0 expected");
      return length;
    });
  }
  /// Makes sequences of these lengths, in rows.
  Sequences(std::initializer_list<Index> lengths)
      : Sequences(std::span<const Index>(lengths.begin(), lengths.size())) {}

  /// Makes `size` sequences in memory of the arena, sequence n of length(n) rows (a negative length counts as 0).
  /// Allocates nothing once the arena is warm.
  template <class Length>
  static Sequences make(Arena& arena, Index size, Length&& length) {
    Sequences out(arena, size);
    auto* offsets = static_cast<Index*>(out.buffer_.data());
    offsets[0] = 0;
    for (Index n = 0; n < size; ++n) offsets[n + 1] = offsets[n] + std::max<Index>(0, length(n));
    return out;
  }
  /// Returns sequences whose lengths are `map(length)` of these, in memory of the arena.
  template <class Map>
  Sequences map_lengths(Arena& arena, Map&& map) const {
    return make(arena, size(), [&](Index n) { return map(length(n)); });
  }

  /// Returns the number of sequences.
  Index size() const { return size_; }
  /// Returns the number of rows of all sequences.
  Index rows() const { return offsets_[size_]; }
  /// Returns the first row of sequence n.
  Index begin(Index n) const { return offsets_[n]; }
  /// Returns one past the last row of sequence n.
  Index end(Index n) const { return offsets_[n + 1]; }
  /// Returns the number of rows of sequence n.
  Index length(Index n) const { return end(n) - begin(n); }
  /// Returns the number of the sequence that has this row.
  Index sequence_of(Index row) const { return std::upper_bound(offsets_ + 1, offsets_ + size_, row) - (offsets_ + 1); }
  /// Returns the length of the longest sequence, 0 without any.
  Index max_length() const {
    Index longest = 0;
    for (Index n = 0; n < size(); ++n) longest = std::max(longest, length(n));
    return longest;
  }
  /// Returns the first row of every sequence, and then the number of rows, (size + 1).
  const Index* offsets() const { return offsets_; }
  /// Says whether two batches have sequences of the same lengths.
  friend bool operator==(const Sequences& a, const Sequences& b) {
    return std::equal(a.offsets_, a.offsets_ + a.size_ + 1, b.offsets_, b.offsets_ + b.size_ + 1);
  }

 private:
  Sequences(Arena& arena, Index size)
      : buffer_(arena.allocate(static_cast<std::size_t>(size + 1) * sizeof(Index))),
        offsets_(static_cast<const Index*>(buffer_.data())),
        size_(size) {}

  static constexpr Index none[1] = {0};  // offsets of no sequences

  Buffer buffer_;
  const Index* offsets_ = none;
  Index size_ = 0;
};

/// Calls `visit(n, range)` for every sequence that has some of the given rows of a batch. The range numbers these rows
/// from the beginning of sequence n.
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
