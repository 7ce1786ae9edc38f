// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cpu/attend.hpp>
#include <laconic/backend/cpu/conv.hpp>
#include <laconic/backend/cpu/ctc.hpp>
#include <laconic/backend/cpu/norm.hpp>
#include <laconic/core/parameter.hpp>

#include <utility>

namespace laconic::inline LACONIC_ABI {

/// The context that computes on the CPU: kernels by xsimd, threads by OpenMP, intermediates in an arena (a warm forward
/// pass allocates nothing). Results do not depend on the number of threads. One context belongs to one thread.
///
/// Every primitive takes and gives tensors `(rows, channels)` of packed rows. Arguments taken by value may be
/// overwritten when nobody else holds them. Each `*_backward` gives the derivative by the inputs and adds the
/// derivative by trainable parameters to their gradients.
template <class T = float>
class Cpu {
 public:
  using Scalar = T;
  using Tensor = laconic::Tensor<T>;
  static constexpr bool training = false;

  /// `threads` = 0 takes all that the machine offers.
  explicit Cpu(int threads = 0) : threads_(threads > 0 ? threads : hardware_threads()) {}
  Cpu(const Cpu&) = delete;
  Cpu& operator=(const Cpu&) = delete;

  Arena& arena() { return arena_; }
  int threads() const { return threads_; }

  // -- values -------------------------------------------------------------------------------------------------------
  Tensor make(Index rows, Index cols) { return Tensor(arena_, rows, cols); }
  Tensor zeros(Index rows, Index cols) {
    Tensor out = make(rows, cols);
    std::fill_n(out.data(), out.size(), T(0));
    return out;
  }
  /// Borrows the caller's matrix, which must live as long as what is computed from it. Copies a temporary one, which is
  /// also what any other Eigen expression becomes.
  Tensor input(const Matrix<T>& x) { return Tensor::borrow(x); }
  Tensor input(Matrix<T>&& x) {
    Tensor out = make(x.rows(), x.cols());
    out.view() = x;
    return out;
  }
  Tensor input(Tensor x) { return x; }
  /// A value that is filled here and has no derivative: fill(row, col), a function of these alone.
  template <class Fill>
  Tensor constant(Index rows, Index cols, Fill&& fill) {
    Tensor out = make(rows, cols);
    for (Index r = 0; r < rows; ++r)
      for (Index c = 0; c < cols; ++c) out.row(r)[c] = static_cast<T>(fill(r, c));
    return out;
  }

  // -- primitives ---------------------------------------------------------------------------------------------------
  /// x W^T + b. x (rows, in), weight (out, in), bias (out) or null.
  Tensor linear(const Tensor& x, const Parameter<T>& weight, const Parameter<T>* bias) {
    const Index out = weight.value.rows(), in = weight.value.cols();
    require(x.cols() == in, "linear: input has ", x.cols(), " channels, the weight expects ", in);
    require(bias == nullptr || bias->size() == out, "linear: a bias of ", bias == nullptr ? 0 : bias->size(), " given for ", out, " channels");
    Tensor y = make(x.rows(), out);
    kernels::gemm<T>(threads_, arena_, x.rows(), out, in, {x.data(), in}, weight_operand(weight).transposed(), y.data(), out, false,
                     bias == nullptr ? nullptr : bias->value.data());
    return y;
  }
  Tensor linear_backward(const Tensor& dy, const Tensor& x, const Parameter<T>& weight, const Parameter<T>* bias, bool needs_dx) {
    const Index out = weight.value.rows(), in = weight.value.cols(), rows = x.rows();
    const kernels::Operand<T> g{dy.data(), out};
    if (weight.trainable)
      kernels::gemm<T>(threads_, arena_, out, in, rows, g.transposed(), {x.data(), in}, weight.gradient().data(), in, true, nullptr);
    if (bias != nullptr && bias->trainable)
      kernels::add_column_sums(threads_, rows, out, dy.data(), bias->gradient().data());
    if (!needs_dx) return {};
    Tensor dx = make(rows, in);
    kernels::gemm<T>(threads_, arena_, rows, in, out, g, weight_operand(weight), dx.data(), in, false, nullptr);
    return dx;
  }

