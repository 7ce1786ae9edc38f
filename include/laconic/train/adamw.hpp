// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/context.hpp>
#include <laconic/core/parameter.hpp>
#include <laconic/train/adamw_config.hpp>

#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Holds what an optimiser has gathered about a model, for checkpoints and for code that changes the model's shape.
template <class T>
struct OptimizerState {
  /// Holds the moments of one parameter, of its shape.
  struct Moments {
    Matrix<T> first,  ///< running mean of the gradient
        second;       ///< running mean of its square
  };
  std::vector<Moments> moments;  ///< by parameter, in the model's order; empty if never stepped
  std::int64_t steps = 0;        ///< number of steps that changed something

  /// Throws `Error`, in the name of `who`, unless the moments fit the model's parameters or there are none yet.
  template <class Model>
  void require_of(const Model& model, const char* who) const {
    std::size_t i = 0;
    model.parameters([&](std::string_view name, const Parameter<T>& p) {
      if (i >= moments.size()) return;
      const Moments& m = moments[i++];
      for (const Matrix<T>* one : {&m.first, &m.second})
        require(m.first.size() == 0 || (one->rows() == p.rows() && one->cols() == p.cols()), who, ": moments of (",
                one->rows(), ", ", one->cols(), ") given for ", name, ", (", p.rows(), ", ", p.cols(), ") expected");
    });
    require(i == moments.size(), who, ": moments of ", moments.size(), " parameters given for a model of fewer");
  }
};

/// Trains the parameters of one model with AdamW (Loshchilov and Hutter 2019, algorithm 2), in their order and where
/// the context has them. A step uses up the gradients: they are zero afterwards. Frozen parameters stay as they are.
/// Statistics get their gathered update added.
template <TrainingContext Context>
class AdamW {
 public:
  using T = typename Context::Scalar;  ///< the type of an element

  /// Throws `Error` for a number of the configuration that makes no sense. The context must outlive this object.
  explicit AdamW(Context& context, const AdamWConfig& config = {}) : context_(context), config_(config) {
    config_.check();
  }

  /// Returns the moments and the number of steps, on the host. Allocates.
  OptimizerState<T> state() const {
    OptimizerState<T> out{{}, steps_};
    for (const Moments& m : moments_)
      out.moments.push_back(
          m.first.empty() ? typename OptimizerState<T>::Moments{}
                          : typename OptimizerState<T>::Moments{context_.output(m.first), context_.output(m.second)});
    return out;
  }
  /// Continues from this state. Allocates the moments in the context.
  void set_state(OptimizerState<T> state) {
    steps_ = state.steps;
    moments_.clear();
    for (auto& m : state.moments)
      moments_.push_back(m.first.size() == 0
                             ? Moments{}
                             : Moments{context_.input(std::move(m.first)), context_.input(std::move(m.second))});
  }
  /// Returns the number of steps that changed something.
  std::int64_t steps() const { return steps_; }

  /// Changes the parameters by their gradients and returns the norm of all gradients before clipping. If that norm is
  /// not finite, the whole step is skipped (weights, moments and statistics stay) and the caller must report it. Throws
  /// `Error` for a learning rate that is not finite, and for parameters that cannot be trained where they are.
  template <class Model>
  double step(Model& model, double learning_rate) {
    require(std::isfinite(learning_rate), "adamw: learning_rate ", learning_rate, " given, a finite number expected");
    std::vector<const Parameter<T>*> all, weights;
    std::vector<AdamWUpdate<typename Context::Tensor, T>> updates;
    model.parameters([&](std::string_view name, Parameter<T>& p) {
      require(p.can_train(), "adamw: ", name,
              " is prepared to run, a model on the host or prepared for training expected");
      all.push_back(&p);
      if (p.role() == Role::weight && p.trainable) weights.push_back(&p);
    });
    const double norm = context_.gradient_norm(weights);
    if (!std::isfinite(norm)) {
      context_.clear_gradients(all);
      return norm;
    }
    if (moments_.size() < all.size()) moments_.resize(all.size());
    std::size_t i = 0;
    model.parameters([&](std::string_view, Parameter<T>& p) {
      updates.push_back({&p, &moments_[i].first, &moments_[i].second});
      ++i;
    });
    ++steps_;
    context_.adamw(updates, {learning_rate, config_.beta1, config_.beta2, config_.eps, config_.weight_decay,
                             config_.clip_norm > 0 && norm > config_.clip_norm ? config_.clip_norm / norm : 1, steps_});
    return norm;
  }

 private:
  struct Moments {
    typename Context::Tensor first{}, second{};
  };

  Context& context_;
  AdamWConfig config_;
  std::vector<Moments> moments_;
  std::int64_t steps_ = 0;
};

}  // namespace LACONIC_ABI
}  // namespace laconic
