// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cpu/elementwise.hpp>
#include <laconic/backend/cpu/gemm.hpp>
#include <laconic/backend/primitives.hpp>
#include <laconic/core/sequences.hpp>

#include <cmath>

namespace laconic::inline LACONIC_ABI {
namespace kernels {

/// Raw operands of softmax attention over packed rows. Query head h reads key-value head h / (num_heads /
/// num_kv_heads). q (q_rows, num_heads * key_width), k (kv_rows, num_kv_heads * key_width), v (kv_rows, num_kv_heads *
/// value_width). With relative positions (Dai et al. 2019, section 3.3): p (2 * span - 1, num_heads * position_width)
/// holds the projected table, row span-1 - r for key r frames to the left of the query, and meets position_q, which is
/// q or as wide as p; u and w (one row each) are pos_bias_u and pos_bias_v.
template <class T>
struct AttendOperands {
  AttendShape shape;
  const Sequences *q_sequences, *kv_sequences;
  Index key_width, value_width;
  const T *q, *k, *v;
  const T *p = nullptr, *u = nullptr, *w = nullptr, *position_q = nullptr;
  Index span = 0, position_width = 0;
  DropoutMask dropout{0.0, Random(Seed(), 0)};

  Index group() const { return shape.num_heads / shape.num_kv_heads; }
  Index q_cols() const { return shape.num_heads * key_width; }
  Index k_cols() const { return shape.num_kv_heads * key_width; }
  Index v_cols() const { return shape.num_kv_heads * value_width; }
  Index out_cols() const { return shape.num_heads * value_width; }
  Index p_cols() const { return shape.num_heads * position_width; }
};

/// Queries handled at once: memory grows with tile x keys, never with queries x keys.
inline constexpr Index attend_tile = 64;

/// The scores of one tile: queries [row, row + rows) of one head of one sequence, against keys [key, key + keys).
template <class T>
struct AttendTile {
  const AttendOperands<T>& in;
  Index sequence, head, row, rows, key, keys;
  T* content;      // (rows, key_width): (q + u) scale
  T* positional;   // (rows, position_width): (position_q + w) scale
  T* scores;       // (rows, keys)
  T* by_position;  // (rows, keys + rows - 1): row i, column rows-1 - i + j is the positional score of (i, j)
  T* gemm_space;

  static Index space(const AttendOperands<T>& in) {
    const Index keys = in.kv_sequences->max_length();
    return attend_tile * (in.key_width + in.position_width + 2 * keys + attend_tile) + gemm_scratch<T>();
  }

  AttendTile(const AttendOperands<T>& operands, Index sequence_, Index head_, Index row_, T* memory)
      : in(operands), sequence(sequence_), head(head_), row(row_) {
    const Index queries = in.q_sequences->length(sequence), all = in.kv_sequences->length(sequence);
    rows = std::min(attend_tile, queries - row);
    const auto first = in.shape.mask.keys(row, all - queries, all),
               last = in.shape.mask.keys(row + rows - 1, all - queries, all);
    key = first.begin;
    keys = last.end - first.begin;
    content = memory;
    positional = content + attend_tile * in.key_width;
    scores = positional + attend_tile * in.position_width;
    by_position = scores + attend_tile * in.kv_sequences->max_length();
    gemm_space = by_position + attend_tile * (in.kv_sequences->max_length() + attend_tile);
  }

  Index kv_head() const { return head / in.group(); }
  Index query_row() const { return in.q_sequences->begin(sequence) + row; }
  Index key_row() const { return in.kv_sequences->begin(sequence) + key; }
  Index past() const { return in.kv_sequences->length(sequence) - in.q_sequences->length(sequence); }
  Operand<T> k() const { return {in.k + key_row() * in.k_cols() + kv_head() * in.key_width, in.k_cols()}; }
  Operand<T> v() const { return {in.v + key_row() * in.v_cols() + kv_head() * in.value_width, in.v_cols()}; }
  /// First row of the table that this tile reads: that of its last query and its first key.
  Index table_row() const { return in.span - 1 - (past() + row + rows - 1) + key; }
  Operand<T> p() const { return {in.p + table_row() * in.p_cols() + head * in.position_width, in.p_cols()}; }
  T* shifted(Index i) const { return by_position + i * (keys + rows - 1) + rows - 1 - i; }
  Mask::Keys visible(Index i) const {
    const auto seen = in.shape.mask.keys(row + i, past(), in.kv_sequences->length(sequence));
    return {seen.begin - key, seen.end - key};
  }
  std::uint64_t dropout_index(Index i) const {
    return static_cast<std::uint64_t>((query_row() + i) * in.shape.num_heads + head) << 24;
  }

