// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cpu/kernels/gemm.hpp>
#include <laconic/backend/shapes.hpp>
#include <laconic/core/compiled.hpp>
#include <laconic/core/sequences.hpp>

namespace laconic {
inline namespace LACONIC_ABI {
namespace kernels {

/// Returns the feature map of linear attention, elu(x) + 1 (Katharopoulos et al. 2020, section 3.2.1). It is always
/// positive: elu is not formed, because exp(x) - 1 + 1 is 0 for small exp(x).
template <class T>
Batch<T> elu_plus_one(const Batch<T>& x) {
  return xsimd::select(x < Batch<T>(T(0)), exp<T>(x), x + Batch<T>(T(1)));  // NaN stays NaN
}

/// Returns dy times the derivative of the feature map at x.
template <class T>
Batch<T> elu_plus_one_backward(const Batch<T>& dy, const Batch<T>& x) {
  return xsimd::select(x < Batch<T>(T(0)), dy * exp<T>(x), dy);
}

/// Holds the operands of linear attention over packed rows. Query head h reads key-value head h / (num_heads /
/// num_kv_heads). The left context of the mask is unlimited.
template <class T>
struct LinearAttendOperands {
  Index num_heads;             ///< query heads
  Index num_kv_heads;          ///< key-value heads, a divisor of num_heads
  Mask mask;                   ///< the keys that a query sees
  const Sequences* sequences;  ///< sequences of the rows
  Index key_width;             ///< columns of a query or key head
  Index value_width;           ///< columns of a value head
  const T* q;                  ///< (rows, num_heads * key_width)
  const T* k;                  ///< (rows, num_kv_heads * key_width)
  const T* v;                  ///< (rows, num_kv_heads * value_width)

  /// Returns the query heads that share a key-value head.
  Index group() const { return num_heads / num_kv_heads; }
  /// Returns the columns of q.
  Index q_cols() const { return num_heads * key_width; }
  /// Returns the columns of k.
  Index k_cols() const { return num_kv_heads * key_width; }
  /// Returns the columns of v.
  Index v_cols() const { return num_kv_heads * value_width; }
  /// Returns the columns of the result.
  Index out_cols() const { return num_heads * value_width; }
  /// Returns the elements of the state of one key-value head.
  Index state_size() const { return key_width * (value_width + 1); }
};

/// Gives the addend of the denominators.
inline constexpr double linear_attend_eps = 1e-6;
/// Gives the queries and keys of a tile.
inline constexpr Index linear_attend_tile = 64;

/// Computes one key-value head of one sequence, for the query heads that read it. Values have an extra column of ones,
/// so that numerator and denominator are one sum: the state is phi(K)^T [V, 1] (key_width, value_width + 1) over the
/// keys so far. Used by one thread, in memory of the caller.
template <class T>
struct LinearAttendSweep {
  /// Holds the queries [row, row + rows): whole chunks, or a range of one. All of them see the keys before `base`, some
  /// of them see the keys [base, base + tail), and none sees a later key.
  struct Block {
    Index row;   ///< the first query
    Index rows;  ///< queries
    Index base;  ///< keys that all queries see
    Index tail;  ///< keys after these that some queries see
  };

  const LinearAttendOperands<T>& in;  ///< the operands
  Index kv_head;                      ///< the key-value head
  Index first;                        ///< the first row of the sequence
  Index length;                       ///< rows of the sequence
  Index chunk;                        ///< frames of a chunk, at most `length`
  Index kw;                           ///< key_width
  Index vw;                           ///< value_width
  Index width;                        ///< value_width + 1
  T* phi_q;                           ///< features of packed queries, (tile, key_width)
  T* phi_k;                           ///< features of packed keys, (tile, key_width)
  T* values;                          ///< packed values and ones, (tile, width)
  T* sums;                            ///< numerators and denominators, later their derivatives, (tile, width)
  T* scores;                          ///< phi(q_i) . phi(k_j), (rows, tail)
  T* dscores;                         ///< derivatives by the scores, (rows, tail)
  T* state;                           ///< phi(K)^T [V, 1], (key_width, width)
  T* gemm_space;                      ///< scratch of `gemm_block`
  Index packed_key = 0;               ///< the first packed key
  Index packed = 0;                   ///< packed keys

  /// Returns the elements of memory that a sweep needs.
  static Index space(const LinearAttendOperands<T>& in) {
    return 2 * linear_attend_tile * (in.key_width + in.value_width + 1 + linear_attend_tile) + in.state_size() +
           gemm_scratch<T>();
  }

  /// Sets up a key-value head of a sequence. The state is not initialised.
  LinearAttendSweep(const LinearAttendOperands<T>& operands, Index sequence, Index kv_head_, T* memory)
      : in(operands),
        kv_head(kv_head_),
        first(in.sequences->begin(sequence)),
        length(in.sequences->length(sequence)),
        kw(in.key_width),
        vw(in.value_width),
        width(vw + 1) {
    chunk = in.mask.chunk == Mask::unlimited ? length : std::min(in.mask.chunk, length);
    phi_q = memory;
    phi_k = phi_q + linear_attend_tile * kw;
    values = phi_k + linear_attend_tile * kw;
    sums = values + linear_attend_tile * width;
    scores = sums + linear_attend_tile * width;
    dscores = scores + linear_attend_tile * linear_attend_tile;
    state = dscores + linear_attend_tile * linear_attend_tile;
    gemm_space = state + in.state_size();
  }

  /// Returns the end of the keys that query i sees.
  Index end(Index i) const { return std::min(length, (i / chunk + 1) * chunk); }
  /// Returns the block of query i. Several small chunks make one block and large ones are cut, so the tail is shorter
  /// than a tile.
  Block block(Index i) const {
    const bool small = chunk < linear_attend_tile;
    const Index max_rows = small ? linear_attend_tile / chunk * chunk : linear_attend_tile,
                start = small ? 0 : i / chunk * chunk;
    const Index row = start + (i - start) / max_rows * max_rows,
                rows = std::min(max_rows, (small ? length : end(i)) - row);
    return {row, rows, end(row), end(row + rows - 1) - end(row)};
  }
  /// Returns the first query head that reads this key-value head.
  Index first_head() const { return kv_head * in.group(); }
  /// Returns the query head after the last one that reads this key-value head.
  Index last_head() const { return first_head() + in.group(); }
  /// Returns the offset of query i of a head in q.
  Index q_at(Index i, Index head) const { return (first + i) * in.q_cols() + head * kw; }
  /// Returns the offset of key j in k.
  Index k_at(Index j) const { return (first + j) * in.k_cols() + kv_head * kw; }
  /// Returns the offset of value j in v.
  Index v_at(Index j) const { return (first + j) * in.v_cols() + kv_head * vw; }
  /// Returns the offset of row i of a head in the result.
  Index out_at(Index i, Index head) const { return (first + i) * in.out_cols() + head * vw; }

  /// Computes C (m x n) = A (m x depth) B (depth x n), plus C if `accumulate`.
  void multiply(Index m, Index n, Index depth, Operand<T> a, Operand<T> b, T* c, Index c_stride,
                bool accumulate) const {
    gemm_block<T>(m, n, depth, a, b, c, c_stride, accumulate, nullptr, gemm_space);
  }

  /// Writes the features of the queries of a block and a head to phi_q.
  void pack_queries(const Block& b, Index head) {
    for (Index i = 0; i < b.rows; ++i)
      map_span(
          kw, phi_q + i * kw, [](auto x) { return elu_plus_one(x); }, in.q + q_at(b.row + i, head));
  }
  /// Writes features and values of the keys [key, key + keys) to phi_k and values, except those that are there already.
  void pack_keys(Index key, Index keys) {
    if (key != packed_key) packed = 0;
    for (packed_key = key; packed < keys; ++packed) {
      map_span(
          kw, phi_k + packed * kw, [](auto x) { return elu_plus_one(x); }, in.k + k_at(key + packed));
      std::copy_n(in.v + v_at(key + packed), vw, values + packed * width);
      values[packed * width + vw] = T(1);
    }
  }
  /// Adds the keys [from, to) to the state.
  void advance(Index from, Index to) {
    for (; from < to; from += linear_attend_tile) {
      const Index keys = std::min(linear_attend_tile, to - from);
      pack_keys(from, keys);
      multiply(kw, width, keys, Operand<T>{phi_k, kw}.transposed(), {values, width}, state, width, true);
    }
  }
  /// Computes to (rows, tail) = queries keys^T over `depth` columns, with 0 for keys that a query does not see.
  void compute_visible(const Block& b, Index depth, const T* queries, const T* keys, T* to) const {
    multiply(b.rows, b.tail, depth, {queries, depth}, Operand<T>{keys, depth}.transposed(), to, b.tail, false);
    for (Index i = 0; i < b.rows; ++i)
      std::fill(to + i * b.tail + end(b.row + i) - b.base, to + (i + 1) * b.tail, T(0));
  }
  /// Computes numerators and denominators of the packed queries. The state holds the keys before b.base, and the keys
  /// of the tail are packed.
  void compute_sums(const Block& b) {
    multiply(b.rows, width, kw, {phi_q, kw}, {state, width}, sums, width, false);
    if (b.tail > 0) {
      compute_visible(b, kw, phi_q, phi_k, scores);
      multiply(b.rows, width, b.tail, {scores, b.tail}, {values, width}, sums, width, true);
    }
    for (Index i = 0; i < b.rows; ++i) sums[i * width + vw] += static_cast<T>(linear_attend_eps);
  }
  /// Calls body(block, head) for every block, from the first to the last, and every head, after computing its sums.
  template <class Body>
  void forward(Body&& body) {
    Block b{0, 0, 0, 0};
    for (Index row = 0, base = 0; row < length; row += b.rows, base = b.base) {
      b = block(row);
      advance(base, b.base);
      pack_keys(b.base, b.tail);
      for (Index head = first_head(); head < last_head(); ++head) {
        pack_queries(b, head);
        compute_sums(b);
        body(b, head);
      }
    }
  }
};

/// Computes linear attention (Katharopoulos et al. 2020, equation 5): out_i = sum_j (phi(q_i) . phi(k_j)) v_j / (sum_j
/// phi(q_i) . phi(k_j) + eps) over the keys j that query i sees. out (rows, num_heads * value_width). states, if not
/// null, (sequences, num_kv_heads * state_size), holds the sums over earlier rows on entry and the sums that include
/// these rows on return; the rows then begin a chunk. A task is a key-value head of a sequence. Takes scratch from
/// `arena`; call it from one thread.
template <class T>
void linear_attend(int threads, Arena& arena, const LinearAttendOperands<T>& in, T* out, T* states) {
  using Sweep = LinearAttendSweep<T>;
  const Index space = Sweep::space(in), kv_heads = in.num_kv_heads;
  const Buffer scratch = arena.allocate(static_cast<std::size_t>(threads * space) * sizeof(T));
  parallel_for(threads, in.sequences->size() * kv_heads, [&](Index task, int thread) {
    Sweep sweep(in, task / kv_heads, task % kv_heads, static_cast<T*>(scratch.data()) + thread * space);
    if (sweep.length == 0) return;
    if (states == nullptr)
      std::fill_n(sweep.state, in.state_size(), T(0));
    else
      sweep.state = states + task * in.state_size();
    sweep.forward([&](const auto& b, Index head) {
      for (Index i = 0; i < b.rows; ++i) {
        const T* sum = sweep.sums + i * sweep.width;
        const Batch<T> inverse(T(1) / sum[sweep.vw]);
        map_span(
            sweep.vw, out + sweep.out_at(b.row + i, head), [&](auto a) { return a * inverse; }, sum);
      }
    });
    if (states != nullptr) sweep.advance(sweep.block(sweep.length - 1).base, sweep.length);
  });
}

/// Computes dq, dk and dv of `linear_attend` without states from dout (rows, num_heads * value_width), and overwrites
/// them. A forward sweep gives dq. A backward sweep with the sums over queries, phi(Q)^T [dN, dD], gives dk and dv,
/// with N and D the numerators and denominators. In addition to the tiles it keeps two elements for each row and head.
/// A task is a key-value head of a sequence. Takes scratch from `arena`; call it from one thread.
template <class T>
void linear_attend_backward(int threads, Arena& arena, const LinearAttendOperands<T>& in, const T* dout, T* dq, T* dk,
                            T* dv) {
  using Sweep = LinearAttendSweep<T>;
  const Index space = Sweep::space(in), kv_heads = in.num_kv_heads;
  const Buffer scratch = arena.allocate(static_cast<std::size_t>(threads * space) * sizeof(T));
  // 1 / D and dD for each row and head.
  const Buffer kept = arena.allocate(static_cast<std::size_t>(in.sequences->rows() * in.num_heads * 2) * sizeof(T));
  parallel_for(threads, in.sequences->size() * kv_heads, [&](Index task, int thread) {
    Sweep sweep(in, task / kv_heads, task % kv_heads, static_cast<T*>(scratch.data()) + thread * space);
    const Index kw = sweep.kw, vw = sweep.vw, width = sweep.width, length = sweep.length;
    if (length == 0) return;
    const auto kept_at = [&](Index i, Index head) {
      return static_cast<T*>(kept.data()) + ((sweep.first + i) * in.num_heads + head) * 2;
    };
    const auto by_feature = [](auto d, auto x) { return elu_plus_one_backward(d, x); };
    // Writes [dN, dD] of the block's queries to `sums`.
    const auto load_gradients = [&](const auto& b, Index head) {
      for (Index i = 0; i < b.rows; ++i) {
        const T* factors = kept_at(b.row + i, head);
        map_span(
            vw, sweep.sums + i * width, [&](auto a) { return a * Batch<T>(factors[0]); },
            dout + sweep.out_at(b.row + i, head));
        sweep.sums[i * width + vw] = factors[1];
      }
    };

    std::fill_n(sweep.state, in.state_size(), T(0));
    sweep.forward([&](const auto& b, Index head) {
      for (Index i = 0; i < b.rows; ++i) {
        const T* sum = sweep.sums + i * width;
        const T inverse = T(1) / sum[vw];
        const T dot = sum_span<T>(
            vw, [](auto a, auto c) { return a * c; }, sum, dout + sweep.out_at(b.row + i, head));
        kept_at(b.row + i, head)[0] = inverse;
        kept_at(b.row + i, head)[1] = -dot * inverse * inverse;
      }
      load_gradients(b, head);
      T* to = dq + sweep.q_at(b.row, head);
      sweep.multiply(b.rows, kw, width, {sweep.sums, width}, Operand<T>{sweep.state, width}.transposed(), to,
                     in.q_cols(), false);
      if (b.tail > 0) {
        sweep.compute_visible(b, width, sweep.sums, sweep.values, sweep.dscores);
        sweep.multiply(b.rows, kw, b.tail, {sweep.dscores, b.tail}, {sweep.phi_k, kw}, to, in.q_cols(), true);
      }
      for (Index i = 0; i < b.rows; ++i, to += in.q_cols())
        map_span(kw, to, by_feature, to, in.q + sweep.q_at(b.row + i, head));
    });

    // From here on the state holds the sums over the queries after a block, all of which see the keys [from, to).
    std::fill_n(sweep.state, in.state_size(), T(0));
    const auto give = [&](Index from, Index to) {
      for (; from < to; from += linear_attend_tile) {
        const Index keys = std::min(linear_attend_tile, to - from);
        sweep.pack_keys(from, keys);
        sweep.multiply(keys, kw, width, {sweep.values, width}, Operand<T>{sweep.state, width}.transposed(),
                       dk + sweep.k_at(from), in.k_cols(), false);
        sweep.multiply(keys, vw, kw, {sweep.phi_k, kw}, {sweep.state, width}, dv + sweep.v_at(from), in.v_cols(),
                       false);
      }
    };
    Index base = length;
    for (Index stop = length; stop > 0;) {
      const auto b = sweep.block(stop - 1);
      give(b.base, base);
      sweep.pack_keys(b.base, b.tail);
      for (Index head = sweep.first_head(); head < sweep.last_head(); ++head) {
        sweep.pack_queries(b, head);
        load_gradients(b, head);
        if (b.tail > 0) {
          sweep.compute_visible(b, kw, sweep.phi_q, sweep.phi_k, sweep.scores);
          sweep.compute_visible(b, width, sweep.sums, sweep.values, sweep.dscores);
          sweep.multiply(b.tail, kw, b.rows, Operand<T>{sweep.dscores, b.tail}.transposed(), {sweep.phi_q, kw},
                         dk + sweep.k_at(b.base), in.k_cols(), true);
          sweep.multiply(b.tail, vw, b.rows, Operand<T>{sweep.scores, b.tail}.transposed(), {sweep.sums, width},
                         dv + sweep.v_at(b.base), in.v_cols(), true);
        }
        sweep.multiply(kw, width, b.rows, Operand<T>{sweep.phi_q, kw}.transposed(), {sweep.sums, width}, sweep.state,
                       width, true);
      }
      base = b.base;
      stop = b.row;
    }
    give(0, base);
    for (Index j = 0; j < length; ++j)
      map_span(kw, dk + sweep.k_at(j), by_feature, dk + sweep.k_at(j), in.k + sweep.k_at(j));
  });
}

LACONIC_COMPILE(linear_attend);
LACONIC_COMPILE(linear_attend_backward);

}  // namespace kernels
}  // namespace LACONIC_ABI
}  // namespace laconic
