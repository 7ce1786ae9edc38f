// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cpu/kernels/attention_tile.hpp>
#include <laconic/core/compiled.hpp>

namespace laconic {
inline namespace LACONIC_ABI {
namespace kernels {

/// Points to the derivatives that `attend_backward` computes. It adds to du and dw and overwrites the others.
template <class T>
struct AttendGradients {
  T* dq;                     ///< by q, (q_rows, num_heads * key_width)
  T* dk;                     ///< by k, (kv_rows, num_kv_heads * key_width)
  T* dv;                     ///< by v, (kv_rows, num_kv_heads * value_width)
  T* dp = nullptr;           ///< by the table, (2 * span - 1, num_heads * position_width); null without a table
  T* du = nullptr;           ///< by pos_bias_u, (num_heads * key_width), or null
  T* dw = nullptr;           ///< by pos_bias_v, (num_heads * position_width), or null
  T* dposition_q = nullptr;  ///< by position_q, (q_rows, num_heads * position_width); null if q meets the table
};

/// Computes the derivatives of `attend` from dout (q_rows, num_heads * value_width). With the attention weights P and
/// dP = dout V^T: dS = P (dP - sum P dP), dV = P^T dout, dQ = scale dS K and dK = scale dS^T Q, to which relative
/// positions add their terms. It recomputes P tile by tile from q, k and logsumexp (q_rows, num_heads), so nothing of
/// size queries x keys is kept (Dao et al. 2022). A task is one key-value head of one sequence. The derivatives that
/// sequences share (dp, du, dw) are summed over sequences afterwards, in a fixed order. Takes scratch from `arena`;
/// call it from one thread.
template <class T>
void attend_backward(int threads, Arena& arena, const AttendOperands<T>& in, const T* dout, const T* logsumexp,
                     const AttendGradients<T>& to) {
  const Index heads = in.shape.num_heads, sequences = in.q_sequences->size();
  const Index longest = std::max<Index>(1, in.kv_sequences->max_length());
  const Index kw = in.key_width, vw = in.value_width, pw = in.position_width, cols = in.q_cols(), p_cols = in.p_cols();
  const Index span = in.p == nullptr ? 0 : 2 * longest - 1;
  const Index packed = AttendPanels<T>::space(in, longest), tile_space = packed + AttendTile<T>::space(in, longest);
  const Index max_keys = padded_cols<T>(longest) + GemmTile<T>::cols;
  const Index each = tile_space + attend_tile * (3 * max_keys + attend_tile + kw + pw) + gemm_scratch<T>();
  const Buffer scratch = arena.allocate(static_cast<std::size_t>(threads * each) * sizeof(T));
  // For each sequence: the gradients of the table rows that it reads, of w, and of u.
  const Index shared_size = (span + 1) * p_cols + cols;
  const Buffer shared =
      arena.allocate(static_cast<std::size_t>(in.p == nullptr ? 1 : sequences * shared_size) * sizeof(T));
  T* shared_data = static_cast<T*>(shared.data());

  parallel_for(threads, sequences * in.shape.num_kv_heads, [&](Index task, int thread) {
    const Index sequence = task / in.shape.num_kv_heads, kv_head = task % in.shape.num_kv_heads;
    const Index queries = in.q_sequences->length(sequence), all = in.kv_sequences->length(sequence);
    T* memory = static_cast<T*>(scratch.data()) + thread * each;
    T* dscores = memory + tile_space;
    T* dropped_scores = dscores + attend_tile * max_keys;
    T* dby_position = dropped_scores + attend_tile * max_keys;
    T* dcontent = dby_position + attend_tile * (max_keys + attend_tile);
    T* dpositional = dcontent + attend_tile * kw;
    T* gemm_space = dpositional + attend_tile * pw;
    AttendPanels<T> panels(in, sequence, kv_head, {0, all}, memory);
    panels.pack_values_transposed();
    T* dtable = shared_data + sequence * shared_size;
    T* dw = dtable + span * p_cols + kv_head * in.group() * pw;
    T* du = dtable + (span + 1) * p_cols + kv_head * in.group() * kw;
    if (in.p != nullptr) {
      std::fill_n(dw, in.group() * pw, T(0));
      std::fill_n(du, in.group() * kw, T(0));
    }
    for (Index j = 0; j < all; ++j) {
      const Index at = in.kv_sequences->begin(sequence) + j;
      std::fill_n(to.dk + at * in.k_cols() + kv_head * kw, kw, T(0));
      std::fill_n(to.dv + at * in.v_cols() + kv_head * vw, vw, T(0));
    }
    for (Index head = kv_head * in.group(); head < (kv_head + 1) * in.group(); ++head) {
      if (in.p != nullptr) {
        panels.pack_positions(head);
        for (Index r = 0; r < span; ++r) std::fill_n(dtable + r * p_cols + head * pw, pw, T(0));
      }
      for (Index row = 0; row < queries; row += attend_tile) {
        AttendTile<T> tile(in, panels, sequence, head, row, memory + packed);
        const Index rows = tile.rows, keys = tile.keys, stride = tile.stride, first = tile.query_row();
        const Operand<T> dy{dout + first * in.out_cols() + head * vw, in.out_cols()};
        tile.multiply();
        for (Index i = 0; i < rows; ++i) tile.probabilities(i, logsumexp[(first + i) * heads + head]);
        gemm_panels(rows, dy, panels.values(), {0, vw}, {tile.key, tile.key + stride}, dscores, stride, false,
                    static_cast<const T*>(nullptr));
        // dscores = P (dP - sum P dP). dP, and the P that multiplies v, are taken after the dropout mask.
        T* dropped = in.dropout.any() ? dropped_scores : tile.scores;
        for (Index i = 0; i < rows; ++i) {
          T *prob = tile.scores + i * stride, *d = dscores + i * stride;
          if (in.dropout.any()) {
            in.dropout.apply(keys, tile.dropout_index(i), d, d);
            in.dropout.apply(keys, tile.dropout_index(i), prob, dropped + i * stride);
          }
          const Batch<T> dot(sum_span<T>(
              keys, [](auto a, auto b) { return a * b; }, prob, d));
          map_span(
              keys, d, [&](auto a, auto b) { return a * (b - dot); }, prob, d);
        }
        const Index key_row = tile.key_row();
        gemm_block<T>(keys, vw, rows, Operand<T>{dropped, stride}.transposed(), dy,
                      to.dv + key_row * in.v_cols() + kv_head * vw, in.v_cols(), true, nullptr, gemm_space);
        gemm_block<T>(keys, kw, rows, Operand<T>{dscores, stride}.transposed(), {tile.content, kw},
                      to.dk + key_row * in.k_cols() + kv_head * kw, in.k_cols(), true, nullptr, gemm_space);
        gemm_block<T>(rows, kw, keys, {dscores, stride}, tile.k(), dcontent, kw, false, nullptr, gemm_space);
        if (in.p != nullptr) {
          const Index width = keys + rows - 1;
          std::fill_n(dby_position, rows * width, T(0));
          for (Index i = 0; i < rows; ++i)
            std::copy_n(dscores + i * stride, keys, dby_position + i * width + rows - 1 - i);
          gemm_block<T>(rows, pw, width, {dby_position, width}, tile.p(), dpositional, pw, false, nullptr, gemm_space);
          const Index table = tile.table_row() - (in.span - longest);  // the same row, counted in a table of `longest`
          gemm_block<T>(width, pw, rows, Operand<T>{dby_position, width}.transposed(), {tile.positional, pw},
                        dtable + table * p_cols + head * pw, p_cols, true, nullptr, gemm_space);
        }
        const T scale = static_cast<T>(in.shape.scale);
        const auto in_group = head - kv_head * in.group();
        for (Index i = 0; i < rows; ++i) {
          T* dq = to.dq + (first + i) * cols + head * kw;
          for (Index c = 0; c < kw; ++c) dq[c] = dcontent[i * kw + c] * scale;
          if (in.p == nullptr) continue;
          for (Index c = 0; c < kw; ++c) du[in_group * kw + c] += dq[c];
          T* dposition = to.dposition_q == nullptr ? nullptr : to.dposition_q + (first + i) * p_cols + head * pw;
          for (Index c = 0; c < pw; ++c) {
            const T d = dpositional[i * pw + c] * scale;
            dw[in_group * pw + c] += d;
            if (dposition != nullptr)
              dposition[c] = d;
            else
              dq[c] += d;
          }
        }
      }
    }
  });
  if (in.p == nullptr) return;
  const Index table_rows = 2 * in.span - 1, offset = in.span - longest;
  parallel_blocks(threads, table_rows, 16, [&](Index begin, Index end) {
    for (Index r = begin; r < end; ++r) {
      T* row = to.dp + r * p_cols;
      std::fill_n(row, p_cols, T(0));
      if (r < offset || r >= offset + span) continue;
      for (Index n = 0; n < sequences; ++n)
        map_span(
            p_cols, row, [](auto a, auto b) { return a + b; }, row,
            shared_data + n * shared_size + (r - offset) * p_cols);
    }
  });
  for (Index n = 0; n < sequences; ++n) {
    const T* sums = shared_data + n * shared_size + span * p_cols;
    for (Index c = 0; to.dw != nullptr && c < p_cols; ++c) to.dw[c] += sums[c];
    for (Index c = 0; to.du != nullptr && c < cols; ++c) to.du[c] += sums[p_cols + c];
  }
}

LACONIC_COMPILE(attend_backward);

}  // namespace kernels
}  // namespace LACONIC_ABI
}  // namespace laconic
