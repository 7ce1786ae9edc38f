// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <filesystem>
#include <laconic/io/file.hpp>
#include <laconic/io/json.hpp>
#include <laconic/io/parameters.hpp>
#include <laconic/io/safetensors.hpp>
#include <string_view>
#include <system_error>

// A model folder is all that is needed to use a model again: config.json (what it is), model.safetensors (its
// parameters) and vocab.json (what its outputs mean).

namespace laconic::inline LACONIC_ABI {

/// Writes a model folder, whole or not at all; other files in an older folder of that name are kept.
template <class Model>
void save_model_folder(const std::filesystem::path& path, const Model& model, const nlohmann::json& config,
                       const nlohmann::json& vocab) {
  FolderWriter folder(path);
  write_json(folder.path() / "config.json", config);
  write_json(folder.path() / "vocab.json", vocab);
  // Hugging Face tools ask for this note; the layout of the values is PyTorch's.
  save_parameters(model, folder.path() / "model.safetensors", {{"format", "pt"}});
  folder.commit();
}

namespace detail {

inline std::filesystem::path model_file(const std::filesystem::path& folder, std::string_view name) {
  constexpr std::string_view expected = ": expected a model folder written by `laconic train` or `laconic convert`";
  std::error_code ignored;
  require(std::filesystem::is_directory(folder, ignored), folder.string(), ": no such folder", expected);
  std::filesystem::path out = folder / name;
  require(std::filesystem::exists(out, ignored), folder.string(), ": no ", name, expected);
  return out;
}

}  // namespace detail

/// config.json of a model folder. Throws `Error` if the folder or the file is missing or not strict JSON.
inline nlohmann::json read_model_config(const std::filesystem::path& folder) {
  return read_json(detail::model_file(folder, "config.json"));
}

/// vocab.json of a model folder.
inline nlohmann::json read_model_vocab(const std::filesystem::path& folder) {
  return read_json(detail::model_file(folder, "vocab.json"));
}

/// model.safetensors of a model folder, checked and ready for `load_parameters`.
inline SafetensorsFile open_model_tensors(const std::filesystem::path& folder) {
  return SafetensorsFile(detail::model_file(folder, "model.safetensors"));
}

}  // namespace laconic