  Tensor activation(Activation kind, Tensor x) {
    Tensor y = x.unique() ? x : make(x.rows(), x.cols());
    kernels::map(threads_, x.size(), y.data(), [kind](auto a) { return kernels::activate(kind, a); }, std::as_const(x).data());
    return y;
  }
  Tensor activation_backward(Activation kind, const Tensor& dy, const Tensor& x) {
    Tensor dx = make(x.rows(), x.cols());
    kernels::map(threads_, x.size(), dx.data(), [kind](auto d, auto a) { return kernels::activate_backward(kind, d, a); },
                 dy.data(), x.data());
    return dx;
  }

  /// (rows, 2 channels) to (rows, channels): the first half times the sigmoid of the second.
  Tensor glu(const Tensor& x) {
    require(x.cols() % 2 == 0, "glu: ", x.cols(), " channels given, an even number expected");
    Tensor y = make(x.rows(), x.cols() / 2);
    kernels::glu(threads_, y.rows(), y.cols(), x.data(), y.data());
    return y;
  }
  Tensor glu_backward(const Tensor& dy, const Tensor& x) {
    Tensor dx = make(x.rows(), x.cols());
    kernels::glu_backward(threads_, dy.rows(), dy.cols(), dy.data(), x.data(), dx.data());
    return dx;
  }

  /// `moments`, if given, receives mean and 1/std of each row, for the derivative.
  Tensor layer_norm(const Tensor& x, const Parameter<T>& weight, const Parameter<T>& bias, double eps, Tensor* moments = nullptr) {
    require(x.cols() == weight.size() && x.cols() == bias.size(), "layer_norm: input has ", x.cols(), " channels, weight and bias expect ",
            weight.size(), " and ", bias.size());
    Tensor y = make(x.rows(), x.cols());
    if (moments != nullptr) *moments = make(x.rows(), 2);
    kernels::layer_norm(threads_, x.rows(), x.cols(), x.data(), weight.value.data(), bias.value.data(), static_cast<T>(eps),
                        y.data(), moments == nullptr ? nullptr : moments->data());
    return y;
  }
  Tensor layer_norm_backward(const Tensor& dy, const Tensor& x, const Parameter<T>& weight, const Parameter<T>& bias,
                             const Tensor& moments, bool needs_dx) {
    Tensor dx = needs_dx ? make(x.rows(), x.cols()) : Tensor();
    kernels::layer_norm_backward(threads_, x.rows(), x.cols(), dy.data(), x.data(), weight.value.data(), moments.data(),
                                 dx.data(), gradient(weight), gradient(bias));
    return dx;
  }

  /// With the running statistics (evaluation).
  Tensor batch_norm(const Tensor& x, const BatchNormParameters<T>& p) {
    return batch_norm_with(x, p, p.running_mean.value.data(), p.running_var.value.data());
  }
  /// With the statistics of the rows themselves, which are given in `moments` (2, channels). The update of the running
  /// statistics goes to their gradient slots (variance unbiased, as PyTorch does it).
  Tensor batch_norm_train(const Tensor& x, const BatchNormParameters<T>& p, Tensor& moments) {
    const Index cols = x.cols();
    moments = make(2, cols);
    if (x.rows() == 0) return make(0, cols);
    check_batch_norm(cols, p);
    kernels::column_moments(threads_, x.rows(), cols, x.data(), moments.row(0), moments.row(1));
    const T rate = static_cast<T>(p.momentum);
    const T unbiased = static_cast<T>(x.rows()) / static_cast<T>(std::max<Index>(1, x.rows() - 1));
    // One batch after the other, so that many before an update are what PyTorch does in as many passes.
    const auto gather = [&](const Parameter<T>& statistic, Index row, T factor) {
      if (!statistic.trainable) return;
      T* update = statistic.gradient().data();
      for (Index c = 0; c < cols; ++c) update[c] += rate * (moments.row(row)[c] * factor - (statistic.value.data()[c] + update[c]));
    };
    gather(p.running_mean, 0, T(1));
    gather(p.running_var, 1, unbiased);
    return batch_norm_with(x, p, moments.row(0), moments.row(1));
  }
  /// `moments` as batch_norm_train gave them, or empty for the running statistics.
  Tensor batch_norm_backward(const Tensor& dy, const Tensor& x, const BatchNormParameters<T>& p, const Tensor& moments, bool needs_dx) {
    Tensor dx = needs_dx ? make(x.rows(), x.cols()) : Tensor();
    const bool of_batch = !moments.empty();
    kernels::batch_norm_backward(threads_, x.rows(), x.cols(), dy.data(), x.data(), p.weight.value.data(),
                                 of_batch ? moments.row(0) : p.running_mean.value.data(),
                                 of_batch ? moments.row(1) : p.running_var.value.data(), static_cast<T>(p.eps), of_batch,
                                 dx.data(), gradient(p.weight), gradient(p.bias));
    return dx;
  }

