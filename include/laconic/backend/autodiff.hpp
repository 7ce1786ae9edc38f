// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/context.hpp>

#include <memory>
#include <optional>
#include <span>
#include <unordered_set>
#include <utility>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Trains models: computes with a backend and records each primitive on a tape. `backward(loss)` walks the tape once,
/// adds to the gradient of every trainable parameter, and frees the nodes that it has passed. A model is written in
/// terms of a context's primitives, so the same code runs and trains.
///
/// This object owns the tape: `clear()` and destruction free every node. Dropout and the statistics of batch norm
/// follow `training`. Call number n of dropout draws from stream n of the seed.
template <TrainingContext B>
class Autodiff {
  using Value = typename B::Tensor;

 public:
  /// Names the type of the elements.
  using Scalar = typename B::Scalar;

  /// Holds a value and its place on the tape.
  class Tensor {
   public:
    /// Makes an empty tensor.
    Tensor() = default;
    /// Holds a value of the backend that node n computed, or a constant if n is -1.
    Tensor(Value v, Index n) : value(std::move(v)), node(n) {}
    /// Returns the number of rows.
    Index rows() const { return value.rows(); }
    /// Returns the number of columns.
    Index cols() const { return value.cols(); }
    /// Returns whether there is no value.
    bool empty() const { return value.empty(); }
    /// Returns the value as a matrix that cannot be changed, if the backend's tensors are on the host.
    auto view() const { return value.view(); }
    Value value;      ///< the value, a tensor of the backend
    Index node = -1;  ///< the number of the node that computed it; -1: a constant, which has no derivative
  };

  /// Makes an empty tape over a backend, which must outlive it. `train` says whether primitives compute their training
  /// form.
  explicit Autodiff(B& backend, Seed seed = Seed(), bool train = true)
      : training(train), backend_(backend), seed_(seed) {}
  Autodiff(const Autodiff&) = delete;
  Autodiff& operator=(const Autodiff&) = delete;

  /// Says whether primitives compute their training form: dropout, and the batch's statistics in batch norm.
  const bool training;
  /// Says whether encoders keep only the input of each block and recompute the block in the backward pass (see
  /// `recompute`). It needs up to a third more time, and the memory of one block's intermediate values instead of all.
  bool recompute_blocks = false;
  /// Returns the backend.
  B& backend() { return backend_; }
  /// Returns the backend's host memory.
  Arena& arena() { return backend_.arena(); }
  /// Returns the number of threads of the backend.
  int threads() const { return backend_.threads(); }
  /// Says whether the backend computes with parameters on the host.
  static constexpr bool computes_on_host = B::computes_on_host;

  // -- parameters ---------------------------------------------------------------------------------------------------
  /// Prepares a model to be trained. Throws `Error` for a `storage` that rounds its parameters.
  template <class Model>
  void prepare(Model& model, Storage storage = Storage::full) {
    require(storage == Storage::full, "prepare: ", to_name(storage), " given, weights in full expected to train");
    backend_.prepare_training(model);
  }
  /// Moves the parameters of a model back to the host.
  template <class Model>
  void fetch(Model& model) {
    backend_.fetch(model);
  }

