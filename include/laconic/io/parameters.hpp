// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <laconic/core/parameter.hpp>
#include <laconic/io/safetensors.hpp>
#include <laconic/io/tensors.hpp>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <unordered_set>
#include <utility>
#include <vector>

namespace laconic::inline LACONIC_ABI {

/// Adds every parameter of a model, statistics too, under `prefix` + its dotted name ("encoder." for a part of a file).
/// Borrows the values: the model must not change or go until the writer has written.
template <class Model>
void append_parameters(SafetensorsWriter& writer, const Model& model, std::string_view prefix = "") {
  model.parameters([&]<class T>(std::string_view name, const Parameter<T>& p) {
    writer.add(text(prefix, name), p.shape(), std::span<const T>(p.value.data(), static_cast<std::size_t>(p.size())));
  });
}

/// Writes a model's parameters as a safetensors file, whole or not at all.
template <class Model>
void save_parameters(const Model& model, const std::filesystem::path& path,
                     std::map<std::string, std::string> metadata = {}) {
  SafetensorsWriter writer;
  writer.metadata = std::move(metadata);
  append_parameters(writer, model);
  writer.write(path);
}

namespace detail {

inline void check_loadable(const Tensors& tensors, const std::string& name, std::span<const Index> expected) {
  const TensorInfo& tensor = tensors.info(name);
  require(std::ranges::equal(tensor.shape, expected), tensors.path(name), ": tensor ", in_quotes(name), " has shape ",
          shape_text(tensor.shape), ", ", shape_text(expected), " expected");
  tensors.require_floating(name);
}

}  // namespace detail

/// Fills a model from files, converting between single, double and half precision. Every parameter must be among the
/// tensors as `prefix` + its name with the model's shape, and every tensor whose name begins with `prefix` must be a
/// parameter, or one that `ignored(name)` says takes no part; and all numbers must be finite. Otherwise throws `Error`,
/// and the model is as it was.
template <class Model, class Ignored>
void load_parameters(Model& model, const Tensors& tensors, std::string_view prefix, Ignored&& ignored) {
  std::unordered_set<std::string> known;
  std::vector<std::string> missing, unknown;
  model.parameters([&](std::string_view name, const auto&) {
    std::string full = text(prefix, name);
    if (!tensors.contains(full)) missing.push_back(full);
    known.insert(std::move(full));
  });
  for (const std::string& name : tensors.names())
    if (name.starts_with(prefix) && !known.contains(name) && !ignored(name)) unknown.push_back(name);
  require(missing.empty(), tensors.path(), ": ", missing.size(), " of the model's ", known.size(),
          " tensors are missing: ", detail::some_names(missing));
  require(unknown.empty(), tensors.path(), ": ", unknown.size(),
          " tensors that the model does not have: ", detail::some_names(unknown));

  // All is looked at before anything is changed.
  model.parameters([&]<class T>(std::string_view name, const Parameter<T>& p) {
    const std::string full = text(prefix, name);
    detail::check_loadable(tensors, full, p.shape());
    std::vector<T> numbers(static_cast<std::size_t>(p.size()));
    tensors.read(full, std::span<T>(numbers));
    require(std::ranges::all_of(numbers, [](T x) { return std::isfinite(x); }), tensors.path(full), ": tensor ",
            detail::in_quotes(full), " holds numbers that are not finite");
  });
  model.parameters([&]<class T>(std::string_view name, Parameter<T>& p) {
    tensors.read(text(prefix, name), std::span<T>(p.value.data(), static_cast<std::size_t>(p.size())));
  });
}

template <class Model>
void load_parameters(Model& model, const Tensors& tensors, std::string_view prefix = "") {
  load_parameters(model, tensors, prefix, [](std::string_view) { return false; });
}

}  // namespace laconic
