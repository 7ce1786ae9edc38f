// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/kernels/attention_forward.hpp>
#include <laconic/backend/cuda/kernels/attention_slices.hpp>

#include <limits>
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

  /// Returns the slices that a tile of keys has for the table of positions.
  constexpr int position_slices() const { return in.p == nullptr ? 0 : Slice::count(in.position_width); }
};

/// Computes softmax attention on tensor cores, with operands rounded to Bf16 and sums in float, as FlashAttention-2
/// does (Dao 2023). What `Attend` says of itself holds here, too, but that tiles of keys begin at multiples of 64 from
/// the first key of a sequence, cached ones included: the bits of a query depend on the keys that it sees and on their
/// numbers, and not on the rest of the call. Scores and weights are powers of two.
///
/// A block is RowWarps times 16 rows of queries. Its warps are in RowWarps rows; where that is less than all, those of
/// the same rows divide the keys of a tile for the scores, exchange these, and divide the columns of the values. All
/// of them add up the same numbers in the same order, so that RowWarps changes no bits.
///
/// A tile of keys is a number of steps, each of which needs one slice of operands: of the table of positions, of the
/// keys, and of the values. They are in a ring of buffers, which is filled `ahead` steps before.
template <int RowWarps, int ValueSlices>
struct AttendTensor {
  static constexpr int warps = 4, threads = warps * warp_threads;
  static constexpr int rows = 16 * RowWarps;                  ///< rows of queries of a block
  static constexpr int keys = Slice::rows;                    ///< keys of a tile
  static constexpr int columns = ValueSlices * Slice::width;  ///< columns of the values of a block
  static_assert(AttendSplits::keys % keys == 0);

  AttendTensorOperands of;

  /// Returns the shared memory of a block.
  static std::size_t bytes(const AttendTensorOperands& operands) {
    const Index query_slices = Slice::count(operands.in.key_width) + operands.position_slices();
    return shared_bytes<Bf16>(query_slices * rows * Slice::width) +
           shared_bytes<Bf16>(buffers(operands) * Slice::size) +
           shared_bytes<float>(score_rows(operands) * score_stride);
  }
  /// Returns the blocks of a launch.
  static Grid grid(const AttendTensorOperands& operands, Index q_rows) {
    const Index slots = tile_slots(q_rows, operands.in.sequences, operands.group, rows),
                parts = std::max<Index>(1, pieces(operands.in.value_width, columns));
    return {slots * operands.splits.per_sequence, operands.splits.head_blocks * parts};
  }

