// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// Benchmarks of softmax attention on whole utterances, in chunks, in streams and in training, and of the caches of
// streams, for kernels.cpp.
#pragma once

#include <laconic/backend/cpu.hpp>

#include <cmath>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "kernel_suite.hpp"

namespace bench {

using laconic::AttendShape, laconic::DropoutMask, laconic::Mask, laconic::Parameter, laconic::Random, laconic::Seed,
    laconic::Sequences, laconic::Storage, laconic::Tensor;

/// Describes a softmax attention with heads of width 64.
struct Attend {
  static constexpr Index width = 64;
  Index queries, keys, heads = 4, kv_heads = 4, sequences = 1;
  bool relative = false, latent = false;  // latent: the keys are the values, too
  Mask mask = {};

  Index q_rows() const { return sequences * queries; }
  Index kv_rows() const { return sequences * keys; }
  Index q_cols() const { return heads * width; }
  Index kv_cols() const { return kv_heads * width; }
  AttendShape shape() const { return {heads, kv_heads, 1 / std::sqrt(static_cast<double>(width)), mask}; }

  /// Returns the number of pairs of a query and a key that it sees, over all heads.
  double pairs() const {
    Index seen = 0;
    for (Index i = 0; i < queries; ++i) {
      const auto run = mask.keys(i, keys - queries, keys);
      seen += run.end - run.begin;
    }
    return static_cast<double>(seen * sequences * heads);
  }
  /// Returns the operations of `content` products of the size of Q K^T, and `positions` more with relative positions.
  double flop(int content, int positions) const { return 2 * pairs() * width * (content + (relative ? positions : 0)); }
  /// Returns the bytes of tensors of the size of the queries, of the keys, and of the table for the distances that
  /// occur.
  double bytes(int like_queries, int like_keys, int tables) const {
    return float_bytes * (like_queries * size_of(q_rows(), q_cols()) + like_keys * size_of(kv_rows(), kv_cols()) +
                          (relative ? tables * size_of(queries + keys - 1, q_cols()) : 0));
  }
  Work forward() const { return {.flop = flop(2, 1), .bytes = bytes(2, latent ? 1 : 2, 1)}; }
  /// Returns the work of the backward pass: scores again, derivatives by values, weights, queries and keys; with
  /// relative positions also those by queries and table.
  Work backward() const { return {.flop = flop(5, 3), .bytes = bytes(4, 4, 2)}; }
};

/// Holds random operands of an attention.
class AttendOperands {
 public:
  explicit AttendOperands(const Attend& a)
      : q(noise(a.q_rows(), a.q_cols())),
        k(noise(a.kv_rows(), a.kv_cols())),
        v(a.latent ? Matrix<float>() : noise(a.kv_rows(), a.kv_cols())),
        q_sequences(std::vector<Index>(static_cast<std::size_t>(a.sequences), a.queries)),
        kv_sequences(std::vector<Index>(static_cast<std::size_t>(a.sequences), a.keys)),
        u_({a.heads, Attend::width}),
        w_({a.heads, Attend::width}) {
    if (a.relative) table_ = noise(2 * a.keys - 1, a.q_cols());
    fill_uniform(u_, 0.5, Random(Seed(1), "u"));
    fill_uniform(w_, 0.5, Random(Seed(1), "w"));
  }
  const Matrix<float>& values() const { return v.size() > 0 ? v : k; }
  laconic::RelativeTerm<Tensor<float>, float> term(Cpu<float>& cpu) const {
    if (table_.size() == 0) return {};
    return {cpu.input(table_), &u_, &w_};
  }

  Matrix<float> q, k, v;
  Sequences q_sequences, kv_sequences;
  DropoutMask dropout{0.1, Random(Seed(1), "dropout")};

