// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/kernels/row_sums.hpp>

#include <cmath>
#include <limits>

// CTC (Graves et al. 2006, equations 6 to 16), in logarithms and double precision. States 0 .. 2 * labels of a sequence
// are blank, label, blank, label ... blank.

namespace laconic {
inline namespace LACONIC_ABI {
namespace cuda {

/// Returns log(exp(a) + exp(b)).
LACONIC_DEVICE double log_add(double a, double b) {
  const double high = a < b ? b : a, low = a < b ? a : b;
  return low == -std::numeric_limits<double>::infinity() ? high : high + std::log1p(std::exp(low - high));
}

/// Points to what the kernels of CTC share, on the device.
template <class T>
struct CtcBatch {
  const T* log_probs;          ///< (rows, vocab)
  const Index* offsets;        ///< first row of each sequence, and one past the last
  const int* labels;           ///< labels of all sequences
  const Index* label_offsets;  ///< first label of each sequence, and one past the last
  const Index* starts;         ///< first element of each sequence in `states`
  double* states;              ///< (frames + 2, states) for each sequence
  double* log_likelihoods;     ///< log likelihood of each sequence that has frames
  int *next, *previous;        ///< the equal label after and before each label in its sequence, or -1
  Index sequences, vocab;
  int blank;
};

/// Computes the losses, one block a sequence, and what their derivatives need if `derives` is true: the probability of
/// each state at each frame, given the labels, in `states`, and the links between equal labels.
template <class T>
struct Ctc {
  static constexpr int threads = 256;
  static constexpr double never = -std::numeric_limits<double>::infinity();
  CtcBatch<T> of;
  T* losses;
  bool derives;

  LACONIC_DEVICE void operator()(Block& block) const {
    const Index n = block.x(), frames = of.offsets[n + 1] - of.offsets[n];
    const Index first_label = of.label_offsets[n], labels = of.label_offsets[n + 1] - first_label;
    const Index states = 2 * labels + 1;
    const int* const tokens = of.labels + first_label;
    const T* const log_probs = of.log_probs + of.offsets[n] * of.vocab;
    double* const alpha = of.states + of.starts[n];
    if (frames == 0) {
      block.one([&] { losses[n] = labels == 0 ? T(0) : std::numeric_limits<T>::infinity(); });
      return;
    }
    const auto symbol = [&](Index s) { return s % 2 == 0 ? of.blank : tokens[s / 2]; };
    const auto skips = [&](Index s) { return s >= 2 && s % 2 == 1 && symbol(s) != symbol(s - 2); };
    for (Index frame = 0; frame < frames; ++frame)
      block.each([&](int t) {
        const double* before = alpha + (frame - 1) * states;
        for (Index s = t; s < states; s += threads) {
          double sum = s < 2 ? 0.0 : never;
          if (frame > 0) {
            sum = before[s];
            if (s >= 1) sum = log_add(sum, before[s - 1]);
            if (skips(s)) sum = log_add(sum, before[s - 2]);
          }
          alpha[frame * states + s] = sum + static_cast<double>(log_probs[frame * of.vocab + symbol(s)]);
        }
      });
    const double* last = alpha + (frames - 1) * states;
    const double log_likelihood = states > 1 ? log_add(last[states - 1], last[states - 2]) : last[0];
    block.one([&] {
      losses[n] = static_cast<T>(-log_likelihood);
      of.log_likelihoods[n] = log_likelihood;
    });
    if (!derives || log_likelihood == never) return;
    link(block, first_label, labels);
    double* const beta = alpha + frames * states;  // two rows in turn: log probability of what follows a frame
    for (Index frame = frames - 1; frame >= 0; --frame)
      block.each([&](int t) {
        const double* after = beta + (frame + 1) % 2 * states;
        const T* row = log_probs + (frame + 1) * of.vocab;
        for (Index s = t; s < states; s += threads) {
          double sum = s + 2 >= states ? 0.0 : never;
          if (frame + 1 < frames) {
            sum = after[s] + static_cast<double>(row[symbol(s)]);
            if (s + 1 < states) sum = log_add(sum, after[s + 1] + static_cast<double>(row[symbol(s + 1)]));
            if (s + 2 < states && skips(s + 2))
              sum = log_add(sum, after[s + 2] + static_cast<double>(row[symbol(s + 2)]));
          }
          beta[frame % 2 * states + s] = sum;
          alpha[frame * states + s] = std::exp(alpha[frame * states + s] + sum - log_likelihood);
        }
      });
  }

 private:
  /// Links equal labels of a sequence, so that the derivative adds them up in their order.
  LACONIC_DEVICE void link(Block& block, Index first, Index count) const {
    block.each([&](int t) {
      const int* const tokens = of.labels + first;
      for (Index i = t; i < count; i += threads) {
        Index after = i + 1, before = i - 1;
        while (after < count && tokens[after] != tokens[i]) ++after;
        while (before >= 0 && tokens[before] != tokens[i]) --before;
        of.next[first + i] = after < count ? static_cast<int>(after) : -1;
        of.previous[first + i] = static_cast<int>(before);
      }
    });
  }
};

/// Writes the derivative of the losses by the logits (rows, vocab), which includes that of log softmax: the probability
/// of each class minus that of its states. Zeros for labels without a path. A block is a frame.
template <class T>
struct CtcDerivative {
  static constexpr int threads = 128;
  CtcBatch<T> of;
  T* derivative;
  LACONIC_DEVICE void operator()(Block& block) const {
    const Index n = sequence_of(of.offsets, of.sequences, block.x());
    const Index first_label = of.label_offsets[n], labels = of.label_offsets[n + 1] - first_label;
    const bool none = of.log_likelihoods[n] == -std::numeric_limits<double>::infinity();
    const T* log_probs = of.log_probs + block.x() * of.vocab;
    const double* states = of.states + of.starts[n] + (block.x() - of.offsets[n]) * (2 * labels + 1);
    T* to = derivative + block.x() * of.vocab;
    PerThread<double> part(block);
    block.each([&](int t) {
      for (Index v = t; v < of.vocab; v += threads) to[v] = none ? T(0) : std::exp(log_probs[v]);
      double sum = 0;
      for (Index i = t; !none && i <= labels; i += threads) sum += states[2 * i];
      part[t] = sum;
    });
    if (none) return;
    const double blank = block.sum(part);
    block.each([&](int t) {
      if (t == 0) to[of.blank] -= static_cast<T>(blank);
      for (Index i = t; i < labels; i += threads) {
        if (of.previous[first_label + i] >= 0) continue;
        double sum = 0;
        for (Index j = i; j >= 0; j = of.next[first_label + j]) sum += states[2 * j + 1];
        to[of.labels[first_label + i]] -= static_cast<T>(sum);
      }
    });
  }
};

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
