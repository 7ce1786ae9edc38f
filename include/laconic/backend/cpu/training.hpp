// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/checks/training.hpp>
#include <laconic/backend/cpu/core.hpp>
#include <laconic/backend/shapes.hpp>
#include <laconic/core/compiled.hpp>

#include <algorithm>
#include <cmath>
#include <span>

namespace laconic {
inline namespace LACONIC_ABI {

/// Implements the updates of parameters of `Cpu`.
template <class T>
class CpuTraining {
 public:
  /// Names the type of the values that primitives take and return.
  using Tensor = laconic::Tensor<T>;

  /// Returns the root of the sum of squares of all gradients of these parameters.
  double gradient_norm(std::span<const Parameter<T>* const> parameters) {
    double square = 0;
    for (const Parameter<T>* p : parameters)
      if (const Matrix<T>* gradient = kernels::existing_gradient_of(*p)) square += gradient->squaredNorm();
    return std::sqrt(square);
  }
  /// Zeroes the gradients of these parameters.
  void clear_gradients(std::span<const Parameter<T>* const> parameters) {
    for (const Parameter<T>* p : parameters)
      if (Matrix<T>* gradient = kernels::existing_gradient_of(*p)) gradient->setZero();
  }
  /// Copies the gradients of these parameters, one after the other, to `values` and zeroes them. Throws `Error` unless
  /// there are as many values as elements.
  void take_gradients(std::span<const Parameter<T>* const> parameters, std::span<T> values) {
    checks::gradients(parameters, values.size());
    T* to = values.data();
    for (const Parameter<T>* p : parameters) {
      if (Matrix<T>* gradient = kernels::existing_gradient_of(*p)) {
        std::copy_n(gradient->data(), p->size(), to);
        gradient->setZero();
      } else {
        std::fill_n(to, p->size(), T{0});
      }
      to += p->size();
    }
  }
  /// Copies values to the gradients of these parameters, one after the other. Zeros make no gradient where there is
  /// none. Throws `Error` unless there are as many values as elements.
  void put_gradients(std::span<const Parameter<T>* const> parameters, std::span<const T> values) {
    checks::gradients(parameters, values.size());
    const T* from = values.data();
    for (const Parameter<T>* p : parameters) {
      if (kernels::existing_gradient_of(*p) != nullptr ||
          std::any_of(from, from + p->size(), [](T g) { return g != 0; }))
        if (T* gradient = kernels::gradient_of(*p)) std::copy_n(from, p->size(), gradient);
      from += p->size();
    }
  }
  /// Updates each trainable parameter that has a gradient by one step of AdamW, then zeroes the gradient. A statistic
  /// gets its accumulated update added instead.
  void adamw(std::span<const AdamWUpdate<Tensor, T>> updates, const AdamWStep& step) {
    for (const AdamWUpdate<Tensor, T>& update : updates) {
      Parameter<T>& p = *update.parameter;
      Matrix<T>* gradient = p.trainable ? kernels::existing_gradient_of(p) : nullptr;
      if (gradient == nullptr) continue;
      T* value = kernels::editable_values_of(p);
      if (p.role() == Role::statistic)
        matrix_view(value, p.rows(), p.cols()) += *gradient;
      else
        change(p, value, gradient->data(), *update.first, *update.second, step);
      gradient->setZero();
    }
  }
  /// Copies the values of one parameter to another. Throws `Error` if their shapes differ.
  void copy_values(const Parameter<T>& from, Parameter<T>& to) {
    checks::copy_values(from, to);
    std::copy_n(kernels::values_of(from), from.size(), kernels::editable_values_of(to));
  }

 protected:
  /// Binds this slice to the core of its context.
  explicit CpuTraining(CpuCore<T>& core) : core_(core) {}

 private:
  /// Updates a parameter and its moments from its gradient, which are made zeros before the first step.
  void change(const Parameter<T>& p, T* value, const T* gradient, Tensor& first_moment, Tensor& second_moment,
              const AdamWStep& step) {
    using B = kernels::Batch<T>;
    if (first_moment.empty()) {
      first_moment = core_.zeros(p.rows(), p.cols());
      second_moment = core_.zeros(p.rows(), p.cols());
    }
    const B scale(static_cast<T>(step.gradient_scale)), b1(static_cast<T>(step.beta1)), b2(static_cast<T>(step.beta2));
    const B rest1(static_cast<T>(1 - step.beta1)), rest2(static_cast<T>(1 - step.beta2));
    const B rate(static_cast<T>(step.rate())), root(static_cast<T>(step.root_scale()));
    const B eps(static_cast<T>(step.eps)), keep(static_cast<T>(step.kept(p.shape().size())));
    T *first = first_moment.data(), *second = second_moment.data();
    kernels::parallel_blocks(core_.threads(), p.size(), 16384, [&](Index begin, Index end) {
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

  CpuCore<T>& core_;
};

LACONIC_COMPILE_CLASS(CpuTraining);

}  // namespace LACONIC_ABI
}  // namespace laconic
