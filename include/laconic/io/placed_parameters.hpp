// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/parameter.hpp>
#include <laconic/io/folder.hpp>
#include <laconic/io/parameters.hpp>
#include <laconic/io/tensors.hpp>

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <map>
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
  // Rows of several parameters that alternate, head by head: head h has those from h * head_rows + first_row on.
  Index heads = 0;      ///< heads of the parameter, or 0 for all rows in a piece
  Index head_rows = 0;  ///< rows of a head in the tensor
  Index first_row = 0;  ///< the first of them that is this parameter's
};

/// Returns the shape of the tensor that has a parameter of this shape.
inline std::vector<Index> placed_shape(const TensorPlace& place, std::vector<Index> shape) {
  if (place.transposed && shape.size() > 1) std::swap(shape[0], shape[1]);
  shape.back() *= place.parts;
  if (place.heads > 0) shape[0] = place.heads * place.head_rows;
  return shape;
}
/// Calls f(block of the tensor, block of the values) for the blocks of a tensor that hold a parameter's values, which
/// are stored transposed or not.
template <class Stored, class Values, class F>
void each_placed_block(const TensorPlace& place, bool transposed, Stored& stored, Values& values, F&& f) {
  const Index width = stored.cols() / place.parts, heads = std::max<Index>(1, place.heads),
              rows = (transposed ? values.cols() : values.rows()) / heads,
              stride = place.heads > 0 ? place.head_rows : rows;
  for (Index h = 0; h < heads; ++h)
    f(stored.block(h * stride + place.first_row, place.part * width, rows, width),
      transposed ? values.block(0, 0, values.rows(), values.cols()) : values.block(h * rows, 0, rows, values.cols()));
}

/// Fills a model from tensors that are named or stored in another way. place(name) returns the TensorPlace of a
/// parameter, and unused(name) whether a tensor takes no part. Throws `Error`, and leaves the model as it was, for
/// missing and unknown tensors, other shapes and values that are not finite.
template <class Model, class Place, class Unused>
void load_from_places(Model& model, const Tensors& tensors, Place&& place_of, Unused&& unused) {
  using T = typename Model::Scalar;
  require_on_host(model, "load_parameters");
  const auto read = [&](const TensorPlace& place, const Parameter<T>& p) {
    const std::vector<Index> shape = placed_shape(place, p.shape());
    check_loadable(tensors, place.name, shape);
    const bool matrix = shape.size() > 1, transposed = place.transposed && matrix;
    Matrix<T> stored(matrix ? shape[0] : 1, shape.back()), values(p.rows(), p.cols());
    tensors.read(place.name, std::span<T>(stored.data(), static_cast<std::size_t>(stored.size())));
    each_placed_block(place, transposed, stored, values, [&](auto from, auto to) {
      if (transposed)
        to = from.transpose();
      else
        to = from;
    });
    return values;
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

/// Returns the tensors that load_from_places would fill this model from. Allocates a copy of the model. Throws `Error`
/// if the parameters are not on the host.
template <class Model, class Place>
std::map<std::string, std::pair<std::vector<Index>, Matrix<typename Model::Scalar>>> tensors_of_places(
    const Model& model, Place&& place_of) {
  using T = typename Model::Scalar;
  require_on_host(model, "save_parameters");
  std::map<std::string, std::pair<std::vector<Index>, Matrix<T>>> out;
  model.parameters([&](std::string_view name, const Parameter<T>& p) {
    const TensorPlace place = place_of(name);
    auto& [shape, stored] = out[place.name];
    if (shape.empty()) {
      shape = placed_shape(place, p.shape());
      stored.setZero(shape.size() > 1 ? shape[0] : 1, shape.back());
    }
    const bool transposed = place.transposed && shape.size() > 1;
    each_placed_block(place, transposed, stored, p.host(), [&](auto to, auto from) {
      if (transposed)
        to = from.transpose();
      else
        to = from;
    });
  });
  return out;
}

/// Throws `Error`, in the name of `where`, if the files hold fewer values than the model has parameters, before memory
/// is taken for a model that they cannot fill.
inline void require_enough_values(const Tensors& tensors, Index parameters, const std::string& where) {
  require(parameters <= tensors.count_values(), where, ": describes a model of ", parameters, " numbers, but ",
          tensors.path(), " holds ", tensors.count_values());
}

/// Returns the model in a folder: its configuration by config_of(json, where), its parameters by load(model, tensors).
template <class Model, class ConfigOf, class Load>
Model model_in(const std::filesystem::path& folder, ConfigOf&& config_of, Load&& load) {
  const std::string where = (folder / "config.json").string();
  const auto config = config_of(read_model_config(folder), where);
  const Tensors tensors = open_model_tensors(folder);
  require_enough_values(tensors, Model::parameter_count(config), where);
  Model out(config, Seed());
  load(out, tensors);
  return out;
}

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