  /// x (rows of `from`, shape.in_cols()) to (rows of `to`, shape.out_cols()).
  Tensor conv2d(const Tensor& x, const Parameter<T>& weight, const Parameter<T>& bias, const Conv2dShape& shape,
                const Sequences& from, const Sequences& to) {
    require(shape.stride > 0 && weight.value.rows() == shape.out_channels && weight.value.cols() == shape.patch() &&
                bias.size() == shape.out_channels,
            "conv2d: stride ", shape.stride, ", a weight of (", weight.value.rows(), ", ", weight.value.cols(), ") and a bias of ", bias.size(),
            " given, a positive one, (", shape.out_channels, ", ", shape.patch(), ") and ", shape.out_channels, " expected");
    require(x.cols() == shape.in_cols() && x.rows() == from.rows(), "conv2d: input is (", x.rows(), ", ", x.cols(),
            "), expected (", from.rows(), ", ", shape.in_cols(), ")");
    require(from.size() == to.size(), "conv2d: ", to.size(), " sequences out given for ", from.size(), " in");
    for (Index n = 0; n < from.size(); ++n)
      require(to.length(n) == shape.out_length(from.length(n)), "conv2d: length ", to.length(n), " out given for ", from.length(n),
              " in, ", shape.out_length(from.length(n)), " expected");
    Tensor y = make(to.rows(), shape.out_cols());
    const Tensor ordered = conv2d_weight(weight, shape);
    kernels::conv2d(threads_, arena_, shape, from, to, x.data(), ordered.data(), bias.value.data(), y.data());
    return y;
  }
  Tensor conv2d_backward(const Tensor& dy, const Tensor& x, const Parameter<T>& weight, const Parameter<T>& bias,
                         const Conv2dShape& shape, const Sequences& from, const Sequences& to, bool needs_dx) {
    if (weight.trainable) {
      Tensor ordered = zeros(shape.out_channels, shape.patch());
      kernels::conv2d_backward_weight(threads_, arena_, shape, from, to, dy.data(), x.data(), ordered.data());
      kernels::conv2d_add_reordered(shape, ordered.data(), weight.gradient().data());
    }
    if (bias.trainable)
      kernels::add_column_sums(threads_, dy.rows() * shape.out_freqs(), shape.out_channels, dy.data(), bias.gradient().data());
    if (!needs_dx) return {};
    Tensor dx = zeros(x.rows(), x.cols());
    const Tensor ordered = conv2d_weight(weight, shape);
    kernels::conv2d_backward_input(threads_, arena_, shape, from, to, dy.data(), ordered.data(), dx.data());
    return dx;
  }

  /// Each channel with its own kernel over time, zeros outside a sequence; output t sees inputs t-left .. t-left+kernel-1.
  /// weight (channels, 1, kernel), bias (channels) or null.
  Tensor depthwise_conv(const Tensor& x, const Parameter<T>& weight, const Parameter<T>* bias, const Sequences& sequences, Index left) {
    const Index channels = weight.value.rows(), kernel = weight.value.cols();
    require(x.cols() == channels && x.rows() == sequences.rows(), "depthwise_conv: input is (", x.rows(), ", ", x.cols(),
            "), expected (", sequences.rows(), ", ", channels, ")");
    require(bias == nullptr || bias->size() == channels, "depthwise_conv: a bias of ", bias == nullptr ? 0 : bias->size(), " given for ",
            channels, " channels");
    Tensor y = make(x.rows(), channels);
    const Tensor taps = depthwise_taps(weight);
    kernels::depthwise_conv(threads_, sequences, channels, kernel, left, false, x.data(), taps.data(),
                            bias == nullptr ? nullptr : bias->value.data(), y.data());
    return y;
  }
  Tensor depthwise_conv_backward(const Tensor& dy, const Tensor& x, const Parameter<T>& weight, const Parameter<T>* bias,
                                 const Sequences& sequences, Index left, bool needs_dx) {
    const Index channels = weight.value.rows(), kernel = weight.value.cols();
    if (weight.trainable) {
      Tensor dtaps = zeros(kernel, channels);
      kernels::depthwise_conv_backward_taps(threads_, sequences, channels, kernel, left, dy.data(), x.data(), dtaps.data());
      weight.gradient() += dtaps.view().transpose();
    }
    if (bias != nullptr && bias->trainable)
      kernels::add_column_sums(threads_, dy.rows(), channels, dy.data(), bias->gradient().data());
    if (!needs_dx) return {};
    Tensor dx = make(x.rows(), channels);
    const Tensor taps = depthwise_taps(weight);
    kernels::depthwise_conv(threads_, sequences, channels, kernel, kernel - 1 - left, true, dy.data(), taps.data(),
                            static_cast<const T*>(nullptr), dx.data());
    return dx;
  }