  // -- values -------------------------------------------------------------------------------------------------------
  /// Returns a borrowed matrix as a constant. The matrix must outlive everything that is computed from it.
  Tensor input(const Matrix<Scalar>& x) { return {backend_.input(x), -1}; }
  /// Returns a copy of a temporary matrix as a constant.
  Tensor input(Matrix<Scalar>&& x) { return {backend_.input(std::move(x)), -1}; }
  /// Returns a tensor unchanged.
  Tensor input(Tensor x) { return x; }
  /// Returns a value of the backend as a constant, which has no derivative.
  Tensor constant(Value x) { return {std::move(x), -1}; }
  /// Returns a constant (rows, cols) whose elements all have this value.
  Tensor fill(Index rows, Index cols, double value) { return {backend_.fill(rows, cols, value), -1}; }
  /// Returns the sinusoids of positions (rows, width) as a constant.
  Tensor sinusoids(const RowPositions& positions, Index width) { return {backend_.sinusoids(positions, width), -1}; }
  /// Returns the table of `rotate` (rows, width) as a constant.
  Tensor rotary_table(const RowPositions& positions, Index width, Index rate_width, const IndexList& pairs,
                      const RotaryRates& rates = {}) {
    return {backend_.rotary_table(positions, width, rate_width, pairs, rates), -1};
  }
  /// Returns the values as a matrix of the host. Allocates.
  Matrix<Scalar> output(const Tensor& x) { return backend_.output(x.value); }
  /// Writes the values, row by row, to memory of the host.
  void read(const Tensor& x, std::span<Scalar> values) { backend_.read(x.value, values); }
  /// Returns the value of a (1, 1) tensor.
  double number(const Tensor& x) { return backend_.number(x.value); }
  /// Writes, for each row, the first column of its max, or -1 - c where c is the column of its first NaN.
  void argmax(const Tensor& x, std::span<Index> columns) { backend_.argmax(x.value, columns); }
  /// Returns a borrowed matrix as a variable, whose derivative `gradient` returns after `backward`.
  Tensor variable(const Matrix<Scalar>& x) { return record(backend_.input(x), nullptr); }
  /// Returns a copy of a temporary matrix as a variable, whose derivative `gradient` returns after `backward`.
  Tensor variable(Matrix<Scalar>&& x) { return record(backend_.input(std::move(x)), nullptr); }
  /// Returns the derivative by a variable, which is empty if the loss does not depend on it. Throws `Error` for a
  /// constant and for an intermediate value, whose derivative is not kept.
  const Value& gradient(const Tensor& variable) const {
    require(variable.node >= 0, "gradient: of a constant; of a variable expected");
    const Node& node = nodes_[place(variable)];
    require(node.leaf, "gradient: of an intermediate value, which is not kept; of a variable expected");
    return node.gradient;
  }

  /// Computes the derivatives of weight * loss (1, 1) and adds them to the gradients of all trainable parameters and
  /// variables that the loss depends on. The recorded nodes can be used once only.
  void backward(const Tensor& loss, double weight = 1) {
    start(loss, weight);
    walk_back(0, [](std::size_t) {});
  }
  /// Computes the derivatives, and calls `computed(std::span<const Parameter<Scalar>* const>)` after each node of the
  /// tape, a recomputed part being one, with the trainable parameters, maybe none, whose gradients are complete by
  /// then. Each that was used comes once.
  template <class Computed>
  void backward(const Tensor& loss, double weight, Computed&& computed) {
    start(loss, weight);
    const FirstUses first = first_uses();
    std::size_t left = first.nodes.size();
    walk_back(0, [&](std::size_t node) {
      const std::size_t end = left;
      while (left > 0 && first.nodes[left - 1] >= node) --left;
      computed(std::span(first.parameters).subspan(left, end - left));
    });
  }
  /// Clears the tape. Earlier values stay valid, but what is computed from them later has no derivative by anything
  /// before.
  void clear() {
    cleared_ += static_cast<Index>(nodes_.size());
    nodes_.clear();
    uses_.clear();
  }

  /// Returns f(x), for which the tape keeps only x: the backward pass recomputes the intermediate values (Chen et al.
  /// 2016). Values, derivatives and statistics are bit for bit those of f(x) if f is deterministic. f takes and returns
  /// a Tensor, and must own everything that it uses.
  template <class F>
  Tensor recompute(const Tensor& x, F f) {
    const std::size_t begin = nodes_.size(), first_use = uses_.size();
    const std::uint64_t first_call = calls_;
    Tensor y = f(x);
    const bool recorded = needs(y) && place(y) >= begin;
    nodes_.resize(begin);
    if (!recorded) uses_.resize(first_use);
    if (!recorded) return y;
    for (std::size_t i = first_use; i < uses_.size(); ++i) uses_[i].node = begin;  // of the node that stands for all
    return op(std::move(y.value), true, [this, x, first_call, f = std::move(f)](Value dy) {
      const std::size_t at = nodes_.size(), uses = uses_.size();
      const bool wanted = needs(x);
      const Tensor start = wanted ? record(x.value, nullptr) : x;
      // The gradient that x has already comes first, so that sums have the same order as without recomputation.
      if (wanted) nodes_[at].gradient = std::move(unused(x).gradient);
      give(again(f, start, first_call), std::move(dy));
      walk_back(at, [](std::size_t) {});
      if (wanted) unused(x).gradient = std::move(nodes_[at].gradient);
      nodes_.resize(at);
      uses_.resize(uses);
    });
  }

