// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cpu/kernels/simd.hpp>
#include <laconic/core/parameter.hpp>
#include <laconic/train/adamw_config.hpp>

#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// What an optimiser has learnt of a model, for checkpoints and for whoever changes the model's shape.
template <class T>
struct OptimizerState {
  struct Moments {
    Matrix<T> first, second;
  };
  std::vector<Moments> moments;  ///< by parameter, in the model's order; empty for those never stepped
  std::int64_t steps = 0;

  /// Throws, in the name of `who`, unless these are of such a model, or of none yet.
  template <class Model>
  void require_of(const Model& model, const char* who) const {
    std::size_t i = 0;
    model.parameters([&](std::string_view name, const Parameter<T>& p) {
      if (i >= moments.size()) return;
      const Moments& m = moments[i++];
      for (const Matrix<T>* one : {&m.first, &m.second})
        require(m.first.size() == 0 || (one->rows() == p.host().rows() && one->cols() == p.host().cols()), who,
                ": moments of (", one->rows(), ", ", one->cols(), ") given for ", name, ", (", p.host().rows(), ", ",
                p.host().cols(), ") expected");
    });
    require(i == moments.size(), who, ": moments of ", moments.size(), " parameters given for a model of fewer");
  }
};

/// AdamW (Loshchilov and Hutter 2019, algorithm 2) over the parameters of one model, in their order. A step uses up the
/// gradients: they are zero afterwards. Frozen parameters are left alone. Statistics get their gathered update added.
template <class T>
class AdamW {
 public:
  explicit AdamW(const AdamWConfig& config = {}, int threads = 1) : config_(config), threads_(threads) {
    config_.check();
  }

  const OptimizerState<T>& state() const { return state_; }
  void set_state(OptimizerState<T> state) { state_ = std::move(state); }

  /// Gives the norm of all gradients before clipping. Where that is not finite the whole step is skipped (weights,
  /// moments and statistics stay) and the caller must say so.
  template <class Model>
  double step(Model& model, double learning_rate) {
    require_unpacked(model, "AdamW");
    require(std::isfinite(learning_rate), "adamw: learning_rate ", learning_rate, " given, a finite number expected");
    double square = 0;
    model.parameters([&](std::string_view, const Parameter<T>& p) {
      if (p.role() == Role::weight && p.trainable && p.has_gradient()) square += p.gradient().squaredNorm();
    });
    const double norm = std::sqrt(square);
    if (!std::isfinite(norm)) {
      model.parameters([](std::string_view, const Parameter<T>& p) { p.clear_gradient(); });
      return norm;
    }
    ++state_.steps;
    const double clip = config_.clip_norm > 0 && norm > config_.clip_norm ? config_.clip_norm / norm : 1;
    std::size_t i = 0;
    model.parameters([&](std::string_view, Parameter<T>& p) {
      if (state_.moments.size() <= i) state_.moments.emplace_back();
      auto& m = state_.moments[i++];
      if (!p.trainable || !p.has_gradient()) return;
      if (p.role() == Role::statistic)
        p.host() += p.gradient();
      else
        update(p, m, learning_rate, clip);
      p.clear_gradient();
    });
    return norm;
  }

 private:
  void update(Parameter<T>& p, typename OptimizerState<T>::Moments& m, double learning_rate, double clip) {
    using B = kernels::Batch<T>;
    if (m.first.size() == 0) {
      m.first.setZero(p.host().rows(), p.host().cols());
      m.second.setZero(p.host().rows(), p.host().cols());
    }
    const bool decays = p.shape().size() > 1;
    const double correct1 = 1 - std::pow(config_.beta1, static_cast<double>(state_.steps));
    const double correct2 = 1 - std::pow(config_.beta2, static_cast<double>(state_.steps));
    const B scale(static_cast<T>(clip)), b1(static_cast<T>(config_.beta1)), b2(static_cast<T>(config_.beta2));
    const B rest1(static_cast<T>(1 - config_.beta1)), rest2(static_cast<T>(1 - config_.beta2));
    const B rate(static_cast<T>(learning_rate / correct1)), root(static_cast<T>(1 / std::sqrt(correct2)));
    const B eps(static_cast<T>(config_.eps)),
        keep(static_cast<T>(decays ? 1 - learning_rate * config_.weight_decay : 1));
    T *value = p.host().data(), *gradient = p.gradient().data(), *first = m.first.data(), *second = m.second.data();
    kernels::parallel_blocks(threads_, p.size(), 16384, [&](Index begin, Index end) {
      const Index n = end - begin;
      kernels::map_span(
          n, first + begin, [&](auto a, auto g) { return b1 * a + rest1 * scale * g; }, first + begin,
          gradient + begin);
      kernels::map_span(
          n, second + begin, [&](auto a, auto g) { return b2 * a + rest2 * (scale * g) * (scale * g); }, second + begin,
          gradient + begin);
      kernels::map_span(
          n, value + begin, [&](auto w, auto a, auto b) { return keep * w - rate * a / (xsimd::sqrt(b) * root + eps); },
          value + begin, first + begin, second + begin);
    });
  }

  AdamWConfig config_;
  int threads_;
  OptimizerState<T> state_;
};

}  // namespace LACONIC_ABI
}  // namespace laconic