  /// Softmax attention: see AttendShape and RelativeTerm. q (rows, num_heads * K), k (rows, num_kv_heads * K),
  /// v (rows, num_kv_heads * V) to (rows, num_heads * V). Key rows may outnumber query rows (cached frames): the last
  /// query stands at the last key. A query that sees no key gives zeros. Memory grows with rows, not with their square.
  /// The dropout (of probabilities) does nothing outside training.
  Tensor attend(const Tensor& q, const Tensor& k, const Tensor& v, const AttendShape& shape, const Sequences& q_sequences,
                const Sequences& kv_sequences, const RelativeTerm<Tensor, T>& relative = {}, double = 0) {
    const auto in = attend_operands(q, k, v, shape, q_sequences, kv_sequences, relative);
    Tensor out = make(q.rows(), in.out_cols());
    kernels::attend(threads_, arena_, in, out.data(), static_cast<T*>(nullptr));
    return out;
  }
  /// The same with dropout of the attention probabilities, keeping the row sums for the derivative.
  Tensor attend_train(const Tensor& q, const Tensor& k, const Tensor& v, const AttendShape& shape, const Sequences& q_sequences,
                      const Sequences& kv_sequences, const RelativeTerm<Tensor, T>& relative, const DropoutMask& dropout,
                      Tensor& log_sums) {
    auto in = attend_operands(q, k, v, shape, q_sequences, kv_sequences, relative);
    in.dropout = dropout;
    Tensor out = make(q.rows(), in.out_cols());
    log_sums = make(q.rows(), shape.num_heads);
    kernels::attend(threads_, arena_, in, out.data(), log_sums.data());
    return out;
  }
  struct AttendDerivative {
    Tensor dq, dk, dv, dtable;
  };
  AttendDerivative attend_backward(const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v, const AttendShape& shape,
                                   const Sequences& q_sequences, const Sequences& kv_sequences,
                                   const RelativeTerm<Tensor, T>& relative, const DropoutMask& dropout,
                                   const Tensor& log_sums) {
    auto in = attend_operands(q, k, v, shape, q_sequences, kv_sequences, relative);
    in.dropout = dropout;
    AttendDerivative d{make(q.rows(), q.cols()), make(k.rows(), k.cols()), make(v.rows(), v.cols()), {}};
    kernels::AttendGradients<T> to{d.dq.data(), d.dk.data(), d.dv.data()};
    if (in.p != nullptr) {
      d.dtable = make(relative.table.rows(), relative.table.cols());
      to.dp = d.dtable.data();
      to.du = relative.pos_bias_u == nullptr ? nullptr : gradient(*relative.pos_bias_u);
      to.dw = relative.pos_bias_v == nullptr ? nullptr : gradient(*relative.pos_bias_v);
    }
    kernels::attend_backward(threads_, arena_, in, dout.data(), log_sums.data(), to);
    return d;
  }

  /// Nothing, outside training.
  Tensor dropout(Tensor x, double) { return x; }
  Tensor dropout_train(const Tensor& x, const DropoutMask& mask) {
    Tensor y = make(x.rows(), x.cols());
    kernels::dropout(threads_, x.size(), mask, x.data(), y.data());
    return y;
  }

  /// x + scale * y.
  Tensor add(Tensor x, const Tensor& y, double scale = 1) {
    require(x.rows() == y.rows() && x.cols() == y.cols(), "add: (", x.rows(), ", ", x.cols(), ") and (", y.rows(), ", ", y.cols(),
            ") given, equal shapes expected");
    Tensor out = x.unique() ? x : make(x.rows(), x.cols());
    const kernels::Batch<T> s(static_cast<T>(scale));
    kernels::map(threads_, x.size(), out.data(), [s](auto a, auto b) { return xsimd::fma(s, b, a); }, std::as_const(x).data(), y.data());
    return out;
  }
  Tensor scale(const Tensor& x, double factor) {
    Tensor y = make(x.rows(), x.cols());
    const kernels::Batch<T> s(static_cast<T>(factor));
    kernels::map(threads_, x.size(), y.data(), [s](auto a) { return s * a; }, x.data());
    return y;
  }

