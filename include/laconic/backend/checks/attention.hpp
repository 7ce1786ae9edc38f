// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/shapes.hpp>
#include <laconic/core/parameter.hpp>
#include <laconic/core/sequences.hpp>

// The checks of arguments of attention primitives, which all backends share. Each throws `Error` for what does not fit.

namespace laconic {
inline namespace LACONIC_ABI {
namespace checks {

/// Checks the arguments of `attend` without its relative term. k and v are views of cached and new rows, or of rows
/// only (their cache is null).
template <class Tensor, class CachedRows>
void attend(const Tensor& q, const CachedRows& k, const CachedRows& v, const AttendShape& shape,
            const Sequences& q_sequences, const Sequences& kv_sequences) {
  const Index width = shape.num_heads > 0 ? q.cols() / shape.num_heads : 0;
  require(width > 0 && shape.num_kv_heads > 0 && shape.num_heads % shape.num_kv_heads == 0 &&
              q.cols() == width * shape.num_heads && k.rows.cols() == width * shape.num_kv_heads &&
              v.rows.cols() % shape.num_kv_heads == 0,
          "attend: q, k, v have ", q.cols(), ", ", k.rows.cols(), ", ", v.rows.cols(), " channels, which ",
          shape.num_heads, " heads over ", shape.num_kv_heads, " key-value heads do not divide");
  // With caches, the new keys and values are the rows of the queries.
  const bool cached = k.cache != nullptr;
  const Sequences& fresh = cached ? q_sequences : kv_sequences;
  require(q.rows() == q_sequences.rows() && k.rows.rows() == fresh.rows() && v.rows.rows() == k.rows.rows() &&
              q_sequences.size() == kv_sequences.size() && cached == (v.cache != nullptr),
          "attend: q, k, v have ", q.rows(), ", ", k.rows.rows(), ", ", v.rows.rows(), " rows; their sequences have ",
          q_sequences.rows(), " and ", fresh.rows());
  require(shape.mask.is_valid(), "attend: a mask of chunk ", shape.mask.chunk, " and left context ",
          shape.mask.left_context, " given, at least 1 and 0 expected, or neither");
  for (Index n = 0; cached && n < kv_sequences.size(); ++n)
    for (const auto* rows : {&k, &v}) {
      const Index count = rows->cache->count(rows->slots[static_cast<std::size_t>(n)]);
      require(count + fresh.length(n) == kv_sequences.length(n), "attend: sequence ", n, " has ", count,
              " cached rows and ", fresh.length(n), " new ones, ", kv_sequences.length(n), " expected");
    }
}

/// Checks the relative term of `attend`, whose table has `table_rows` distances, and its queries, which are those of
/// the term or else q.
template <class Tensor, class T>
void relative_term(const Tensor& q, const RelativeTerm<Tensor, T>& relative, Index table_rows, const AttendShape& shape,
                   const Sequences& q_sequences, const Sequences& kv_sequences) {
  const Tensor& query = relative.query.empty() ? q : relative.query;
  require(query.rows() == q.rows() && query.cols() % shape.num_heads == 0,
          "attend: the queries for relative positions are (", query.rows(), ", ", query.cols(), "), expected ",
          q.rows(), " rows for ", shape.num_heads, " heads");
  const auto bias = [](const Parameter<T>* p, Index cols) {
    require(p == nullptr || p->size() == cols, "attend: a position bias of ", p == nullptr ? 0 : p->size(), " given, ",
            cols, " expected");
  };
  bias(relative.pos_bias_u, q.cols());
  bias(relative.pos_bias_v, query.cols());
  require(
      relative.table.cols() == query.cols() && table_rows % 2 == 1 && (table_rows + 1) / 2 >= kv_sequences.max_length(),
      "attend: the table of relative positions is (", table_rows, ", ", relative.table.cols(), "), expected (2 n - 1, ",
      query.cols(), ") with n at least ", kv_sequences.max_length());
  for (Index n = 0; n < q_sequences.size(); ++n)
    require(q_sequences.length(n) <= kv_sequences.length(n), "attend: sequence ", n, " has ", q_sequences.length(n),
            " queries and ", kv_sequences.length(n), " keys, at least as many keys expected with relative positions");
}

/// Checks the relative term of attention that is trained.
template <class Tensor, class T>
void trainable_term(const RelativeTerm<Tensor, T>& relative) {
  require(!relative.packed, "attend: a packed table given, which can only be run; one as it is expected to train");
}

/// Checks the arguments of `prepare_table`.
template <class Tensor>
void prepare_table(const Tensor& table, Index num_heads) {
  require(num_heads > 0 && table.cols() % num_heads == 0, "prepare_table: ", table.cols(), " channels given for ",
          num_heads, " heads");
}

/// Checks the arguments of `linear_attend` without its states.
template <class Tensor>
void linear_attend(const Tensor& q, const Tensor& k, const Tensor& v, const AttendShape& shape,
                   const Sequences& sequences) {
  const Index heads = shape.num_heads, kv_heads = shape.num_kv_heads;
  require(heads > 0 && kv_heads > 0 && heads % kv_heads == 0 && q.cols() % heads == 0 &&
              k.cols() == q.cols() / heads * kv_heads && v.cols() % kv_heads == 0,
          "linear_attend: q, k, v have ", q.cols(), ", ", k.cols(), ", ", v.cols(), " channels, which ", heads,
          " heads over ", kv_heads, " key-value heads do not divide");
  require(q.rows() == sequences.rows() && k.rows() == q.rows() && v.rows() == q.rows(), "linear_attend: q, k, v have ",
          q.rows(), ", ", k.rows(), ", ", v.rows(), " rows; their sequences have ", sequences.rows());
  require(shape.mask.is_valid() && shape.mask.left_context == Mask::unlimited, "linear_attend: a mask of chunk ",
          shape.mask.chunk, " and left context ", shape.mask.left_context,
          " given; its state cannot forget, so an unlimited left context is expected");
}
/// Checks the states of `linear_attend`, `cols` values for each sequence.
template <class Tensor>
void linear_attend_states(const Tensor& states, const Sequences& sequences, Index cols) {
  require(states.rows() == sequences.size() && states.cols() == cols, "linear_attend: states of (", states.rows(), ", ",
          states.cols(), ") given, (", sequences.size(), ", ", cols, ") expected");
}

}  // namespace checks
}  // namespace LACONIC_ABI
}  // namespace laconic
