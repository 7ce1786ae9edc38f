// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/checks/attention.hpp>
#include <laconic/backend/cuda/core.hpp>
#include <laconic/backend/cuda/kernels/attention_backward.hpp>
#include <laconic/backend/cuda/kernels/attention_forward.hpp>
#include <laconic/backend/cuda/kernels/elementwise.hpp>
#include <laconic/backend/cuda/kernels/linear_attention.hpp>
#include <laconic/backend/cuda/kernels/tensor_tile.hpp>
#include <laconic/backend/cuda/row_cache.hpp>
#include <laconic/backend/cuda/tensor_attention.hpp>

#include <algorithm>
#include <limits>
#include <type_traits>
#include <utility>

namespace laconic {
inline namespace LACONIC_ABI {

/// Implements the attention primitives of `Cuda`.
template <class T>
class CudaAttention {
 public:
  /// Names the type of the values that primitives take and return.
  using Tensor = CudaTensor<T>;
  /// Names the type of a view of cached rows and the rows after them.
  using CachedRows = CudaCachedRows<T>;

  /// Returns softmax attention (rows, num_heads * V). q (rows, num_heads * K), k (rows, num_kv_heads * K), v (rows,
  /// num_kv_heads * V). Throws `Error` for shapes that do not fit.
  Tensor attend(const Tensor& q, const Tensor& k, const Tensor& v, const AttendShape& shape,
                const Sequences& q_sequences, const Sequences& kv_sequences,
                const RelativeTerm<Tensor, T>& relative = {}, double = 0) {
    const auto in = attend_operands(q, CachedRows{k}, CachedRows{v}, shape, q_sequences, kv_sequences, relative);
    return attend_rows(in, whole(k, kv_sequences), whole(v, kv_sequences), q_sequences, kv_sequences, nullptr);
  }
  /// Returns softmax attention over keys and values that are read in place from a cache. `kv_sequences` counts cached
  /// and new rows.
  Tensor attend(const Tensor& q, const CachedRows& k, const CachedRows& v, const AttendShape& shape,
                const Sequences& q_sequences, const Sequences& kv_sequences,
                const RelativeTerm<Tensor, T>& relative = {}, double = 0) {
    const auto in = attend_operands(q, k, v, shape, q_sequences, kv_sequences, relative);
    const Index* offsets = core_.offsets_of(kv_sequences);  // read only if there is no cache
    return attend_rows(in, k.view(offsets), v.view(offsets), q_sequences, kv_sequences, nullptr);
  }
  /// Returns softmax attention with dropout of its weights, and the logsumexp of the scores of each row and head (rows,
  /// num_heads). Throws `Error` for a packed table.
  Tensor attend_train(const Tensor& q, const Tensor& k, const Tensor& v, const AttendShape& shape,
                      const Sequences& q_sequences, const Sequences& kv_sequences,
                      const RelativeTerm<Tensor, T>& relative, const DropoutMask& dropout, Tensor& logsumexp) {
    const auto in = trained_operands(q, k, v, shape, q_sequences, kv_sequences, relative, dropout);
    logsumexp = core_.make(q.rows(), shape.num_heads);
    return attend_rows(in, whole(k, kv_sequences), whole(v, kv_sequences), q_sequences, kv_sequences, logsumexp.data());
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
    const auto in = trained_operands(q, k, v, shape, q_sequences, kv_sequences, relative, dropout);
    const cuda::AttendGradientOperands<T> of{in, whole(k, kv_sequences), whole(v, kv_sequences), dout.data(),
                                             logsumexp.data()};
    if constexpr (std::is_same_v<T, float>)
      if (core_.precision() == ProductPrecision::bf16)
        return derivatives<cuda::TensorTile>(of, q, k, v, shape, relative);
    return derivatives<cuda::PairTile<T>>(of, q, k, v, shape, relative);
  }

  /// Returns a table of relative positions as `attend` reads it, which is as it is.
  Tensor prepare_table(const Tensor& table, Index num_heads) {
    checks::prepare_table(table, num_heads);
    return table;
  }

  /// Returns linear attention (rows, num_heads * V). `states`, if not null, is (sequences, num_kv_heads * K * (V + 1))
  /// and is updated. Throws `Error` for shapes that do not fit and for a mask with a limited left context.
  Tensor linear_attend(const Tensor& q, const Tensor& k, const Tensor& v, const AttendShape& shape,
                       const Sequences& sequences, Tensor* states = nullptr) {
    checks::linear_attend(q, k, v, shape, sequences);
    const Index width = v.cols() / shape.num_kv_heads;
    if (states != nullptr) checks::linear_attend_states(*states, sequences, k.cols() * (width + 1));
    const Tensor sums = linear_sums(q, k, v, shape, sequences, states == nullptr ? nullptr : states->data());
    Tensor out = core_.make(q.rows(), shape.num_heads * width);
    for_each(core_.stream(), "linear_attend", out.size(), cuda::LinearNormalize<T>{sums.data(), out.data(), width});
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
    checks::linear_attend(q, k, v, shape, sequences);
    const Index heads = shape.num_heads, kv_heads = shape.num_kv_heads, key_width = q.cols() / heads,
                width = v.cols() / kv_heads;
    Tensor g = linear_sums(q, k, v, shape, sequences, nullptr);
    launch(core_.stream(), "linear_attend_backward", {q.rows() * heads},
           cuda::LinearNormalizeBackward<T>{dout.data(), g.data(), width});
    const cuda::HeadFeatures<T> features_q{q.data(), heads, key_width}, features_k{k.data(), kv_heads, key_width};
    const cuda::HeadRowsAndOne<T> values{v.data(), kv_heads, width + 1};
    const cuda::HeadRows<T> all_g{g.data(), heads, width + 1, width + 1}, value_g{g.data(), heads, width, width + 1};
    LinearAttendDerivative d{core_.make(q.rows(), q.cols()), core_.make(k.rows(), k.cols()),
                             core_.make(v.rows(), v.cols())};
    sum_over_time(all_g, values, features_k, shape, sequences, false, d.dq.data(), nullptr, q.data());
    sum_over_time(values, all_g, features_q, shape, sequences, true, d.dk.data(), nullptr, k.data());
    sum_over_time(features_k, features_q, value_g, shape, sequences, true, d.dv.data(), nullptr, nullptr);
    return d;
  }

 protected:
  /// Binds this slice to the core of its context.
  explicit CudaAttention(CudaCore<T>& core) : core_(core) {}

 private:
  cuda::WholeRows<T> whole(const Tensor& x, const Sequences& sequences) {
    return {x.data(), x.cols(), core_.offsets_of(sequences)};
  }
  cuda::AttendOperands<T> attend_operands(const Tensor& q, const CachedRows& keys, const CachedRows& values,
                                          const AttendShape& shape, const Sequences& q_sequences,
                                          const Sequences& kv_sequences, const RelativeTerm<Tensor, T>& relative) {
    checks::attend(q, keys, values, shape, q_sequences, kv_sequences);
    cuda::AttendOperands<T> in{shape.num_heads,
                               shape.num_kv_heads,
                               q.cols() / shape.num_heads,
                               values.rows.cols() / shape.num_kv_heads,
                               static_cast<T>(shape.scale),
                               shape.mask,
                               q_sequences.size(),
                               core_.offsets_of(q_sequences),
                               core_.offsets_of(kv_sequences),
                               q.data()};
    if (relative.table.empty()) return in;
    checks::relative_term(q, relative, relative.table.rows(), shape, q_sequences, kv_sequences);
    const Tensor& query = relative.query.empty() ? q : relative.query;
    in.p = relative.table.data();
    in.u = cuda::values_of(relative.pos_bias_u);
    in.w = cuda::values_of(relative.pos_bias_v);
    in.position_q = query.data();
    in.span = (relative.table.rows() + 1) / 2;
    in.position_width = query.cols() / shape.num_heads;
    return in;
  }
  cuda::AttendOperands<T> trained_operands(const Tensor& q, const Tensor& k, const Tensor& v, const AttendShape& shape,
                                           const Sequences& q_sequences, const Sequences& kv_sequences,
                                           const RelativeTerm<Tensor, T>& relative, const DropoutMask& dropout) {
    checks::trainable_term(relative);
    auto in = attend_operands(q, CachedRows{k}, CachedRows{v}, shape, q_sequences, kv_sequences, relative);
    in.drops = dropout.any();
    in.dropout = dropout;
    return in;
  }

  /// Holds how a call of `attend` is divided into blocks.
  struct Division {
    Index group;                         ///< query heads of a tile
    Index columns;                       ///< columns of the values of a block
    cuda::AttendSplits splits{1, 0, 1};  ///< splits of the keys
    Buffer memory{};                     ///< memory for the partial results
    cuda::AttendPartials<T> partials{};  ///< points into it
  };
  template <class Rows>
  Tensor attend_rows(const cuda::AttendOperands<T>& in, const Rows& k, const Rows& v, const Sequences& q_sequences,
                     const Sequences& kv_sequences, T* logsumexp) {
    using Splits = cuda::AttendSplits;
    Tensor out = core_.make(q_sequences.rows(), in.num_heads * in.value_width);
    // With relative positions each head reads columns of the table of its own, so that a tile has one head.
    const Index group = in.p != nullptr ? 1 : in.num_heads / in.num_kv_heads;
    const Index rows = q_sequences.max_length() * group;
    // Sequences with too many queries to be split count, too, so that a later call with fewer queries allocates
    // nothing: a stream of long chunks has few queries only at its end.
    const Index longest = kv_sequences.max_length(),
                splits = longest > Splits::keys ? cuda::pieces(longest, Splits::keys) : 1;
    Division by{group, std::clamp<Index>(in.value_width, 1, cuda::Attend<T, 1, Rows>::max_columns),
                Splits{splits, std::min(rows, Splits::max_rows), in.num_heads / group}};
    if (splits > 1) {
      const Index places = by.splits.at(in.sequences, 0, 0, 0);
      by.memory = core_.device_arena().allocate(static_cast<std::size_t>(places * (in.value_width + 2)) * sizeof(T));
      T* memory = static_cast<T*>(by.memory.data());
      by.partials = {memory, memory + places * in.value_width, memory + places * (in.value_width + 1)};
    }
    bool done = false;
    if constexpr (std::is_same_v<T, float>)
      if (core_.precision() == ProductPrecision::bf16)
        done = TensorAttention(core_).attend({in, {}, {}, {}, out.data(), logsumexp, group, by.splits, by.partials}, k,
                                             v, q_sequences, kv_sequences);
    if (!done) {
      // Tiles as high as their rows and shared memory allow; the height changes no bits.
      const auto fits = [&](std::size_t bytes) { return bytes <= cuda::max_shared_bytes; };
      const bool relative = in.p != nullptr;
      if (rows > 32 && fits(cuda::Attend<T, 4, Rows>::bytes(by.columns, relative)))
        launch_attend<4>(in, k, v, q_sequences, by, out, logsumexp);
      else if (rows > 16 && fits(cuda::Attend<T, 2, Rows>::bytes(by.columns, relative)))
        launch_attend<2>(in, k, v, q_sequences, by, out, logsumexp);
      else
        launch_attend<1>(in, k, v, q_sequences, by, out, logsumexp);
    }
    if (splits > 1)
      launch(core_.stream(), "attend: merge", {in.sequences * by.splits.head_blocks * by.splits.rows},
             cuda::MergeSplits<T>{in, out.data(), logsumexp, group, by.splits, by.partials});
    return out;
  }
  template <int RowsEach, class Rows>
  void launch_attend(const cuda::AttendOperands<T>& in, const Rows& k, const Rows& v, const Sequences& q_sequences,
                     const Division& by, Tensor& out, T* logsumexp) {
    using Attend = cuda::Attend<T, RowsEach, Rows>;
    const Index slots = cuda::tile_slots(q_sequences.rows(), in.sequences, by.group, Attend::rows),
                parts = std::max<Index>(1, cuda::pieces(in.value_width, by.columns));
    launch(core_.stream(), "attend", {slots * by.splits.per_sequence, by.splits.head_blocks * parts},
           Attend{in, k, v, out.data(), logsumexp, by.group, by.columns, by.splits, by.partials},
           Attend::bytes(by.columns, in.p != nullptr));
  }

  /// Returns the derivatives of `attend_backward`, of products by `Tiles`.
  template <class Tiles>
  AttendDerivative derivatives(cuda::AttendGradientOperands<T> of, const Tensor& q, const Tensor& k, const Tensor& v,
                               const AttendShape& shape, const RelativeTerm<Tensor, T>& relative) {
    const cuda::AttendOperands<T>& in = of.in;
    AttendDerivative d{
        core_.make(q.rows(), q.cols()), core_.make(k.rows(), k.cols()), core_.make(v.rows(), v.cols()), {}, {}};
    using Dots = cuda::AttendDots<T, Tiles>;
    Tensor dots = core_.make(q.rows(), shape.num_heads);
    launch(core_.stream(), "attend_backward: dots",
           {cuda::tile_slots(q.rows(), in.sequences, 1, Dots::rows), in.num_heads}, Dots{of, dots.data()},
           Dots::bytes(in.p != nullptr));
    of.dots = dots.data();
    launch_gradient<cuda::AttendQueryGradient<T, Tiles>>(of, q.rows(), in.num_heads, in.key_width, d.dq);
    launch_gradient<cuda::AttendKeyGradient<T, Tiles, false>>(of, k.rows(), in.num_kv_heads, in.key_width, d.dk);
    launch_gradient<cuda::AttendKeyGradient<T, Tiles, true>>(of, k.rows(), in.num_kv_heads, in.value_width, d.dv);
    if (in.p == nullptr) return d;

    Tensor dposition_q = core_.make(q.rows(), in.num_heads * in.position_width);
    launch_gradient<cuda::AttendPositionGradient<T, Tiles>>(of, q.rows(), in.num_heads, in.position_width, dposition_q);
    if (relative.pos_bias_u != nullptr) core_.add_column_sums(d.dq, *relative.pos_bias_u);
    if (relative.pos_bias_v != nullptr) core_.add_column_sums(dposition_q, *relative.pos_bias_v);
    d.dtable = table_gradient<Tiles>(of, relative.table);
    if (relative.query.empty())
      for_each(core_.stream(), "attend_backward: dq", d.dq.size(),
               cuda::Add<T>{d.dq.data(), dposition_q.data(), d.dq.data(), T(1)});
    else
      d.dposition_q = std::move(dposition_q);
    return d;
  }

  /// Returns the columns of a block, for a derivative of so many columns a head.
  template <class Pairs>
  static Index block_columns(Index width) {
    return std::max<Index>(1, cuda::pieces(width, std::max<Index>(1, cuda::pieces(width, Pairs::max_columns))));
  }
  /// Runs a kernel for a derivative (rows, heads * width) of packed sequences.
  template <class Gradient>
  void launch_gradient(const cuda::AttendGradientOperands<T>& of, Index rows, Index heads, Index width, Tensor& to) {
    const Index columns = block_columns<typename Gradient::Pairs>(width);
    launch(core_.stream(), "attend_backward",
           {cuda::tile_slots(rows, of.in.sequences, 1, Gradient::rows), heads * cuda::pieces(width, columns)},
           Gradient{of, to.data(), columns}, Gradient::Pairs::bytes(columns, of.in.p != nullptr));
  }
  /// Returns the derivative by the table. Where it has few tiles, ranges of sequences are blocks of their own, whose
  /// sums are added afterwards.
  template <class Tiles>
  Tensor table_gradient(const cuda::AttendGradientOperands<T>& of, const Tensor& table) {
    using Gradient = cuda::AttendTableGradient<T, Tiles>;
    constexpr Index enough_blocks = 512, max_ranges = 16;
    const Index columns = block_columns<typename Gradient::Pairs>(of.in.position_width),
                tiles = cuda::pieces(table.rows(), Gradient::rows),
                parts = of.in.num_heads * cuda::pieces(of.in.position_width, columns),
                ranges = std::clamp<Index>(enough_blocks / (tiles * parts), 1,
                                           std::clamp<Index>(of.in.sequences, 1, max_ranges));
    Tensor sums = core_.make(ranges * table.rows(), table.cols());
    launch(core_.stream(), "attend_backward: dtable", {tiles * ranges, parts},
           Gradient{of, sums.data(), columns, ranges}, Gradient::Pairs::bytes(columns, true));
    if (ranges == 1) return sums;
    Tensor dtable = core_.make(table.rows(), table.cols());
    for_each(core_.stream(), "attend_backward: dtable", dtable.size(),
             cuda::SumOfParts<T>{sums.data(), dtable.data(), ranges, dtable.size()});
    return dtable;
  }

  /// Returns numerators and denominators of linear attention, (rows, num_heads * (V + 1)).
  Tensor linear_sums(const Tensor& q, const Tensor& k, const Tensor& v, const AttendShape& shape,
                     const Sequences& sequences, T* states) {
    const Index key_width = q.cols() / shape.num_heads, width = v.cols() / shape.num_kv_heads;
    Tensor sums = core_.make(q.rows(), shape.num_heads * (width + 1));
    sum_over_time(cuda::HeadFeatures<T>{q.data(), shape.num_heads, key_width},
                  cuda::HeadFeatures<T>{k.data(), shape.num_kv_heads, key_width},
                  cuda::HeadRowsAndOne<T>{v.data(), shape.num_kv_heads, width + 1}, shape, sequences, false,
                  sums.data(), states, nullptr);
    return sums;
  }
  /// Runs `LinearSums`, backwards in time with the sums of all heads of a group, or forwards.
  template <class X, class Y, class Z>
  void sum_over_time(const X& x, const Y& y, const Z& z, const AttendShape& shape, const Sequences& sequences,
                     bool backwards, T* to, T* states, const T* slope_at) {
    using Kernel = cuda::LinearSums<T, X, Y, Z>;
    const Index columns = Kernel::columns_for(y.width, z.width);
    const Index chunk = shape.mask.chunk == Mask::unlimited ? std::numeric_limits<Index>::max() : shape.mask.chunk;
    launch(core_.stream(), "linear_attend", {sequences.size(), shape.num_kv_heads * cuda::pieces(z.width, columns)},
           Kernel{x,
                  y,
                  z,
                  core_.offsets_of(sequences),
                  {chunk, backwards},
                  shape.num_kv_heads,
                  shape.num_heads / shape.num_kv_heads,
                  backwards,
                  to,
                  states,
                  slope_at,
                  columns},
           Kernel::bytes(y.width, columns));
  }

  CudaCore<T>& core_;
};

LACONIC_COMPILE_CUDA_CLASS(CudaAttention);

}  // namespace LACONIC_ABI
}  // namespace laconic
