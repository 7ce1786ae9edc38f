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

/// Says how an optimiser treats a parameter.
enum class Role {
  weight,     ///< trained by its gradient
  statistic,  ///< gathered while training (batch norm); its gradient slot carries the update to be added
};

/// Says what the layers that own a weight compute with it. A backend chooses by it the form in which it holds the
/// weight.
enum class WeightUse {
  elementwise,     ///< read value by value: biases, norms, depthwise kernels
  linear,          ///< rows x times W^T
  heads,           ///< rows x times W^T, and single heads times their own block of W (`head_linear`)
  conv1d,          ///< products over the taps of a convolution over time
  conv2d,          ///< products over the taps of a 3 x 3 convolution of stride 1
  conv2d_stride_2  ///< products over the taps of a 3 x 3 convolution of stride 2
};

/// Holds the values of one parameter in the form that a backend computes with. The backend makes it, and only the
/// backend reads it.
class ResidentWeight {
 public:
  /// Not copyable: `copy` says what a copy of the parameter holds.
  ResidentWeight(const ResidentWeight&) = delete;
  /// Not assignable.
  ResidentWeight& operator=(const ResidentWeight&) = delete;
  /// Frees the backend's memory.
  virtual ~ResidentWeight() = default;
  /// Returns the address of a constant that identifies the derived class, so that a backend recognises its own weights.
  const void* kind() const { return kind_; }
  /// Returns the name of the backend for messages: "Cpu".
  virtual const char* backend() const = 0;
  /// Returns how the values are rounded.
  virtual Storage storage() const = 0;
  /// Says whether the values can change in this form. If not, copies of a model share it.
  virtual bool can_train() const = 0;
  /// Returns what a copy of the parameter holds. Allocates if the values can change.
  virtual std::shared_ptr<ResidentWeight> copy() const = 0;

 protected:
  /// Makes a weight that `kind` identifies.
  explicit ResidentWeight(const void* kind) : kind_(kind) {}

 private:
  const void* kind_;
};

namespace detail {

/// Owns a resident weight, and copies it as the weight says.
class ResidentPointer {
 public:
  /// Makes a null pointer.
  ResidentPointer() = default;
  /// Owns this weight.
  explicit ResidentPointer(std::shared_ptr<ResidentWeight> weight) : weight_(std::move(weight)) {}
  /// Holds what `ResidentWeight::copy` returns.
  ResidentPointer(const ResidentPointer& other) : weight_(other.weight_ ? other.weight_->copy() : nullptr) {}
  /// Takes over the weight of the other.
  ResidentPointer(ResidentPointer&&) noexcept = default;
  /// Drops its weight and takes that of the other.
  ResidentPointer& operator=(ResidentPointer other) noexcept {
    weight_.swap(other.weight_);
    return *this;
  }
  ~ResidentPointer() = default;
  /// Returns the weight, or null.
  const std::shared_ptr<ResidentWeight>& get() const { return weight_; }

 private:
  std::shared_ptr<ResidentWeight> weight_;
};

}  // namespace detail

/// Holds a named tensor of a model, laid out as PyTorch stores it: a linear weight is `(out, in)`, a depthwise kernel
/// `(channels, 1, kernel)`. The values are in one place at a time: on the host, where `host` reads and edits them as a
/// matrix (the first dimension, the product of the others), or resident in a backend (`Context::prepare`), until
/// `Context::fetch` brings them back. The gradient is where the values are. It is scratch memory of training: a tape
/// fills it through a const model, too.
template <class T>
class Parameter {
 public:
  using Scalar = T;  ///< the type of an element

  // Called, not inlined: models consist of hundreds of parameters, and all of that code took a quarter of a user's time
  // to compile.
  /// Makes a parameter without elements.
  [[gnu::noinline]] Parameter();
  /// Copies the values and the gradient; resident values as their `ResidentWeight::copy` says. Allocates.
  [[gnu::noinline]] Parameter(const Parameter&);
  /// Takes over the other's values, gradient and resident form.
  [[gnu::noinline]] Parameter(Parameter&&) noexcept;
  [[gnu::noinline]] Parameter& operator=(const Parameter&);
  [[gnu::noinline]] Parameter& operator=(Parameter&&) noexcept;
  [[gnu::noinline]] ~Parameter();
  /// Makes a parameter of zeros on the host. Allocates.
  explicit Parameter(std::initializer_list<Index> shape, Role role = Role::weight) : shape_(shape), role_(role) {
    value_.setZero(rows(), cols());
  }

