// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/kernels/attention_forward.hpp>
#include <laconic/backend/cuda/kernels/attention_slices.hpp>

#include <cmath>
#include <limits>
#include <type_traits>

namespace laconic {
inline namespace LACONIC_ABI {
namespace cuda {

/// Computes the scores of 16 rows of queries and 64 keys, their softmax, and its products with values, in the registers
/// of each warp of a block. RowWarps times `parts` warps make a block. The `parts` warps of the same rows divide the
/// keys for the scores, which they exchange, and then the columns of the values. They add up the same numbers in the
/// same order, so that RowWarps changes no bits. All functions are called by all threads of a block.
template <int RowWarps, int ValueSlices>
class AttendWarps {
 public:
  static constexpr int warps = 4, parts = warps / RowWarps;
  static constexpr int rows = 16 * RowWarps;               ///< rows of a block
  static constexpr int keys = Slice::rows;                 ///< keys of a tile
  static constexpr int part_keys = keys / parts;           ///< keys of which a warp computes scores
  static constexpr int score_stride = keys + 8;            ///< from a row of scores to the next in shared memory
  static constexpr int query_slice = rows * Slice::width;  ///< values of a slice of queries

  /// Returns the shared memory for scores: they are exchanged between warps, and moved from distances to keys.
  static constexpr std::size_t bytes(bool relative) { return shared_bytes<float>(score_count(relative)); }
  /// Makes sums of zero for rows that see no key.
  LACONIC_DEVICE AttendWarps(Block& block, bool relative)
      : block_(block), state_(block), scores_(block.shared<float>(score_count(relative))) {
    block_.each_unordered([&](int t) {
      State& me = state_[t];
      LACONIC_UNROLL_DEVICE
      for (int half = 0; half < 2; ++half) {
        me.id[half] = -1;
        me.begin[half] = me.end[half] = 0;
        me.exponent[half] = -std::numeric_limits<float>::infinity();
        me.sum[half] = 0;
      }
      LACONIC_UNROLL_DEVICE
      for (auto& slice : me.values) clear(slice);
    });
  }

  /// Says which rows of the block are queries: set(row, id, begin, end) sets the query id and the keys that it sees.
  template <class Set>
  LACONIC_DEVICE void set_queries(const Set& set) {
    block_.each_unordered([&](int t) {
      LACONIC_UNROLL_DEVICE
      for (int half = 0; half < 2; ++half)
        set(row(t, half), state_[t].id[half], state_[t].begin[half], state_[t].end[half]);
    });
  }
  /// Begins a tile of keys.
  LACONIC_DEVICE void clear_scores() {
    block_.each_unordered([&](int t) { clear(state_[t].scores); });
  }
  /// Adds the products of a slice of queries and a slice of keys, along their first `width` values.
  LACONIC_DEVICE void add_keys(const Bf16* queries, const Bf16* slice, int width) {
    multiply<part_keys / 16>(queries, width,
                             [&](int t, int i) { return slice + (part(t) * part_keys + 16 * i) * Slice::width; });
  }
  /// Adds the products of a slice of queries that meet positions and two slices of 64 distances each: row i is that of
  /// key c and row r with i = rows - 1 - r + c. `arrange_positions` comes after the last one.
  LACONIC_DEVICE void add_positions(const Bf16* queries, const Bf16* low, const Bf16* high, int width) {
    multiply<part_keys / 16 + 1>(queries, width, [&](int t, int i) {
      const int first = (RowWarps - 1 - row_warp(t)) * 16 + part(t) * part_keys + 16 * i;
      return first < Slice::rows ? low + first * Slice::width : high + (first - Slice::rows) * Slice::width;
    });
  }
  /// Replaces products with distances by those of keys.
  LACONIC_DEVICE void arrange_positions() {
    block_.each_in_warps([&](int t) {
      constexpr int tiles = part_keys / 8 + 2;
      LACONIC_UNROLL_DEVICE
      for (int half = 0; half < 2; ++half) {
        const int low = 15 - (row(t, half) & 15) - (t & 3) * 2, high = part_keys + low;
        float* const to = scores_ + row(t, half) * score_stride + part(t) * part_keys - low;
        LACONIC_UNROLL_DEVICE
        for (int i = 0; i < 2 * tiles; ++i) {
          const int at = i / 2 * 8 + i % 2;
          const bool is_within = at >= 15 && at < part_keys - 6;  // for every thread
          if (is_within || (at >= low && at < high)) to[at] = state_[t].scores[i / 2][2 * half + i % 2];
        }
      }
    });
    block_.each_unordered([&](int t) { read_scores<part_keys / 8>(t, scores_ + part(t) * part_keys); });
  }
  /// Replaces the scores of a tile, which are exponents of 2, by the weights of the keys from `key` on, dropped out,
  /// and the sums by ones that fit them.
  LACONIC_DEVICE void apply_softmax(int key, const AttendOperands<float>& in) {
    if constexpr (parts > 1) exchange();
    constexpr float nothing = -std::numeric_limits<float>::infinity();
    PerThread<float> best[2] = {PerThread<float>(block_), PerThread<float>(block_)};
    block_.each_unordered([&](int t) {
      LACONIC_UNROLL_DEVICE
      for (int half = 0; half < 2; ++half) best[half][t] = largest_seen(state_[t], half, key, (t & 3) * 2);
    });
    LACONIC_UNROLL_DEVICE
    for (int half = 0; half < 2; ++half)
      reduce_groups(block_, best[half], [](float a, float b) { return a > b ? a : b; });
    block_.each_in_warps([&](int t) {  // rows differ in what they do, and warps multiply next
      State& me = state_[t];
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
        const float exponent = after == nothing ? 0.0f : after;  // of a row that sees nothing yet, all weights are 0
        float sum = 0;
        LACONIC_UNROLL_DEVICE
        for (int i = 0; i < keys / 4; ++i) {
          float& score = me.scores[i / 2][2 * half + i % 2];
          score = fast_exp2(score - exponent);
          sum += score;
        }
        me.sum[half] += sum;
        if (in.drops && me.id[half] >= 0) drop(me, half, key + (t & 3) * 2, in.dropout);
      }
    });
  }
  /// Adds the products of the weights and slice s of the values.
  LACONIC_DEVICE void add_values(int s, const Bf16* slice) {
    LACONIC_UNROLL_DEVICE
    for (int of = 0; of < ValueSlices; ++of)  // so that s numbers registers
      if (of == s) add_values_of(of, slice);
  }
  /// Calls visit(row, id, exponent, sum, part) for each row: `part` numbers the threads that hold columns of the row,
  /// from 0; each_value(visit) then calls visit(column, value) for those of the thread.
  template <class Visit>
  LACONIC_DEVICE void each_row(const Visit& visit) {
    PerThread<float> sums[2] = {PerThread<float>(block_), PerThread<float>(block_)};
    LACONIC_UNROLL_DEVICE
    for (int half = 0; half < 2; ++half) {
      block_.each_unordered([&](int t) { sums[half][t] = state_[t].sum[half]; });
      reduce_groups(block_, sums[half], [](float a, float b) { return a + b; });
    }
    block_.each_unordered([&](int t) {
      const State& me = state_[t];
      LACONIC_UNROLL_DEVICE
      for (int half = 0; half < 2; ++half) {
        const auto each_value = [&](const auto& put) {
          LACONIC_UNROLL_DEVICE
          for (int s = 0; s < ValueSlices; ++s) {
            LACONIC_UNROLL_DEVICE
            for (int i = 0; i < 2 * value_tiles; ++i)
              put(s * Slice::width + (part(t) * value_tiles + i / 2) * 8 + (t & 3) * 2 + i % 2,
                  me.values[s][i / 2][2 * half + i % 2]);
          }
        };
        if (me.id[half] >= 0)
          visit(row(t, half), me.id[half], me.exponent[half], sums[half][t], part(t) * 4 + (t & 3), each_value);
      }
    });
  }

 private:
  static constexpr int value_tiles = 8 / parts;            ///< tiles of 8 columns of a warp in a slice of values
  static constexpr int score_tiles = parts == 1 ? 10 : 8;  ///< tiles of 8 keys; distances have 2 more

  /// Holds the registers of a thread, which has rows lane / 4 and lane / 4 + 8 of its warp.
  struct State {
    int id[2];          ///< query ids; -1 beyond the last query
    int begin[2];       ///< the first key that a query sees
    int end[2];         ///< the key after the last one that it sees
    float exponent[2];  ///< the weights are 2^(score - exponent)
    float sum[2];       ///< the weights of this thread's keys
    float scores[static_cast<std::size_t>(score_tiles)][4];
    float values[static_cast<std::size_t>(ValueSlices)][static_cast<std::size_t>(value_tiles)][4];
    std::uint32_t a[4], b[4];
  };
  struct alignas(8) Pair {
    float first, second;
  };

  static constexpr Index score_count(bool relative) { return relative || parts > 1 ? rows * score_stride : 0; }
  // A GPU does not know that a thread is not negative, so that bits are cheaper than quotients.
  LACONIC_DEVICE static int lane_of(int t) { return t & (warp_threads - 1); }
  LACONIC_DEVICE static int warp_of(int t) { return t >> 5 & (warps - 1); }
  LACONIC_DEVICE static int row_warp(int t) { return warp_of(t) / parts; }
  LACONIC_DEVICE static int part(int t) { return warp_of(t) % parts; }
  LACONIC_DEVICE static int row(int t, int half) { return row_warp(t) * 16 + (lane_of(t) >> 2) + 8 * half; }
  template <class Fours>
  LACONIC_DEVICE static void clear(Fours& fours) {
    LACONIC_UNROLL_DEVICE
    for (auto& four : fours) {
      LACONIC_UNROLL_DEVICE
      for (float& value : four) value = 0;
    }
  }

  /// Adds products of the rows of each warp and 16 * Groups rows, of which 16 begin at first(thread, i).
  template <int Groups, class First>
  LACONIC_DEVICE void multiply(const Bf16* queries, int width, const First& first) {
    LACONIC_UNROLL_DEVICE
    for (int d = 0; d < Slice::width / Slice::depth; ++d) {
      if (d * Slice::depth >= width) break;
      load_matrices(
          block_,
          [&](int t) {
            const int lane = lane_of(t);
            return queries + Slice::after(Slice::at(row_warp(t) * 16 + (lane & 15), lane >> 4), d);
          },
          [&](int t) { return state_[t].a; });
      LACONIC_UNROLL_DEVICE
      for (int i = 0; i < Groups; ++i) {
        load_matrices(
            block_,
            [&](int t) {
              const int lane = lane_of(t);
              return first(t, i) + Slice::after(Slice::at((lane & 7) + (lane >> 4) * 8, (lane >> 3 & 1)), d);
            },
            [&](int t) { return state_[t].b; });
        LACONIC_UNROLL_DEVICE
        for (int half = 0; half < 2; ++half)
          add_product<Bf16>(block_, [&](int t) {
            State& me = state_[t];
            return TensorRegisters{me.scores[2 * i + half], me.a, me.b + 2 * half};
          });
      }
    }
  }
  LACONIC_DEVICE void add_values_of(int s, const Bf16* slice) {
    LACONIC_UNROLL_DEVICE
    for (int d = 0; d < keys / Slice::depth; ++d) {
      block_.each_unordered([&](int t) {
        State& me = state_[t];
        LACONIC_UNROLL_DEVICE
        for (int i = 0; i < 4; ++i)
          me.a[i] = two_bf16(me.scores[2 * d + i / 2][2 * (i % 2)], me.scores[2 * d + i / 2][2 * (i % 2) + 1]);
      });
      LACONIC_UNROLL_DEVICE
      for (int i = 0; i < value_tiles / 2; ++i) {
        load_transposed(
            block_,
            [&](int t) {
              const int lane = lane_of(t);
              return slice + 16 * d * Slice::width +
                     Slice::after(Slice::at((lane & 15), part(t) * value_tiles + (lane >> 4)), i);
            },
            [&](int t) { return state_[t].b; });
        LACONIC_UNROLL_DEVICE
        for (int half = 0; half < 2; ++half)
          add_product<Bf16>(block_, [&](int t) {
            State& me = state_[t];
            return TensorRegisters{me.values[s][2 * i + half], me.a, me.b + 2 * half};
          });
      }
    }
  }

  /// Gives every warp the scores of all keys of its rows.
  LACONIC_DEVICE void exchange() {
    block_.each([&](int t) {
      LACONIC_UNROLL_DEVICE
      for (int i = 0; i < part_keys / 4; ++i)
        *pair(t, i % 2, scores_ + part(t) * part_keys + i / 2 * 8) = {state_[t].scores[i / 2][i % 2 * 2],
                                                                      state_[t].scores[i / 2][i % 2 * 2 + 1]};
    });
    block_.each_unordered([&](int t) { read_scores<keys / 8>(t, scores_); });
  }
  LACONIC_DEVICE static Pair* pair(int t, int half, float* scores) {
    return reinterpret_cast<Pair*>(scores + row(t, half) * score_stride + (t & 3) * 2);
  }
  template <int Tiles>
  LACONIC_DEVICE void read_scores(int t, float* from) {
    LACONIC_UNROLL_DEVICE
    for (int i = 0; i < 2 * Tiles; ++i) {
      const Pair two = *pair(t, i % 2, from + i / 2 * 8);
      state_[t].scores[i / 2][i % 2 * 2] = two.first;
      state_[t].scores[i / 2][i % 2 * 2 + 1] = two.second;
    }
  }

  /// Sets the scores of keys that a row does not see to minus infinity, and returns the max. `place` is that of the
  /// thread's first key in the tile.
  LACONIC_DEVICE static float largest_seen(State& me, int half, int key, int place) {
    constexpr float nothing = -std::numeric_limits<float>::infinity();
    if (me.begin[half] > key || me.end[half] < key + keys) {
      LACONIC_UNROLL_DEVICE
      for (int i = 0; i < keys / 4; ++i) {
        const int at = key + place + i / 2 * 8 + i % 2;
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
    return largest;
  }
  /// Drops weights of a row, of which the thread's first key is `key`.
  LACONIC_DEVICE static void drop(State& me, int half, int key, const DropoutMask& dropout) {
    const std::uint64_t first = (static_cast<std::uint64_t>(me.id[half]) << 24) + static_cast<std::uint64_t>(key);
    std::uint32_t kept = 0;
    LACONIC_LOOP_DEVICE
    for (int tile = 0; tile < keys / 8; ++tile)
      kept |= dropout.keeps_two(first + static_cast<std::uint64_t>(8 * tile)) << 2 * tile;
    const auto scale = static_cast<float>(dropout.scale());
    LACONIC_UNROLL_DEVICE
    for (int i = 0; i < keys / 4; ++i) {
      float& weight = me.scores[i / 2][2 * half + i % 2];
      weight = (kept >> i & 1) != 0 ? weight * scale : 0.0f;
    }
  }

  Block& block_;
  PerThread<State> state_;
  float* scores_;
};

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
