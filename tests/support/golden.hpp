// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/io/parameters.hpp>

#include "gradient_check.hpp"

#include <filesystem>
#include <string>

namespace laconic {

/// Opens a file that a script in tests/golden wrote.
inline SafetensorsFile golden_file(const std::string& name) {
  return SafetensorsFile(std::filesystem::path(LACONIC_GOLDEN_DIR) / name);
}

/// Returns a tensor as a matrix: its first dimension times all others, or one row.
template <class T>
Matrix<T> tensor(const SafetensorsFile& file, const std::string& name) {
  const auto& shape = file.info(name).shape;
  Index cols = 1;
  for (std::size_t i = shape.size() == 1 ? 0 : 1; i < shape.size(); ++i) cols *= shape[i];
  Matrix<T> out(shape.size() < 2 ? 1 : shape[0], cols);
  file.read(name, std::span<T>(out.data(), static_cast<std::size_t>(out.size())));
  return out;
}

/// Returns the max difference relative to the max of `expected`, or to `least` if that is larger; 1e300 if `got` is not
/// finite.
template <class T>
double difference(const Matrix<T>& got, const Matrix<T>& expected, double least = 0) {
  REQUIRE(got.rows() == expected.rows());
  REQUIRE(got.cols() == expected.cols());
  if (!got.allFinite()) return 1e300;
  if (expected.size() == 0) return 0;
  return static_cast<double>((got - expected).cwiseAbs().maxCoeff()) /
         std::max(least, static_cast<double>(expected.cwiseAbs().maxCoeff()));
}

/// Refers to one case of a file that tests/golden/golden_case.py laid out, and the tolerances of its results.
template <class T>
struct Golden {
  const SafetensorsFile& file;
  std::string prefix;  ///< "case0."
  double tolerance, gradient_tolerance;

  Matrix<T> operator()(const std::string& name) const { return tensor<T>(file, prefix + name); }

  void check_output(const Matrix<T>& got) const { CHECK(difference<T>(got, (*this)("output")) < tolerance); }
  /// Checks the values of y, then computes the gradients of sum(y * mix), with `mix` from the file.
  template <class Tape, class Tensor>
  void check_backward(Tape& tape, const Tensor& y) const {
    check_output(y.value.view());
    tape.backward(tape.mean_finite(tape.multiply(y, tape.input((*this)("mix")))),
                  static_cast<double>(y.rows() * y.cols()));
  }
  /// Checks a gradient relative to its own max, or to a hundredth of the max of all gradients for gradients that cancel
  /// (the bias of the keys).
  void check_gradient(const std::string& name, const Matrix<T>& got) const {
    double greatest = 0;
    for (const std::string& one : file.names())
      if (one.starts_with(prefix + "grad."))
        greatest = std::max(greatest, static_cast<double>(tensor<T>(file, one).cwiseAbs().maxCoeff()));
    INFO(prefix << name);
    CHECK(difference<T>(got, (*this)("grad." + name), 1e-2 * greatest) < gradient_tolerance);
  }
  /// Checks the gradient by the input and by every parameter, and that the file has no others.
  template <class Model>
  void check_gradients(const Matrix<T>& by_input, const Model& model) const {
    check_gradient("input", by_input);
    Index compared = 1;
    model.parameters([&](std::string_view name, const Parameter<T>& p) {
      check_gradient(std::string(name), p.gradient());
      ++compared;
    });
    CHECK(compared == gradients());
  }
  Index gradients() const {
    Index count = 0;
    for (const std::string& one : file.names()) count += one.starts_with(prefix + "grad.") ? 1 : 0;
    return count;
  }
};

}  // namespace laconic