  /// Returns the dimensions as PyTorch has them.
  const std::vector<Index>& shape() const { return shape_; }
  /// Returns the rows of the matrix view: the first dimension, or 1 for a vector.
  Index rows() const { return shape_.size() == 1 ? 1 : shape_.empty() ? 0 : shape_[0]; }
  /// Returns the columns of the matrix view: the product of the other dimensions.
  Index cols() const {
    Index product = shape_.empty() ? 0 : 1;
    for (std::size_t i = shape_.size() < 2 ? 0 : 1; i < shape_.size(); ++i) product *= shape_[i];
    return product;
  }
  /// Returns the number of elements.
  Index size() const { return rows() * cols(); }
  /// Returns how an optimiser treats the parameter.
  Role role() const { return role_; }

  /// Returns the values, (rows, cols). Throws `Error` if they are resident in a backend.
  const Matrix<T>& host() const {
    require_on_host();
    return value_;
  }
  /// Returns the values for editing, (rows, cols). Throws `Error` if they are resident in a backend.
  Matrix<T>& host() {
    require_on_host();
    return value_;
  }

  /// Says whether training changes the values. A frozen parameter gets no gradient.
  bool trainable = true;
  /// Says what the owning layers compute with the values.
  WeightUse use = WeightUse::elementwise;
  /// Says how much a new batch weighs in the moving average that a statistic is.
  double momentum = 0;

  /// Says whether the values can be trained where they are.
  bool can_train() const { return !is_resident() || resident_.get()->can_train(); }
  /// Says whether a backend holds the values.
  bool is_resident() const { return resident_.get() != nullptr; }
  /// Returns the form that a backend holds, or null if the values are on the host. For backends only.
  const std::shared_ptr<ResidentWeight>& resident() const { return resident_.get(); }
  /// Hands the values to a backend: the host keeps neither them nor a gradient. For backends only.
  void make_resident(std::shared_ptr<ResidentWeight> weight) {
    resident_ = detail::ResidentPointer(std::move(weight));
    value_.resize(0, 0);
    gradient_.resize(0, 0);
  }
  /// Brings values (rows, cols) back to the host, and a gradient of the same shape or an empty one. Throws `Error` for
  /// values of another shape. For backends only.
  void make_host(Matrix<T> values, Matrix<T> gradient = {}) {
    require(values.rows() == rows() && values.cols() == cols(), "parameter: values of (", values.rows(), ", ",
            values.cols(), ") given, (", rows(), ", ", cols(), ") expected");
    resident_ = {};
    value_ = std::move(values);
    gradient_ = std::move(gradient);
  }

  /// Says whether there is a gradient on the host.
  bool has_gradient() const { return gradient_.size() == value_.size() && value_.size() > 0; }
  /// Returns the gradient on the host, (rows, cols). The first call allocates it and sets it to zero. Throws `Error` if
  /// the values are resident in a backend.
  Matrix<T>& gradient() const {
    require_on_host();
    if (!has_gradient()) gradient_.setZero(value_.rows(), value_.cols());
    return gradient_;
  }
  /// Sets the gradient on the host to zero, if there is one.
  void clear_gradient() const {
    if (has_gradient()) gradient_.setZero();
  }

 private:
  void require_on_host() const {
    if (is_resident()) [[unlikely]]
      throw Error(text("parameter: values resident in ", resident_.get()->backend(),
                       " given, values on the host expected (fetch)"));
  }

  std::vector<Index> shape_;
  Role role_ = Role::weight;
  Matrix<T> value_;
  mutable Matrix<T> gradient_;
  detail::ResidentPointer resident_;
};

template <class T>
Parameter<T>::Parameter() = default;
template <class T>
Parameter<T>::Parameter(const Parameter&) = default;
template <class T>
Parameter<T>::Parameter(Parameter&&) noexcept = default;
template <class T>
Parameter<T>& Parameter<T>::operator=(const Parameter&) = default;
template <class T>
Parameter<T>& Parameter<T>::operator=(Parameter&&) noexcept = default;
template <class T>
Parameter<T>::~Parameter() = default;

/// Says whether a weight is rounded if weights are stored as `weights`. Weights of matrix products are, except that
/// int8 leaves out convolutions of fewer than 64 values for each output: their largest value would cost the others too
/// much precision.
template <class T>
bool is_rounded(const Parameter<T>& p, Storage weights) {
  constexpr Index few = 64;
  const bool is_product = p.use != WeightUse::elementwise && p.use != WeightUse::heads;
  return weights != Storage::full && is_product && p.size() > 0 &&
         !(weights == Storage::int8 && p.use != WeightUse::linear && p.cols() < few);
}

