// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <iterator>
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

namespace laconic {
inline namespace LACONIC_ABI {

/// Adds every parameter of a model, statistics too, under `prefix` + its dotted name ("encoder." for a part of a file).
/// The values are borrowed: the model must neither change nor end before the writer has written. Throws `Error` if they
/// are not on the host.
template <class Model>
void append_parameters(SafetensorsWriter& writer, const Model& model, std::string_view prefix = "") {
  require_on_host(model, "append_parameters");
  model.parameters([&]<class T>(std::string_view name, const Parameter<T>& p) {
    writer.add(text(prefix, name), p.shape(), std::span<const T>(p.host().data(), static_cast<std::size_t>(p.size())));
  });
}

/// Writes a model's parameters as a safetensors file, whole or not at all. Weights of matrix products (`is_rounded`)
/// are rounded as `weights` says; int8 adds a tensor of scales, one for each row. Throws `Error` if the values are not
/// on the host or the file cannot be written. Allocates the rounded values.
template <class Model>
void save_parameters(const Model& model, const std::filesystem::path& path,
                     std::map<std::string, std::string> metadata = {}, Storage weights = Storage::full) {
  SafetensorsWriter writer;
  writer.metadata = std::move(metadata);
  if (weights == Storage::full) {
    append_parameters(writer, model);
    return writer.write(path);
  }
  require_on_host(model, "save_parameters");
  std::vector<std::vector<Bf16>> halves;
  std::vector<std::vector<std::int8_t>> bytes;
  std::vector<std::vector<float>> scales;
  model.parameters([&]<class T>(std::string_view name, const Parameter<T>& p) {
    const std::span<const T> values(p.host().data(), static_cast<std::size_t>(p.size()));
    if (!is_rounded(p, weights)) return writer.add(name, p.shape(), values);
    if (weights == Storage::bf16) {
      auto& to = halves.emplace_back(values.size());
      std::transform(values.begin(), values.end(), to.begin(), [](T x) { return to_bf16(static_cast<float>(x)); });
      return writer.add(name, p.shape(), std::span<const Bf16>(to));
    }
    auto& to = bytes.emplace_back();
    auto& scale = scales.emplace_back();
    for (Index r = 0; r < p.rows(); ++r) {
      const T* from = p.host().row(r).data();
      const ByteRow row(p.cols(), from);
      std::transform(from, from + p.cols(), std::back_inserter(to), row);
      scale.push_back(row.scale());
    }
    writer.add(name, p.shape(), std::span<const std::int8_t>(to));
    writer.add(text(name, Tensors::scale_suffix), std::array{p.rows()}, std::span<const float>(scale));
  });
  writer.write(path);
}

namespace detail {

/// Throws `Error` unless a tensor has this shape and a type that can be read.
inline void check_loadable(const Tensors& tensors, const std::string& name, std::span<const Index> expected) {
  const TensorInfo& tensor = tensors.info(name);
  require(std::equal(tensor.shape.begin(), tensor.shape.end(), expected.begin(), expected.end()), tensors.path(name),
          ": tensor ", in_quotes(name), " has shape ", shape_text(tensor.shape), ", ", shape_text(expected),
          " expected");
  tensors.require_readable(name);
}

}  // namespace detail

/// Fills a model from files, converting from single, double and half precision, bfloat16 and bytes with scales. Every
/// parameter must be among the tensors as `prefix` + its name with the model's shape. Every tensor whose name begins
/// with `prefix` must be a parameter. All values must be finite. Otherwise throws `Error` and leaves the model as it
/// was. Tensors of which `ignored(name)`, without the prefix, says that they take no part count as not there. A
/// parameter that is missing keeps its values if `may_lack(name)` says so.
template <class Model, class Ignored, class MayLack>
void load_parameters(Model& model, const Tensors& tensors, std::string_view prefix, Ignored&& ignored,
                     MayLack&& may_lack) {
  require_on_host(model, "load_parameters");
  std::unordered_set<std::string> known;
  std::vector<std::string> missing, unknown;
  Index parameters = 0;
  const auto is_given = [&](std::string_view name) { return tensors.contains(text(prefix, name)) && !ignored(name); };
  model.parameters([&](std::string_view name, const auto&) {
    ++parameters;
    std::string full = text(prefix, name);
    if (!is_given(name) && !may_lack(name)) missing.push_back(full);
    if (tensors.contains(full) && tensors.info(full).dtype == Dtype::i8)
      known.insert(full + std::string(Tensors::scale_suffix));
    known.insert(std::move(full));
  });
  for (const std::string& name : tensors.names())
    if (name.starts_with(prefix) && !known.contains(name) && !ignored(std::string_view(name).substr(prefix.size())))
      unknown.push_back(name);
  require(missing.empty(), tensors.path(), ": ", missing.size(), " of the model's ", parameters,
          " tensors are missing: ", detail::some_names(missing),
          unknown.empty() ? "" : text("; the model does not have ", detail::some_names(unknown)));
  require(unknown.empty(), tensors.path(), ": ", unknown.size(),
          " tensors that the model does not have: ", detail::some_names(unknown));

  // Everything is checked before anything is changed.
  model.parameters([&]<class T>(std::string_view name, const Parameter<T>& p) {
    const std::string full = text(prefix, name);
    if (!is_given(name)) return;
    detail::check_loadable(tensors, full, p.shape());
    std::vector<T> numbers(static_cast<std::size_t>(p.size()));
    tensors.read(full, std::span<T>(numbers));
    require(std::all_of(numbers.begin(), numbers.end(), [](T x) { return std::isfinite(x); }), tensors.path(full),
            ": tensor ", detail::in_quotes(full), " holds numbers that are not finite");
  });
  model.parameters([&]<class T>(std::string_view name, Parameter<T>& p) {
    const std::string full = text(prefix, name);
    if (is_given(name)) tensors.read(full, std::span<T>(p.host().data(), static_cast<std::size_t>(p.size())));
  });
}

/// Returns the rounding of a model's weights in these files, if all that `save_parameters` rounds have it; else `full`.
/// Throws `Error` if one of these is missing.
template <class Model>
Storage stored_weights(const Model& model, const Tensors& tensors, std::string_view prefix = "") {
  for (const auto& [storage, dtype] : {std::pair{Storage::int8, Dtype::i8}, std::pair{Storage::bf16, Dtype::bf16}}) {
    bool any = false, all = true;
    model.parameters([&, storage = storage, dtype = dtype](std::string_view name, const auto& p) {
      if (!is_rounded(p, storage)) return;
      any = true;
      all = all && tensors.info(text(prefix, name)).dtype == dtype;
    });
    if (any && all) return storage;
  }
  return Storage::full;
}

/// Fills a model from files, none of whose tensors with this prefix may be unknown to it. Throws `Error` and leaves the
/// model as it was if they do not fit.
template <class Model>
void load_parameters(Model& model, const Tensors& tensors, std::string_view prefix = "") {
  const auto none = [](std::string_view) { return false; };
  load_parameters(model, tensors, prefix, none, none);
}

}  // namespace LACONIC_ABI
}  // namespace laconic
