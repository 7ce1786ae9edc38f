// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/kernels/attention_warps.hpp>

#include <numbers>

namespace laconic {
inline namespace LACONIC_ABI {
namespace cuda {

/// Holds the operands of `AttendTensor`.
struct AttendTensorOperands {
  AttendOperands<float> in;        ///< shapes, queries and biases
  AttendRows k, v, p;              ///< keys, values and the table of positions
  float *out, *logsumexp;          ///< (q_rows, num_heads * value_width); (q_rows, num_heads) or null
  Index group;                     ///< query heads of a tile
  AttendSplits splits;             ///< splits of the keys
  AttendPartials<float> partials;  ///< memory for their results
  bool same_rows = false;          ///< whether the values are the first values of the keys, which are loaded once
};

/// Computes softmax attention on tensor cores, with operands rounded to Bf16 and sums in float, as FlashAttention-2
/// does (Dao 2023). What `Attend` says of itself holds here, too, but that tiles of keys begin at multiples of 64 from
/// the first key of a sequence, cached ones included: the bits of a query depend on the keys that it sees and on their
/// numbers, and not on the rest of the call. A block is RowWarps times 16 rows of queries and 64 * ValueSlices columns
/// of the values; `AttendWarps` computes.
///
/// The block goes through steps, each of which needs one slice of operands: for a tile of keys those of the table of
/// positions, of the keys, and of the values. The slices are in a ring of buffers, which is filled `ahead` steps
/// before. The distances of a tile are 128, of which the tile before has had the first 64.
template <int RowWarps, int ValueSlices>
struct AttendTensor {
  using Warps = AttendWarps<RowWarps, ValueSlices>;
  static constexpr int threads = Warps::warps * warp_threads, rows = Warps::rows, keys = Warps::keys;
  static constexpr int columns = ValueSlices * Slice::width;           ///< columns of the values of a block
  static constexpr int ahead = 2;                                      ///< steps from the load of a slice to its use
  static constexpr int at_once = ValueSlices * RowWarps <= 4 ? 3 : 2;  ///< blocks for which registers are enough
  static_assert(AttendSplits::keys % keys == 0);

  AttendTensorOperands of;

  /// Returns the shared memory of a block.
  static constexpr std::size_t bytes(const AttendTensorOperands& operands) {
    const Steps steps(operands.in, min_columns(operands.in));
    return shared_bytes<Bf16>((steps.positions + steps.keys) * Warps::query_slice) +
           shared_bytes<Bf16>(buffers(operands) * Slice::size) + Warps::bytes(operands.in.p != nullptr) +
           shared_bytes<SequenceRows>(3);
  }
  /// Returns the blocks of a launch.
  static constexpr Grid grid(const AttendTensorOperands& operands, Index q_rows) {
    const Index slots = tile_slots(q_rows, operands.in.sequences, operands.group, rows),
                parts = pieces(operands.in.value_width, columns);
    return {slots * operands.splits.per_sequence, operands.splits.head_blocks * (parts > 1 ? parts : 1)};
  }

  LACONIC_DEVICE void operator()(Block& block) const {
    const AttendOperands<float>& in = of.in;
    const int split = static_cast<int>(block.x() % of.splits.per_sequence);
    const TileSlot slot = tile_of(block.x() / of.splits.per_sequence, in.q_offsets, in.sequences, of.group, rows);
    const int n = static_cast<int>(slot.sequence);
    const Index past = in.past(n), num_keys = in.keys(n), all_rows = in.queries(n) * of.group;
    const int num_splits = static_cast<int>(AttendSplits::count(all_rows, num_keys));
    if (slot.first >= all_rows || split >= num_splits) return;
    const int parts = in.value_width > columns ? static_cast<int>(pieces(in.value_width, columns)) : 1,
              head_block = static_cast<int>(block.y()) / parts,
              first_column = static_cast<int>(block.y()) % parts * columns, first_row = static_cast<int>(slot.first),
              group = static_cast<int>(of.group);
    const Place place{n, head_block * group, first_row, group, static_cast<int>(in.queries(n))};
    const Steps steps(
        in, in.value_width - first_column < columns ? in.value_width - first_column : static_cast<Index>(columns));

    Warps warps(block, in.p != nullptr);
    Bf16* const queries = block.shared<Bf16>((steps.positions + steps.keys) * Warps::query_slice);
    const Ring ring{block.shared<Bf16>(buffers(of) * Slice::size), buffers(of)};
    SequenceRows* const sources = block.shared<SequenceRows>(3);  // of the table, the keys and the values
    block.each([&](int t) {
      const Index kv_head = place.head / (in.num_heads / in.num_kv_heads);
      if (t == 0 && in.p != nullptr) sources[0] = SequenceRows(of.p, 0, place.head, 2 * in.span - 1, in.position_width);
      if (t == 1) sources[1] = SequenceRows(of.k, n, kv_head, num_keys, in.key_width);
      if (t == 2) sources[2] = SequenceRows(of.v, n, kv_head, num_keys, in.value_width);
    });
    warps.set_queries([&](int r, int& id, int& begin, int& end) {
      if (!place.exists(r)) return;
      const auto seen = in.mask.keys(place.query(r), past, num_keys);
      id = place.id(in, r);
      begin = static_cast<int>(seen.begin);
      end = static_cast<int>(seen.end);
    });
    load_queries(block, place, in.position_width, steps.positions, queries,
                 [&](Index id, Index head, Index c) { return in.positional(id, head, c); });
    load_queries(block, place, in.key_width, steps.keys, queries + steps.positions * Warps::query_slice,
                 [&](Index id, Index head, Index c) { return in.content(id, head, c); });

    // The keys that any query of the tile sees, within the split.
    const int last_row = (slot.first + rows < all_rows ? first_row + rows : static_cast<int>(all_rows)) - 1;
    int begin = static_cast<int>(in.mask.keys(first_row / group, past, num_keys).begin),
        end = static_cast<int>(in.mask.keys(last_row / group, past, num_keys).end);
    if (num_splits > 1) {
      const int first_key = split * static_cast<int>(AttendSplits::keys),
                after = first_key + static_cast<int>(AttendSplits::keys);
      begin = begin > first_key ? begin : first_key;
      end = end < after ? end : after;
    }
    begin = begin / keys * keys;

    // The row of the table for key 0 and the last row of the block, 64 further: of the second half of the distances.
    const int distance = static_cast<int>(in.span - 1 - past) - first_row - (rows - 1) + keys;
    // The tile before the first has only the distances that it shares with it.
    Step load{begin - (steps.positions > 0 ? keys : 0), 0}, now = load;
    int filled = 0, used = 0, first_half = 0;  // buffers
    for (int i = -ahead; now.key < end; ++i) {
      if (i >= 0) block.template wait_for_copies<ahead - 1>();  // and for the step before, whose slice is overwritten
      if (load.key < end) {
        const int kind = steps.kind(load.part), s = load.part - steps.first(kind);
        if (kind < 2 || !of.same_rows) {
          sources[kind].template load<threads>(block, load.key + (kind == 0 ? distance : 0),
                                               s * Slice::width + (kind == 2 ? first_column : 0), ring.buffer(filled));
          filled = ring.after(filled, 1);
        }
        load = steps.after(load, begin);
      }
      block.end_copies();
      if (i < 0) continue;
      const int kind = steps.kind(now.part), s = now.part - steps.first(kind);
      if (now.part == 0) warps.clear_scores();
      if (kind == 0) {
        if (now.key >= begin) {
          warps.add_positions(queries + s * Warps::query_slice, ring.buffer(first_half), ring.buffer(used),
                              static_cast<int>(in.position_width) - s * Slice::width);
          if (s == steps.positions - 1) warps.arrange_positions();
          first_half = ring.after(first_half, 1);
        }
        if (s == steps.positions - 1) first_half = ring.before(used, s);
      } else if (kind == 1) {
        warps.add_keys(queries + (steps.positions + s) * Warps::query_slice, ring.buffer(used),
                       static_cast<int>(in.key_width) - s * Slice::width);
        if (s == steps.keys - 1) warps.apply_softmax(now.key, in);
      } else {
        const int first_keys = ring.before(used, steps.keys);  // which are before the next tile's then
        warps.add_values(s, ring.buffer(of.same_rows ? ring.after(first_keys, first_column / Slice::width + s) : used));
      }
      if (kind < 2 || !of.same_rows) used = ring.after(used, 1);
      now = steps.after(now, begin);
    }

    warps.each_row([&](int r, int id, float exponent, float sum, int part, const auto& each_value) {
      const Index at = of.splits.at(n, split, head_block, first_row + r);
      float* const to = (num_splits > 1 ? of.partials.values + at * in.value_width
                                        : of.out + static_cast<Index>(id) * in.value_width);
      const float factor = num_splits > 1 ? 1.0f : sum == 0 ? 0.0f : 1 / sum;
      const int width = static_cast<int>(in.value_width) - first_column;
      each_value([&](int c, float value) {
        if (c < width) to[first_column + c] = value * factor;
      });
      if (part > 0 || first_column > 0) return;
      if (num_splits > 1) {
        of.partials.exponent[at] = exponent;
        of.partials.sum[at] = sum;
      } else if (of.logsumexp != nullptr) {
        of.logsumexp[id] = exponent * static_cast<float>(std::numbers::ln2) + std::log(sum);
      }
    });
  }

 private:
  /// Says which rows of queries a block has.
  struct Place {
    int sequence, head;             ///< the sequence, and the first head
    int first_row, group, queries;  ///< the first row in the sequence, the heads of a query, the queries

    LACONIC_DEVICE int query(int r) const { return (first_row + r) / group; }
    LACONIC_DEVICE bool exists(int r) const { return query(r) < queries; }
    LACONIC_DEVICE int head_of(int r) const { return head + (first_row + r) % group; }
    LACONIC_DEVICE int id(const AttendOperands<float>& in, int r) const {
      return static_cast<int>((in.q_offsets[sequence] + query(r)) * in.num_heads) + head_of(r);
    }
  };
  /// Names a step: slice `part` of those of a tile of keys.
  struct Step {
    int key, part;
  };
  /// Counts the steps of a tile of keys.
  struct Steps {
    int positions, keys, values;

    constexpr Steps(const AttendOperands<float>& in, Index value_columns)
        : positions(in.p == nullptr ? 0 : Slice::count(in.position_width)),
          keys(Slice::count(in.key_width)),
          values(Slice::count(value_columns)) {}
    /// Returns 0 for a step of positions, 1 for one of keys, 2 for one of values.
    LACONIC_DEVICE int kind(int part) const { return part < positions ? 0 : part < positions + keys ? 1 : 2; }
    LACONIC_DEVICE int first(int of_kind) const {
      return of_kind == 0 ? 0 : of_kind == 1 ? positions : positions + keys;
    }
    /// Returns the step after another one. Before `begin` there are only positions.
    LACONIC_DEVICE Step after(const Step& step, int begin) const {
      const int count = step.key < begin ? positions : positions + keys + values;
      return step.part + 1 < count ? Step{step.key, step.part + 1} : Step{step.key + Warps::keys, 0};
    }
  };
  /// Numbers the buffers of slices.
  struct Ring {
    Bf16* memory;
    int count;
    LACONIC_DEVICE Bf16* buffer(int i) const { return memory + i * Slice::size; }
    LACONIC_DEVICE int after(int i, int steps) const { return i + steps < count ? i + steps : i + steps - count; }
    LACONIC_DEVICE int before(int i, int steps) const { return i < steps ? i - steps + count : i - steps; }
  };

  /// Returns the columns of the values of the last block.
  static constexpr Index min_columns(const AttendOperands<float>& in) {
    return in.value_width > columns ? (in.value_width - 1) % columns + 1 : in.value_width;
  }
  /// Returns the buffers of slices, so many that none is loaded before its last use: a slice of positions is used for
  /// two tiles, and keys that are values until the end of their tile.
  static constexpr int buffers(const AttendTensorOperands& operands) {
    const AttendOperands<float>& in = operands.in;
    const Steps least(in, min_columns(in)), most(in, in.value_width > columns ? columns : in.value_width);
    if (most.positions > 0) return most.positions + most.keys + (operands.same_rows ? 0 : most.values) + ahead + 1;
    if (!operands.same_rows) return ahead + 1;
    return most.keys + (least.values > ahead ? 0 : ahead + 1 - least.values);
  }

  /// Writes queries to slices, multiplied so that scores are exponents of 2.
  template <class Value>
  LACONIC_DEVICE void load_queries(Block& block, const Place& place, Index width, int slices, Bf16* to,
                                   const Value& value) const {
    block.each_unordered([&](int t) {
      for (int i = t; i < slices * rows * Slice::chunks; i += threads) {
        const int chunk = i % Slice::chunks, r = i / Slice::chunks % rows, s = i / Slice::chunks / rows;
        const Index c = s * Slice::width + chunk * Slice::chunk;
        const bool exists = place.exists(r);
        const Index id = exists ? place.id(of.in, r) : 0, head = place.head_of(r);
        *reinterpret_cast<TensorChunk<Bf16>*>(to + s * Warps::query_slice + Slice::at(r, chunk)) =
            TensorChunk<Bf16>::of([&](int j) {
              return exists && c + j < width ? value(id, head, c + j) * static_cast<float>(std::numbers::log2e) : 0.0f;
            });
      }
    });
  }
};

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
