// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/shapes.hpp>
#include <laconic/core/compiled.hpp>
#include <laconic/core/parallel.hpp>
#include <laconic/core/sequences.hpp>

#include <cmath>
#include <limits>

namespace laconic {
inline namespace LACONIC_ABI {

namespace kernels {

/// Returns log(exp(a) + exp(b)).
inline double log_add(double a, double b) {
  if (a < b) std::swap(a, b);
  return b == -std::numeric_limits<double>::infinity() ? a : a + std::log1p(std::exp(b - a));
}

/// Returns the elements of scratch that `ctc` needs for a sequence.
inline Index ctc_scratch(Index frames, Index labels) { return (frames + 2) * (2 * labels + 1); }

/// Returns the CTC loss of one sequence, in nats, and writes its derivative by the logits (Graves et al. 2006,
/// equations 6 to 16), in logarithms and double precision. log_probs and gradient (frames, vocab); the gradient
/// includes that of log softmax. If no path exists (frames < labels + equal neighbours among the labels), the loss is
/// +infinity and the gradient zero. scratch has ctc_scratch(frames, labels) elements. One thread; no allocation.
template <class T>
double ctc(Index frames, Index vocab, const T* log_probs, std::span<const int> labels, int blank, T* gradient,
           double* scratch) {
  constexpr double never = -std::numeric_limits<double>::infinity();
  const Index states = 2 * static_cast<Index>(labels.size()) + 1;
  const auto symbol = [&](Index s) { return s % 2 == 0 ? blank : labels[static_cast<std::size_t>(s / 2)]; };
  const auto skips = [&](Index s) { return s >= 2 && s % 2 == 1 && symbol(s) != symbol(s - 2); };
  double* alpha = scratch;  // (frames, states)
  if (frames == 0) return labels.empty() ? 0.0 : -never;
  for (Index t = 0; t < frames; ++t)
    for (Index s = 0; s < states; ++s) {
      double sum;
      if (t == 0) {
        sum = s < 2 ? 0.0 : never;
      } else {
        const double* before = alpha + (t - 1) * states;
        sum = before[s];
        if (s >= 1) sum = log_add(sum, before[s - 1]);
        if (skips(s)) sum = log_add(sum, before[s - 2]);
      }
      alpha[t * states + s] = sum + static_cast<double>(log_probs[t * vocab + symbol(s)]);
    }
  const double* last = alpha + (frames - 1) * states;
  const double log_likelihood = states > 1 ? log_add(last[states - 1], last[states - 2]) : last[0];
  std::fill(gradient, gradient + frames * vocab, T(0));
  if (log_likelihood == never) return -never;
  // beta[s]: log probability of the rest after frame t, from state s.
  double *beta = scratch + frames * states, *next = beta + states;
  for (Index t = frames - 1; t >= 0; --t) {
    for (Index s = 0; s < states; ++s) {
      if (t == frames - 1) {
        next[s] = s + 2 >= states ? 0.0 : never;
        continue;
      }
      const T* row = log_probs + (t + 1) * vocab;
      double sum = beta[s] + static_cast<double>(row[symbol(s)]);
      if (s + 1 < states) sum = log_add(sum, beta[s + 1] + static_cast<double>(row[symbol(s + 1)]));
      if (s + 2 < states && skips(s + 2)) sum = log_add(sum, beta[s + 2] + static_cast<double>(row[symbol(s + 2)]));
      next[s] = sum;
    }
    std::swap(beta, next);
    for (Index v = 0; v < vocab; ++v) gradient[t * vocab + v] = std::exp(log_probs[t * vocab + v]);
    for (Index s = 0; s < states; ++s)
      gradient[t * vocab + symbol(s)] -= static_cast<T>(std::exp(alpha[t * states + s] + beta[s] - log_likelihood));
  }
  return -log_likelihood;
}

LACONIC_COMPILE(ctc);

}  // namespace kernels
}  // namespace LACONIC_ABI
}  // namespace laconic
