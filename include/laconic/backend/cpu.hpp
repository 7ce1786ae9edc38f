// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cpu/convolution.hpp>
#include <laconic/backend/cpu/kernels/ctc.hpp>
#include <laconic/backend/cpu/kernels/norm.hpp>
#include <laconic/backend/cpu/packed.hpp>
#include <laconic/core/parameter.hpp>

#include <optional>
#include <utility>

namespace laconic {
inline namespace LACONIC_ABI {

/// The context that computes on the CPU: kernels by xsimd, threads by OpenMP, intermediates in an arena (a warm forward
/// pass allocates nothing). Results do not depend on the number of threads. One context belongs to one thread.
///
/// Every primitive takes and gives tensors `(rows, channels)` of packed rows. Arguments taken by value may be
/// overwritten when nobody else holds them. Each `*_backward` gives the derivative by the inputs and adds the
/// derivative by trainable parameters to their gradients.
template <class T = float>
class Cpu : public CpuConvolution<T> {
 public:
  using typename CpuValues<T>::Tensor;
  using CpuValues<T>::make, CpuValues<T>::zeros, CpuValues<T>::add_row_backward;

  static constexpr bool training = false;

  /// `threads` = 0 takes all that the machine offers.
  explicit Cpu(int threads = 0) : CpuConvolution<T>(threads) {}

  /// x W^T + b, then an activation if one is given. x (rows, in), weight (out, in), bias (out) or null.
  Tensor linear(const Tensor& x, const Parameter<T>& weight, const Parameter<T>* bias,
                std::optional<Activation> activation = {}) {
    const Index out = weight.rows(), in = weight.cols();
    require(x.cols() == in, "linear: input has ", x.cols(), " channels, the weight expects ", in);
    require(bias == nullptr || bias->size() == out, "linear: a bias of ", bias == nullptr ? 0 : bias->size(),
            " given for ", out, " channels");
    Tensor y = make(x.rows(), out);
    const T* start = bias == nullptr ? nullptr : bias->host().data();
    require(!weight.is_packed() || weight.packed().packing == Packing::matrix,
            "linear: the packed weight of a convolution given, a matrix expected");
    if (weight.is_packed())
      kernels::multiply(threads_, arena_, x.rows(), kernels::Operand<T>{x.data(), in}, out, in, weight.packed(), start,
                        y.data(), kernels::ActivationEpilogue{activation});
    else
      kernels::gemm<T>(threads_, arena_, x.rows(), out, in, {x.data(), in}, weight_operand(weight).transposed(),
                       y.data(), out, false, start, kernels::ActivationEpilogue{activation});
    return y;
  }
  Tensor linear_backward(const Tensor& dy, const Tensor& x, const Parameter<T>& weight, const Parameter<T>* bias,
                         bool needs_dx) {
    const Index out = weight.host().rows(), in = weight.host().cols(), rows = x.rows();
    const kernels::Operand<T> g{dy.data(), out};
    if (weight.trainable)
      kernels::gemm<T>(threads_, arena_, out, in, rows, g.transposed(), {x.data(), in}, weight.gradient().data(), in,
                       true, nullptr);
    if (bias != nullptr) add_row_backward(dy, *bias);
    if (!needs_dx) return {};
    Tensor dx = make(rows, in);
    kernels::gemm<T>(threads_, arena_, rows, in, out, g, weight_operand(weight), dx.data(), in, false, nullptr);
    return dx;
  }

  Tensor activation(Activation kind, Tensor x) {
    const auto activate = [kind](auto a) { return kernels::activate(kind, a); };
    return mapped(x.unique() ? x : make(x.rows(), x.cols()), activate, x);
  }
  Tensor activation_backward(Activation kind, Tensor dy, const Tensor& x) {
    const auto derivative = [kind](auto d, auto a) { return kernels::activate_backward(kind, d, a); };
    return mapped(dy.unique() ? dy : make(x.rows(), x.cols()), derivative, dy, x);
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
  Tensor layer_norm(const Tensor& x, const Parameter<T>& weight, const Parameter<T>& bias, double eps,
                    Tensor* moments = nullptr) {
    require(x.cols() == weight.size() && x.cols() == bias.size(), "layer_norm: input has ", x.cols(),
            " channels, weight and bias expect ", weight.size(), " and ", bias.size());
    Tensor y = make(x.rows(), x.cols());
    if (moments != nullptr) *moments = make(x.rows(), 2);
    kernels::layer_norm(threads_, x.rows(), x.cols(), x.data(), weight.host().data(), bias.host().data(),
                        static_cast<T>(eps), y.data(), moments == nullptr ? nullptr : moments->data());
    return y;
  }
  Tensor layer_norm_backward(const Tensor& dy, const Tensor& x, const Parameter<T>& weight, const Parameter<T>& bias,
                             const Tensor& moments, bool needs_dx) {
    Tensor dx = needs_dx ? make(x.rows(), x.cols()) : Tensor();
    kernels::layer_norm_backward(threads_, x.rows(), x.cols(), dy.data(), x.data(), weight.host().data(),
                                 moments.data(), dx.data(), gradient(weight), gradient(bias));
    return dx;
  }

  /// Divided by the root of the mean square of the row. `inverses`, if given, receives 1/rms of each row.
  Tensor rms_norm(const Tensor& x, const Parameter<T>& weight, double eps, Tensor* inverses = nullptr) {
    require(x.cols() == weight.size(), "rms_norm: input has ", x.cols(), " channels, the weight expects ",
            weight.size());
    Tensor y = make(x.rows(), x.cols());
    if (inverses != nullptr) *inverses = make(x.rows(), 1);
    kernels::rms_norm(threads_, x.rows(), x.cols(), x.data(), weight.host().data(), static_cast<T>(eps), y.data(),
                      inverses == nullptr ? nullptr : inverses->data());
    return y;
  }
  Tensor rms_norm_backward(const Tensor& dy, const Tensor& x, const Parameter<T>& weight, const Tensor& inverses,
                           bool needs_dx) {
    Tensor dx = needs_dx ? make(x.rows(), x.cols()) : Tensor();
    kernels::rms_norm_backward(threads_, x.rows(), x.cols(), dy.data(), x.data(), weight.host().data(), inverses.data(),
                               dx.data(), gradient(weight));
    return dx;
  }

  /// With the running statistics (evaluation).
  Tensor batch_norm(const Tensor& x, const BatchNormParameters<T>& p) {
    return batch_norm_with(x, p, p.running_mean.host().data(), p.running_var.host().data());
  }
  /// With the statistics of the rows themselves, which are given in `moments` (2, channels). With `gather`, the update
  /// of the running statistics goes to their gradient slots (variance unbiased, as PyTorch does it).
  Tensor batch_norm_train(const Tensor& x, const BatchNormParameters<T>& p, Tensor& moments, bool gather = true) {
    const Index cols = x.cols();
    moments = make(2, cols);
    if (x.rows() == 0) return make(0, cols);
    check_batch_norm(cols, p);
    kernels::column_moments(threads_, x.rows(), cols, x.data(), moments.row(0), moments.row(1));
    const T rate = static_cast<T>(p.momentum);
    const T unbiased = static_cast<T>(x.rows()) / static_cast<T>(std::max<Index>(1, x.rows() - 1));
    // One batch after the other, so that many before an update are what PyTorch does in as many passes.
    const auto add_update = [&](const Parameter<T>& statistic, Index row, T factor) {
      if (!statistic.trainable || !gather) return;
      T* update = statistic.gradient().data();
      for (Index c = 0; c < cols; ++c)
        update[c] += rate * (moments.row(row)[c] * factor - (statistic.host().data()[c] + update[c]));
    };
    add_update(p.running_mean, 0, T(1));
    add_update(p.running_var, 1, unbiased);
    return batch_norm_with(x, p, moments.row(0), moments.row(1));
  }
  /// `moments` as batch_norm_train gave them, or empty for the running statistics.
  Tensor batch_norm_backward(const Tensor& dy, const Tensor& x, const BatchNormParameters<T>& p, const Tensor& moments,
                             bool needs_dx) {
    Tensor dx = needs_dx ? make(x.rows(), x.cols()) : Tensor();
    const bool of_batch = !moments.empty();
    kernels::batch_norm_backward(threads_, x.rows(), x.cols(), dy.data(), x.data(), p.weight.host().data(),
                                 of_batch ? moments.row(0) : p.running_mean.host().data(),
                                 of_batch ? moments.row(1) : p.running_var.host().data(), static_cast<T>(p.eps),
                                 of_batch, dx.data(), gradient(p.weight), gradient(p.bias));
    return dx;
  }

  /// Each channel of each sequence to mean 0 and variance 1 over its rows, then scaled and shifted by channel.
  /// `moments`, if given, receives mean and variance, two rows a sequence, for the derivative.
  Tensor sequence_norm(const Tensor& x, const Parameter<T>& weight, const Parameter<T>& bias, double eps,
                       const Sequences& sequences, Tensor* moments = nullptr) {
    require(x.cols() == weight.size() && x.cols() == bias.size() && x.rows() == sequences.rows(),
            "sequence_norm: input is (", x.rows(), ", ", x.cols(), "), expected (", sequences.rows(), ", ",
            weight.size(), ")");
    Tensor y = make(x.rows(), x.cols()), of = make(2 * sequences.size(), x.cols()), scale_shift = make(2, x.cols());
    for (Index n = 0; n < sequences.size(); ++n) {
      const Index first = sequences.begin(n), rows = sequences.length(n);
      if (rows == 0) continue;
      kernels::column_moments(threads_, rows, x.cols(), x.row(first), of.row(2 * n), of.row(2 * n + 1));
      kernels::batch_norm(threads_, rows, x.cols(), x.row(first), weight.host().data(), bias.host().data(),
                          of.row(2 * n), of.row(2 * n + 1), static_cast<T>(eps), scale_shift.data(), y.row(first));
    }
    if (moments != nullptr) *moments = std::move(of);
    return y;
  }
  Tensor sequence_norm_backward(const Tensor& dy, const Tensor& x, const Parameter<T>& weight, const Parameter<T>& bias,
                                double eps, const Sequences& sequences, const Tensor& moments, bool needs_dx) {
    Tensor dx = needs_dx ? make(x.rows(), x.cols()) : Tensor();
    for (Index n = 0; n < sequences.size(); ++n) {
      const Index first = sequences.begin(n), rows = sequences.length(n);
      if (rows == 0) continue;
      kernels::batch_norm_backward(threads_, rows, x.cols(), dy.row(first), x.row(first), weight.host().data(),
                                   moments.row(2 * n), moments.row(2 * n + 1), static_cast<T>(eps), true,
                                   needs_dx ? dx.row(first) : nullptr, gradient(weight), gradient(bias));
    }
    return dx;
  }

  /// Nothing, outside training.
  Tensor dropout(Tensor x, double) { return x; }
  Tensor dropout_train(Tensor x, const DropoutMask& mask) {
    Tensor y = x.unique() ? x : make(x.rows(), x.cols());
    kernels::dropout(threads_, x.size(), mask, std::as_const(x).data(), y.data());
    return y;
  }

  /// x + scale * y.
  Tensor add(Tensor x, const Tensor& y, double scale = 1) {
    require(x.rows() == y.rows() && x.cols() == y.cols(), "add: (", x.rows(), ", ", x.cols(), ") and (", y.rows(), ", ",
            y.cols(), ") given, equal shapes expected");
    const kernels::Batch<T> s(static_cast<T>(scale));
    const auto sum = [s](auto a, auto b) { return xsimd::fma(s, b, a); };
    return mapped(x.unique() ? x : make(x.rows(), x.cols()), sum, x, y);
  }
  /// x plus a row of parameters, the same for every row.
  Tensor add_row(Tensor x, const Parameter<T>& row) {
    require(x.cols() == row.size(), "add_row: input has ", x.cols(), " channels, the row has ", row.size());
    Tensor y = x.unique() ? x : make(x.rows(), x.cols());
    const Tensor& from = x;
    kernels::parallel_blocks(threads_, x.rows(), 32, [&](Index begin, Index end) {
      for (Index r = begin; r < end; ++r)
        kernels::map_span(
            x.cols(), y.row(r), [](auto a, auto b) { return a + b; }, from.row(r), row.host().data());
    });
    return y;
  }
  /// Number by number.
  Tensor multiply(const Tensor& x, const Tensor& y) {
    require(x.rows() == y.rows() && x.cols() == y.cols(), "multiply: (", x.rows(), ", ", x.cols(), ") and (", y.rows(),
            ", ", y.cols(), ") given, equal shapes expected");
    return mapped(
        make(x.rows(), x.cols()), [](auto a, auto b) { return a * b; }, x, y);
  }
  /// Columns first .. first + count - 1.
  Tensor columns(const Tensor& x, Index first, Index count) {
    require(first >= 0 && count > 0 && first + count <= x.cols(), "columns: ", first, " to ", first + count, " of ",
            x.cols(), " wanted");
    Tensor out = make(x.rows(), count);
    out.view() = std::as_const(x).view().middleCols(first, count);
    return out;
  }
  Tensor columns_backward(const Tensor& dy, Index first, Index cols) {
    Tensor dx = zeros(dy.rows(), cols);
    dx.view().middleCols(first, dy.cols()) = dy.view();
    return dx;
  }
  /// sigmoid(gate) x + (1 - sigmoid(gate)) y with one gate for each sequence, (sequences, 1).
  Tensor mix(const Tensor& x, const Tensor& y, const Tensor& gate, const Sequences& sequences) {
    require(x.rows() == y.rows() && x.cols() == y.cols() && x.rows() == sequences.rows() &&
                gate.rows() == sequences.size() && gate.cols() == 1,
            "mix: (", x.rows(), ", ", x.cols(), ") and (", y.rows(), ", ", y.cols(), ") with gates (", gate.rows(),
            ", ", gate.cols(), ") given, ", sequences.rows(), " rows of equal width and (", sequences.size(),
            ", 1) expected");
    Tensor out = make(x.rows(), x.cols());
    for (Index n = 0; n < sequences.size(); ++n) {
      const T weight = T(1) / (T(1) + std::exp(-gate.row(n)[0]));
      const Index first = sequences.begin(n), count = sequences.length(n);
      out.view().middleRows(first, count) =
          weight * x.view().middleRows(first, count) + (T(1) - weight) * y.view().middleRows(first, count);
    }
    return out;
  }
  struct MixDerivative {
    Tensor dx, dy, dgate;
  };
  MixDerivative mix_backward(const Tensor& dout, const Tensor& x, const Tensor& y, const Tensor& gate,
                             const Sequences& sequences) {
    MixDerivative d{make(x.rows(), x.cols()), make(x.rows(), x.cols()), make(gate.rows(), 1)};
    for (Index n = 0; n < sequences.size(); ++n) {
      const T weight = T(1) / (T(1) + std::exp(-gate.row(n)[0]));
      const Index first = sequences.begin(n), count = sequences.length(n);
      const auto g = dout.view().middleRows(first, count);
      d.dx.view().middleRows(first, count) = weight * g;
      d.dy.view().middleRows(first, count) = (T(1) - weight) * g;
      d.dgate.row(n)[0] = weight * (T(1) - weight) *
                          g.cwiseProduct(x.view().middleRows(first, count) - y.view().middleRows(first, count)).sum();
    }
    return d;
  }
  Tensor scale(Tensor x, double factor) {
    const kernels::Batch<T> s(static_cast<T>(factor));
    return mapped(
        x.unique() ? x : make(x.rows(), x.cols()), [s](auto a) { return s * a; }, x);
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
  Tensor ctc(const Tensor& logits, const Sequences& sequences, const Labels& labels, int blank,
             Tensor* derivative = nullptr) {
    require(labels.sequences.size() == sequences.size(), "ctc: ", labels.sequences.size(),
            " label sequences given for ", sequences.size(), " sequences of logits");
    require(static_cast<Index>(labels.tokens.size()) == labels.sequences.rows(), "ctc: ", labels.tokens.size(),
            " labels given, their sequences hold ", labels.sequences.rows());
    require(logits.rows() == sequences.rows(), "ctc: ", logits.rows(), " rows of logits given, their sequences have ",
            sequences.rows());
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
      const std::span tokens(labels.tokens.data() + labels.sequences.begin(n),
                             static_cast<std::size_t>(labels.sequences.length(n)));
      losses.row(n)[0] = static_cast<T>(
          kernels::ctc<T>(sequences.length(n), logits.cols(), log_probs.row(sequences.begin(n)), tokens, blank,
                          d.row(sequences.begin(n)), static_cast<double*>(scratch.data()) + thread * most));
    });
    return losses;
  }
  Tensor ctc_backward(const Tensor& dlosses, const Sequences& sequences, const Tensor& derivative) {
    Tensor dx = make(derivative.rows(), derivative.cols());
    for (Index n = 0; n < sequences.size(); ++n) {
      const kernels::Batch<T> factor(dlosses.row(n)[0]);
      kernels::map_span(
          sequences.length(n) * dx.cols(), dx.row(sequences.begin(n)), [factor](auto a) { return factor * a; },
          derivative.row(sequences.begin(n)));
    }
    return dx;
  }

  /// The mean of all numbers (1, 1), infinite ones counted as zero, so that one impossible target spoils no batch. What
  /// is not a number stays so: it is a fault, and must show.
  Tensor mean_finite(const Tensor& x) {
    double sum = 0;
    for (Index i = 0; i < x.size(); ++i) sum += std::isinf(x.data()[i]) ? 0.0 : static_cast<double>(x.data()[i]);
    Tensor y = make(1, 1);
    y.row(0)[0] = static_cast<T>(sum / static_cast<double>(std::max<Index>(1, x.size())));
    return y;
  }
  Tensor mean_finite_backward(const Tensor& dy, const Tensor& x) {
    Tensor dx = make(x.rows(), x.cols());
    for (Index i = 0; i < x.size(); ++i)
      dx.data()[i] = std::isinf(x.data()[i]) ? T(0) : dy.row(0)[0] / static_cast<T>(x.size());
    return dx;
  }

 private:
  using CpuValues<T>::threads_, CpuValues<T>::arena_, CpuValues<T>::gradient;

  static kernels::Operand<T> weight_operand(const Parameter<T>& weight) {
    return {weight.host().data(), weight.host().cols()};
  }

  /// f of each number of the inputs, in `out`, which may be the first of them.
  template <class F, class... Inputs>
  Tensor mapped(Tensor out, F f, const Inputs&... inputs) {
    kernels::map(threads_, out.size(), out.data(), f, inputs.data()...);
    return out;
  }

  static void check_batch_norm(Index channels, const BatchNormParameters<T>& p) {
    for (const Parameter<T>* one : {&p.weight, &p.bias, &p.running_mean, &p.running_var})
      require(one->size() == channels, "batch_norm: input has ", channels, " channels, a parameter expects ",
              one->size());
  }
  Tensor batch_norm_with(const Tensor& x, const BatchNormParameters<T>& p, const T* mean, const T* variance) {
    check_batch_norm(x.cols(), p);
    Tensor y = make(x.rows(), x.cols());
    Tensor scale_shift = make(2, x.cols());
    kernels::batch_norm(threads_, x.rows(), x.cols(), x.data(), p.weight.host().data(), p.bias.host().data(), mean,
                        variance, static_cast<T>(p.eps), scale_shift.data(), y.data());
    return y;
  }
};

}  // namespace LACONIC_ABI
}  // namespace laconic