  LACONIC_DEVICE void operator()(Block& block) const {
    const AttendOperands<float>& in = of.in;
    const Index split = block.x() % of.splits.per_sequence;
    const TileSlot place = tile_of(block.x() / of.splits.per_sequence, in.q_offsets, in.sequences, of.group, rows);
    const Index n = place.sequence, num_keys = in.keys(n), past = in.past(n), all_rows = in.queries(n) * of.group;
    const Index num_splits = AttendSplits::count(all_rows, num_keys);
    if (place.first >= all_rows || split >= num_splits) return;
    const Index parts_of_columns = pieces(in.value_width, columns) > 1 ? pieces(in.value_width, columns) : 1;
    Place at{n, place.first, block.y() / parts_of_columns, 0, block.y() % parts_of_columns * columns, past, num_keys};
    at.kv_head = at.head_block * of.group / (in.num_heads / in.num_kv_heads);

    // The keys that any query of the tile sees, within the split.
    const Index last_row = (place.first + rows < all_rows ? place.first + rows : all_rows) - 1;
    Index begin = in.mask.keys(place.first / of.group, past, num_keys).begin,
          end = in.mask.keys(last_row / of.group, past, num_keys).end;
    if (num_splits > 1) {
      begin = begin > split * AttendSplits::keys ? begin : split * AttendSplits::keys;
      end = end < (split + 1) * AttendSplits::keys ? end : (split + 1) * AttendSplits::keys;
    }
    begin = begin / keys * keys;

    const int key_slices = Slice::count(in.key_width), position_slices = of.position_slices(),
              value_slices = Slice::count(in.value_width - at.first_column < columns ? in.value_width - at.first_column
                                                                                     : static_cast<Index>(columns));
    Bf16* const queries = block.shared<Bf16>((key_slices + position_slices) * rows * Slice::width);
    Bf16* const position_queries = queries + key_slices * rows * Slice::width;
    Ring ring{block.shared<Bf16>(buffers(of) * Slice::size), buffers(of)};
    float* const scores = block.shared<float>(score_rows(of) * score_stride);
    PerThread<State> state(block);
    set_rows(block, at, state);
    load_queries(block, at, queries, key_slices, position_queries, position_slices);

    // The loads, which are `ahead` steps before the products.
    Index next_key = begin;
    int next_part = 0, filled = 0;
    const auto load_next = [&] {
      if (next_key < end) {
        const bool is_position = next_part < position_slices, is_key = next_part < position_slices + key_slices;
        const int s = next_part - (is_position ? 0 : is_key ? position_slices : position_slices + key_slices);
        if (is_key || !of.same_rows) {
          load(block, at,
               is_position ? Operand::position
               : is_key    ? Operand::key
                           : Operand::value,
               is_position ? lowest_distance(at, next_key) + keys : next_key, s, ring.buffer(filled));
          filled = ring.after(filled);
        }
        next_part = next_part + 1 == position_slices + key_slices + value_slices ? 0 : next_part + 1;
        if (next_part == 0) next_key += keys;
      }
      block.end_copies();
    };
    int before = 0, used = 0;  // buffers: of the earlier half of the positions, and of the next step
    for (; begin < end && used < position_slices; ++used) {
      load(block, at, Operand::position, lowest_distance(at, begin), used, ring.buffer(used));
      filled = ring.after(filled);
    }
    for (int i = 0; i < ahead; ++i) load_next();
    const auto step = [&] {  // waits for the slice of a step, and for the step before, whose slice is overwritten
      block.template wait_for_copies<ahead - 1>();
      load_next();
    };

    for (Index key = begin; key < end; key += keys) {
      block.each_unordered([&](int t) {
        LACONIC_UNROLL_DEVICE
        for (auto& four : state[t].scores) {
          LACONIC_UNROLL_DEVICE
          for (float& score : four) score = 0;
        }
      });
      const int now = used;
      for (int s = 0; s < position_slices; ++s) {
        step();
        const Bf16 *low = ring.buffer(before), *high = ring.buffer(used);
        multiply<part_keys / 16 + 1>(
            block, state, position_queries + s * rows * Slice::width, Slice::depths(in.position_width, s),
            [&](int t, int i) {
              const int first = (RowWarps - 1 - row_warp(t)) * 16 + part(t) * part_keys + 16 * i;
              return first < Slice::rows ? low + first * Slice::width : high + (first - Slice::rows) * Slice::width;
            });
        before = ring.after(before);
        used = ring.after(used);
      }
      before = now;
      if (position_slices > 0) skew(block, state, scores);
      const int first_key_buffer = used;
      for (int s = 0; s < key_slices; ++s) {
        step();
        const Bf16* slice = ring.buffer(used);
        multiply<part_keys / 16>(block, state, queries + s * rows * Slice::width, Slice::depths(in.key_width, s),
                                 [&](int t, int i) { return slice + (part(t) * part_keys + 16 * i) * Slice::width; });
        used = ring.after(used);
      }
      if constexpr (parts > 1) exchange(block, state, scores);
      update_softmax(block, key, state);
      const int after_keys = used;
      if (of.same_rows) used = ring.after(first_key_buffer, static_cast<int>(at.first_column / Slice::width));
      LACONIC_UNROLL_DEVICE
      for (int s = 0; s < ValueSlices; ++s) {
        if (s >= value_slices) break;
        step();
        add_values(block, state, s, ring.buffer(used));
        used = ring.after(used);
      }
      if (of.same_rows) used = after_keys;
    }
    write(block, at, split, num_splits, state);
  }

 private:
  static constexpr int parts = warps / RowWarps;  ///< warps that divide the keys and the columns of the same rows
  static constexpr int part_keys = keys / parts;  ///< keys of a tile of which a warp computes scores
  static constexpr int ahead = 2;                 ///< steps from the load of a slice to its use
  static constexpr int score_stride = keys + 8;   ///< from a row of scores to the next
  static constexpr int value_tiles = 8 / parts;   ///< tiles of 8 columns of a warp in a slice of values
  static constexpr int score_tiles = parts == 1 ? 10 : 8;  ///< 8 of a tile of keys; for positions 2 more than of a part

