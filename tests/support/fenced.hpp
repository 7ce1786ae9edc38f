// laconic: attention for speech models. SPDX-License-Identifier: MIT
// A context that enforces the contract of backend/context.hpp: code that runs on it reads no memory of the backend, and
// so can run on a device.
#pragma once

#include <laconic/backend/context.hpp>

#include <optional>
#include <span>
#include <utility>

namespace laconic {

/// Computes with the backend B, but hides the elements of its tensors and caches, and accepts prepared parameters only.
/// Results are bit for bit those of B.
template <class B>
class Fenced {
  using Value = typename B::Tensor;

 public:
  using Scalar = typename B::Scalar;
  using P = Parameter<Scalar>;

  class Tensor {
   public:
    Tensor() = default;
    Index rows() const { return value_.rows(); }
    Index cols() const { return value_.cols(); }
    bool empty() const { return value_.empty(); }

   private:
    friend Fenced;
    Tensor(Value value) : value_(std::move(value)) {}
    Value value_;
  };
  class Cache {
   public:
    Cache() = default;
    Index slots() const { return cache_.slots(); }
    Index width() const { return cache_.width(); }
    Index bytes() const { return cache_.bytes(); }
    Index count(Index slot) const { return cache_.count(slot); }

   private:
    friend Fenced;
    Cache(typename B::Cache cache) : cache_(std::move(cache)) {}
    typename B::Cache cache_;
  };
  class CachedRows {
   public:
    CachedRows() = default;

   private:
    friend Fenced;
    CachedRows(typename B::CachedRows rows) : rows_(std::move(rows)) {}
    typename B::CachedRows rows_;
  };

  static constexpr bool training = false, computes_on_host = false;

  explicit Fenced(int threads = 0) : backend_(threads) {}

  // -- tensors ------------------------------------------------------------------------------------------------------
  int threads() const { return backend_.threads(); }
  Arena& arena() { return backend_.arena(); }
  Tensor input(const Matrix<Scalar>& x) { return backend_.input(x); }
  Tensor input(Matrix<Scalar>&& x) { return backend_.input(std::move(x)); }
  Tensor input(Tensor x) { return x; }
  Matrix<Scalar> output(const Tensor& x) { return backend_.output(x.value_); }
  void read(const Tensor& x, std::span<Scalar> values) { backend_.read(x.value_, values); }
  double number(const Tensor& x) { return backend_.number(x.value_); }
  void argmax(const Tensor& x, std::span<Index> columns) { backend_.argmax(x.value_, columns); }
  Tensor fill(Index rows, Index cols, double value) { return backend_.fill(rows, cols, value); }
  Tensor sinusoids(const RowPositions& positions, Index width) { return backend_.sinusoids(positions, width); }
  Tensor rotary_table(const RowPositions& positions, Index width, Index rate_width, const IndexList& pairs,
                      const RotaryRates& rates = {}) {
    return backend_.rotary_table(positions, width, rate_width, pairs, rates);
  }
  void settle(const Fenced& like) { backend_.settle(like.backend_); }
  int settings() const { return backend_.settings(); }
  template <class Pass>
  auto replayed(Pass&& pass) {
    return backend_.replayed(std::forward<Pass>(pass));
  }
  Tensor make(Index rows, Index cols) { return backend_.make(rows, cols); }
  void copy_rows(const Tensor& from, Tensor& to, std::span<const RowRange> ranges) {
    backend_.copy_rows(from.value_, to.value_, ranges);
  }

