// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cpu/kernels/gemm.hpp>
#include <laconic/backend/shapes.hpp>
#include <laconic/core/sequences.hpp>

namespace laconic {
inline namespace LACONIC_ABI {
namespace kernels {

/// The feature map of linear attention, elu(x) + 1 (Katharopoulos et al. 2020, section 3.2.1). Always positive: elu is
/// never formed, because exp(x) - 1 + 1 is 0 for small exp(x).
template <class T>
Batch<T> elu_plus_one(const Batch<T>& x) {
  return xsimd::select(x < Batch<T>(T(0)), exp<T>(x), x + Batch<T>(T(1)));  // what is not a number stays so
}

/// dy times the derivative of the feature map at x.
template <class T>
Batch<T> elu_plus_one_backward(const Batch<T>& dy, const Batch<T>& x) {
  return xsimd::select(x < Batch<T>(T(0)), dy * exp<T>(x), dy);
}

/// Raw operands of linear attention over packed rows. Query head h reads key-value head h / (num_heads / num_kv_heads).
/// q (rows, num_heads * key_width), k (rows, num_kv_heads * key_width), v (rows, num_kv_heads * value_width).
/// The left context of the mask is unlimited.
template <class T>
struct LinearAttendOperands {
  Index num_heads, num_kv_heads;
  Mask mask;
  const Sequences* sequences;
  Index key_width, value_width;
  const T *q, *k, *v;

  Index group() const { return num_heads / num_kv_heads; }
  Index q_cols() const { return num_heads * key_width; }
  Index k_cols() const { return num_kv_heads * key_width; }
  Index v_cols() const { return num_kv_heads * value_width; }
  Index out_cols() const { return num_heads * value_width; }
  /// Numbers in the state of one key-value head.
  Index state_size() const { return key_width * (value_width + 1); }
};

/// Added to the denominators.
inline constexpr double linear_attend_eps = 1e-6;
/// Queries and keys handled at once.
inline constexpr Index linear_attend_tile = 64;

/// One key-value head of one sequence, and the heads that read it. Values carry a last column of ones, so that
/// numerator and denominator are one sum: the state is phi(K)^T [V, 1] over the keys so far, (key_width, value_width +
/// 1).
template <class T>
struct LinearAttendSweep {
  /// Queries [row, row + rows), whole chunks or a part of one. All of them see the keys before `base`, and none sees a
  /// key from base + tail on; those between are seen by some.
  struct Block {
    Index row, rows, base, tail;
  };

  const LinearAttendOperands<T>& in;
  Index kv_head, first, length, chunk, kw, vw, width;
  T *phi_q, *phi_k;     // (tile, key_width)
  T* values;            // (tile, width): V and ones
  T* sums;              // (tile, width): numerators and denominators, later their derivatives
  T *scores, *dscores;  // (rows, tail)
  T* state;
  T* gemm_space;
  Index packed_key = 0, packed = 0;  // phi_k and values hold the keys [packed_key, packed_key + packed)

  static Index space(const LinearAttendOperands<T>& in) {
    return 2 * linear_attend_tile * (in.key_width + in.value_width + 1 + linear_attend_tile) + in.state_size() +
           gemm_scratch<T>();
  }

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

  /// The keys that query i sees end here.
  Index end(Index i) const { return std::min(length, (i / chunk + 1) * chunk); }
  /// The block of query i. Small chunks are taken several at once and great ones cut, so the tail is shorter than a
  /// tile.
  Block block(Index i) const {
    const bool small = chunk < linear_attend_tile;
    const Index most = small ? linear_attend_tile / chunk * chunk : linear_attend_tile,
                start = small ? 0 : i / chunk * chunk;
    const Index row = start + (i - start) / most * most, rows = std::min(most, (small ? length : end(i)) - row);
    return {row, rows, end(row), end(row + rows - 1) - end(row)};
  }
  /// Heads [first, last) that read this key-value head.
  Index first_head() const { return kv_head * in.group(); }
  Index last_head() const { return first_head() + in.group(); }
  Index q_at(Index i, Index head) const { return (first + i) * in.q_cols() + head * kw; }
  Index k_at(Index j) const { return (first + j) * in.k_cols() + kv_head * kw; }
  Index v_at(Index j) const { return (first + j) * in.v_cols() + kv_head * vw; }
  Index out_at(Index i, Index head) const { return (first + i) * in.out_cols() + head * vw; }

  void multiply(Index m, Index n, Index depth, Operand<T> a, Operand<T> b, T* c, Index c_stride,
                bool accumulate) const {
    gemm_block<T>(m, n, depth, a, b, c, c_stride, accumulate, nullptr, gemm_space);
  }

  void pack_queries(const Block& b, Index head) {
    for (Index i = 0; i < b.rows; ++i)
      map_span(
          kw, phi_q + i * kw, [](auto x) { return elu_plus_one(x); }, in.q + q_at(b.row + i, head));
  }
  /// Packs the keys [key, key + keys), but none that is there already.
  void pack_keys(Index key, Index keys) {
    if (key != packed_key) packed = 0;
    for (packed_key = key; packed < keys; ++packed) {
      map_span(
          kw, phi_k + packed * kw, [](auto x) { return elu_plus_one(x); }, in.k + k_at(key + packed));
      std::copy_n(in.v + v_at(key + packed), vw, values + packed * width);
      values[packed * width + vw] = T(1);
    }
  }
  /// Takes the keys [from, to) into the state.
  void advance(Index from, Index to) {
    for (; from < to; from += linear_attend_tile) {
      const Index keys = std::min(linear_attend_tile, to - from);
      pack_keys(from, keys);
      multiply(kw, width, keys, Operand<T>{phi_k, kw}.transposed(), {values, width}, state, width, true);
    }
  }
  /// to (rows, tail) = a b^T over `depth` columns, 0 where a query does not see a key.
  void compute_visible(const Block& b, Index depth, const T* queries, const T* keys, T* to) const {
    multiply(b.rows, b.tail, depth, {queries, depth}, Operand<T>{keys, depth}.transposed(), to, b.tail, false);
    for (Index i = 0; i < b.rows; ++i)
      std::fill(to + i * b.tail + end(b.row + i) - b.base, to + (i + 1) * b.tail, T(0));
  }
  /// Numerators and denominators of the packed queries; the state holds the keys before base, and the tail is packed.
  void compute_sums(const Block& b) {
    multiply(b.rows, width, kw, {phi_q, kw}, {state, width}, sums, width, false);
    if (b.tail > 0) {
      compute_visible(b, kw, phi_q, phi_k, scores);
      multiply(b.rows, width, b.tail, {scores, b.tail}, {values, width}, sums, width, true);
    }
    for (Index i = 0; i < b.rows; ++i) sums[i * width + vw] += static_cast<T>(linear_attend_eps);
  }
  /// body(block, head) for every block, from the first to the last, and every head, with its queries and sums.
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

/// Linear attention: out_i = sum_j (phi(q_i) . phi(k_j)) v_j / (sum_j phi(q_i) . phi(k_j) + eps) over the keys that i
/// sees. out (rows, num_heads * value_width). `states`, if not null, is (sequences, num_kv_heads * state_size): the
/// sums over the rows before these, and afterwards those with these. Rows begin a chunk then.
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

/// Derivative of `linear_attend` without an earlier state from dout; dq, dk and dv are overwritten. Forward once more
/// for dq; then backward with the sums over queries, phi(Q)^T [dN, dD], for dk and dv. Beside the tiles, it keeps two
/// numbers for each row and head.
template <class T>
void linear_attend_backward(int threads, Arena& arena, const LinearAttendOperands<T>& in, const T* dout, T* dq, T* dk,
                            T* dv) {
  using Sweep = LinearAttendSweep<T>;
  const Index space = Sweep::space(in), kv_heads = in.num_kv_heads;
  const Buffer scratch = arena.allocate(static_cast<std::size_t>(threads * space) * sizeof(T));
  // Of each row and head: 1 / D and dD.
  const Buffer kept = arena.allocate(static_cast<std::size_t>(in.sequences->rows() * in.num_heads * 2) * sizeof(T));
  parallel_for(threads, in.sequences->size() * kv_heads, [&](Index task, int thread) {
    Sweep sweep(in, task / kv_heads, task % kv_heads, static_cast<T*>(scratch.data()) + thread * space);
    const Index kw = sweep.kw, vw = sweep.vw, width = sweep.width, length = sweep.length;
    if (length == 0) return;
    const auto kept_at = [&](Index i, Index head) {
      return static_cast<T*>(kept.data()) + ((sweep.first + i) * in.num_heads + head) * 2;
    };
    const auto by_feature = [](auto d, auto x) { return elu_plus_one_backward(d, x); };
    // [dN, dD] of the block's queries, in `sums`.
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

    // Now the state holds the queries after a block. The keys [from, to) are seen by all of those.
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

}  // namespace kernels
}  // namespace LACONIC_ABI
}  // namespace laconic
