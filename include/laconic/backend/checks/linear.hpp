// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/shapes.hpp>
#include <laconic/core/parameter.hpp>

#include <span>
#include <type_traits>

// The checks of arguments of products with weights, which all backends share. Each throws `Error` for sizes that do not
// fit.

namespace laconic {
inline namespace LACONIC_ABI {
namespace checks {

/// Checks that weights of T can be rounded as `storage` says.
template <class T>
void prepare(Storage storage) {
  require(storage == Storage::full || std::is_same_v<T, float>, "prepare: ", to_name(storage),
          " given for a model that is not of float");
}
/// Checks the arguments of `linear`.
template <class Tensor, class T>
void linear(const Tensor& x, const Parameter<T>& weight, const Parameter<T>* bias) {
  const Index out = weight.rows(), in = weight.cols();
  require(x.cols() == in, "linear: input has ", x.cols(), " channels, the weight expects ", in);
  require(bias == nullptr || bias->size() == out, "linear: a bias of ", bias == nullptr ? 0 : bias->size(),
          " given for ", out, " channels");
}
/// Checks the arguments of `embed`.
template <class T>
void embed(std::span<const int> ids, const Parameter<T>& weight) {
  for (const int id : ids)
    require(id >= 0 && id < weight.rows(), "embed: id ", id, " given, 0 to ", weight.rows() - 1, " expected");
}

/// Holds the sizes of the matrix of a head, (out, in).
struct HeadSizes {
  Index out;  ///< rows
  Index in;   ///< columns
};
/// Checks the input and the weight of `head_linear` and returns the sizes of its matrices.
template <class Tensor, class T>
HeadSizes head_sizes(const Tensor& x, const Parameter<T>& weight, const HeadShape& shape) {
  const HeadSizes sizes{shape.num_blocks > 0 ? weight.rows() / shape.num_blocks : 0, weight.cols()};
  require(shape.num_heads > 0 && sizes.out > 0 && shape.num_heads % shape.num_blocks == 0 &&
              weight.rows() == shape.num_blocks * sizes.out &&
              x.cols() == shape.num_heads * (shape.transposed ? sizes.out : sizes.in),
          "head_linear: an input of ", x.cols(), " channels and a weight of (", weight.rows(), ", ", weight.cols(),
          ") given, which ", shape.num_heads, " heads with ", shape.num_blocks, " matrices do not fit");
  return sizes;
}
/// Checks the arguments of `head_linear` and returns the sizes of its matrices.
template <class Tensor, class T>
HeadSizes head_linear(const Tensor& x, const Parameter<T>& weight, const Parameter<T>* bias, const HeadShape& shape) {
  const HeadSizes sizes = head_sizes(x, weight, shape);
  require(bias == nullptr || (bias->size() == weight.rows() && !shape.transposed), "head_linear: a bias of ",
          bias == nullptr ? 0 : bias->size(), " given, ", shape.transposed ? 0 : weight.rows(), " expected");
  return sizes;
}

}  // namespace checks
}  // namespace LACONIC_ABI
}  // namespace laconic