  // -- parameters ---------------------------------------------------------------------------------------------------
  template <class Model>
  void prepare(Model& model, Storage storage = Storage::full) {
    backend_.prepare(model, storage);
  }
  template <class Model>
  void prepare_training(Model& model) {
    backend_.prepare_training(model);
  }
  template <class Model>
  void fetch(Model& model) {
    backend_.fetch(model);
  }
  bool keeps(const P& weight) const { return backend_.keeps(here(weight)); }
  template <class Make>
  Tensor kept_for(const P& weight, Index size, Make&& make) {
    return backend_.kept_for(here(weight), size, [&](Index n) { return make(n).value_; });
  }
  double gradient_norm(std::span<const P* const> parameters) { return backend_.gradient_norm(here(parameters)); }
  void clear_gradients(std::span<const P* const> parameters) { backend_.clear_gradients(here(parameters)); }
  void take_gradients(std::span<const P* const> parameters, std::span<Scalar> values) {
    backend_.take_gradients(here(parameters), values);
  }
  void put_gradients(std::span<const P* const> parameters, std::span<const Scalar> values) {
    backend_.put_gradients(here(parameters), values);
  }
  void adamw(std::span<const AdamWUpdate<Tensor, Scalar>> updates, const AdamWStep& step) {
    std::vector<AdamWUpdate<Value, Scalar>> all;
    for (const auto& one : updates) {
      here(*one.parameter);
      all.push_back({one.parameter, &one.first->value_, &one.second->value_});
    }
    backend_.adamw(all, step);
  }
  void copy_values(const P& from, P& to) {
    here(to);
    backend_.copy_values(here(from), to);
  }

  // -- products -----------------------------------------------------------------------------------------------------
  Tensor linear(const Tensor& x, const P& weight, const P* bias, std::optional<Activation> activation = {}) {
    return backend_.linear(x.value_, here(weight), here(bias), activation);
  }
  Tensor linear_backward(const Tensor& dy, const Tensor& x, const P& weight, const P* bias, bool needs_dx) {
    return backend_.linear_backward(dy.value_, x.value_, here(weight), here(bias), needs_dx);
  }
  Tensor head_linear(const Tensor& x, const P& weight, const P* bias, const HeadShape& shape) {
    return backend_.head_linear(x.value_, here(weight), here(bias), shape);
  }
  Tensor head_linear_backward(const Tensor& dy, const Tensor& x, const P& weight, const P* bias, const HeadShape& shape,
                              bool needs_dx) {
    return backend_.head_linear_backward(dy.value_, x.value_, here(weight), here(bias), shape, needs_dx);
  }
  Tensor embed(std::span<const int> ids, const P& weight) { return backend_.embed(ids, here(weight)); }
  void embed_backward(const Tensor& dy, std::span<const int> ids, const P& weight) {
    backend_.embed_backward(dy.value_, ids, here(weight));
  }

  // -- elementwise --------------------------------------------------------------------------------------------------
  Tensor activation(Activation kind, Tensor x) { return backend_.activation(kind, std::move(x.value_)); }
  Tensor activation_backward(Activation kind, Tensor dy, const Tensor& x) {
    return backend_.activation_backward(kind, std::move(dy.value_), x.value_);
  }
  Tensor glu(const Tensor& x) { return backend_.glu(x.value_); }
  Tensor glu_backward(const Tensor& dy, const Tensor& x) { return backend_.glu_backward(dy.value_, x.value_); }
  Tensor add(Tensor x, const Tensor& y, double scale = 1) { return backend_.add(std::move(x.value_), y.value_, scale); }
  Tensor add_row(Tensor x, const P& row) { return backend_.add_row(std::move(x.value_), here(row)); }
  void add_row_backward(const Tensor& dy, const P& row) { backend_.add_row_backward(dy.value_, here(row)); }
  Tensor multiply(const Tensor& x, const Tensor& y) { return backend_.multiply(x.value_, y.value_); }
  Tensor scale(Tensor x, double factor) { return backend_.scale(std::move(x.value_), factor); }
  Tensor mix(const Tensor& x, const Tensor& y, const Tensor& gate, const Sequences& sequences) {
    return backend_.mix(x.value_, y.value_, gate.value_, sequences);
  }
  struct MixDerivative {
    Tensor dx, dy, dgate;
  };
  MixDerivative mix_backward(const Tensor& dout, const Tensor& x, const Tensor& y, const Tensor& gate,
                             const Sequences& sequences) {
    auto d = backend_.mix_backward(dout.value_, x.value_, y.value_, gate.value_, sequences);
    return {std::move(d.dx), std::move(d.dy), std::move(d.dgate)};
  }
  Tensor dropout(Tensor x, double probability) { return backend_.dropout(std::move(x.value_), probability); }
  Tensor dropout_train(Tensor x, const DropoutMask& mask) { return backend_.dropout_train(std::move(x.value_), mask); }
  Tensor concat(const Tensor& a, const Tensor& b, Index num_heads = 1, Index b_heads = 1) {
    return backend_.concat(a.value_, b.value_, num_heads, b_heads);
  }
  struct ConcatDerivative {
    Tensor da, db;
  };
  ConcatDerivative concat_backward(const Tensor& dy, Index a_cols, Index b_cols, Index num_heads, Index b_heads) {
    auto d = backend_.concat_backward(dy.value_, a_cols, b_cols, num_heads, b_heads);
    return {std::move(d.da), std::move(d.db)};
  }
  Tensor columns(const Tensor& x, Index first, Index count) { return backend_.columns(x.value_, first, count); }
  Tensor columns_backward(const Tensor& dy, Index first, Index cols) {
    return backend_.columns_backward(dy.value_, first, cols);
  }