 private:
  Matrix<float> table_;
  Parameter<float> u_, w_;
};

inline void add_attend(const Suite& suite, const std::string& name, const Attend& a) {
  suite.add(name, a.forward(), [=](Cpu<float>& cpu) {
    return [&cpu, shape = a.shape(), x = AttendOperands(a)] {
      return cpu.attend(cpu.input(x.q), cpu.input(x.k), cpu.input(x.values()), shape, x.q_sequences, x.kv_sequences,
                        x.term(cpu));
    };
  });
}

inline void add_attention(const Suite& suite) {
  for (const bool relative : {true, false}) {
    const char* positions = relative ? "relative" : "plain";
    for (const Index frames : {250, 1000, 3000})
      add_attend(suite, text("attend/", positions, "/frames:", frames),
                 {.queries = frames, .keys = frames, .relative = relative});
    add_attend(suite, text("attend/", positions, "/chunk:8/left:32/frames:1000"),
               {.queries = 1000, .keys = 1000, .relative = relative, .mask = Mask::chunked(8, 32)});
    for (const Index keys : {250, 1500})
      add_attend(suite, text("attend/", positions, "/queries:8/keys:", keys),
                 {.queries = 8, .keys = keys, .relative = relative});
  }
  for (const Index keys : {250, 1500})
    add_attend(suite, text("attend/latent/heads:8/queries:8/keys:", keys),
               {.queries = 8, .keys = keys, .heads = 8, .kv_heads = 1, .latent = true});
}

inline void add_attention_training(const Suite& suite) {
  for (const Index frames : {75, 250}) {
    const Attend a{.queries = frames, .keys = frames, .sequences = 8, .relative = true};
    suite.add(text("attend_train/relative/sequences:8/frames:", frames), a.forward(), [=](Cpu<float>& cpu) {
      return [&cpu, shape = a.shape(), x = AttendOperands(a)] {
        Tensor<float> logsumexp;
        return cpu.attend_train(cpu.input(x.q), cpu.input(x.k), cpu.input(x.v), shape, x.q_sequences, x.kv_sequences,
                                x.term(cpu), x.dropout, logsumexp);
      };
    });
    suite.add(text("attend_backward/relative/sequences:8/frames:", frames), a.backward(), [=](Cpu<float>& cpu) {
      AttendOperands x(a);
      Tensor<float> logsumexp;
      cpu.attend_train(cpu.input(x.q), cpu.input(x.k), cpu.input(x.v), a.shape(), x.q_sequences, x.kv_sequences,
                       x.term(cpu), x.dropout, logsumexp);
      return [&cpu, shape = a.shape(), x = std::move(x), logsumexp, dout = noise(a.q_rows(), a.q_cols())] {
        return cpu.attend_backward(cpu.input(dout), cpu.input(x.q), cpu.input(x.k), cpu.input(x.v), shape,
                                   x.q_sequences, x.kv_sequences, x.term(cpu), x.dropout, logsumexp);
      };
    });
  }
}

/// Adds a push of 8 frames to streams that keep 250.
inline void add_extend(const Suite& suite) {
  constexpr Index width = 512, capacity = 250, rows = 8;
  for (const Storage storage : {Storage::full, Storage::bf16, Storage::int8})
    for (const Index streams : {1, 16}) {
      const double stored = static_cast<double>(cache_row_bytes(storage, width));
      const Work work{.bytes = static_cast<double>(streams) *
                               ((capacity + rows) * stored + float_bytes * size_of(capacity + 2 * rows, width))};
      suite.add(text("extend/", to_name(storage), "/streams:", streams), work, [=](Cpu<float>& cpu) {
        laconic::RowCache<float> cache(streams, capacity, width, storage);
        std::vector<Index> slots(static_cast<std::size_t>(streams));
        std::iota(slots.begin(), slots.end(), 0);
        for (const Index slot : slots) cache.append(slot, capacity, noise(capacity, width).data());
        const std::vector<Index> lengths(slots.size(), rows);
        return [&cpu, x = noise(streams * rows, width), cache = std::move(cache), slots = std::move(slots),
                sequences = Sequences(lengths)]() mutable { return cpu.extend(cache, slots, cpu.input(x), sequences); };
      });
    }
}

}  // namespace bench