  // -- primitives, as documented at Context -------------------------------------------------------------------------
  /// Names the type of a parameter.
  using P = Parameter<Scalar>;

  /// Returns x W^T + b, then the activation if one is given, and records its derivative.
  Tensor linear(const Tensor& x, const P& weight, const P* bias, std::optional<Activation> kind = {}) {
    if (kind) return activation(*kind, linear(x, weight, bias));
    return op(backend_.linear(x.value, weight, bias), any(needs(x), trains(weight), trains(bias)),
              [this, x, &weight, bias](const Value& dy) {
                give(x, backend_.linear_backward(dy, x.value, weight, bias, needs(x)));
              });
  }
  /// Returns ReLU, SiLU or GELU of each element, and records its derivative.
  Tensor activation(Activation kind, const Tensor& x) {
    return op(backend_.activation(kind, x.value), needs(x),
              [this, kind, x](Value dy) { give(x, backend_.activation_backward(kind, std::move(dy), x.value)); });
  }
  /// Returns a * sigmoid(b) of x = [a, b], and records its derivative.
  Tensor glu(const Tensor& x) {
    return op(backend_.glu(x.value), needs(x),
              [this, x](const Value& dy) { give(x, backend_.glu_backward(dy, x.value)); });
  }
  /// Returns the layer norm of each row, and records its derivative.
  Tensor layer_norm(const Tensor& x, const P& weight, const P& bias, double eps) {
    Value moments;
    Value y = backend_.layer_norm(x.value, weight, bias, eps, &moments);
    return op(std::move(y), any(needs(x), trains(weight), trains(bias)),
              [this, x, &weight, &bias, moments](const Value& dy) {
                give(x, backend_.layer_norm_backward(dy, x.value, weight, bias, moments, needs(x)));
              });
  }
  /// Returns the root-mean-square norm of each row, and records its derivative.
  Tensor rms_norm(const Tensor& x, const P& weight, double eps) {
    Value inverses;
    Value y = backend_.rms_norm(x.value, weight, eps, &inverses);
    return op(std::move(y), any(needs(x), trains(weight)), [this, x, &weight, inverses](const Value& dy) {
      give(x, backend_.rms_norm_backward(dy, x.value, weight, inverses, needs(x)));
    });
  }
  /// Returns the batch norm of each channel, and records its derivative. In training it uses the statistics of the
  /// batch and accumulates the update of the running statistics, unless these are frozen.
  Tensor batch_norm(const Tensor& x, const BatchNormParameters<Scalar>& p) {
    Value moments;
    const bool of_batch = training && p.running_mean.trainable;  // frozen running statistics are used instead
    Value y = of_batch ? backend_.batch_norm_train(x.value, p, moments, !again_) : backend_.batch_norm(x.value, p);
    return op(std::move(y), any(needs(x), trains(p.weight), trains(p.bias)), [this, x, p, moments](const Value& dy) {
      give(x, backend_.batch_norm_backward(dy, x.value, p, moments, needs(x)));
    });
  }
  /// Returns the norm of each channel over each sequence, and records its derivative.
  Tensor sequence_norm(const Tensor& x, const P& weight, const P& bias, double eps, const Sequences& sequences) {
    Value moments;
    Value y = backend_.sequence_norm(x.value, weight, bias, eps, sequences, &moments);
    return op(std::move(y), any(needs(x), trains(weight), trains(bias)),
              [this, x, &weight, &bias, eps, sequences, moments](const Value& dy) {
                give(x, backend_.sequence_norm_backward(dy, x.value, weight, bias, eps, sequences, moments, needs(x)));
              });
  }
  /// Returns a convolution over time, and records its derivative.
  Tensor conv1d(const Tensor& x, const P& weight, const P* bias, const Conv1dShape& shape, const Sequences& from,
                const Sequences& to) {
    return op(backend_.conv1d(x.value, weight, bias, shape, from, to), any(needs(x), trains(weight), trains(bias)),
              [this, x, &weight, bias, shape, from, to](const Value& dy) {
                give(x, backend_.conv1d_backward(dy, x.value, weight, bias, shape, from, to, needs(x)));
              });
  }
  /// Returns a 3 x 3 convolution over (time, frequency), then the activation if one is given, and records its
  /// derivative.
  Tensor conv2d(const Tensor& x, const P& weight, const P& bias, const Conv2dShape& shape, const Sequences& from,
                const Sequences& to, std::optional<Activation> kind = {}) {
    // The result of ReLU shows where its derivative is 0, so its input need not be kept.
    const bool relu = kind == Activation::relu;
    if (kind && !relu) return activation(*kind, conv2d(x, weight, bias, shape, from, to));
    Value y = backend_.conv2d(x.value, weight, bias, shape, from, to, kind);
    return op(y, any(needs(x), trains(weight), trains(bias)),
              [this, x, &weight, &bias, shape, from, to, y = relu ? y : Value()](Value dy) {
                if (!y.empty()) dy = backend_.activation_backward(Activation::relu, std::move(dy), y);
                give(x, backend_.conv2d_backward(dy, x.value, weight, bias, shape, from, to, needs(x)));
              });
  }
  /// Returns a depthwise convolution over time, and records its derivative.
  Tensor depthwise_conv(const Tensor& x, const P& weight, const P* bias, const Sequences& sequences,
                        const DepthwiseShape& shape) {
    return op(backend_.depthwise_conv(x.value, weight, bias, sequences, shape),
              any(needs(x), trains(weight), trains(bias)), [this, x, &weight, bias, sequences, shape](const Value& dy) {
                give(x, backend_.depthwise_conv_backward(dy, x.value, weight, bias, sequences, shape, needs(x)));
              });
  }
  /// Returns softmax attention, and records its derivative. `dropout` is the dropout probability of the attention
  /// weights in training.
  Tensor attend(const Tensor& q, const Tensor& k, const Tensor& v, const AttendShape& shape,
                const Sequences& q_sequences, const Sequences& kv_sequences,
                const RelativeTerm<Tensor, Scalar>& relative = {}, double dropout = 0) {
    const RelativeTerm<Value, Scalar> term{relative.table.value, relative.pos_bias_u, relative.pos_bias_v,
                                           relative.query.value, relative.packed};
    const DropoutMask mask = next_mask(dropout);
    Value logsumexp;
    Value y = backend_.attend_train(q.value, k.value, v.value, shape, q_sequences, kv_sequences, term, mask, logsumexp);
    const bool needed = any(needs(q), needs(k), needs(v), needs(relative.table), needs(relative.query),
                            trains(relative.pos_bias_u), trains(relative.pos_bias_v));
    return op(std::move(y), needed,
              [=, this, table = relative.table, query = Tensor(Value(), relative.query.node)](const Value& dy) {
                auto d = backend_.attend_backward(dy, q.value, k.value, v.value, shape, q_sequences, kv_sequences, term,
                                                  mask, logsumexp);
                give(q, std::move(d.dq));
                give(k, std::move(d.dk));
                give(v, std::move(d.dv));
                if (!table.empty()) give(table, std::move(d.dtable));
                if (!term.query.empty()) give(query, std::move(d.dposition_q));
              });
  }
  /// Returns linear attention, and records its derivative.
  Tensor linear_attend(const Tensor& q, const Tensor& k, const Tensor& v, const AttendShape& shape,
                       const Sequences& sequences) {
    return op(backend_.linear_attend(q.value, k.value, v.value, shape, sequences), needs(q) || needs(k) || needs(v),
              [=, this](const Value& dy) {
                auto d = backend_.linear_attend_backward(dy, q.value, k.value, v.value, shape, sequences);
                give(q, std::move(d.dq));
                give(k, std::move(d.dk));
                give(v, std::move(d.dv));
              });
  }
  /// Returns the product of every head with its matrix, and records its derivative.
  Tensor head_linear(const Tensor& x, const P& weight, const P* bias, const HeadShape& shape) {
    return op(backend_.head_linear(x.value, weight, bias, shape), any(needs(x), trains(weight), trains(bias)),
              [this, x, &weight, bias, shape](const Value& dy) {
                give(x, backend_.head_linear_backward(dy, x.value, weight, bias, shape, needs(x)));
              });
  }
  /// Returns row ids[r] of a weight in row r, and records its derivative.
  Tensor embed(std::span<const int> ids, const P& weight) {
    return op(backend_.embed(ids, weight), trains(weight),
              [this, kept = std::vector<int>(ids.begin(), ids.end()), &weight](const Value& dy) {
                backend_.embed_backward(dy, kept, weight);
              });
  }
  /// Returns x rotated by a table of angles, and records its derivative by x.
  Tensor rotate(const Tensor& x, const Tensor& table, RotaryPairs pairs) {
    return op(backend_.rotate(x.value, table.value, pairs), needs(x),
              [this, xn = Tensor(Value(), x.node), table, pairs](const Value& dy) {
                give(xn, backend_.rotate(dy, table.value, pairs, -1));
              });
  }
  /// Returns [a_h, b_h] for every head h, and records its derivative.
  Tensor concat(const Tensor& a, const Tensor& b, Index num_heads = 1, Index b_heads = 1) {
    return op(backend_.concat(a.value, b.value, num_heads, b_heads), needs(a) || needs(b),
              [this, an = Tensor(Value(), a.node), bn = Tensor(Value(), b.node), ac = a.cols(), bc = b.cols(),
               num_heads, b_heads](const Value& dy) {
                auto d = backend_.concat_backward(dy, ac, bc, num_heads, b_heads);
                give(an, std::move(d.da));
                give(bn, std::move(d.db));
              });
  }
  /// Returns x with elements dropped in training, and records its derivative.
  Tensor dropout(Tensor x, double probability) {
    const DropoutMask mask = next_mask(probability);
    if (!mask.any()) return x;
    const Tensor xn(Value(), x.node);
    return op(backend_.dropout_train(std::move(x.value), mask), needs(xn),
              [this, xn, mask](Value dy) { give(xn, backend_.dropout_train(std::move(dy), mask)); });
  }
  /// Returns x + scale * y, and records its derivative.
  Tensor add(const Tensor& x, const Tensor& y, double scale = 1) {
    return op(backend_.add(x.value, y.value, scale), needs(x) || needs(y),
              [this, xn = Tensor(Value(), x.node), yn = Tensor(Value(), y.node), scale](const Value& dz) {
                give(xn, dz);
                if (needs(yn)) give(yn, scale == 1 ? dz : backend_.scale(dz, scale));
              });
  }
  /// Returns x with a parameter added to every row, and records its derivative.
  Tensor add_row(const Tensor& x, const P& row) {
    return op(backend_.add_row(x.value, row), any(needs(x), trains(row)),
              [this, xn = Tensor(Value(), x.node), &row](const Value& dy) {
                backend_.add_row_backward(dy, row);
                give(xn, dy);
              });
  }
  /// Returns the elementwise product of x and y, and records its derivative.
  Tensor multiply(const Tensor& x, const Tensor& y) {
    return op(backend_.multiply(x.value, y.value), needs(x) || needs(y), [this, x, y](const Value& dz) {
      if (needs(x)) give(x, backend_.multiply(dz, y.value));
      if (needs(y)) give(y, backend_.multiply(dz, x.value));
    });
  }
  /// Returns the columns first .. first + count - 1 of x, and records its derivative.
  Tensor columns(const Tensor& x, Index first, Index count) {
    return op(backend_.columns(x.value, first, count), needs(x),
              [this, xn = Tensor(Value(), x.node), first, cols = x.cols()](const Value& dy) {
                give(xn, backend_.columns_backward(dy, first, cols));
              });
  }
  /// Returns sigmoid(gate) x + (1 - sigmoid(gate)) y with one gate for each sequence, and records its derivative.
  Tensor mix(const Tensor& x, const Tensor& y, const Tensor& gate, const Sequences& sequences) {
    return op(backend_.mix(x.value, y.value, gate.value, sequences), needs(x) || needs(y) || needs(gate),
              [=, this](const Value& dout) {
                auto d = backend_.mix_backward(dout, x.value, y.value, gate.value, sequences);
                give(x, std::move(d.dx));
                give(y, std::move(d.dy));
                give(gate, std::move(d.dgate));
              });
  }
  /// Returns factor * x, and records its derivative.
  Tensor scale(const Tensor& x, double factor) {
    return op(backend_.scale(x.value, factor), needs(x), [this, xn = Tensor(Value(), x.node), factor](Value dy) {
      give(xn, backend_.scale(std::move(dy), factor));
    });
  }
  /// Returns the log softmax of each row, and records its derivative.
  Tensor log_softmax(const Tensor& x) {
    Value y = backend_.log_softmax(x.value);
    return op(y, needs(x), [this, xn = Tensor(Value(), x.node), y](const Value& dy) {
      give(xn, backend_.log_softmax_backward(dy, y));
    });
  }
  /// Returns the CTC losses (sequences, 1), and records their derivative.
  Tensor ctc(const Tensor& logits, const Sequences& sequences, const Labels& labels, int blank) {
    Value derivative;
    Value losses = backend_.ctc(logits.value, sequences, labels, blank, &derivative);
    return op(std::move(losses), needs(logits),
              [this, xn = Tensor(Value(), logits.node), sequences, derivative](const Value& dy) {
                give(xn, backend_.ctc_backward(dy, sequences, derivative));
              });
  }
  /// Returns the cross entropies (rows, 1), and records their derivative.
  Tensor cross_entropy(const Tensor& logits, std::span<const int> targets, const CrossEntropyShape& shape) {
    Value log_probs;
    Value losses = backend_.cross_entropy(logits.value, targets, shape, &log_probs);
    return op(
        std::move(losses), needs(logits),
        [this, xn = Tensor(Value(), logits.node), log_probs, kept = std::vector<int>(targets.begin(), targets.end()),
         shape](const Value& dy) { give(xn, backend_.cross_entropy_backward(dy, log_probs, kept, shape)); });
  }
  /// Returns the mean of all elements with infinite ones as 0, and records its derivative.
  Tensor mean_finite(const Tensor& x) {
    return op(backend_.mean_finite(x.value), needs(x),
              [this, x](const Value& dy) { give(x, backend_.mean_finite_backward(dy, x.value)); });
  }

