// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <filesystem>
#include <laconic/io/file.hpp>
#include <laconic/io/json.hpp>
#include <laconic/io/parameters.hpp>
#include <laconic/io/safetensors.hpp>
#include <laconic/io/sharded_tensors.hpp>
#include <laconic/io/tensors.hpp>
#include <laconic/io/torch_file.hpp>
#include <map>
#include <string>
#include <string_view>
#include <system_error>

// A model folder is all that is needed to use a model: config.json (its configuration), model.safetensors (its
// parameters; from Hugging Face also pytorch_model.bin, or several files) and vocab.json (the tokens of its outputs).

namespace laconic {
inline namespace LACONIC_ABI {

/// Writes a model folder, whole or not at all, with weights rounded as `save_parameters` says. It holds `others` in
/// addition to config.json and vocab.json; other files in an older folder of that name are kept. Throws `Error` if the
/// parameters are not on the host or a file cannot be written.
template <class Model>
void save_model_folder(const std::filesystem::path& path, const Model& model, const nlohmann::json& config,
                       const nlohmann::json& vocab, const std::map<std::string, nlohmann::json>& others = {},
                       Storage weights = Storage::full) {
  FolderWriter folder(path);
  write_json(folder.path() / "config.json", config, NotUtf8::refused);
  write_json(folder.path() / "vocab.json", vocab, NotUtf8::refused);
  for (const auto& [name, json] : others) write_json(folder.path() / name, json);
  // Hugging Face tools require this note; the layout of the values is PyTorch's.
  save_parameters(model, folder.path() / "model.safetensors", {{"format", "pt"}}, weights);
  folder.commit();
}

namespace detail {

/// Ends the message about a folder that is not a model's.
inline constexpr std::string_view model_folder_expected =
    ": expected a model folder written by `laconic train` or `laconic convert`, or one of Hugging Face with "
    "config.json, "
    "vocab.json and model.safetensors or pytorch_model.bin";

/// Throws `Error` unless the folder exists.
inline void require_folder(const std::filesystem::path& folder) {
  std::error_code ignored;
  if (is_there(folder) && std::filesystem::is_directory(folder, ignored)) return;
  const std::string name = folder.string();
  const auto slash = name.find('/');  // of OWNER/NAME
  const bool of_hub = slash != std::string::npos && slash > 0 && slash + 1 < name.size() && name.front() != '.' &&
                      slash == name.rfind('/') && !std::filesystem::exists(folder.parent_path(), ignored);
  throw Error(text(name, ": no such folder", model_folder_expected,
                   of_hub ? text("; if this is a model of the Hugging Face Hub, download it first: hf download ", name,
                                 " --local-dir ", name.substr(slash + 1))
                          : ""));
}

/// Returns the path of a file in a model folder. Throws `Error` if there is none.
inline std::filesystem::path model_file(const std::filesystem::path& folder, std::string_view name) {
  require_folder(folder);
  std::filesystem::path out = folder / name;
  require(is_listed(out), folder.string(), ": no ", name, model_folder_expected);
  return out;
}

}  // namespace detail

/// Returns config.json of a model folder. Throws `Error` if the folder or the file is missing or not strict JSON.
inline nlohmann::json read_model_config(const std::filesystem::path& folder) {
  return read_json(detail::model_file(folder, "config.json"));
}

/// Returns vocab.json of a model folder. Throws `Error` if the folder or the file is missing or not strict JSON.
inline nlohmann::json read_model_vocab(const std::filesystem::path& folder) {
  return read_json(detail::model_file(folder, "vocab.json"));
}

/// Returns the tensors of a model folder, checked and ready for `load_parameters`. A folder of Hugging Face works, too:
/// the first that exists of model.safetensors, model.safetensors.index.json, pytorch_model.bin and
/// pytorch_model.bin.index.json is opened. Throws `Error` if there is none.
inline Tensors open_model_tensors(const std::filesystem::path& folder) {
  detail::require_folder(folder);
  const auto has = [&](std::string_view name) { return detail::is_listed(folder / name); };
  if (has("model.safetensors")) return SafetensorsFile(folder / "model.safetensors");
  if (has("model.safetensors.index.json"))
    return ShardedTensors<SafetensorsFile>(folder / "model.safetensors.index.json");
  if (has("pytorch_model.bin")) return TorchFile(folder / "pytorch_model.bin");
  if (has("pytorch_model.bin.index.json")) return ShardedTensors<TorchFile>(folder / "pytorch_model.bin.index.json");
  throw Error(text(folder.string(), ": no model.safetensors, no pytorch_model.bin and no index (.index.json) of either",
                   detail::model_folder_expected));
}

}  // namespace LACONIC_ABI
}  // namespace laconic