  // -- norms --------------------------------------------------------------------------------------------------------
  Tensor layer_norm(const Tensor& x, const P& weight, const P& bias, double eps, Tensor* moments = nullptr) {
    return backend_.layer_norm(x.value_, here(weight), here(bias), eps, value_of(moments));
  }
  Tensor layer_norm_backward(const Tensor& dy, const Tensor& x, const P& weight, const P& bias, const Tensor& moments,
                             bool needs_dx) {
    return backend_.layer_norm_backward(dy.value_, x.value_, here(weight), here(bias), moments.value_, needs_dx);
  }
  Tensor rms_norm(const Tensor& x, const P& weight, double eps, Tensor* inverses = nullptr) {
    return backend_.rms_norm(x.value_, here(weight), eps, value_of(inverses));
  }
  Tensor rms_norm_backward(const Tensor& dy, const Tensor& x, const P& weight, const Tensor& inverses, bool needs_dx) {
    return backend_.rms_norm_backward(dy.value_, x.value_, here(weight), inverses.value_, needs_dx);
  }
  Tensor batch_norm(const Tensor& x, const BatchNormParameters<Scalar>& p) {
    return backend_.batch_norm(x.value_, here(p));
  }
  Tensor batch_norm_train(const Tensor& x, const BatchNormParameters<Scalar>& p, Tensor& moments, bool gather = true) {
    return backend_.batch_norm_train(x.value_, here(p), moments.value_, gather);
  }
  Tensor batch_norm_backward(const Tensor& dy, const Tensor& x, const BatchNormParameters<Scalar>& p,
                             const Tensor& moments, bool needs_dx) {
    return backend_.batch_norm_backward(dy.value_, x.value_, here(p), moments.value_, needs_dx);
  }
  Tensor sequence_norm(const Tensor& x, const P& weight, const P& bias, double eps, const Sequences& sequences,
                       Tensor* moments = nullptr) {
    return backend_.sequence_norm(x.value_, here(weight), here(bias), eps, sequences, value_of(moments));
  }
  Tensor sequence_norm_backward(const Tensor& dy, const Tensor& x, const P& weight, const P& bias, double eps,
                                const Sequences& sequences, const Tensor& moments, bool needs_dx) {
    return backend_.sequence_norm_backward(dy.value_, x.value_, here(weight), here(bias), eps, sequences,
                                           moments.value_, needs_dx);
  }

  // -- convolutions -------------------------------------------------------------------------------------------------
  Tensor conv1d(const Tensor& x, const P& weight, const P* bias, const Conv1dShape& shape, const Sequences& from,
                const Sequences& to) {
    return backend_.conv1d(x.value_, here(weight), here(bias), shape, from, to);
  }
  Tensor conv1d_backward(const Tensor& dy, const Tensor& x, const P& weight, const P* bias, const Conv1dShape& shape,
                         const Sequences& from, const Sequences& to, bool needs_dx) {
    return backend_.conv1d_backward(dy.value_, x.value_, here(weight), here(bias), shape, from, to, needs_dx);
  }
  Tensor conv2d(const Tensor& x, const P& weight, const P& bias, const Conv2dShape& shape, const Sequences& from,
                const Sequences& to, std::optional<Activation> activation = {}) {
    return backend_.conv2d(x.value_, here(weight), here(bias), shape, from, to, activation);
  }
  Tensor conv2d_backward(const Tensor& dy, const Tensor& x, const P& weight, const P& bias, const Conv2dShape& shape,
                         const Sequences& from, const Sequences& to, bool needs_dx) {
    return backend_.conv2d_backward(dy.value_, x.value_, here(weight), here(bias), shape, from, to, needs_dx);
  }
  Tensor depthwise_conv(const Tensor& x, const P& weight, const P* bias, const Sequences& sequences,
                        const DepthwiseShape& shape) {
    return backend_.depthwise_conv(x.value_, here(weight), here(bias), sequences, shape);
  }
  Tensor depthwise_conv_backward(const Tensor& dy, const Tensor& x, const P& weight, const P* bias,
                                 const Sequences& sequences, const DepthwiseShape& shape, bool needs_dx) {
    return backend_.depthwise_conv_backward(dy.value_, x.value_, here(weight), here(bias), sequences, shape, needs_dx);
  }

