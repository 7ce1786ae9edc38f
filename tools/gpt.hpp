// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include "common/cli.hpp"

#include <laconic/model/gpt.hpp>
#include <laconic/speech/characters.hpp>

#include <filesystem>
#include <string>
#include <vector>

// What the subcommands of `laconic gpt` share. Named, since sources are compiled in groups.
namespace gpt_command {

using Model = laconic::Gpt<laconic::AnyCausalAttention>;

/// Holds a language model and the characters that its tokens are.
struct Loaded {
  Model model;
  laconic::Characters characters;
};
/// Writes a model folder, whole or not at all.
void save(const std::filesystem::path& folder, const Model& model, const laconic::Characters& characters);
/// Reads a model folder that `save` wrote.
Loaded load(const std::filesystem::path& folder);

/// Holds the tokens of a text, the end of which is kept to measure on.
struct Text {
  std::vector<int> train, valid;
};
/// Names a text, and the part of it that is kept to measure on.
struct TextOptions {
  std::string path;
  double valid_fraction = 0.1;

  /// Adds the options, and returns the one of the path.
  CLI::Option* add_to(CLI::App& command, const std::string& description = "text file, in UTF-8");
  /// Returns the text of the file.
  std::string read() const;
  /// Returns the tokens of a text.
  Text split(const laconic::Characters& characters, const std::string& text) const;
};

/// Sets the attention that the options describe. Latents of heads are half as wide as a head by default. Throws unless
/// the sizes fit, and then names the options: these and `others`.
void set_attention(laconic::LanguageModelConfig& config, AttentionOptions& options, const char* others = "");
/// Returns the bytes of the caches of all layers for as many characters as the model sees at a time.
laconic::Index bytes_of_cache(const laconic::LanguageModelConfig& config);

// Each adds its subcommand to `laconic gpt`.
void add_convert(CLI::App& gpt);
void add_profile(CLI::App& gpt);

}  // namespace gpt_command
