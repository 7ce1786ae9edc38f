// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/checks/attention.hpp>
#include <laconic/backend/cpu/core.hpp>
#include <laconic/backend/cpu/kernels/attention_backward.hpp>
#include <laconic/backend/cpu/kernels/attention_forward.hpp>
#include <laconic/backend/cpu/kernels/linear_attention.hpp>
#include <laconic/backend/cpu/row_cache.hpp>
#include <laconic/backend/cpu/weights.hpp>
#include <laconic/core/compiled.hpp>

namespace laconic {
inline namespace LACONIC_ABI {

/// Implements the attention primitives of `Cpu`.
template <class T>
class CpuAttention {
 public:
  /// Names the type of the values that primitives take and return.
  using Tensor = laconic::Tensor<T>;
  /// Names the type of a cache of rows.
  using Cache = RowCache<T>;
  /// Names the type of a view of cached rows and the rows after them.
  using CachedRows = laconic::CachedRows<T>;

  /// Returns softmax attention (rows, num_heads * V). q (rows, num_heads * K), k (rows, num_kv_heads * K), v (rows,
  /// num_kv_heads * V). Throws `Error` for shapes that do not fit.
  Tensor attend(const Tensor& q, const Tensor& k, const Tensor& v, const AttendShape& shape,
                const Sequences& q_sequences, const Sequences& kv_sequences,
                const RelativeTerm<Tensor, T>& relative = {}, double = 0) {
    return attend(q, CachedRows{k}, CachedRows{v}, shape, q_sequences, kv_sequences, relative);
  }
  /// Returns softmax attention over keys and values that are read in place from a cache. `kv_sequences` counts cached
  /// and new rows.
  Tensor attend(const Tensor& q, const CachedRows& k, const CachedRows& v, const AttendShape& shape,
                const Sequences& q_sequences, const Sequences& kv_sequences,
                const RelativeTerm<Tensor, T>& relative = {}, double = 0) {
    const auto in = attend_operands(q, k, v, shape, q_sequences, kv_sequences, relative);
    Tensor out = core_.make(q.rows(), in.out_cols());
    kernels::attend(core_.threads(), core_.arena(), in, out.data(), static_cast<T*>(nullptr));
    return out;
  }
  /// Returns softmax attention with dropout of its weights, and the logsumexp of the scores of each row and head (rows,
  /// num_heads). Throws `Error` for a packed table.
  Tensor attend_train(const Tensor& q, const Tensor& k, const Tensor& v, const AttendShape& shape,
                      const Sequences& q_sequences, const Sequences& kv_sequences,
                      const RelativeTerm<Tensor, T>& relative, const DropoutMask& dropout, Tensor& logsumexp) {
    auto in = whole_operands(q, k, v, shape, q_sequences, kv_sequences, relative);
    in.dropout = dropout;
    Tensor out = core_.make(q.rows(), in.out_cols());
    logsumexp = core_.make(q.rows(), shape.num_heads);
    kernels::attend(core_.threads(), core_.arena(), in, out.data(), logsumexp.data());
    return out;
  }
  /// Holds the derivatives of `attend`, each with the shape of its argument.
  struct AttendDerivative {
    Tensor dq;           ///< derivative by the queries
    Tensor dk;           ///< derivative by the keys
    Tensor dv;           ///< derivative by the values
    Tensor dtable;       ///< derivative by the table of positions; empty without one
    Tensor dposition_q;  ///< derivative by the queries that meet the table; empty if they are q
  };
  /// Returns the derivatives of `attend_train` and adds those by the position biases to their gradients. It recomputes
  /// the weights from q, k and logsumexp, so nothing of size queries x keys is kept.
  AttendDerivative attend_backward(const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v,
                                   const AttendShape& shape, const Sequences& q_sequences,
                                   const Sequences& kv_sequences, const RelativeTerm<Tensor, T>& relative,
                                   const DropoutMask& dropout, const Tensor& logsumexp) {
    auto in = whole_operands(q, k, v, shape, q_sequences, kv_sequences, relative);
    in.dropout = dropout;
    AttendDerivative d{
        core_.make(q.rows(), q.cols()), core_.make(k.rows(), k.cols()), core_.make(v.rows(), v.cols()), {}, {}};
    kernels::AttendGradients<T> to{d.dq.data(), d.dk.data(), d.dv.data()};
    if (in.p != nullptr) {
      d.dtable = core_.make(relative.table.rows(), relative.table.cols());
      to.dp = d.dtable.data();
      if (!relative.query.empty()) {
        d.dposition_q = core_.make(relative.query.rows(), relative.query.cols());
        to.dposition_q = d.dposition_q.data();
      }
      to.du = relative.pos_bias_u == nullptr ? nullptr : kernels::gradient_of(*relative.pos_bias_u);
      to.dw = relative.pos_bias_v == nullptr ? nullptr : kernels::gradient_of(*relative.pos_bias_v);
    }
    kernels::attend_backward(core_.threads(), core_.arena(), in, dout.data(), logsumexp.data(), to);
    return d;
  }

  /// Returns a table of relative positions in panels, as `attend` reads it. table (2 * span - 1, num_heads * head_dim).
  Tensor prepare_table(const Tensor& table, Index num_heads) {
    checks::prepare_table(table, num_heads);
    Tensor out = core_.make(kernels::packed_table_rows<T>(table.rows()), table.cols());
    kernels::pack_table(core_.threads(), table.rows(), num_heads, table.cols() / num_heads, table.data(), out.data());
    return out;
  }

  /// Returns linear attention (rows, num_heads * V). `states`, if not null, is (sequences, num_kv_heads * K * (V + 1))
  /// and is updated. Throws `Error` for shapes that do not fit and for a mask with a limited left context.
  Tensor linear_attend(const Tensor& q, const Tensor& k, const Tensor& v, const AttendShape& shape,
                       const Sequences& sequences, Tensor* states = nullptr) {
    const auto in = linear_operands(q, k, v, shape, sequences);
    if (states != nullptr) checks::linear_attend_states(*states, sequences, in.num_kv_heads * in.state_size());
    Tensor out = core_.make(q.rows(), in.num_heads * in.value_width);
    kernels::linear_attend(core_.threads(), core_.arena(), in, out.data(),
                           states == nullptr ? nullptr : states->data());
    return out;
  }
  /// Holds the derivatives of `linear_attend`, each with the shape of its argument.
  struct LinearAttendDerivative {
    Tensor dq;  ///< derivative by the queries
    Tensor dk;  ///< derivative by the keys
    Tensor dv;  ///< derivative by the values
  };
  /// Returns the derivatives of `linear_attend` without states.
  LinearAttendDerivative linear_attend_backward(const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v,
                                                const AttendShape& shape, const Sequences& sequences) {
    LinearAttendDerivative d{core_.make(q.rows(), q.cols()), core_.make(k.rows(), k.cols()),
                             core_.make(v.rows(), v.cols())};
    kernels::linear_attend_backward(core_.threads(), core_.arena(), linear_operands(q, k, v, shape, sequences),
                                    dout.data(), d.dq.data(), d.dk.data(), d.dv.data());
    return d;
  }

 protected:
  /// Binds this slice to the core of its context.
  explicit CpuAttention(CpuCore<T>& core) : core_(core) {}

 private:
  kernels::AttendOperands<T> whole_operands(const Tensor& q, const Tensor& k, const Tensor& v, const AttendShape& shape,
                                            const Sequences& q_sequences, const Sequences& kv_sequences,
                                            const RelativeTerm<Tensor, T>& relative) {
    checks::trainable_term(relative);
    return attend_operands(q, CachedRows{k}, CachedRows{v}, shape, q_sequences, kv_sequences, relative);
  }
  kernels::AttendOperands<T> attend_operands(const Tensor& q, const CachedRows& keys, const CachedRows& values,
                                             const AttendShape& shape, const Sequences& q_sequences,
                                             const Sequences& kv_sequences, const RelativeTerm<Tensor, T>& relative) {
    checks::attend(q, keys, values, shape, q_sequences, kv_sequences);
    const Sequences& fresh = keys.cache != nullptr ? q_sequences : kv_sequences;
    const auto rows_of = [&](const CachedRows& x) {
      return kernels::AttendRows<T>{x.rows.data(), x.rows.cols(), &fresh, x.cache, x.slots};
    };
    kernels::AttendOperands<T> in{
        shape,    &q_sequences,  &kv_sequences,  q.cols() / shape.num_heads, values.rows.cols() / shape.num_kv_heads,
        q.data(), rows_of(keys), rows_of(values)};
    if (relative.table.empty()) return in;
    const Index table_rows = relative.table.rows() - (relative.packed ? kernels::packed_table_rows<T>(0) : 0);
    checks::relative_term(q, relative, table_rows, shape, q_sequences, kv_sequences);
    const Tensor& query = relative.query.empty() ? q : relative.query;
    const auto values_of = [](const Parameter<T>* p) { return p == nullptr ? nullptr : kernels::values_of(*p); };
    in.p = relative.table.data();
    in.u = values_of(relative.pos_bias_u);
    in.w = values_of(relative.pos_bias_v);
    in.position_q = query.data();
    in.position_width = query.cols() / shape.num_heads;
    in.packed_table = relative.packed;
    in.span = (table_rows + 1) / 2;
    return in;
  }
  kernels::LinearAttendOperands<T> linear_operands(const Tensor& q, const Tensor& k, const Tensor& v,
                                                   const AttendShape& shape, const Sequences& sequences) {
    checks::linear_attend(q, k, v, shape, sequences);
    const Index heads = shape.num_heads, kv_heads = shape.num_kv_heads;
    return {heads,    kv_heads, shape.mask, &sequences, q.cols() / heads, v.cols() / kv_heads,
            q.data(), k.data(), v.data()};
  }

  CpuCore<T>& core_;
};

LACONIC_COMPILE_CLASS(CpuAttention);

}  // namespace LACONIC_ABI
}  // namespace laconic