namespace detail {

/// Says whether a type is a Parameter.
template <class>
inline constexpr bool is_parameter = false;
/// Says that a Parameter is one.
template <class T>
inline constexpr bool is_parameter<Parameter<T>> = true;

/// Calls `visit(dotted_name, parameter)` for every parameter below a module.
template <class Visit>
struct ParameterWalk {
  Visit& visit;      ///< the caller's function
  std::string path;  ///< dotted name of the module being visited

  /// Visits a parameter, or all parameters of a module.
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
  /// Visits numbered modules: "layers.0", "layers.1" ...
  template <class Child>
  void operator()(std::string_view name, std::vector<Child>& children) {
    for (std::size_t i = 0; i < children.size(); ++i) (*this)(text(name, '.', i), children[i]);
  }
  /// Visits numbered modules that are const.
  template <class Child>
  void operator()(std::string_view name, const std::vector<Child>& children) {
    for (std::size_t i = 0; i < children.size(); ++i) (*this)(text(name, '.', i), children[i]);
  }
};

/// Calls a function of the caller with every parameter, whatever its type: a model is walked by one type of visitor,
/// and not compiled again for each.
template <class P>
struct ParameterVisit {
  void* visit;                                ///< the caller's function
  void (*call)(void*, std::string_view, P&);  ///< calls it

  /// Passes a parameter on.
  void operator()(std::string_view name, P& parameter) const { call(visit, name, parameter); }
};

/// Calls `visit(dotted_name, parameter)` for every parameter below a module, of type P unless its numbers are unknown.
template <class P, class Module, class Visit>
void walk_parameters(Module& module, Visit& visit) {
  using Self = std::remove_const_t<Module>;
  if constexpr (std::is_void_v<P>) {
    ParameterWalk<Visit> walk{visit, {}};
    Self::each_parameter(module, walk);
  } else {
    const auto call = [](void* erased, std::string_view name, P& p) { (*static_cast<Visit*>(erased))(name, p); };
    const ParameterVisit<P> passed{const_cast<std::remove_const_t<Visit>*>(&visit), call};
    ParameterWalk<const ParameterVisit<P>> walk{passed, {}};
    Self::each_parameter(module, walk);
  }
}

/// Names the type of a module's parameters, or void if the module does not say it (`Scalar`).
template <class Self>
struct ParameterOf {
  using type = void;
};
template <class Self>
requires requires { typename Self::Scalar; }
struct ParameterOf<Self> {
  using type = Parameter<typename Self::Scalar>;
};

}  // namespace detail

/// Serves as the base of every layer and model. `Self` lists its parameters and sub-layers once, by name, in `static
/// void each_parameter(auto& self, auto&& visit) { visit("weight", self.weight); ... }`. Loading, saving, counting,
/// optimising and converting all go through it. A `Self` that names its type of number (`using Scalar = T`) compiles
/// faster.
template <class Self>
class Module {
 public:
  /// Calls `visit(std::string_view dotted_name, Parameter<T>&)` for every parameter, in a fixed order.
  template <class Visit>
  void parameters(Visit&& visit) {
    detail::walk_parameters<typename detail::ParameterOf<Self>::type>(static_cast<Self&>(*this), visit);
  }
  /// Calls `visit(std::string_view dotted_name, const Parameter<T>&)` for every parameter, in a fixed order.
  template <class Visit>
  void parameters(Visit&& visit) const {
    detail::walk_parameters<const typename detail::ParameterOf<Self>::type>(static_cast<const Self&>(*this), visit);
  }

  /// Returns the number of elements of all parameters that have gradients; statistics of batch norm do not count.
  Index count_parameters() const {
    Index count = 0;
    parameters([&](std::string_view, const auto& p) { count += p.role() == Role::weight ? p.size() : 0; });
    return count;
  }
};

/// Throws `Error`, in the name of `who`, unless all values of a model are on the host. Saving, converting and comparing
/// read them there.
template <class Model>
void require_on_host(const Model& model, const char* who) {
  model.parameters([&](std::string_view name, const auto& p) {
    require(!p.is_resident(), who, ": ", name, " is resident in ", p.is_resident() ? p.resident()->backend() : "",
            " (prepare), a model on the host expected (fetch)");
  });
}

/// Fills a parameter with uniform values in [-bound, bound).
template <class T>
void fill_uniform(Parameter<T>& parameter, double bound, const Random& random) {
  constexpr int together = 16;  // counters whose random blocks are computed together, in vectors
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
