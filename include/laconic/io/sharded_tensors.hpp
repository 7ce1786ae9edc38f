// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <filesystem>
#include <laconic/core/error.hpp>
#include <laconic/io/json.hpp>
#include <laconic/io/tensors.hpp>
#include <map>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

// A model in several files, as Hugging Face's save_pretrained writes it with an index:
// {"metadata": {...}, "weight_map": {"encoder.weight": "model-00001-of-00002.safetensors", ...}}.

namespace laconic {
inline namespace LACONIC_ABI {

/// Opens the tensors of all files that an index names. Each file is opened as `Shard`, lies next to the index, and must
/// hold exactly the tensors that the index says it does.
template <class Shard>
class ShardedTensors : public Tensors {
 public:
  /// Reads the index and opens its files. Throws `Error` for a missing file, and for tensors that are not where the
  /// index says.
  explicit ShardedTensors(const std::filesystem::path& index) : Tensors(index.string()) {
    std::map<std::string, std::vector<std::string>> shards;  // the tensors of each file
    const auto json = read_json(index);
    require(json.is_object() && json.contains("weight_map") && json["weight_map"].is_object(), path(),
            ": an object 'weight_map' of tensors and the files that they are in expected");
    const auto& weight_map = json["weight_map"];
    for (const auto& [name, shard] : weight_map.items()) {
      require(shard.is_string(), path(), ": tensor ", detail::in_quotes(name), " is in ", detail::shown(shard),
              ", the name of a file expected");
      shards[shard.template get<std::string>()].push_back(name);
    }
    for (const auto& [shard, names] : shards) check_name(shard);
    std::vector<std::string> missing;
    std::error_code ignored;
    for (const auto& [shard, names] : shards)
      if (!std::filesystem::exists(index.parent_path() / shard, ignored)) missing.push_back(shard);
    require(missing.empty(), path(), ": ", missing.size(), " of its ", shards.size(),
            " files are missing: ", detail::some_names(missing));

    for (const auto& [shard, names] : shards) {
      Shard file(index.parent_path() / shard);
      for (const std::string& name : names)
        require(file.contains(name), file.path(), ": no tensor ", detail::in_quotes(name), ", which ", path(),
                " says is there");
      for (const std::string& name : file.names()) {
        const auto found = weight_map.find(name);
        require(found != weight_map.end(), file.path(), ": tensor ", detail::in_quotes(name), " is not in ", path());
        require(*found == shard, file.path(), ": tensor ", detail::in_quotes(name), " should be in ",
                detail::shown(*found), ", as ", path(), " says");
      }
      add(std::move(file));
    }
  }

 private:
  /// Throws `Error` unless the name is that of a file next to the index, and not a path.
  void check_name(const std::string& shard) const {
    require(!shard.empty() && shard != "." && shard != ".." &&
                shard.find_first_of(std::string_view("/\\\0", 3)) == std::string::npos,
            path(), ": ", detail::in_quotes(shard), " given for a file beside it, a plain name expected");
  }
};

}  // namespace LACONIC_ABI
}  // namespace laconic
