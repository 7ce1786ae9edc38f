// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/checks/elementwise.hpp>
#include <laconic/backend/checks/losses.hpp>
#include <laconic/backend/cpu/core.hpp>
#include <laconic/backend/cpu/kernels/ctc.hpp>
#include <laconic/backend/cpu/kernels/elementwise.hpp>
#include <laconic/backend/cpu/kernels/norm.hpp>
#include <laconic/core/compiled.hpp>

#include <algorithm>
#include <cmath>
#include <span>

namespace laconic {
inline namespace LACONIC_ABI {

/// Implements the losses of `Cpu`.
template <class T>
class CpuLosses {
 public:
  /// Names the type of the values that primitives take and return.
  using Tensor = laconic::Tensor<T>;

  /// Returns x - logsumexp(x) for each row.
  Tensor log_softmax(const Tensor& x) {
    Tensor y = core_.make(x.rows(), x.cols());
    kernels::log_softmax(core_.threads(), x.rows(), x.cols(), x.data(), y.data());
    return y;
  }
  /// Returns the softmax of each row.
  Tensor softmax(const Tensor& x) {
    Tensor y = log_softmax(x);
    y.view() = y.view().array().exp().matrix();
    return y;
  }
  /// Returns the sum of the elementwise product of x and y, computed in double. Throws `Error` for different shapes.
  double dot(const Tensor& x, const Tensor& y) {
    checks::equal_shapes("dot", x, y);
    return x.view().template cast<double>().cwiseProduct(y.view().template cast<double>()).sum();
  }
  /// Returns the sum of squares of all elements.
  double squared_norm(const Tensor& x) { return static_cast<double>(x.view().squaredNorm()); }
  /// Returns the derivative of `log_softmax` by its input, from its result y.
  Tensor log_softmax_backward(const Tensor& dy, const Tensor& y) {
    Tensor dx = core_.make(y.rows(), y.cols());
    kernels::log_softmax_backward(core_.threads(), y.rows(), y.cols(), dy.data(), y.data(), dx.data());
    return dx;
  }

  /// Returns the CTC losses (sequences, 1) of logits (rows, classes), and writes the derivative of the losses by the
  /// logits if `derivative` is not null. Throws `Error` for sizes that do not fit and for labels that are the blank or
  /// no class.
  Tensor ctc(const Tensor& logits, const Sequences& sequences, const Labels& labels, int blank,
             Tensor* derivative = nullptr) {
    checks::ctc(logits, sequences, labels, blank);
    const Tensor log_probs = log_softmax(logits);
    Tensor losses = core_.make(sequences.size(), 1), own;
    Tensor& d = derivative == nullptr ? own : *derivative;
    d = core_.make(logits.rows(), logits.cols());
    Index max_scratch = 1;
    for (Index n = 0; n < sequences.size(); ++n)
      max_scratch = std::max(max_scratch, kernels::ctc_scratch(sequences.length(n), labels.sequences.length(n)));
    const Buffer scratch =
        core_.arena().allocate(static_cast<std::size_t>(core_.threads() * max_scratch) * sizeof(double));
    kernels::parallel_for(core_.threads(), sequences.size(), [&](Index n, int thread) {
      const std::span tokens(labels.tokens.data() + labels.sequences.begin(n),
                             static_cast<std::size_t>(labels.sequences.length(n)));
      losses.row(n)[0] = static_cast<T>(
          kernels::ctc<T>(sequences.length(n), logits.cols(), log_probs.row(sequences.begin(n)), tokens, blank,
                          d.row(sequences.begin(n)), static_cast<double*>(scratch.data()) + thread * max_scratch));
    });
    return losses;
  }
  /// Returns the derivative that `ctc` wrote, scaled by dlosses (sequences, 1).
  Tensor ctc_backward(const Tensor& dlosses, const Sequences& sequences, const Tensor& derivative) {
    Tensor dx = core_.make(derivative.rows(), derivative.cols());
    for (Index n = 0; n < sequences.size(); ++n) {
      const kernels::Batch<T> factor(dlosses.row(n)[0]);
      kernels::map_span(
          sequences.length(n) * dx.cols(), dx.row(sequences.begin(n)), [factor](auto a) { return factor * a; },
          derivative.row(sequences.begin(n)));
    }
    return dx;
  }

  /// Returns the cross entropies (rows, 1) of logits (rows, classes) with targets, in nats, and writes the log softmax
  /// if `log_probs` is not null. Throws `Error` for a target that is no class and not ignored.
  Tensor cross_entropy(const Tensor& logits, std::span<const int> targets, const CrossEntropyShape& shape,
                       Tensor* log_probs = nullptr) {
    checks::cross_entropy(logits, targets, shape);
    Tensor y = log_softmax(logits), losses = core_.make(logits.rows(), 1);
    const T on_target = static_cast<T>(shape.on_target()), on_all = static_cast<T>(shape.on_all(logits.cols()));
    for (Index r = 0; r < logits.rows(); ++r) {
      const int target = targets[static_cast<std::size_t>(r)];
      T& loss = losses.row(r)[0];
      loss = target == shape.ignored ? T(0) : -on_target * y.row(r)[target];
      if (on_all > 0 && target != shape.ignored) loss -= on_all * y.view().row(r).sum();
    }
    if (log_probs != nullptr) *log_probs = std::move(y);
    return losses;
  }
  /// Returns the derivative of `cross_entropy` by the logits, from that by the losses (rows, 1) and the log softmax.
  Tensor cross_entropy_backward(const Tensor& dlosses, const Tensor& log_probs, std::span<const int> targets,
                                const CrossEntropyShape& shape) {
    Tensor dx = core_.make(log_probs.rows(), log_probs.cols());
    const T on_target = static_cast<T>(shape.on_target()), on_all = static_cast<T>(shape.on_all(log_probs.cols()));
    kernels::parallel_blocks(core_.threads(), dx.rows(), 16, [&](Index begin, Index end) {
      for (Index r = begin; r < end; ++r) {
        const int target = targets[static_cast<std::size_t>(r)];
        const T d = target == shape.ignored ? T(0) : dlosses.row(r)[0];
        const kernels::Batch<T> factor(d), all(on_all);
        kernels::map_span(
            dx.cols(), dx.row(r), [factor, all](auto l) { return factor * (kernels::exp<T>(l) - all); },
            log_probs.row(r));
        if (d != 0) dx.row(r)[target] -= d * on_target;
      }
    });
    return dx;
  }

  /// Returns the mean (1, 1) of all elements, where infinite ones count as 0.
  Tensor mean_finite(const Tensor& x) {
    double sum = 0;
    for (Index i = 0; i < x.size(); ++i) sum += std::isinf(x.data()[i]) ? 0.0 : static_cast<double>(x.data()[i]);
    Tensor y = core_.make(1, 1);
    y.row(0)[0] = static_cast<T>(sum / static_cast<double>(std::max<Index>(1, x.size())));
    return y;
  }
  /// Returns dy / size for finite elements of x and NaN, and 0 for infinite ones.
  Tensor mean_finite_backward(const Tensor& dy, const Tensor& x) {
    Tensor dx = core_.make(x.rows(), x.cols());
    for (Index i = 0; i < x.size(); ++i)
      dx.data()[i] = std::isinf(x.data()[i]) ? T(0) : dy.row(0)[0] / static_cast<T>(x.size());
    return dx;
  }

 protected:
  /// Binds this slice to the core of its context.
  explicit CpuLosses(CpuCore<T>& core) : core_(core) {}

 private:
  CpuCore<T>& core_;
};

LACONIC_COMPILE_CLASS(CpuLosses);

}  // namespace LACONIC_ABI
}  // namespace laconic