  /// ((q_i + u) . k_j + (q_i + w) . p_{i-j}) scale for the whole tile.
  void compute_scores() {
    scale_queries(in.q, in.u, in.key_width, content);
    gemm_block<T>(rows, keys, in.key_width, {content, in.key_width}, k().transposed(), scores, keys, false, nullptr,
                  gemm_space);
    if (in.p == nullptr) return;
    scale_queries(in.position_q, in.w, in.position_width, positional);
    gemm_block<T>(rows, keys + rows - 1, in.position_width, {positional, in.position_width}, p().transposed(),
                  by_position, keys + rows - 1, false, nullptr, gemm_space);
    for (Index i = 0; i < rows; ++i) {
      const T* add = shifted(i);
      map_span(
          keys, scores + i * keys, [](auto a, auto b) { return a + b; }, scores + i * keys, add);
    }
  }

  /// to (rows, width) = (q + bias) scale for this tile's queries and head.
  void scale_queries(const T* q, const T* bias, Index width, T* to) const {
    const T scale = static_cast<T>(in.shape.scale);
    for (Index i = 0; i < rows; ++i) {
      const T* from = q + ((query_row() + i) * in.shape.num_heads + head) * width;
      for (Index c = 0; c < width; ++c)
        to[i * width + c] = (from[c] + (bias == nullptr ? T(0) : bias[head * width + c])) * scale;
    }
  }

  /// Scores to probabilities, row by row; gives the logarithm of each row's sum. A row that sees nothing becomes zeros.
  T softmax_row(Index i) {
    T* s = scores + i * keys;
    const auto seen = visible(i);
    std::fill(s, s + seen.begin, T(0));
    std::fill(s + seen.end, s + keys, T(0));
    if (seen.begin == seen.end) return T(0);
    T most = s[seen.begin];
    Index j = seen.begin;
    if (seen.end - j >= lanes<T>) {
      Batch<T> best = load(s + j);
      for (; j + lanes<T> <= seen.end; j += lanes<T>) best = xsimd::max(best, load(s + j));
      most = max_lanes<T>(best);
    }
    for (; j < seen.end; ++j) most = std::max(most, s[j]);
    const Index n = seen.end - seen.begin;
    T* row_scores = s + seen.begin;
    map_span(
        n, row_scores, [&](auto a) { return xsimd::exp(a - Batch<T>(most)); }, row_scores);
    T sum = sum_span<T>(
        n, [](auto a) { return a; }, row_scores);
    const Batch<T> inverse(T(1) / sum);
    map_span(
        n, row_scores, [&](auto a) { return a * inverse; }, row_scores);
    return most + std::log(sum);
  }

