// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cpu/kernels/attention_backward.hpp>
#include <laconic/backend/cpu/kernels/attention_forward.hpp>
#include <laconic/backend/cpu/kernels/heads.hpp>
#include <laconic/backend/cpu/kernels/linear_attention.hpp>
#include <laconic/backend/cpu/row_cache.hpp>
#include <laconic/backend/cpu/values.hpp>

#include <span>

namespace laconic {
inline namespace LACONIC_ABI {

/// The part of `Cpu` that attention is made of.
template <class T>
class CpuAttention : public CpuValues<T> {
 public:
  using typename CpuValues<T>::Tensor;
  using CpuValues<T>::CpuValues, CpuValues<T>::make, CpuValues<T>::zeros;

  /// Softmax attention: see AttendShape and RelativeTerm. q (rows, num_heads * K), k (rows, num_kv_heads * K),
  /// v (rows, num_kv_heads * V) to (rows, num_heads * V). Key rows may outnumber query rows (cached frames): the last
  /// query stands at the last key. A query that sees no key gives zeros. Memory grows with rows, not with their square.
  /// The dropout (of probabilities) does nothing outside training.
  Tensor attend(const Tensor& q, const Tensor& k, const Tensor& v, const AttendShape& shape,
                const Sequences& q_sequences, const Sequences& kv_sequences,
                const RelativeTerm<Tensor, T>& relative = {}, double = 0) {
    return attend(q, CachedRows{k}, CachedRows{v}, shape, q_sequences, kv_sequences, relative);
  }
  using Cache = RowCache<T>;
  /// What a cache holds in its slots, one for each sequence, and the rows behind it that came now: see with_cached.
  struct CachedRows {
    Tensor rows{};
    const Cache* cache = nullptr;  ///< in `attend`, null: these rows are all
    std::span<const Index> slots{};
  };
  /// The same with keys and values that are read where they lie. `kv_sequences` counts them all.
  Tensor attend(const Tensor& q, const CachedRows& k, const CachedRows& v, const AttendShape& shape,
                const Sequences& q_sequences, const Sequences& kv_sequences,
                const RelativeTerm<Tensor, T>& relative = {}, double = 0) {
    const auto in = attend_operands(q, k, v, shape, q_sequences, kv_sequences, relative);
    Tensor out = make(q.rows(), in.out_cols());
    kernels::attend(threads_, arena_, in, out.data(), static_cast<T*>(nullptr));
    return out;
  }
  /// The same with dropout of the attention probabilities, keeping the row sums for the derivative.
  Tensor attend_train(const Tensor& q, const Tensor& k, const Tensor& v, const AttendShape& shape,
                      const Sequences& q_sequences, const Sequences& kv_sequences,
                      const RelativeTerm<Tensor, T>& relative, const DropoutMask& dropout, Tensor& log_sums) {
    auto in = whole_operands(q, k, v, shape, q_sequences, kv_sequences, relative);
    in.dropout = dropout;
    Tensor out = make(q.rows(), in.out_cols());
    log_sums = make(q.rows(), shape.num_heads);
    kernels::attend(threads_, arena_, in, out.data(), log_sums.data());
    return out;
  }
  struct AttendDerivative {
    Tensor dq, dk, dv, dtable, dposition_q;  ///< the last where queries of their own meet the table
  };
  AttendDerivative attend_backward(const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v,
                                   const AttendShape& shape, const Sequences& q_sequences,
                                   const Sequences& kv_sequences, const RelativeTerm<Tensor, T>& relative,
                                   const DropoutMask& dropout, const Tensor& log_sums) {
    auto in = whole_operands(q, k, v, shape, q_sequences, kv_sequences, relative);
    in.dropout = dropout;
    AttendDerivative d{make(q.rows(), q.cols()), make(k.rows(), k.cols()), make(v.rows(), v.cols()), {}, {}};
    kernels::AttendGradients<T> to{d.dq.data(), d.dk.data(), d.dv.data()};
    if (in.p != nullptr) {
      d.dtable = make(relative.table.rows(), relative.table.cols());
      to.dp = d.dtable.data();
      if (!relative.query.empty()) {
        d.dposition_q = make(relative.query.rows(), relative.query.cols());
        to.dposition_q = d.dposition_q.data();
      }
      to.du = relative.pos_bias_u == nullptr ? nullptr : gradient(*relative.pos_bias_u);
      to.dw = relative.pos_bias_v == nullptr ? nullptr : gradient(*relative.pos_bias_v);
    }
    kernels::attend_backward(threads_, arena_, in, dout.data(), log_sums.data(), to);
    return d;
  }

  /// A table of relative positions as `attend` reads it fastest: see RelativeTerm::packed.
  Tensor pack_table(const Tensor& table, Index num_heads) {
    require(num_heads > 0 && table.cols() % num_heads == 0, "pack_table: ", table.cols(), " channels given for ",
            num_heads, " heads");
    Tensor out = make(kernels::packed_table_rows<T>(table.rows()), table.cols());
    kernels::pack_table(threads_, table.rows(), num_heads, table.cols() / num_heads, table.data(), out.data());
    return out;
  }

  /// Linear attention (Katharopoulos et al. 2020, equation 5) with the feature map elu + 1. q (rows, num_heads * K), k
  /// (rows, num_kv_heads * K), v (rows, num_kv_heads * V) to (rows, num_heads * V); the scale of the shape is not used.
  /// The mask must not limit the left context. `states` (sequences, num_kv_heads * K * (V + 1)), if given, is what was
  /// seen of every sequence before, and afterwards what was seen with these rows.
  Tensor linear_attend(const Tensor& q, const Tensor& k, const Tensor& v, const AttendShape& shape,
                       const Sequences& sequences, Tensor* states = nullptr) {
    const auto in = linear_operands(q, k, v, shape, sequences);
    require(states == nullptr || (states->rows() == sequences.size() &&
                                  states->cols() == in.num_kv_heads * in.key_width * (in.value_width + 1)),
            "linear_attend: states of (", states == nullptr ? 0 : states->rows(), ", ",
            states == nullptr ? 0 : states->cols(), ") given, (", sequences.size(), ", ",
            in.num_kv_heads * in.key_width * (in.value_width + 1), ") expected");
    Tensor out = make(q.rows(), in.num_heads * in.value_width);
    kernels::linear_attend(threads_, arena_, in, out.data(), states == nullptr ? nullptr : states->data());
    return out;
  }
  struct LinearAttendDerivative {
    Tensor dq, dk, dv;
  };
  LinearAttendDerivative linear_attend_backward(const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v,
                                                const AttendShape& shape, const Sequences& sequences) {
    LinearAttendDerivative d{make(q.rows(), q.cols()), make(k.rows(), k.cols()), make(v.rows(), v.cols())};
    kernels::linear_attend_backward(threads_, arena_, linear_operands(q, k, v, shape, sequences), dout.data(),
                                    d.dq.data(), d.dk.data(), d.dv.data());
    return d;
  }

  /// Every head times its own matrix, see HeadShape: y_h = x_h W^T + b. weight (num_blocks * out, in), bias (num_blocks
  /// * out) or null; x (rows, num_heads * in) to (rows, num_heads * out). Transposed: y_h = x_h W, from (rows,
  /// num_heads * out).
  Tensor head_linear(const Tensor& x, const Parameter<T>& weight, const Parameter<T>* bias, const HeadShape& shape) {
    const auto [out, in] = head_sizes(x, weight, shape);
    require(bias == nullptr || (bias->size() == weight.host().rows() && !shape.transposed), "head_linear: a bias of ",
            bias == nullptr ? 0 : bias->size(), " given, ", shape.transposed ? 0 : weight.host().rows(), " expected");
    Tensor y = make(x.rows(), shape.num_heads * (shape.transposed ? in : out));
    kernels::head_linear(threads_, arena_, shape, x.rows(), out, in, x.data(), weight.host().data(),
                         bias == nullptr ? nullptr : bias->host().data(), y.data());
    return y;
  }
  Tensor head_linear_backward(const Tensor& dy, const Tensor& x, const Parameter<T>& weight, const Parameter<T>* bias,
                              HeadShape shape, bool needs_dx) {
    const auto [out, in] = head_sizes(x, weight, shape);
    kernels::head_linear_backward_weight(threads_, arena_, shape, x.rows(), out, in, dy.data(), x.data(),
                                         gradient(weight), bias == nullptr ? nullptr : gradient(*bias));
    if (!needs_dx) return {};
    shape.transposed = !shape.transposed;
    Tensor dx = make(x.rows(), x.cols());
    kernels::head_linear(threads_, arena_, shape, x.rows(), out, in, dy.data(), weight.host().data(),
                         static_cast<const T*>(nullptr), dx.data());
    return dx;
  }

  /// Rotary positions (Su et al. 2021): every head's pairs of channels turned by the row's angles. x (rows, heads *
  /// width), table (rows, width): width / 2 cosines, then as many sines. `direction` -1 turns back, which is the
  /// derivative.
  Tensor rotate(Tensor x, const Tensor& table, RotaryPairs pairs, double direction = 1) {
    require(table.cols() > 0 && table.cols() % 2 == 0 && x.cols() % table.cols() == 0 && table.rows() == x.rows(),
            "rotate: (", x.rows(), ", ", x.cols(), ") given with a table of (", table.rows(), ", ", table.cols(),
            "), as many rows and a multiple of an even number of columns expected");
    Tensor y = x.unique() ? x : make(x.rows(), x.cols());
    kernels::rotate(threads_, x.rows(), x.cols() / table.cols(), table.cols(), pairs, static_cast<T>(direction),
                    std::as_const(x).data(), table.data(), y.data());
    return y;
  }

  /// Side by side, head by head: [a_h, b_h]. b has as many heads as a, or one that goes with all.
  Tensor concat(const Tensor& a, const Tensor& b, Index num_heads = 1, Index b_heads = 1) {
    require(a.rows() == b.rows() && num_heads > 0 && a.cols() % num_heads == 0 &&
                (b_heads == num_heads || b_heads == 1) && b.cols() % b_heads == 0,
            "concat: (", a.rows(), ", ", a.cols(), ") and (", b.rows(), ", ", b.cols(), ") given for ", num_heads,
            " and ", b_heads, " heads");
    const Index a_width = a.cols() / num_heads, b_width = b.cols() / b_heads;
    Tensor y = make(a.rows(), num_heads * (a_width + b_width));
    kernels::concat(threads_, a.rows(), num_heads, a_width, b_width, b_heads != num_heads, a.data(), b.data(),
                    y.data());
    return y;
  }
  struct ConcatDerivative {
    Tensor da, db;
  };
  ConcatDerivative concat_backward(const Tensor& dy, Index a_cols, Index b_cols, Index num_heads, Index b_heads) {
    ConcatDerivative d{make(dy.rows(), a_cols), make(dy.rows(), b_cols)};
    kernels::concat_backward(threads_, dy.rows(), num_heads, a_cols / num_heads, b_cols / b_heads, b_heads != num_heads,
                             dy.data(), d.da.data(), d.db.data());
    return d;
  }

  // -- caches of streams --------------------------------------------------------------------------------------------
  /// What the cache has in slots[n] for each sequence n of x, and then the rows of x.
  CachedRows with_cached(const Cache& cache, std::span<const Index> slots, const Tensor& x,
                         const Sequences& sequences) {
    check_rows(cache, slots, x, sequences);
    return {x, &cache, slots};
  }
  /// Where these rows lie, with what is cached of them.
  Sequences cached_lengths(const CachedRows& x, const Sequences& sequences) {
    return Sequences::make(arena_, sequences.size(), [&](Index n) {
      return x.cache->count(x.slots[static_cast<std::size_t>(n)]) + sequences.length(n);
    });
  }
  /// The same as one tensor; `all` are their cached_lengths.
  Tensor gathered(const CachedRows& x, const Sequences& sequences, const Sequences& all) {
    Tensor out = make(all.rows(), x.rows.cols());
    kernels::parallel_for(threads_, sequences.size(), [&](Index n, int) {
      const Index slot = x.slots[static_cast<std::size_t>(n)], past = x.cache->count(slot);
      T* to = out.row(all.begin(n));
      x.cache->read(slot, to);
      std::copy_n(x.rows.row(sequences.begin(n)), sequences.length(n) * x.rows.cols(), to + past * x.rows.cols());
    });
    return out;
  }
  /// The rows of sequence n of x go into slots[n] of the cache.
  void append(Cache& cache, std::span<const Index> slots, const Tensor& x, const Sequences& sequences) {
    check_rows(cache, slots, x, sequences);
    kernels::parallel_for(threads_, sequences.size(), [&](Index n, int) {
      cache.append(slots[static_cast<std::size_t>(n)], sequences.length(n), x.row(sequences.begin(n)));
    });
  }
  struct Extended {
    Tensor rows;
    Sequences sequences;
  };
  /// For each sequence n of x the rows that the cache holds in slots[n], then those of x, which the cache then takes
  /// in.
  Extended extend(Cache& cache, std::span<const Index> slots, const Tensor& x, const Sequences& sequences) {
    const CachedRows rows = with_cached(cache, slots, x, sequences);
    Sequences all = cached_lengths(rows, sequences);
    Tensor out = gathered(rows, sequences, all);
    append(cache, slots, x, sequences);
    return {std::move(out), std::move(all)};
  }
  /// The one row of each slot, changed by `change(rows)`.
  template <class Change>
  void update(Cache& cache, std::span<const Index> slots, Change&& change) {
    check_slots(cache, slots);
    Tensor rows = make(static_cast<Index>(slots.size()), cache.width());
    for (std::size_t n = 0; n < slots.size(); ++n) cache.read(slots[n], rows.row(static_cast<Index>(n)));
    change(rows);
    for (std::size_t n = 0; n < slots.size(); ++n) cache.append(slots[n], 1, rows.row(static_cast<Index>(n)));
  }

 protected:
  using CpuValues<T>::threads_, CpuValues<T>::arena_, CpuValues<T>::gradient;

 private:
  /// Of an attention that is trained.
  kernels::AttendOperands<T> whole_operands(const Tensor& q, const Tensor& k, const Tensor& v, const AttendShape& shape,
                                            const Sequences& q_sequences, const Sequences& kv_sequences,
                                            const RelativeTerm<Tensor, T>& relative) {
    require(!relative.packed, "attend: a packed table given, which can only be run; one as it is expected to train");
    return attend_operands(q, CachedRows{k}, CachedRows{v}, shape, q_sequences, kv_sequences, relative);
  }
  kernels::AttendOperands<T> attend_operands(const Tensor& q, const CachedRows& keys, const CachedRows& values,
                                             const AttendShape& shape, const Sequences& q_sequences,
                                             const Sequences& kv_sequences, const RelativeTerm<Tensor, T>& relative) {
    const Index width = shape.num_heads > 0 ? q.cols() / shape.num_heads : 0;
    const Tensor &k = keys.rows, &v = values.rows;
    require(width > 0 && shape.num_kv_heads > 0 && shape.num_heads % shape.num_kv_heads == 0 &&
                q.cols() == width * shape.num_heads && k.cols() == width * shape.num_kv_heads &&
                v.cols() % shape.num_kv_heads == 0,
            "attend: q, k, v have ", q.cols(), ", ", k.cols(), ", ", v.cols(), " channels, which ", shape.num_heads,
            " heads over ", shape.num_kv_heads, " key-value heads do not divide");
    // Rows that came now are those of the queries where there are caches.
    const bool cached = keys.cache != nullptr;
    const Sequences& fresh = cached ? q_sequences : kv_sequences;
    require(q.rows() == q_sequences.rows() && k.rows() == fresh.rows() && v.rows() == k.rows() &&
                q_sequences.size() == kv_sequences.size() && cached == (values.cache != nullptr),
            "attend: q, k, v have ", q.rows(), ", ", k.rows(), ", ", v.rows(), " rows; their sequences have ",
            q_sequences.rows(), " and ", fresh.rows());
    require(shape.mask.is_valid(), "attend: a mask of chunk ", shape.mask.chunk, " and left context ",
            shape.mask.left_context, " given, at least 1 and 0 expected, or neither");
    const auto rows_of = [&](const CachedRows& x) {
      return kernels::AttendRows<T>{x.rows.data(), x.rows.cols(), &fresh, x.cache, x.slots};
    };
    kernels::AttendOperands<T> in{shape,    &q_sequences,  &kv_sequences,  width, v.cols() / shape.num_kv_heads,
                                  q.data(), rows_of(keys), rows_of(values)};
    for (Index n = 0; cached && n < kv_sequences.size(); ++n)
      for (const auto* rows : {&in.k, &in.v})
        require(rows->cached(n) + fresh.length(n) == kv_sequences.length(n), "attend: sequence ", n, " has ",
                rows->cached(n), " cached rows and ", fresh.length(n), " new ones, ", kv_sequences.length(n),
                " expected");
    if (relative.table.empty()) return in;
    const Tensor& query = relative.query.empty() ? q : relative.query;
    require(query.rows() == q.rows() && query.cols() % shape.num_heads == 0,
            "attend: the queries for relative positions are (", query.rows(), ", ", query.cols(), "), expected ",
            q.rows(), " rows for ", shape.num_heads, " heads");
    const auto bias = [](const Parameter<T>* p, Index cols) -> const T* {
      require(p == nullptr || p->size() == cols, "attend: a position bias of ", p == nullptr ? 0 : p->size(),
              " given, ", cols, " expected");
      return p == nullptr ? nullptr : p->host().data();
    };
    in.p = relative.table.data();
    in.u = bias(relative.pos_bias_u, q.cols());
    in.w = bias(relative.pos_bias_v, query.cols());
    in.position_q = query.data();
    in.position_width = query.cols() / shape.num_heads;
    in.packed_table = relative.packed;
    const Index table_rows = relative.table.rows() - (relative.packed ? kernels::packed_table_rows<T>(0) : 0);
    in.span = (table_rows + 1) / 2;
    require(relative.table.cols() == query.cols() && table_rows % 2 == 1 && in.span >= kv_sequences.max_length(),
            "attend: the table of relative positions is (", table_rows, ", ", relative.table.cols(),
            "), expected (2 n - 1, ", query.cols(), ") with n at least ", kv_sequences.max_length());
    for (Index n = 0; n < q_sequences.size(); ++n)
      require(q_sequences.length(n) <= kv_sequences.length(n), "attend: sequence ", n, " has ", q_sequences.length(n),
              " queries and ", kv_sequences.length(n), " keys, at least as many keys expected with relative positions");
    return in;
  }
  kernels::LinearAttendOperands<T> linear_operands(const Tensor& q, const Tensor& k, const Tensor& v,
                                                   const AttendShape& shape, const Sequences& sequences) {
    const Index heads = shape.num_heads, kv_heads = shape.num_kv_heads;
    require(heads > 0 && kv_heads > 0 && heads % kv_heads == 0 && q.cols() % heads == 0 &&
                k.cols() == q.cols() / heads * kv_heads && v.cols() % kv_heads == 0,
            "linear_attend: q, k, v have ", q.cols(), ", ", k.cols(), ", ", v.cols(), " channels, which ", heads,
            " heads over ", kv_heads, " key-value heads do not divide");
    require(q.rows() == sequences.rows() && k.rows() == q.rows() && v.rows() == q.rows(),
            "linear_attend: q, k, v have ", q.rows(), ", ", k.rows(), ", ", v.rows(), " rows; their sequences have ",
            sequences.rows());
    require(shape.mask.is_valid() && shape.mask.left_context == Mask::unlimited, "linear_attend: a mask of chunk ",
            shape.mask.chunk, " and left context ", shape.mask.left_context,
            " given; its state cannot forget, so an unlimited left context is expected");
    return {heads,    kv_heads, shape.mask, &sequences, q.cols() / heads, v.cols() / kv_heads,
            q.data(), k.data(), v.data()};
  }
  static void check_rows(const Cache& cache, std::span<const Index> slots, const Tensor& x,
                         const Sequences& sequences) {
    require(static_cast<Index>(slots.size()) == sequences.size() && x.cols() == cache.width() &&
                x.rows() == sequences.rows(),
            "cache: (", x.rows(), ", ", x.cols(), ") in ", sequences.size(), " sequences given, (", sequences.rows(),
            ", ", cache.width(), ") in ", slots.size(), " expected");
    check_slots(cache, slots);
  }
  static void check_slots(const Cache& cache, std::span<const Index> slots) {
    for (const Index slot : slots)
      require(slot >= 0 && slot < cache.slots(), "cache: slot ", slot, " given, 0 to ", cache.slots() - 1, " expected");
  }
  struct HeadSizes {
    Index out, in;
  };
  static HeadSizes head_sizes(const Tensor& x, const Parameter<T>& weight, const HeadShape& shape) {
    require(!weight.is_packed(), "head_linear: a packed weight given, one as it is expected");
    const HeadSizes sizes{shape.num_blocks > 0 ? weight.host().rows() / shape.num_blocks : 0, weight.host().cols()};
    require(shape.num_heads > 0 && sizes.out > 0 && shape.num_heads % shape.num_blocks == 0 &&
                weight.host().rows() == shape.num_blocks * sizes.out &&
                x.cols() == shape.num_heads * (shape.transposed ? sizes.out : sizes.in),
            "head_linear: an input of ", x.cols(), " channels and a weight of (", weight.host().rows(), ", ",
            weight.host().cols(), ") given, which ", shape.num_heads, " heads with ", shape.num_blocks,
            " matrices do not fit");
    return sizes;
  }
};

}  // namespace LACONIC_ABI
}  // namespace laconic
