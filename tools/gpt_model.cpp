// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// Model folders and texts of `laconic gpt`.
#include "gpt.hpp"

#include <laconic/io/folder.hpp>
#include <laconic/io/placed_parameters.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace gpt_command {

using namespace laconic;

namespace {

/// Lists what config.json of a model folder holds.
struct GptFolderConfig {
  LanguageModelConfig gpt;
  std::string model_type = "laconic-gpt";
  static constexpr void fields(auto& self, auto&& visit) {
    visit("model_type", self.model_type);
    visit("gpt", self.gpt);
  }
};

}  // namespace

void save(const std::filesystem::path& folder, const Model& model, const Characters& characters) {
  save_model_folder(folder, model, to_json(GptFolderConfig{model.config()}), characters.to_json());
}

Loaded load(const std::filesystem::path& folder) {
  const std::string where = (folder / "config.json").string();
  const auto config = json_value<GptFolderConfig>(read_model_config(folder), where);
  require(config.model_type == GptFolderConfig().model_type, where, ": 'model_type' is ",
          detail::in_quotes(config.model_type), ", ", detail::in_quotes(GptFolderConfig().model_type), " expected");
  Characters characters = Characters::from_json(read_model_vocab(folder), (folder / "vocab.json").string());
  require(characters.size() == config.gpt.vocab_size, folder.string(), ": vocab.json has ", characters.size(),
          " characters, config.json says ", config.gpt.vocab_size);
  const Tensors tensors = open_model_tensors(folder);
  detail::require_enough_values(tensors, Model::parameter_count(config.gpt), where);
  Loaded out{Model(config.gpt, Seed()), std::move(characters)};
  load_parameters(out.model, tensors);
  return out;
}

CLI::Option* TextOptions::add_to(CLI::App& command, const std::string& description) {
  CLI::Option* out = command.add_option("--text", path, description)->type_name("FILE");
  command.add_option("--valid-fraction", valid_fraction, "part of the text, at its end, that is kept to measure on")
      ->capture_default_str()
      ->check(between(0.0, 1.0));
  return out;
}
std::string TextOptions::read() const {
  const std::string text = read_file(path, std::size_t{1} << 30);
  require(!text.empty(), path, ": the text is empty");
  return text;
}
Text TextOptions::split(const Characters& characters, const std::string& text) const {
  const std::vector<int> tokens = characters.encode(text);
  const auto kept =
      static_cast<std::ptrdiff_t>(std::llround((1 - valid_fraction) * static_cast<double>(tokens.size())));
  return {{tokens.begin(), tokens.begin() + kept}, {tokens.begin() + kept, tokens.end()}};
}

void set_attention(LanguageModelConfig& config, AttentionOptions& options, const char* others) {
  const AttentionChoice& choice = options.chosen();
  config.attention = choice.attention;
  config.num_kv_heads = choice.kv_heads;
  config.kv_lora_rank = choice.latent_dim;
  config.v_lora_rank = choice.v_latent_dim;
  config.qk_rope_head_dim = choice.rope_dim;
  const Index head = config.d_model / std::max<Index>(1, config.num_heads);
  if (choice.attention == AttentionName::mla_head && choice.latent_dim == 0)
    config.kv_lora_rank = std::max<Index>(1, head / 2);
  if (choice.attention == AttentionName::mla_decoupled && choice.rope_dim == 0)
    config.qk_rope_head_dim = std::max<Index>(2, head / 4 * 2);
  try {
    AnyCausalAttention::dims(config.attention_config());
  } catch (const Error& error) {
    throw Error(text(error.what(), " (--attention, --kv-heads, --latent-dim, --v-latent-dim, --rope-dim", others, ')'));
  }
}

Index bytes_of_cache(const LanguageModelConfig& config) {
  return Model::cache_bytes(config, frames(config.max_positions));
}

}  // namespace gpt_command