  // -- attention ----------------------------------------------------------------------------------------------------
  Tensor attend(const Tensor& q, const Tensor& k, const Tensor& v, const AttendShape& shape,
                const Sequences& q_sequences, const Sequences& kv_sequences,
                const RelativeTerm<Tensor, Scalar>& relative = {}, double dropout = 0) {
    return backend_.attend(q.value_, k.value_, v.value_, shape, q_sequences, kv_sequences, value_of(relative), dropout);
  }
  Tensor attend(const Tensor& q, const CachedRows& k, const CachedRows& v, const AttendShape& shape,
                const Sequences& q_sequences, const Sequences& kv_sequences,
                const RelativeTerm<Tensor, Scalar>& relative = {}, double dropout = 0) {
    return backend_.attend(q.value_, k.rows_, v.rows_, shape, q_sequences, kv_sequences, value_of(relative), dropout);
  }
  Tensor attend_train(const Tensor& q, const Tensor& k, const Tensor& v, const AttendShape& shape,
                      const Sequences& q_sequences, const Sequences& kv_sequences,
                      const RelativeTerm<Tensor, Scalar>& relative, const DropoutMask& dropout, Tensor& logsumexp) {
    return backend_.attend_train(q.value_, k.value_, v.value_, shape, q_sequences, kv_sequences, value_of(relative),
                                 dropout, logsumexp.value_);
  }
  struct AttendDerivative {
    Tensor dq, dk, dv, dtable, dposition_q;
  };
  AttendDerivative attend_backward(const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v,
                                   const AttendShape& shape, const Sequences& q_sequences,
                                   const Sequences& kv_sequences, const RelativeTerm<Tensor, Scalar>& relative,
                                   const DropoutMask& dropout, const Tensor& logsumexp) {
    auto d = backend_.attend_backward(dout.value_, q.value_, k.value_, v.value_, shape, q_sequences, kv_sequences,
                                      value_of(relative), dropout, logsumexp.value_);
    return {std::move(d.dq), std::move(d.dk), std::move(d.dv), std::move(d.dtable), std::move(d.dposition_q)};
  }
  Tensor linear_attend(const Tensor& q, const Tensor& k, const Tensor& v, const AttendShape& shape,
                       const Sequences& sequences, Tensor* states = nullptr) {
    return backend_.linear_attend(q.value_, k.value_, v.value_, shape, sequences, value_of(states));
  }
  struct LinearAttendDerivative {
    Tensor dq, dk, dv;
  };
  LinearAttendDerivative linear_attend_backward(const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v,
                                                const AttendShape& shape, const Sequences& sequences) {
    auto d = backend_.linear_attend_backward(dout.value_, q.value_, k.value_, v.value_, shape, sequences);
    return {std::move(d.dq), std::move(d.dk), std::move(d.dv)};
  }
  Tensor rotate(Tensor x, const Tensor& table, RotaryPairs pairs, double direction = 1) {
    return backend_.rotate(std::move(x.value_), table.value_, pairs, direction);
  }
  Tensor prepare_table(const Tensor& table, Index num_heads) { return backend_.prepare_table(table.value_, num_heads); }