 private:
  /// Computes the derivatives by a primitive's arguments from the derivative by its result.
  struct Step {
    virtual ~Step() = default;
    virtual void backward(Value gradient) = 0;
  };
  /// Holds a callable as a step.
  template <class F>
  struct StepOf final : Step {
    explicit StepOf(F f) : function(std::move(f)) {}
    void backward(Value gradient) override { function(std::move(gradient)); }
    F function;
  };
  /// Holds a step and the gradient of its result.
  struct Node {
    std::unique_ptr<Step> step;  // null for a leaf, and after it was used
    Value gradient;              // kept for a leaf only
    bool leaf;
  };

  /// Holds a trainable parameter and the place of a node that was computed with it.
  struct Use {
    const P* parameter;
    std::size_t node;
  };
  /// Holds trainable parameters, and for each the place of the first node that was computed with it.
  struct FirstUses {
    std::vector<const P*> parameters;
    std::vector<std::size_t> nodes;
  };

  /// Returns whether a parameter gets a gradient, and keeps that the next node uses it. Throws `Error` if it is
  /// trainable but was prepared to run.
  bool trains(const P& p) {
    require(!p.trainable || p.can_train(),
            "autodiff: a weight prepared to run given, one on the host or prepared for training expected");
    if (p.trainable) uses_.push_back({&p, nodes_.size()});
    return p.trainable;
  }
  bool trains(const P* p) { return p != nullptr && trains(*p); }
  /// Returns whether any of these is true. All are computed, unlike the operands of ||.
  template <class... Bools>
  static bool any(Bools... given) {
    return (given || ...);
  }
  /// Returns whether a derivative by x is needed, which is false for constants and for values from before `clear`.
  bool needs(const Tensor& x) const { return x.node >= cleared_; }
  std::size_t place(const Tensor& x) const {
    require(x.node >= cleared_ && x.node < cleared_ + static_cast<Index>(nodes_.size()),
            "autodiff: a value of another tape, or from before clear()");
    return static_cast<std::size_t>(x.node - cleared_);
  }
  Node& unused(const Tensor& x) {
    Node& node = nodes_[place(x)];
    require(node.leaf || node.step != nullptr,
            "backward: this value was used up by an earlier backward(); compute it again");
    return node;
  }

