// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/parameter.hpp>
#include <laconic/io/parameters.hpp>
#include <laconic/io/tensors.hpp>

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <unordered_set>
#include <utility>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

/// Says where a file of another library has a parameter: the name of the tensor, what part of it, and in which order.
struct TensorPlace {
  std::string name;         ///< name of the tensor
  Index parts = 1;          ///< parameters that lie next to each other in its last dimension
  Index part = 0;           ///< number of this one
  bool transposed = false;  ///< whether a matrix is stored (in, out)
};

/// Fills a model from tensors that are named or stored in another way. place(name) returns the TensorPlace of a
/// parameter, and unused(name) whether a tensor takes no part. Throws `Error`, and leaves the model as it was, for
/// missing and unknown tensors, other shapes and values that are not finite.
template <class Model, class Place, class Unused>
void load_from_places(Model& model, const Tensors& tensors, Place&& place_of, Unused&& unused) {
  using T = typename Model::Scalar;
  require_on_host(model, "load_parameters");
  const auto read = [&](const TensorPlace& place, const Parameter<T>& p) {
    const bool matrix = p.shape().size() > 1;
    std::vector<Index> shape = p.shape();
    if (place.transposed && matrix) std::swap(shape[0], shape[1]);
    shape.back() *= place.parts;
    check_loadable(tensors, place.name, shape);
    Matrix<T> stored(matrix ? shape[0] : 1, shape.back());
    tensors.read(place.name, std::span<T>(stored.data(), static_cast<std::size_t>(stored.size())));
    const Index width = stored.cols() / place.parts;
    const auto part = stored.middleCols(place.part * width, width);
    return place.transposed && matrix ? Matrix<T>(part.transpose()) : Matrix<T>(part);
  };
  // Everything is checked before anything is changed.
  std::unordered_set<std::string> known;
  model.parameters([&](std::string_view name, const Parameter<T>& p) {
    const TensorPlace place = place_of(name);
    require(tensors.contains(place.name), tensors.path(), ": no tensor ", in_quotes(place.name),
            ", which the model needs");
    known.insert(place.name);
    require(read(place, p).allFinite(), tensors.path(place.name), ": tensor ", in_quotes(place.name),
            " holds numbers that are not finite");
  });
  std::vector<std::string> unknown;
  for (const std::string& name : tensors.names())
    if (!known.contains(name) && !unused(name)) unknown.push_back(name);
  require(unknown.empty(), tensors.path(), ": ", unknown.size(),
          " tensors that the model does not have: ", some_names(unknown));
  model.parameters([&](std::string_view name, Parameter<T>& p) { p.host() = read(place_of(name), p); });
}

/// Throws `Error`, in the name of `where`, if the files hold fewer values than the model has parameters, before memory
/// is taken for a model that they cannot fill.
inline void require_enough_values(const Tensors& tensors, Index parameters, const std::string& where) {
  require(parameters <= tensors.count_values(), where, ": describes a model of ", parameters, " numbers, but ",
          tensors.path(), " holds ", tensors.count_values());
}

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