  // -- losses -------------------------------------------------------------------------------------------------------
  Tensor log_softmax(const Tensor& x) { return backend_.log_softmax(x.value_); }
  Tensor log_softmax_backward(const Tensor& dy, const Tensor& y) {
    return backend_.log_softmax_backward(dy.value_, y.value_);
  }
  Tensor softmax(const Tensor& x) { return backend_.softmax(x.value_); }
  double dot(const Tensor& x, const Tensor& y) { return backend_.dot(x.value_, y.value_); }
  double squared_norm(const Tensor& x) { return backend_.squared_norm(x.value_); }
  Tensor ctc(const Tensor& logits, const Sequences& sequences, const Labels& labels, int blank,
             Tensor* derivative = nullptr) {
    return backend_.ctc(logits.value_, sequences, labels, blank, value_of(derivative));
  }
  Tensor ctc_backward(const Tensor& dlosses, const Sequences& sequences, const Tensor& derivative) {
    return backend_.ctc_backward(dlosses.value_, sequences, derivative.value_);
  }
  Tensor cross_entropy(const Tensor& logits, std::span<const int> targets, const CrossEntropyShape& shape,
                       Tensor* log_probs = nullptr) {
    return backend_.cross_entropy(logits.value_, targets, shape, value_of(log_probs));
  }
  Tensor cross_entropy_backward(const Tensor& dlosses, const Tensor& log_probs, std::span<const int> targets,
                                const CrossEntropyShape& shape) {
    return backend_.cross_entropy_backward(dlosses.value_, log_probs.value_, targets, shape);
  }
  Tensor mean_finite(const Tensor& x) { return backend_.mean_finite(x.value_); }
  Tensor mean_finite_backward(const Tensor& dy, const Tensor& x) {
    return backend_.mean_finite_backward(dy.value_, x.value_);
  }

  // -- caches -------------------------------------------------------------------------------------------------------
  Cache make_cache(Index slots, Index capacity, Index width, Storage storage = Storage::full) {
    return backend_.make_cache(slots, capacity, width, storage);
  }
  void clear(Cache& cache, Index slot) { backend_.clear(cache.cache_, slot); }
  void fill_zeros(Cache& cache, Index slot) { backend_.fill_zeros(cache.cache_, slot); }
  void fork(Cache& cache, Index from, Index to) { backend_.fork(cache.cache_, from, to); }
  void append(Cache& cache, std::span<const Index> slots, const Tensor& x, const Sequences& sequences) {
    backend_.append(cache.cache_, slots, x.value_, sequences);
  }
  CachedRows with_cached(const Cache& cache, std::span<const Index> slots, const Tensor& x,
                         const Sequences& sequences) {
    return backend_.with_cached(cache.cache_, slots, x.value_, sequences);
  }
  Sequences cached_lengths(const CachedRows& x, const Sequences& sequences) {
    return backend_.cached_lengths(x.rows_, sequences);
  }
  Tensor gathered(const CachedRows& x, const Sequences& sequences, const Sequences& all) {
    return backend_.gathered(x.rows_, sequences, all);
  }
  struct Extended {
    Tensor rows;
    Sequences sequences;
  };
  Extended extend(Cache& cache, std::span<const Index> slots, const Tensor& x, const Sequences& sequences) {
    auto out = backend_.extend(cache.cache_, slots, x.value_, sequences);
    return {std::move(out.rows), std::move(out.sequences)};
  }
  template <class Change>
  void update(Cache& cache, std::span<const Index> slots, Change&& change) {
    backend_.update(cache.cache_, slots, [&](Value& rows) {
      Tensor fenced(std::move(rows));
      change(fenced);
      rows = std::move(fenced.value_);
    });
  }

 private:
  static void require_prepared(const P& p) {
    require(p.size() == 0 || p.is_resident(), "fenced: a parameter on the host given, one that was prepared expected");
  }
  static const P& here(const P& p) {
    require_prepared(p);
    return p;
  }
  static const P* here(const P* p) {
    if (p != nullptr) require_prepared(*p);
    return p;
  }
  static std::span<const P* const> here(std::span<const P* const> all) {
    for (const P* p : all) require_prepared(*p);
    return all;
  }
  static const BatchNormParameters<Scalar>& here(const BatchNormParameters<Scalar>& p) {
    for (const P* one : {&p.weight, &p.bias, &p.running_mean, &p.running_var}) require_prepared(*one);
    return p;
  }
  static Value* value_of(Tensor* x) { return x == nullptr ? nullptr : &x->value_; }
  static RelativeTerm<Value, Scalar> value_of(const RelativeTerm<Tensor, Scalar>& r) {
    return {r.table.value_, here(r.pos_bias_u), here(r.pos_bias_v), r.query.value_, r.packed};
  }

  B backend_;
};

}  // namespace laconic
