// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/parallel.hpp>
#include <laconic/io/json.hpp>

#include "recognizer.hpp"

#include <CLI/CLI.hpp>

#include <sys/resource.h>

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

// What the subcommands of `laconic` share. Results go to stdout, progress and notes to stderr.

void add_data_command(CLI::App& app);
void add_train_command(CLI::App& app);
void add_convert_command(CLI::App& app);
void add_eval_command(CLI::App& app);
void add_compare_command(CLI::App& app);
void add_quantize_command(CLI::App& app);
void add_transcribe_command(CLI::App& app);
void add_profile_command(CLI::App& app);
void add_study_command(CLI::App& app);
void add_stream_study_command(CLI::App& app);

/// Throws unless a file may be written there; before the work is done, not after. Gives the absolute path.
inline std::string output_file(const std::string& file) {
  const auto path = std::filesystem::absolute(file);
  laconic::require(std::filesystem::is_directory(path.parent_path()), path.string(), ": no such folder");
  laconic::require(!std::filesystem::is_directory(path), path.string(), ": is a folder, the name of a file expected");
  return path.string();
}

/// A number from min to max, which nan is not; for CLI::Range it is.
inline CLI::Validator between(double min, double max) {
  return {[=](const std::string& given) {
            double value = 0;
            if (CLI::detail::lexical_cast(given, value) && value >= min && value <= max) return std::string();
            return laconic::text("Value ", given, " not in range ", min, " to ", max);
          },
          laconic::text("FLOAT in [", min, " - ", max, "]")};
}

/// Options that every subcommand has.
struct CommonOptions {
  int threads = laconic::hardware_threads();
  std::int64_t seed = 1;
  std::string json;

  void add_to(CLI::App& command) {
    command.add_option("--threads", threads, "CPU threads")->capture_default_str()->check(CLI::PositiveNumber);
    command.add_option("--seed", seed, "all random choices follow from it")
        ->capture_default_str()
        ->check(CLI::NonNegativeNumber);
    command.add_option("--json", json, "write the result to this file, too")->type_name("FILE");
    command.parse_complete_callback([this] {
      if (!json.empty()) json = output_file(json);
    });
  }
  void write(const nlohmann::json& result) const {
    if (!json.empty()) laconic::write_json(json, result);
  }
};

/// The attention that a model gets, and its numbers.
struct AttentionOptions {
  std::string attention;
  laconic::AttentionChoice choice;

  explicit AttentionOptions(std::string default_attention) : attention(std::move(default_attention)) {}
  std::vector<CLI::Option*> add_to(CLI::App& command) {
    std::vector<std::string> names;
    for (const auto& entry : laconic::enum_names(laconic::AttentionName()))
      if (entry.value != laconic::AttentionName::by_type) names.emplace_back(entry.name);
    return {
        command.add_option("--attention", attention, "attention")->capture_default_str()->check(CLI::IsMember(names)),
        command.add_option("--kv-heads", choice.kv_heads, "key-value heads of gqa"),
        command.add_option(
            "--latent-dim", choice.latent_dim,
            "numbers cached a frame and layer by a latent; of mla-split for keys, of mla-head for each head"),
        command.add_option("--v-latent-dim", choice.v_latent_dim, "of mla-split for values; 0: as --latent-dim"),
        command.add_option("--rope-dim", choice.rope_dim, "width of the rotary key of mla-decoupled; 0: half a head")};
  }
  const laconic::AttentionChoice& chosen() {
    choice.attention = laconic::from_name<laconic::AttentionName>(attention).value();
    return choice;
  }
};

/// A note for a person, on stderr.
template <class... Parts>
void say(const Parts&... parts) {
  std::fprintf(stderr, "%s\n", laconic::text(parts...).c_str());
}

/// What had to be converted to be read: the first few files, and how many more.
inline void say_notes(const std::vector<std::string>& notes) {
  for (std::size_t i = 0; i < notes.size() && i < 3; ++i) say("note: ", notes[i]);
  if (notes.size() > 3) say("note: and ", notes.size() - 3, " more such files");
}

/// All names of an enumeration, for options.
template <laconic::NamedEnum Enum>
std::vector<std::string> names_of() {
  std::vector<std::string> out;
  for (const auto& entry : enum_names(Enum{})) out.emplace_back(entry.name);
  return out;
}

/// Of memory that the process has held, the most at once.
inline laconic::Index peak_resident_bytes() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
#ifdef __APPLE__
  constexpr laconic::Index unit = 1;
#else
  constexpr laconic::Index unit = 1024;
#endif
  return unit * static_cast<laconic::Index>(usage.ru_maxrss);
}

/// A number with some digits after the point.
inline std::string fixed(double value, int digits) {
  char out[64];
  std::snprintf(out, sizeof out, "%.*f", digits, value);
  return out;
}
