// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cpu/core.hpp>
#include <laconic/backend/cpu/kernels/ctc.hpp>
#include <laconic/backend/cpu/kernels/elementwise.hpp>
#include <laconic/backend/cpu/kernels/norm.hpp>

#include <algorithm>
#include <cmath>
#include <span>

namespace laconic {
inline namespace LACONIC_ABI {

/// The slice of `Cpu` that turns logits into losses.
template <class T>
class CpuLosses {
 public:
  using Tensor = laconic::Tensor<T>;

  Tensor log_softmax(const Tensor& x) {
    Tensor y = core_.make(x.rows(), x.cols());
    kernels::log_softmax(core_.threads(), x.rows(), x.cols(), x.data(), y.data());
    return y;
  }
  Tensor softmax(const Tensor& x) {
    Tensor y = log_softmax(x);
    y.view() = y.view().array().exp().matrix();
    return y;
  }
  double dot(const Tensor& x, const Tensor& y) {
    require(x.rows() == y.rows() && x.cols() == y.cols(), "dot: (", x.rows(), ", ", x.cols(), ") and (", y.rows(), ", ",
            y.cols(), ") given, equal shapes expected");
    return x.view().template cast<double>().cwiseProduct(y.view().template cast<double>()).sum();
  }
  double squared_norm(const Tensor& x) { return static_cast<double>(x.view().squaredNorm()); }
  Tensor log_softmax_backward(const Tensor& dy, const Tensor& y) {
    Tensor dx = core_.make(y.rows(), y.cols());
    kernels::log_softmax_backward(core_.threads(), y.rows(), y.cols(), dy.data(), y.data(), dx.data());
    return dx;
  }

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
    Tensor losses = core_.make(sequences.size(), 1), own;
    Tensor& d = derivative == nullptr ? own : *derivative;
    d = core_.make(logits.rows(), logits.cols());
    Index most = 1;
    for (Index n = 0; n < sequences.size(); ++n)
      most = std::max(most, kernels::ctc_scratch(sequences.length(n), labels.sequences.length(n)));
    const Buffer scratch = core_.arena().allocate(static_cast<std::size_t>(core_.threads() * most) * sizeof(double));
    kernels::parallel_for(core_.threads(), sequences.size(), [&](Index n, int thread) {
      const std::span tokens(labels.tokens.data() + labels.sequences.begin(n),
                             static_cast<std::size_t>(labels.sequences.length(n)));
      losses.row(n)[0] = static_cast<T>(
          kernels::ctc<T>(sequences.length(n), logits.cols(), log_probs.row(sequences.begin(n)), tokens, blank,
                          d.row(sequences.begin(n)), static_cast<double*>(scratch.data()) + thread * most));
    });
    return losses;
  }
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

  Tensor mean_finite(const Tensor& x) {
    double sum = 0;
    for (Index i = 0; i < x.size(); ++i) sum += std::isinf(x.data()[i]) ? 0.0 : static_cast<double>(x.data()[i]);
    Tensor y = core_.make(1, 1);
    y.row(0)[0] = static_cast<T>(sum / static_cast<double>(std::max<Index>(1, x.size())));
    return y;
  }
  Tensor mean_finite_backward(const Tensor& dy, const Tensor& x) {
    Tensor dx = core_.make(x.rows(), x.cols());
    for (Index i = 0; i < x.size(); ++i)
      dx.data()[i] = std::isinf(x.data()[i]) ? T(0) : dy.row(0)[0] / static_cast<T>(x.size());
    return dx;
  }

 protected:
  explicit CpuLosses(CpuCore<T>& core) : core_(core) {}

 private:
  CpuCore<T>& core_;
};

}  // namespace LACONIC_ABI
}  // namespace laconic