  /// Returns f(x) computed as before: with the same dropout, and without a second update of statistics.
  template <class F>
  Tensor again(F& f, const Tensor& x, std::uint64_t first_call) {
    struct Restore {
      Autodiff& tape;
      std::uint64_t calls;
      bool again;
      ~Restore() {
        tape.calls_ = calls;
        tape.again_ = again;
      }
    };
    const Restore restore{*this, std::exchange(calls_, first_call), std::exchange(again_, true)};
    return f(x);
  }

  /// Gives the loss its derivative, from which the walk back begins.
  void start(const Tensor& loss, double weight) {
    require(loss.rows() == 1 && loss.cols() == 1, "backward: the loss is (", loss.rows(), ", ", loss.cols(),
            "), expected (1, 1)");
    require(loss.node >= 0, "backward: the loss does not depend on any trainable parameter or variable");
    unused(loss).gradient = backend_.fill(1, 1, weight);
  }
  /// Returns the trainable parameters in the order of the first nodes that use them, and the places of these.
  FirstUses first_uses() const {
    FirstUses out;
    std::unordered_set<const P*> seen;
    for (const Use& use : uses_) {
      if (!seen.insert(use.parameter).second) continue;
      out.parameters.push_back(use.parameter);
      out.nodes.push_back(use.node);
    }
    return out;
  }
  /// Runs the steps from the end of the tape back to node `begin`, each of which is used up, and calls `passed(place)`
  /// after each.
  template <class Passed>
  void walk_back(std::size_t begin, Passed&& passed) {
    for (std::size_t i = nodes_.size(); i-- > begin;) {
      if (nodes_[i].step != nullptr) {
        const std::unique_ptr<Step> step = std::move(nodes_[i].step);
        Value gradient = std::move(nodes_[i].gradient);
        nodes_[i].gradient = Value();
        if (!gradient.empty()) step->backward(std::move(gradient));
      }
      passed(i);
    }
  }