  enum class Operand { key, value, position };
  /// Says what a block computes.
  struct Place {
    Index sequence, first, head_block, kv_head, first_column, past, num_keys;
  };
  /// Holds the registers of a thread, which has rows lane / 4 and lane / 4 + 8 of its warp.
  struct State {
    Index id[2];        ///< query ids; -1 beyond the last query
    int begin[2];       ///< the first key that a query sees
    int end[2];         ///< the key after the last one that it sees
    float exponent[2];  ///< the weights are 2^(score - exponent)
    float sum[2];       ///< the weights of this thread's keys
    float scores[static_cast<std::size_t>(score_tiles)][4];
    float values[static_cast<std::size_t>(ValueSlices)][static_cast<std::size_t>(value_tiles)][4];
    std::uint32_t a[4], b[4];
  };
  /// Numbers the buffers of slices.
  struct Ring {
    Bf16* memory;
    int count;
    LACONIC_DEVICE Bf16* buffer(int i) const { return memory + i * Slice::size; }
    LACONIC_DEVICE int after(int i, int steps = 1) const { return i + steps < count ? i + steps : i + steps - count; }
  };

  /// Returns the buffers of slices, so many that none is loaded before its last use: a slice of positions is used for
  /// two tiles, and keys that are values at the end of their tile.
  static constexpr int buffers(const AttendTensorOperands& operands) {
    const Index width = operands.in.value_width, last_columns = width > columns ? (width - 1) % columns + 1 : width;
    const int positions = operands.position_slices(), key_slices = Slice::count(operands.in.key_width),
              value_slices = Slice::count(width < columns ? width : static_cast<Index>(columns)),
              last_slices = Slice::count(last_columns);
    if (positions > 0) return positions + key_slices + (operands.same_rows ? positions : value_slices) + ahead + 1;
    if (!operands.same_rows) return ahead + 1;
    return key_slices + (last_slices > ahead ? 0 : ahead + 1 - last_slices);
  }
  /// Returns the rows of memory for scores, which are exchanged between warps, and where positions are added.
  static constexpr Index score_rows(const AttendTensorOperands& operands) {
    return parts > 1 || operands.in.p != nullptr ? rows : 0;
  }
  LACONIC_DEVICE static int row_warp(int t) { return t / warp_threads / parts; }
  LACONIC_DEVICE static int part(int t) { return t / warp_threads % parts; }
  /// Returns row 0 or 1 of a thread in its block.
  LACONIC_DEVICE static int row(int t, int half) { return row_warp(t) * 16 + t % warp_threads / 4 + 8 * half; }

  /// Returns the row of the table for the first key of a tile and the last row of the block.
  LACONIC_DEVICE Index lowest_distance(const Place& at, Index key) const {
    return of.in.span - 1 + key - (at.past + at.first + rows - 1);
  }

  LACONIC_DEVICE void set_rows(Block& block, const Place& at, PerThread<State>& state) const {
    const AttendOperands<float>& in = of.in;
    block.each_unordered([&](int t) {
      State& me = state[t];
      LACONIC_UNROLL_DEVICE
      for (int half = 0; half < 2; ++half) {
        const Index i = at.first + row(t, half), query = i / of.group;
        const bool exists = query < in.queries(at.sequence);
        const auto seen = in.mask.keys(query, at.past, at.num_keys);
        me.id[half] = exists ? query_id(at, i) : -1;
        me.begin[half] = exists ? static_cast<int>(seen.begin) : 0;
        me.end[half] = exists ? static_cast<int>(seen.end) : 0;
        me.exponent[half] = -std::numeric_limits<float>::infinity();
        me.sum[half] = 0;
      }
      LACONIC_UNROLL_DEVICE
      for (auto& slice : me.values) {
        LACONIC_UNROLL_DEVICE
        for (auto& four : slice) {
          LACONIC_UNROLL_DEVICE
          for (float& value : four) value = 0;
        }
      }
    });
  }
  /// Returns the id of row i of the sequence.
  LACONIC_DEVICE Index query_id(const Place& at, Index i) const {
    return (of.in.q_offsets[at.sequence] + i / of.group) * of.in.num_heads + at.head_block * of.group + i % of.group;
  }