  /// Probabilities again, from scores and the logarithm of their sum.
  void probabilities(Index i, T log_sum) {
    T* s = scores + i * keys;
    const auto seen = visible(i);
    std::fill(s, s + seen.begin, T(0));
    std::fill(s + seen.end, s + keys, T(0));
    map_span(
        seen.end - seen.begin, s + seen.begin, [&](auto a) { return xsimd::exp(a - Batch<T>(log_sum)); },
        s + seen.begin);
  }
};

/// out (q_rows, num_heads * value_width); log_sums (q_rows, num_heads) if not null. Milakov and Gimelshein 2018 without
/// the division of keys: a tile sees all its keys at once.
template <class T>
void attend(int threads, Arena& arena, const AttendOperands<T>& in, T* out, T* log_sums) {
  const Index space = AttendTile<T>::space(in), heads = in.shape.num_heads;
  const Index tiles = (in.q_sequences->max_length() + attend_tile - 1) / attend_tile;
  const Buffer scratch = arena.allocate(static_cast<std::size_t>(threads * space) * sizeof(T));
  parallel_for(threads, in.q_sequences->size() * heads * tiles, [&](Index task, int thread) {
    const Index row = task % tiles * attend_tile, head = task / tiles % heads, sequence = task / tiles / heads;
    if (row >= in.q_sequences->length(sequence)) return;
    AttendTile<T> tile(in, sequence, head, row, static_cast<T*>(scratch.data()) + thread * space);
    tile.compute_scores();
    for (Index i = 0; i < tile.rows; ++i) {
      const T log_sum = tile.softmax_row(i);
      if (log_sums != nullptr) log_sums[(tile.query_row() + i) * heads + head] = log_sum;
      if (in.dropout.any())
        in.dropout.apply(tile.keys, tile.dropout_index(i), tile.scores + i * tile.keys, tile.scores + i * tile.keys);
    }
    gemm_block<T>(tile.rows, in.value_width, tile.keys, {tile.scores, tile.keys}, tile.v(),
                  out + tile.query_row() * in.out_cols() + head * in.value_width, in.out_cols(), false, nullptr,
                  tile.gemm_space);
  });
}

/// Where the derivatives of `attend` go; all of them are overwritten but du and dw, which are added to. Null du, dw and
/// dp where there are no relative positions; null dposition_q where q itself meets the table.
template <class T>
struct AttendGradients {
  T *dq, *dk, *dv;
  T *dp = nullptr, *du = nullptr, *dw = nullptr, *dposition_q = nullptr;
};

/// Derivative of `attend` from dout, by recomputing each tile's scores from `log_sums`: nothing of size queries x keys
/// is kept. Tasks are (sequence, key-value head); what sequences share (dp, du, dw) is summed in their order
/// afterwards.
template <class T>
void attend_backward(int threads, Arena& arena, const AttendOperands<T>& in, const T* dout, const T* log_sums,
                     const AttendGradients<T>& to) {
  const Index heads = in.shape.num_heads, sequences = in.q_sequences->size();
  const Index longest = std::max<Index>(1, in.kv_sequences->max_length());
  const Index kw = in.key_width, vw = in.value_width, pw = in.position_width, cols = in.q_cols(), p_cols = in.p_cols();
  const Index span = in.p == nullptr ? 0 : 2 * longest - 1;
  const Index each = AttendTile<T>::space(in) + attend_tile * (2 * longest + attend_tile + kw + pw);
  const Buffer scratch = arena.allocate(static_cast<std::size_t>(threads * each) * sizeof(T));
  // Per sequence: the gradient of the table rows that it reads, of w and of u.
  const Index shared_size = (span + 1) * p_cols + cols;
  const Buffer shared =
      arena.allocate(static_cast<std::size_t>(in.p == nullptr ? 1 : sequences * shared_size) * sizeof(T));
  T* shared_data = static_cast<T*>(shared.data());

  parallel_for(threads, sequences * in.shape.num_kv_heads, [&](Index task, int thread) {
    const Index sequence = task / in.shape.num_kv_heads, kv_head = task % in.shape.num_kv_heads;
    const Index queries = in.q_sequences->length(sequence), all = in.kv_sequences->length(sequence);
    T* memory = static_cast<T*>(scratch.data()) + thread * each;
    T* dscores = memory + AttendTile<T>::space(in);
    T* dby_position = dscores + attend_tile * longest;
    T* dcontent = dby_position + attend_tile * (longest + attend_tile);
    T* dpositional = dcontent + attend_tile * kw;
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
      if (in.p != nullptr)
        for (Index r = 0; r < span; ++r) std::fill_n(dtable + r * p_cols + head * pw, pw, T(0));
      for (Index row = 0; row < queries; row += attend_tile) {
        AttendTile<T> tile(in, sequence, head, row, memory);
        const Index rows = tile.rows, keys = tile.keys, first = tile.query_row();
        const Operand<T> dy{dout + first * in.out_cols() + head * vw, in.out_cols()};
        tile.compute_scores();
        for (Index i = 0; i < rows; ++i) tile.probabilities(i, log_sums[(first + i) * heads + head]);
        gemm_block<T>(rows, keys, vw, dy, tile.v().transposed(), dscores, keys, false, nullptr, tile.gemm_space);
        // dscores = P (dP - sum P dP), with dP and the P that v saw behind the dropout mask; that P is put in
        // by_position.
        T* dropped = in.dropout.any() ? tile.by_position : tile.scores;
        for (Index i = 0; i < rows; ++i) {
          T *prob = tile.scores + i * keys, *d = dscores + i * keys;
          if (in.dropout.any()) {
            in.dropout.apply(keys, tile.dropout_index(i), d, d);
            in.dropout.apply(keys, tile.dropout_index(i), prob, dropped + i * keys);
          }
          const Batch<T> dot(sum_span<T>(
              keys, [](auto a, auto b) { return a * b; }, prob, d));
          map_span(
              keys, d, [&](auto a, auto b) { return a * (b - dot); }, prob, d);
        }
        const Index key_row = tile.key_row();
        gemm_block<T>(keys, vw, rows, Operand<T>{dropped, keys}.transposed(), dy,
                      to.dv + key_row * in.v_cols() + kv_head * vw, in.v_cols(), true, nullptr, tile.gemm_space);
        gemm_block<T>(keys, kw, rows, Operand<T>{dscores, keys}.transposed(), {tile.content, kw},
                      to.dk + key_row * in.k_cols() + kv_head * kw, in.k_cols(), true, nullptr, tile.gemm_space);
        gemm_block<T>(rows, kw, keys, {dscores, keys}, tile.k(), dcontent, kw, false, nullptr, tile.gemm_space);
        if (in.p != nullptr) {
          const Index width = keys + rows - 1;
          std::fill_n(dby_position, rows * width, T(0));
          for (Index i = 0; i < rows; ++i)
            std::copy_n(dscores + i * keys, keys, dby_position + i * width + rows - 1 - i);
          gemm_block<T>(rows, pw, width, {dby_position, width}, tile.p(), dpositional, pw, false, nullptr,
                        tile.gemm_space);
          const Index table = tile.table_row() - (in.span - longest);  // the same row, counted in a table of `longest`
          gemm_block<T>(width, pw, rows, Operand<T>{dby_position, width}.transposed(), {tile.positional, pw},
                        dtable + table * p_cols + head * pw, p_cols, true, nullptr, tile.gemm_space);
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

}  // namespace kernels
}  // namespace laconic