  Tensor log_softmax(const Tensor& x) {
    Tensor y = make(x.rows(), x.cols());
    kernels::log_softmax(threads_, x.rows(), x.cols(), x.data(), y.data());
    return y;
  }
  Tensor log_softmax_backward(const Tensor& dy, const Tensor& y) {
    Tensor dx = make(y.rows(), y.cols());
    kernels::log_softmax_backward(threads_, y.rows(), y.cols(), dy.data(), y.data(), dx.data());
    return dx;
  }

  /// CTC loss (sequences, 1) from unnormalised logits (rows, vocab); +infinity where the labels do not fit the frames.
  /// `gradient`, if given, receives the derivative by the logits, zero for those.
  Tensor ctc(const Tensor& logits, const Sequences& sequences, const Labels& labels, int blank, Tensor* derivative = nullptr) {
    require(labels.sequences.size() == sequences.size(), "ctc: ", labels.sequences.size(), " label sequences given for ",
            sequences.size(), " sequences of logits");
    require(static_cast<Index>(labels.tokens.size()) == labels.sequences.rows(), "ctc: ", labels.tokens.size(),
            " labels given, their sequences hold ", labels.sequences.rows());
    require(logits.rows() == sequences.rows(), "ctc: ", logits.rows(), " rows of logits given, their sequences have ", sequences.rows());
    require(blank >= 0 && blank < logits.cols(), "ctc: blank ", blank, " given, expected 0 .. ", logits.cols() - 1);
    for (const int token : labels.tokens)
      require(token >= 0 && token < logits.cols() && token != blank, "ctc: label ", token, " given, expected 0 .. ",
              logits.cols() - 1, " except the blank ", blank);
    const Tensor log_probs = log_softmax(logits);
    Tensor losses = make(sequences.size(), 1), own;
    Tensor& d = derivative == nullptr ? own : *derivative;
    d = make(logits.rows(), logits.cols());
    Index most = 1;
    for (Index n = 0; n < sequences.size(); ++n)
      most = std::max(most, kernels::ctc_scratch(sequences.length(n), labels.sequences.length(n)));
    const Buffer scratch = arena_.allocate(static_cast<std::size_t>(threads_ * most) * sizeof(double));
    kernels::parallel_for(threads_, sequences.size(), [&](Index n, int thread) {
      const std::span tokens(labels.tokens.data() + labels.sequences.begin(n), static_cast<std::size_t>(labels.sequences.length(n)));
      losses.row(n)[0] = static_cast<T>(kernels::ctc<T>(
          sequences.length(n), logits.cols(), log_probs.row(sequences.begin(n)), tokens, blank, d.row(sequences.begin(n)),
          static_cast<double*>(scratch.data()) + thread * most));
    });
    return losses;
  }
  Tensor ctc_backward(const Tensor& dlosses, const Sequences& sequences, const Tensor& derivative) {
    Tensor dx = make(derivative.rows(), derivative.cols());
    for (Index n = 0; n < sequences.size(); ++n) {
      const kernels::Batch<T> factor(dlosses.row(n)[0]);
      kernels::map_span(sequences.length(n) * dx.cols(), dx.row(sequences.begin(n)), [factor](auto a) { return factor * a; },
                        derivative.row(sequences.begin(n)));
    }
    return dx;
  }

  /// The mean of all numbers (1, 1), infinite ones counted as zero, so that one impossible target spoils no batch. What is
  /// not a number stays so: it is a fault, and must show.
  Tensor mean_finite(const Tensor& x) {
    double sum = 0;
    for (Index i = 0; i < x.size(); ++i) sum += std::isinf(x.data()[i]) ? 0.0 : static_cast<double>(x.data()[i]);
    Tensor y = make(1, 1);
    y.row(0)[0] = static_cast<T>(sum / static_cast<double>(std::max<Index>(1, x.size())));
    return y;
  }
  Tensor mean_finite_backward(const Tensor& dy, const Tensor& x) {
    Tensor dx = make(x.rows(), x.cols());
    for (Index i = 0; i < x.size(); ++i) dx.data()[i] = std::isinf(x.data()[i]) ? T(0) : dy.row(0)[0] / static_cast<T>(x.size());
    return dx;
  }

