// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/matrix.hpp>
#include <laconic/core/random.hpp>
#include <laconic/core/rounding.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// What a parameter is to an optimiser.
enum class Role {
  weight,     ///< trained by its gradient
  statistic,  ///< gathered while training (batch norm); its gradient slot carries the update to be added
};

/// Weights that layers only multiply by, from the right, may be packed: matrices, convolutions whose products are over
/// their taps, and those by tiles (conv2d_tiles.hpp).
enum class Packing { never, matrix, taps, tiles };

/// A weight in the form that a backend multiplies by fastest, which that backend makes and reads. It is never changed,
/// so copies of a model share it.
struct PackedWeight {
  Storage storage = Storage::full;
  Packing packing = Packing::never;  ///< what it can be read as
  std::shared_ptr<const std::byte> data{};
};

/// A named value of a model, laid out as PyTorch stores it: a linear weight is `(out, in)`, a depthwise kernel
/// `(channels, 1, kernel)`. `host` shows it as a matrix: the first dimension, times all others.
/// The gradient is scratch of training: a tape fills it also through a const model.
template <class T>
class Parameter {
 public:
  using Scalar = T;

  Parameter() = default;
  /// Zeros. Allocates.
  explicit Parameter(std::initializer_list<Index> shape, Role role = Role::weight) : shape_(shape), role_(role) {
    value_.setZero(rows(), cols());
  }

  const std::vector<Index>& shape() const { return shape_; }
  /// As a matrix: a vector is one row.
  Index rows() const { return shape_.size() == 1 ? 1 : shape_.empty() ? 0 : shape_[0]; }
  Index cols() const {
    Index product = shape_.empty() ? 0 : 1;
    for (std::size_t i = shape_.size() < 2 ? 0 : 1; i < shape_.size(); ++i) product *= shape_[i];
    return product;
  }
  Index size() const { return rows() * cols(); }
  Role role() const { return role_; }

  /// The values on the host, (rows, cols), or (0, 0) once it is packed.
  const Matrix<T>& host() const { return value_; }
  Matrix<T>& host() { return value_; }

  /// Frozen parameters get no gradient.
  bool trainable = true;

  bool has_gradient() const { return gradient_.size() == value_.size() && value_.size() > 0; }
  /// Whether it may be packed (see pack_weights), and how.
  Packing packing = Packing::never;
  bool is_packed() const { return packed_.data != nullptr; }
  const PackedWeight& packed() const { return packed_; }
  /// Holds `form` from now on, and neither host values nor a gradient.
  void pack(PackedWeight form) {
    packed_ = std::move(form);
    value_.resize(0, 0);
    gradient_.resize(0, 0);
    trainable = false;
  }

  /// The gradient, zeroed when asked for the first time. Allocates then.
  Matrix<T>& gradient() const {
    if (!has_gradient()) gradient_.setZero(value_.rows(), value_.cols());
    return gradient_;
  }
  void clear_gradient() const {
    if (has_gradient()) gradient_.setZero();
  }

 private:
  std::vector<Index> shape_;
  Role role_ = Role::weight;
  Matrix<T> value_;
  mutable Matrix<T> gradient_;
  PackedWeight packed_;
};

/// Whether a weight is rounded where weights are: those that may be packed, but in bytes no convolution of few numbers
/// an output, where the largest of them would cost the others much.
template <class T>
bool is_rounded(const Parameter<T>& p, Storage weights) {
  constexpr Index few = 64;
  const bool convolves = p.packing == Packing::taps || p.packing == Packing::tiles;
  return weights != Storage::full && p.packing != Packing::never && p.size() > 0 &&
         !(weights == Storage::int8 && convolves && p.cols() < few);
}

namespace detail {

template <class>
inline constexpr bool is_parameter = false;
template <class T>
inline constexpr bool is_parameter<Parameter<T>> = true;

/// Calls `visit(dotted_name, parameter)` for every parameter below a module.
template <class Visit>
struct ParameterWalk {
  Visit& visit;
  std::string path;

  template <class Child>
  void operator()(std::string_view name, Child& child) {
    const std::size_t length = path.size();
    if (length > 0) path += '.';
    path += name;
    if constexpr (is_parameter<std::remove_const_t<Child>>)
      visit(std::string_view(path), child);
    else
      std::remove_const_t<Child>::each_parameter(child, *this);
    path.resize(length);
  }
  /// Numbered children: "layers.0", "layers.1" ...
  template <class Child>
  void operator()(std::string_view name, std::vector<Child>& children) {
    for (std::size_t i = 0; i < children.size(); ++i) (*this)(text(name, '.', i), children[i]);
  }
  template <class Child>
  void operator()(std::string_view name, const std::vector<Child>& children) {
    for (std::size_t i = 0; i < children.size(); ++i) (*this)(text(name, '.', i), children[i]);
  }
};

}  // namespace detail

/// Base of every layer and model. `Self` lists its parameters and sub-layers once, by name, in
/// `static void each_parameter(auto& self, auto&& visit) { visit("weight", self.weight); ... }`;
/// loading, saving, counting, optimising and converting all go through it.
template <class Self>
class Module {
 public:
  /// Calls `visit(std::string_view dotted_name, Parameter<T>&)` for every parameter, in a fixed order.
  template <class Visit>
  void parameters(Visit&& visit) {
    detail::ParameterWalk<std::remove_reference_t<Visit>> walk{visit, {}};
    Self::each_parameter(static_cast<Self&>(*this), walk);
  }
  template <class Visit>
  void parameters(Visit&& visit) const {
    detail::ParameterWalk<std::remove_reference_t<Visit>> walk{visit, {}};
    Self::each_parameter(static_cast<const Self&>(*this), walk);
  }

  /// Numbers held in trained parameters (statistics of batch norm do not count).
  Index count_parameters() const {
    Index count = 0;
    parameters([&](std::string_view, const auto& p) { count += p.role() == Role::weight ? p.size() : 0; });
    return count;
  }
};

/// What changes, saves or converts a model needs its numbers as they are: throws if some are packed.
template <class Model>
void require_unpacked(const Model& model, const char* who) {
  model.parameters([&](std::string_view name, const auto& p) {
    require(!p.is_packed(), who, ": ", name, " is packed (pack_weights), a model with weights as they are expected");
  });
}

/// Fills with uniform numbers in [-bound, bound).
template <class T>
void fill_uniform(Parameter<T>& parameter, double bound, const Random& random) {
  constexpr int together = 16;  // random blocks computed in vectors
  std::uint64_t w[4][together];
  for (Index begin = 0; begin < parameter.size(); begin += 4 * together) {
    random.blocks<together>(static_cast<std::uint64_t>(begin) / 4, w[0], w[1], w[2], w[3]);
    for (Index i = 0; i < std::min<Index>(4 * together, parameter.size() - begin); ++i)
      parameter.host().data()[begin + i] =
          static_cast<T>(bound * (2 * (static_cast<double>(w[i % 4][i / 4]) * 0x1p-32) - 1));
  }
}

}  // namespace LACONIC_ABI
}  // namespace laconic