  /// Writes the queries to slices of `rows` rows, multiplied so that scores are exponents of 2.
  LACONIC_DEVICE void load_queries(Block& block, const Place& at, Bf16* queries, int key_slices, Bf16* position_queries,
                                   int position_slices) const {
    const AttendOperands<float>& in = of.in;
    const auto put = [&](int i, Bf16* to, Index width, const auto& value) {
      const int chunk = i % Slice::chunks, r = i / Slice::chunks % rows, s = i / Slice::chunks / rows;
      const Index number = at.first + r, c = s * Slice::width + chunk * Slice::chunk;
      const bool exists = number / of.group < in.queries(at.sequence);
      const Index id = exists ? query_id(at, number) : 0, head = at.head_block * of.group + number % of.group;
      float x[Slice::chunk];
      LACONIC_UNROLL_DEVICE
      for (int j = 0; j < Slice::chunk; ++j)
        x[j] = exists && c + j < width ? value(id, head, c + j) * static_cast<float>(std::numbers::log2e) : 0.0f;
      SliceChunk out;
      LACONIC_UNROLL_DEVICE
      for (int j = 0; j < 4; ++j) out.pairs[j] = two_bf16(x[2 * j], x[2 * j + 1]);
      *reinterpret_cast<SliceChunk*>(to + s * rows * Slice::width + Slice::at(r, chunk)) = out;
    };
    block.each_unordered([&](int t) {
      for (int i = t; i < key_slices * rows * Slice::chunks; i += threads)
        put(i, queries, in.key_width, [&](Index id, Index head, Index c) { return in.content(id, head, c); });
      for (int i = t; i < position_slices * rows * Slice::chunks; i += threads)
        put(i, position_queries, in.position_width,
            [&](Index id, Index head, Index c) { return in.positional(id, head, c); });
    });
  }

  /// Begins to load slice s of 64 rows from `first` on.
  LACONIC_DEVICE void load(Block& block, const Place& at, Operand operand, Index first, int s, Bf16* to) const {
    const AttendOperands<float>& in = of.in;
    const AttendRows& from = operand == Operand::key ? of.k : operand == Operand::value ? of.v : of.p;
    const bool is_position = operand == Operand::position;
    const CachedRing ring = from.ring(is_position ? 0 : at.sequence);
    const Index head = is_position ? at.head_block : at.kv_head, count = is_position ? 2 * in.span - 1 : at.num_keys;
    const Index column = s * Slice::width + (operand == Operand::value ? at.first_column : 0),
                values = operand == Operand::key     ? in.key_width
                         : operand == Operand::value ? in.value_width
                                                     : in.position_width;
    load_slice<threads>(block, to, column, values, [&](int r) {
      const Index i = first + r;
      return i >= 0 && i < count ? from.row(ring, i, head) : StoredRow<float>{Storage::full, nullptr, 1.0f};
    });
  }

  /// Adds products of the rows of each warp, in a slice of queries, and 16 * Groups rows that begin at first(thread, i)
  /// for each 16 of them.
  template <int Groups, class First>
  LACONIC_DEVICE static void multiply(Block& block, PerThread<State>& state, const Bf16* queries, int depths,
                                      const First& first) {
    LACONIC_UNROLL_DEVICE
    for (int d = 0; d < Slice::width / Slice::depth; ++d) {
      if (d >= depths) break;
      load_matrices(
          block,
          [&](int t) {
            const int lane = t % warp_threads;
            return queries + Slice::at(row_warp(t) * 16 + lane % 16, 2 * d + lane / 16);
          },
          [&](int t) { return state[t].a; });
      LACONIC_UNROLL_DEVICE
      for (int i = 0; i < Groups; ++i) {
        load_matrices(
            block,
            [&](int t) {
              const int lane = t % warp_threads;
              return first(t, i) + Slice::at(lane % 8 + lane / 16 * 8, 2 * d + lane / 8 % 2);
            },
            [&](int t) { return state[t].b; });
        LACONIC_UNROLL_DEVICE
        for (int half = 0; half < 2; ++half)
          add_product<Bf16>(block, [&](int t) {
            State& me = state[t];
            return TensorRegisters{me.scores[2 * i + half], me.a, me.b + 2 * half};
          });
      }
    }
  }