  Tensor record(Value value, std::unique_ptr<Step> step) {
    const bool leaf = step == nullptr;
    nodes_.push_back({std::move(step), Value(), leaf});
    return {std::move(value), cleared_ + static_cast<Index>(nodes_.size()) - 1};
  }
  /// Returns a result. Its derivative is recorded only if one of its arguments needs one.
  template <class F>
  Tensor op(Value value, bool needed, F&& backward) {
    if (!needed) return {std::move(value), -1};
    return record(std::move(value), std::make_unique<StepOf<std::remove_cvref_t<F>>>(std::forward<F>(backward)));
  }
  /// Adds to the gradient of x.
  void give(const Tensor& x, Value gradient) {
    if (!needs(x)) return;
    Value& sum = unused(x).gradient;
    sum = sum.empty() ? std::move(gradient) : backend_.add(std::move(sum), gradient, 1);
  }
  DropoutMask next_mask(double probability) {
    return DropoutMask(training ? probability : 0.0, Random(seed_, calls_++));
  }

  B& backend_;
  Seed seed_;
  std::uint64_t calls_ = 0;
  std::vector<Node> nodes_;
  std::vector<Use> uses_;  // in the order of their nodes
  bool again_ = false;     // whether `recompute` is recomputing
  Index cleared_ = 0;      // nodes that `clear` has dropped; their numbers are not reused
};

}  // namespace LACONIC_ABI
}  // namespace laconic