 private:
  static kernels::Operand<T> weight_operand(const Parameter<T>& weight) { return {weight.value.data(), weight.value.cols()}; }
  static T* gradient(const Parameter<T>& p) { return p.trainable ? p.gradient().data() : nullptr; }

  static void check_batch_norm(Index channels, const BatchNormParameters<T>& p) {
    for (const Parameter<T>* one : {&p.weight, &p.bias, &p.running_mean, &p.running_var})
      require(one->size() == channels, "batch_norm: input has ", channels, " channels, a parameter expects ", one->size());
  }
  Tensor batch_norm_with(const Tensor& x, const BatchNormParameters<T>& p, const T* mean, const T* variance) {
    check_batch_norm(x.cols(), p);
    Tensor y = make(x.rows(), x.cols());
    Tensor scale_shift = make(2, x.cols());
    kernels::batch_norm(threads_, x.rows(), x.cols(), x.data(), p.weight.value.data(), p.bias.value.data(), mean, variance,
                        static_cast<T>(p.eps), scale_shift.data(), y.data());
    return y;
  }
  Tensor conv2d_weight(const Parameter<T>& weight, const Conv2dShape& shape) {
    Tensor ordered = make(shape.out_channels, shape.patch());
    kernels::conv2d_reorder(shape, weight.value.data(), ordered.data());
    return ordered;
  }
  Tensor depthwise_taps(const Parameter<T>& weight) {
    Tensor taps = make(weight.value.cols(), weight.value.rows());
    taps.view() = weight.value.transpose();
    return taps;
  }
  kernels::AttendOperands<T> attend_operands(const Tensor& q, const Tensor& k, const Tensor& v, const AttendShape& shape,
                                             const Sequences& q_sequences, const Sequences& kv_sequences,
                                             const RelativeTerm<Tensor, T>& relative) {
    const Index width = shape.num_heads > 0 ? q.cols() / shape.num_heads : 0;
    require(width > 0 && shape.num_kv_heads > 0 && shape.num_heads % shape.num_kv_heads == 0 && q.cols() == width * shape.num_heads &&
                k.cols() == width * shape.num_kv_heads && v.cols() % shape.num_kv_heads == 0,
            "attend: q, k, v have ", q.cols(), ", ", k.cols(), ", ", v.cols(), " channels, which ", shape.num_heads, " heads over ",
            shape.num_kv_heads, " key-value heads do not divide");
    require(q.rows() == q_sequences.rows() && k.rows() == kv_sequences.rows() && v.rows() == k.rows() &&
                q_sequences.size() == kv_sequences.size(),
            "attend: q, k, v have ", q.rows(), ", ", k.rows(), ", ", v.rows(), " rows; their sequences have ", q_sequences.rows(),
            " and ", kv_sequences.rows());
    require(shape.mask.is_valid(), "attend: a mask of chunk ", shape.mask.chunk, " and left context ", shape.mask.left_context,
            " given, at least 1 and 0 expected, or neither");
    kernels::AttendOperands<T> in{shape, &q_sequences, &kv_sequences, width, v.cols() / shape.num_kv_heads, q.data(), k.data(), v.data()};
    if (!relative.table.empty()) {
      in.p = relative.table.data();
      for (const auto* bias : {relative.pos_bias_u, relative.pos_bias_v})
        require(bias == nullptr || bias->size() == q.cols(), "attend: a position bias of ", bias == nullptr ? 0 : bias->size(), " given, ", q.cols(),
                " expected");
      if (relative.pos_bias_u != nullptr) in.u = relative.pos_bias_u->value.data();
      if (relative.pos_bias_v != nullptr) in.w = relative.pos_bias_v->value.data();
      in.span = (relative.table.rows() + 1) / 2;
      require(relative.table.cols() == q.cols() && relative.table.rows() % 2 == 1 && in.span >= kv_sequences.max_length(),
              "attend: the table of relative positions is (", relative.table.rows(), ", ", relative.table.cols(), "), expected (2 n - 1, ",
              q.cols(), ") with n at least ", kv_sequences.max_length());
      for (Index n = 0; n < q_sequences.size(); ++n)
        require(q_sequences.length(n) <= kv_sequences.length(n), "attend: sequence ", n, " has ", q_sequences.length(n), " queries and ",
                kv_sequences.length(n), " keys, at least as many keys expected with relative positions");
    }
    return in;
  }

  int threads_;
  Arena arena_;
};

}  // namespace laconic
