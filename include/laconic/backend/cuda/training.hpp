// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/checks/training.hpp>
#include <laconic/backend/cuda/core.hpp>
#include <laconic/backend/cuda/kernels/training.hpp>
#include <laconic/backend/shapes.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>

namespace laconic {
inline namespace LACONIC_ABI {

/// Implements the updates of parameters of `Cuda`. Each is one launch for all parameters.
template <class T>
class CudaTraining {
 public:
  /// Names the type of the values that primitives take and return.
  using Tensor = CudaTensor<T>;

  /// Returns the root of the sum of squares of all gradients of these parameters, computed in double. Waits for it.
  double gradient_norm(std::span<const Parameter<T>* const> parameters) {
    Table table(core_, parameters.size());
    for (const Parameter<T>* p : parameters) table.add(*p);
    const Buffer parts = core_.device_arena().allocate(static_cast<std::size_t>(table.blocks) * sizeof(double));
    auto* const of_blocks = static_cast<double*>(parts.data());
    const auto pieces = table.upload();
    launch(core_.stream(), "gradient_norm", {table.blocks},
           cuda::SquaredGradients<T>{pieces.data(), table.count, of_blocks});
    return std::sqrt(core_.sum("gradient_norm", table.blocks, cuda::Itself{of_blocks}));
  }
  /// Zeroes the gradients of these parameters.
  void clear_gradients(std::span<const Parameter<T>* const> parameters) {
    Table table(core_, parameters.size());
    for (const Parameter<T>* p : parameters) table.add(*p);
    table.each_element("clear_gradients", cuda::ClearGradient<T>{});
  }
  /// Copies the gradients of these parameters, one after the other, to `values` and zeroes them. Waits for them. Throws
  /// `Error` unless there are as many values as elements.
  void take_gradients(std::span<const Parameter<T>* const> parameters, std::span<T> values) {
    checks::gradients(parameters, values.size());
    Table table(core_, parameters.size());
    for (const Parameter<T>* p : parameters) table.add(*p);
    const Buffer list = core_.device_arena().allocate(values.size_bytes());
    core_.stream().zero(list.data(), values.size_bytes());
    table.each_element("take_gradients", cuda::TakeGradient<T>{static_cast<T*>(list.data())});
    core_.stream().to_host(values.data(), list.data(), values.size_bytes());
  }
  /// Copies values to the gradients of these parameters, one after the other. Zeros make no gradient where there is
  /// none. Throws `Error` unless there are as many values as elements.
  void put_gradients(std::span<const Parameter<T>* const> parameters, std::span<const T> values) {
    checks::gradients(parameters, values.size());
    Table table(core_, parameters.size());
    const T* from = values.data();
    for (const Parameter<T>* p : parameters) {
      const bool makes_one = p->trainable && std::any_of(from, from + p->size(), [](T g) { return g != 0; });
      if (makes_one) cuda::gradient_of(*p);
      table.add(*p, p->trainable);
      from += p->size();
    }
    const auto list = core_.upload(values);
    table.each_element("put_gradients", cuda::PutGradient<T>{list.data()});
  }
  /// Updates each trainable parameter that has a gradient by one step of AdamW, then zeroes the gradient. A statistic
  /// gets its accumulated update added instead.
  void adamw(std::span<const AdamWUpdate<Tensor, T>> updates, const AdamWStep& step) {
    Table table(core_, updates.size());
    for (const AdamWUpdate<Tensor, T>& update : updates) {
      Parameter<T>& p = *update.parameter;
      cuda::ParameterPiece<T>* piece = table.add(p, p.trainable);
      if (piece == nullptr) continue;
      piece->value = cuda::editable_values_of(p);
      if (p.role() == Role::statistic) continue;
      if (update.first->empty()) {
        *update.first = core_.zeros(p.rows(), p.cols());
        *update.second = core_.zeros(p.rows(), p.cols());
      }
      piece->first = update.first->data();
      piece->second = update.second->data();
      piece->kept = static_cast<T>(step.kept(p.shape().size()));
    }
    table.each_element("adamw", cuda::AdamWElement<T>(step));
  }
  /// Copies the values of one parameter to another. Throws `Error` if their shapes differ.
  void copy_values(const Parameter<T>& from, Parameter<T>& to) {
    checks::copy_values(from, to);
    if (from.size() == 0) return;
    core_.stream().copy(cuda::editable_values_of(to), cuda::values_of(from),
                        static_cast<std::size_t>(from.size()) * sizeof(T));
  }

 protected:
  /// Binds this slice to the core of its context.
  explicit CudaTraining(CudaCore<T>& core) : core_(core) {}

 private:
  /// Lists the parameters of a launch that have a gradient.
  struct Table {
    /// Makes a list with room for `size` parameters in the arena of the host.
    Table(CudaCore<T>& of, std::size_t size)
        : core(of), memory(of.arena().allocate(size * sizeof(cuda::ParameterPiece<T>))) {}
    /// Adds a parameter if it takes part and has a gradient. Returns its piece, or null.
    cuda::ParameterPiece<T>* add(const Parameter<T>& p, bool takes_part = true) {
      T* const gradient = takes_part ? cuda::existing_gradient_of(p) : nullptr;
      const Index at = elements;
      elements += p.size();
      if (gradient == nullptr) return nullptr;
      cuda::ParameterPiece<T>* piece = first() + count++;
      *piece = {blocks, p.size(), nullptr, gradient, nullptr, nullptr, T(1), at};
      blocks += cuda::pieces(p.size(), piece->per_block);
      return piece;
    }
    /// Copies the list to the device.
    auto upload() {
      return core.upload(std::span<const cuda::ParameterPiece<T>>(first(), static_cast<std::size_t>(count)));
    }
    /// Computes f (see `cuda::EachElement`) on the device for every element of the list's parameters.
    template <class F>
    void each_element(const char* name, const F& f) {
      const auto on_device = upload();
      launch(core.stream(), name, {blocks}, cuda::EachElement<T, F>{on_device.data(), count, f});
    }
    cuda::ParameterPiece<T>* first() { return static_cast<cuda::ParameterPiece<T>*>(memory.data()); }

    CudaCore<T>& core;
    Buffer memory;
    Index count = 0, blocks = 0, elements = 0;
  };

  CudaCore<T>& core_;
};

LACONIC_COMPILE_CUDA_CLASS(CudaTraining);

}  // namespace LACONIC_ABI
}  // namespace laconic
