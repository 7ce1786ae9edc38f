// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/error.hpp>
#include <laconic/core/extent.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <span>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Says how the next token is drawn from its logits. The steps are those of Hugging Face's `generate`, in this order.
struct SamplingConfig {
  double temperature = 1;  ///< divides the logits; 0 takes the most probable token (greedy)
  Index top_k = 0;         ///< keeps the k most probable tokens (Fan et al. 2018); 0: all
  /// Keeps the most probable tokens whose probabilities sum to at least this (nucleus sampling, Holtzman et al. 2020).
  double top_p = 1;

  /// Throws Error for a number that makes no sense.
  void check() const {
    require(std::isfinite(temperature) && temperature >= 0, "sampling: temperature ", temperature,
            " given, a number of at least 0 expected");
    require(top_k >= 0, "sampling: top_k ", top_k, " given, at least 0 expected");
    require(top_p > 0 && top_p <= 1, "sampling: top_p ", top_p, " given, more than 0 and at most 1 expected");
  }
};

/// Draws tokens from logits. Memory is taken at construction only.
class Sampler {
 public:
  /// Makes a sampler for `vocab_size` tokens. Allocates. Throws Error for numbers that make no sense.
  Sampler(const SamplingConfig& config, Index vocab_size)
      : config_(config), order_(checked(config, vocab_size)), probabilities_(order_.size()) {}

  /// Returns a token drawn from these logits by a number in [0, 1). Among equal logits, the lower id comes first.
  /// Throws Error for logits of another number, for one that is NaN, and where the largest is infinite.
  template <class T>
  int operator()(std::span<const T> logits, double uniform) {
    require(logits.size() == order_.size(), "sampler: ", logits.size(), " logits given, ", order_.size(), " expected");
    const auto best = std::max_element(logits.begin(), logits.end());
    const auto finite = [](T x) { return !std::isnan(x); };
    require(std::all_of(logits.begin(), logits.end(), finite) && std::isfinite(*best),
            "sampler: logits that are NaN or infinite given, finite numbers expected");
    if (config_.temperature == 0) return static_cast<int>(best - logits.begin());

    std::iota(order_.begin(), order_.end(), 0);
    auto end = order_.end();
    if (config_.top_k > 0 || config_.top_p < 1) {  // otherwise the order does not matter
      const auto before = [&](int a, int b) {
        const T x = logits[static_cast<std::size_t>(a)], y = logits[static_cast<std::size_t>(b)];
        return x > y || (x == y && a < b);
      };
      if (config_.top_k > 0 && config_.top_k < static_cast<Index>(order_.size())) {
        end = order_.begin() + config_.top_k;
        std::nth_element(order_.begin(), end, order_.end(), before);
      }
      std::sort(order_.begin(), end, before);
    }

    const auto count = static_cast<std::size_t>(end - order_.begin());
    double sum = 0;
    for (std::size_t i = 0; i < count; ++i) {
      const auto logit = static_cast<double>(logits[static_cast<std::size_t>(order_[i])]);
      sum += probabilities_[i] = std::exp((logit - static_cast<double>(*best)) / config_.temperature);
    }
    std::size_t kept = 0;
    double kept_sum = 0;
    while (kept < count && (config_.top_p == 1 || kept == 0 || kept_sum < config_.top_p * sum))
      kept_sum += probabilities_[kept++];
    double left = uniform * kept_sum;
    for (std::size_t i = 0; i + 1 < kept; ++i) {
      left -= probabilities_[i];
      if (left < 0) return order_[i];
    }
    return order_[kept - 1];
  }

 private:
  static std::size_t checked(const SamplingConfig& config, Index vocab_size) {
    config.check();
    require(vocab_size > 0, "sampler: ", vocab_size, " tokens given, at least 1 expected");
    return static_cast<std::size_t>(vocab_size);
  }

  SamplingConfig config_;
  std::vector<int> order_;
  std::vector<double> probabilities_;
};

}  // namespace LACONIC_ABI
}  // namespace laconic
