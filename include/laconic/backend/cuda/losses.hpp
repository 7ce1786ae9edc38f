// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/checks/elementwise.hpp>
#include <laconic/backend/checks/losses.hpp>
#include <laconic/backend/cuda/core.hpp>
#include <laconic/backend/cuda/kernels/ctc.hpp>
#include <laconic/backend/cuda/kernels/losses.hpp>

#include <algorithm>
#include <span>
#include <utility>

namespace laconic {
inline namespace LACONIC_ABI {

/// Implements the losses of `Cuda`.
template <class T>
class CudaLosses {
 public:
  /// Names the type of the values that primitives take and return.
  using Tensor = CudaTensor<T>;

  /// Returns x - logsumexp(x) for each row.
  Tensor log_softmax(const Tensor& x) { return softmax_of(x, false); }
  /// Returns the softmax of each row.
  Tensor softmax(const Tensor& x) { return softmax_of(x, true); }
  /// Returns the sum of the elementwise product of x and y, computed in double. Waits for it. Throws `Error` for
  /// different shapes.
  double dot(const Tensor& x, const Tensor& y) {
    checks::equal_shapes("dot", x, y);
    return core_.sum("dot", x.size(), cuda::Products<T>{x.data(), y.data()});
  }
  /// Returns the sum of squares of all elements, computed in double. Waits for it.
  double squared_norm(const Tensor& x) { return dot(x, x); }
  /// Returns the derivative of `log_softmax` by its input, from its result y.
  Tensor log_softmax_backward(const Tensor& dy, const Tensor& y) {
    Tensor dx = core_.make(y.rows(), y.cols());
    launch(core_.stream(), "log_softmax_backward", {y.rows()},
           cuda::LogSoftmaxBackward<T>{dy.data(), y.data(), dx.data(), y.cols()});
    return dx;
  }

  /// Returns the CTC losses (sequences, 1) of logits (rows, classes), and writes the derivative of the losses by the
  /// logits if `derivative` is not null. Throws `Error` for sizes that do not fit and for labels that are the blank or
  /// no class.
  Tensor ctc(const Tensor& logits, const Sequences& sequences, const Labels& labels, int blank,
             Tensor* derivative = nullptr) {
    checks::ctc(logits, sequences, labels, blank);
    const Tensor log_probs = log_softmax(logits);
    Tensor losses = core_.make(sequences.size(), 1);
    // The first element of each sequence in `states`, then its first label.
    const auto count = static_cast<std::size_t>(sequences.size());
    const Buffer host = core_.arena().allocate((2 * count + 1) * sizeof(Index));
    const std::span table(static_cast<Index*>(host.data()), 2 * count + 1);
    Index states = 0;
    for (Index n = 0; n < sequences.size(); ++n) {
      table[static_cast<std::size_t>(n)] = states;
      table[count + static_cast<std::size_t>(n)] = labels.sequences.begin(n);
      states += (sequences.length(n) + 2) * (2 * labels.sequences.length(n) + 1);
    }
    table[2 * count] = labels.sequences.rows();
    const auto begins = core_.upload(std::span<const Index>(table));
    const auto tokens = core_.upload(std::span<const int>(labels.tokens));
    Arena& memory = core_.device_arena();
    const Buffer of_states = memory.allocate(static_cast<std::size_t>(states) * sizeof(double)),
                 log_likelihoods = memory.allocate(count * sizeof(double)),
                 links = memory.allocate(2 * labels.tokens.size() * sizeof(int));
    auto* const next = static_cast<int*>(links.data());
    const cuda::CtcBatch<T> batch{log_probs.data(),
                                  core_.offsets_of(sequences),
                                  tokens.data(),
                                  begins.data() + count,
                                  begins.data(),
                                  static_cast<double*>(of_states.data()),
                                  static_cast<double*>(log_likelihoods.data()),
                                  next,
                                  next + labels.tokens.size(),
                                  sequences.size(),
                                  logits.cols(),
                                  blank};
    launch(core_.stream(), "ctc", {sequences.size()}, cuda::Ctc<T>{batch, losses.data(), derivative != nullptr});
    if (derivative == nullptr) return losses;
    *derivative = core_.make(logits.rows(), logits.cols());
    launch(core_.stream(), "ctc derivative", {logits.rows()}, cuda::CtcDerivative<T>{batch, derivative->data()});
    return losses;
  }
  /// Returns the derivative that `ctc` wrote, scaled by dlosses (sequences, 1).
  Tensor ctc_backward(const Tensor& dlosses, const Sequences& sequences, const Tensor& derivative) {
    Tensor dx = core_.make(derivative.rows(), derivative.cols());
    each_column(core_.stream(), "ctc_backward",
                cuda::RowGroups{core_.offsets_of(sequences), sequences.size(), sequences.rows()}, dx.cols(),
                cuda::ScaleSequences<T>{derivative.data(), dlosses.data(), dx.data(), dx.cols()});
    return dx;
  }

  /// Returns the cross entropies (rows, 1) of logits (rows, classes) with targets, in nats, and writes the log softmax
  /// if `log_probs` is not null. Throws `Error` for a target that is no class and not ignored.
  Tensor cross_entropy(const Tensor& logits, std::span<const int> targets, const CrossEntropyShape& shape,
                       Tensor* log_probs = nullptr) {
    checks::cross_entropy(logits, targets, shape);
    Tensor y = log_softmax(logits), losses = core_.make(logits.rows(), 1);
    const auto classes = core_.upload(targets);
    launch(core_.stream(), "cross_entropy", {logits.rows()},
           cuda::CrossEntropy<T>{y.data(), classes.data(), losses.data(), y.cols(), shape.ignored,
                                 static_cast<T>(shape.on_target()), static_cast<T>(shape.on_all(y.cols()))});
    if (log_probs != nullptr) *log_probs = std::move(y);
    return losses;
  }
  /// Returns the derivative of `cross_entropy` by the logits, from that by the losses (rows, 1) and the log softmax.
  Tensor cross_entropy_backward(const Tensor& dlosses, const Tensor& log_probs, std::span<const int> targets,
                                const CrossEntropyShape& shape) {
    const Index cols = log_probs.cols();
    Tensor dx = core_.make(log_probs.rows(), cols);
    const auto classes = core_.upload(targets);
    for_each(
        core_.stream(), "cross_entropy_backward", dx.size(),
        cuda::CrossEntropyBackward<T>{dlosses.data(), log_probs.data(), classes.data(), dx.data(), cols, shape.ignored,
                                      static_cast<T>(shape.on_target()), static_cast<T>(shape.on_all(cols))});
    return dx;
  }

  /// Returns the mean (1, 1) of all elements, where infinite ones count as 0.
  Tensor mean_finite(const Tensor& x) {
    const Buffer sum = core_.sum_on_device("mean_finite", x.size(), cuda::FiniteValues<T>{x.data()});
    Tensor y = core_.make(1, 1);
    for_each(core_.stream(), "mean_finite", 1,
             cuda::Divide<T>{static_cast<const double*>(sum.data()), y.data(),
                             static_cast<double>(std::max<Index>(1, x.size()))});
    return y;
  }
  /// Returns dy / size for finite elements of x and NaN, and 0 for infinite ones.
  Tensor mean_finite_backward(const Tensor& dy, const Tensor& x) {
    Tensor dx = core_.make(x.rows(), x.cols());
    for_each(core_.stream(), "mean_finite_backward", dx.size(),
             cuda::MeanFiniteBackward<T>{dy.data(), x.data(), dx.data(), static_cast<T>(x.size())});
    return dx;
  }

 protected:
  /// Binds this slice to the core of its context.
  explicit CudaLosses(CudaCore<T>& core) : core_(core) {}

 private:
  Tensor softmax_of(const Tensor& x, bool exponentials) {
    Tensor y = core_.make(x.rows(), x.cols());
    launch(core_.stream(), "softmax", {x.rows()}, cuda::LogSoftmax<T>{x.data(), y.data(), x.cols(), exponentials});
    return y;
  }

  CudaCore<T>& core_;
};

LACONIC_COMPILE_CUDA_CLASS(CudaLosses);

}  // namespace LACONIC_ABI
}  // namespace laconic