  /// Replaces products with distances by those that each query has with its keys: row r of a warp has key c at distance
  /// 15 - r + c.
  LACONIC_DEVICE static void skew(Block& block, PerThread<State>& state, float* scores) {
    block.each_in_warps([&](int t) {
      LACONIC_UNROLL_DEVICE
      for (int tile = 0; tile < part_keys / 8 + 2; ++tile) {
        LACONIC_UNROLL_DEVICE
        for (int i = 0; i < 4; ++i) {
          const int r = t % warp_threads / 4 + i / 2 * 8, key = 8 * tile + t % 4 * 2 + i % 2 - 15 + r;
          if (key >= 0 && key < part_keys)
            scores[row(t, i / 2) * score_stride + part(t) * part_keys + key] = state[t].scores[tile][i];
        }
      }
    });
    block.each_unordered([&](int t) { read_scores<part_keys / 8>(t, state, scores + part(t) * part_keys); });
  }
  /// Gives every warp the scores of all keys of its rows.
  LACONIC_DEVICE static void exchange(Block& block, PerThread<State>& state, float* scores) {
    block.each([&](int t) {
      LACONIC_UNROLL_DEVICE
      for (int tile = 0; tile < part_keys / 8; ++tile) {
        LACONIC_UNROLL_DEVICE
        for (int half = 0; half < 2; ++half)
          *score_pair(t, half, scores + part(t) * part_keys + 8 * tile) = {state[t].scores[tile][2 * half],
                                                                           state[t].scores[tile][2 * half + 1]};
      }
    });
    block.each_unordered([&](int t) { read_scores<keys / 8>(t, state, scores); });
  }
  struct alignas(8) Pair {
    float first, second;
  };
  LACONIC_DEVICE static Pair* score_pair(int t, int half, float* scores) {
    return reinterpret_cast<Pair*>(scores + row(t, half) * score_stride + t % 4 * 2);
  }
  template <int Tiles>
  LACONIC_DEVICE static void read_scores(int t, PerThread<State>& state, float* scores) {
    LACONIC_UNROLL_DEVICE
    for (int tile = 0; tile < Tiles; ++tile) {
      LACONIC_UNROLL_DEVICE
      for (int half = 0; half < 2; ++half) {
        const Pair pair = *score_pair(t, half, scores + 8 * tile);
        state[t].scores[tile][2 * half] = pair.first;
        state[t].scores[tile][2 * half + 1] = pair.second;
      }
    }
  }

  /// Replaces the scores of a tile by weights, dropped out, and updates the exponents and sums. The products so far are
  /// multiplied to fit them.
  LACONIC_DEVICE void update_softmax(Block& block, Index key, PerThread<State>& state) const {
    constexpr float nothing = -std::numeric_limits<float>::infinity();
    PerThread<float> best[2] = {PerThread<float>(block), PerThread<float>(block)};
    block.each_unordered([&](int t) {
      State& me = state[t];
      LACONIC_UNROLL_DEVICE
      for (int half = 0; half < 2; ++half) {
        const int first = static_cast<int>(key) + t % 4 * 2;
        if (me.begin[half] > key || me.end[half] < key + keys) {
          LACONIC_UNROLL_DEVICE
          for (int i = 0; i < keys / 4; ++i) {
            const int at = first + i / 2 * 8 + i % 2;
            float& score = me.scores[i / 2][2 * half + i % 2];
            score = at >= me.begin[half] && at < me.end[half] ? score : nothing;
          }
        }
        float largest = nothing;
        LACONIC_UNROLL_DEVICE
        for (int i = 0; i < keys / 4; ++i) {
          const float score = me.scores[i / 2][2 * half + i % 2];
          largest = score > largest ? score : largest;
        }
        best[half][t] = largest;
      }
    });
    LACONIC_UNROLL_DEVICE
    for (int half = 0; half < 2; ++half)
      reduce_groups(block, best[half], [](float a, float b) { return a > b ? a : b; });
    block.each_unordered([&](int t) {
      State& me = state[t];
      LACONIC_UNROLL_DEVICE
      for (int half = 0; half < 2; ++half) {
        const float before = me.exponent[half], here = std::rint(best[half][t]), after = here > before ? here : before;
        if (after != before) {
          const float factor = power_of_two(before - after);
          me.exponent[half] = after;
          me.sum[half] *= factor;
          LACONIC_UNROLL_DEVICE
          for (auto& slice : me.values) {
            LACONIC_UNROLL_DEVICE
            for (auto& four : slice) {
              four[2 * half] *= factor;
              four[2 * half + 1] *= factor;
            }
          }
        }
        const float exponent = after == nothing ? 0.0f : after;  // without a key, weights are 2^nothing
        float sum = 0;
        LACONIC_UNROLL_DEVICE
        for (int i = 0; i < keys / 4; ++i) {
          float& score = me.scores[i / 2][2 * half + i % 2];
          score = fast_exp2(score - exponent);
          sum += score;
        }
        me.sum[half] += sum;
        if (of.in.drops && me.id[half] >= 0) {
          LACONIC_UNROLL_DEVICE
          for (int i = 0; i < keys / 4; ++i)
            me.scores[i / 2][2 * half + i % 2] *=
                of.in.dropout_factor(me.id[half], key + t % 4 * 2 + i / 2 * 8 + i % 2);
        }
      }
    });
  }

