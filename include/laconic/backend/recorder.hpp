// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/shapes.hpp>
#include <laconic/core/matrix.hpp>
#include <laconic/core/parameter.hpp>

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Decorates a context: it also keeps the input of chosen linear layers, as host matrices. `Recorder<Cpu<float>> cpu;`
///
///     cpu.record(layer.weight);
///     model(cpu, features, sequences);
///     const Matrix<float>& rows = cpu.input_of(layer.weight);
template <class Context>
class Recorder : public Context {
 public:
  using typename Context::Tensor;
  using T = typename Context::Scalar;  ///< the type of an element
  using Context::Context;

  /// Makes the context keep, from now on, the last rows that are multiplied by this weight.
  void record(const Parameter<T>& weight) {
    if (find(weight) == inputs_.end()) inputs_.emplace_back(&weight, Matrix<T>());
  }
  /// Returns the last rows (rows, in) that were multiplied by this weight; an empty matrix before the first. Throws
  /// `Error` for a weight that is not recorded.
  Matrix<T>& input_of(const Parameter<T>& weight) {
    const auto found = find(weight);
    require(found != inputs_.end(), "recorder: a weight (", weight.rows(), ", ", weight.cols(),
            ") given that is not recorded");
    return found->second;
  }

  Tensor linear(const Tensor& x, const Parameter<T>& weight, const Parameter<T>* bias,
                std::optional<Activation> activation = {}) {
    if (const auto found = find(weight); found != inputs_.end()) found->second = this->output(x);
    return Context::linear(x, weight, bias, activation);
  }

 private:
  using Inputs = std::vector<std::pair<const Parameter<T>*, Matrix<T>>>;
  typename Inputs::iterator find(const Parameter<T>& weight) {
    return std::find_if(inputs_.begin(), inputs_.end(), [&](const auto& one) { return one.first == &weight; });
  }

  Inputs inputs_;
};

/// Shows a model or a layer whose values are on the host in a form that a context can run: itself, or a prepared copy.
/// The original must live as long.
template <class Context, class Model>
class Runnable {
 public:
  /// Keeps a reference to the model, and makes a copy unless the context computes on the host.
  Runnable(Context& context, const Model& model) : model_(&model) {
    if constexpr (!Context::computes_on_host) {
      copy_ = std::make_unique<Model>(model);
      context.prepare(*copy_);
      model_ = copy_.get();
    }
  }
  /// Returns the model or layer to run.
  const Model& operator*() const { return *model_; }

 private:
  const Model* model_;
  std::unique_ptr<Model> copy_;
};

}  // namespace LACONIC_ABI
}  // namespace laconic