  /// Adds the products of the weights and slice s of the values.
  LACONIC_DEVICE static void add_values(Block& block, PerThread<State>& state, int s, const Bf16* slice) {
    LACONIC_UNROLL_DEVICE
    for (int d = 0; d < keys / Slice::depth; ++d) {
      block.each_unordered([&](int t) {
        State& me = state[t];
        LACONIC_UNROLL_DEVICE
        for (int i = 0; i < 4; ++i)
          me.a[i] = two_bf16(me.scores[2 * d + i / 2][2 * (i % 2)], me.scores[2 * d + i / 2][2 * (i % 2) + 1]);
      });
      LACONIC_UNROLL_DEVICE
      for (int i = 0; i < value_tiles / 2; ++i) {
        load_transposed(
            block,
            [&](int t) {
              const int lane = t % warp_threads;
              return slice + Slice::at(16 * d + lane % 16, part(t) * value_tiles + 2 * i + lane / 16);
            },
            [&](int t) { return state[t].b; });
        LACONIC_UNROLL_DEVICE
        for (int half = 0; half < 2; ++half)
          add_product<Bf16>(block, [&](int t) {
            State& me = state[t];
            return TensorRegisters{me.values[s][2 * i + half], me.a, me.b + 2 * half};
          });
      }
    }
  }

  /// Writes the results, or those of a split.
  LACONIC_DEVICE void write(Block& block, const Place& at, Index split, Index num_splits,
                            PerThread<State>& state) const {
    const AttendOperands<float>& in = of.in;
    PerThread<float> sums[2] = {PerThread<float>(block), PerThread<float>(block)};
    LACONIC_UNROLL_DEVICE
    for (int half = 0; half < 2; ++half) {
      block.each_unordered([&](int t) { sums[half][t] = state[t].sum[half]; });
      reduce_groups(block, sums[half], [](float a, float b) { return a + b; });
    }
    block.each_unordered([&](int t) {
      const State& me = state[t];
      LACONIC_UNROLL_DEVICE
      for (int half = 0; half < 2; ++half) {
        const Index id = me.id[half];
        if (id < 0) continue;
        const float sum = sums[half][t], factor = num_splits > 1 ? 1.0f : sum == 0 ? 0.0f : 1 / sum;
        const Index place = of.splits.at(at.sequence, split, at.head_block, at.first + row(t, half));
        float* const to = num_splits > 1 ? of.partials.values + place * in.value_width : of.out + id * in.value_width;
        LACONIC_UNROLL_DEVICE
        for (int s = 0; s < ValueSlices; ++s) {
          LACONIC_UNROLL_DEVICE
          for (int tile = 0; tile < value_tiles; ++tile) {
            LACONIC_UNROLL_DEVICE
            for (int i = 0; i < 2; ++i) {
              const Index c = at.first_column + s * Slice::width + (part(t) * value_tiles + tile) * 8 + t % 4 * 2 + i;
              if (c < in.value_width) to[c] = me.values[s][tile][2 * half + i] * factor;
            }
          }
        }
        if (part(t) > 0 || t % 4 > 0 || at.first_column > 0) continue;
        if (num_splits > 1) {
          of.partials.exponent[place] = me.exponent[half];
          of.partials.sum[place] = sum;
        } else if (of.logsumexp != nullptr) {
          of.logsumexp[id] = me.exponent[half] * static_cast<float>(std::numbers::ln2) + std::log(sum);
        }
      }
    });
  }
};

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
