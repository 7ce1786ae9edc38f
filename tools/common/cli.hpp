// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include "processes.hpp"

#include <laconic/core/parallel.hpp>
#include <laconic/io/json.hpp>
#include <laconic/recognition/recognizer.hpp>

#include <CLI/CLI.hpp>

#include <sys/resource.h>

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

// What the subcommands of `laconic` and `laconic-study` share. Results go to stdout, progress and notes to stderr.

/// Parses the command line and runs what it names. Returns the exit code: 0 only when the job was done.
int run_app(CLI::App& app, int argc, char** argv);

/// Returns the absolute path of a file to write. Throws, before the work is done, unless it may be written there.
inline std::string output_file(const std::string& file) {
  const auto path = std::filesystem::absolute(file);
  laconic::require(std::filesystem::is_directory(path.parent_path()), path.string(), ": no such folder");
  laconic::require(!std::filesystem::is_directory(path), path.string(), ": is a folder, the name of a file expected");
  return path.string();
}

/// Accepts a number from min to max. CLI::Range would accept nan, too.
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
  int threads = threads_of_process();
  std::int64_t seed = 1;
  std::string json;

  void add_to(CLI::App& command) {
    command.add_option("--threads", threads, "number of CPU threads")
        ->capture_default_str()
        ->check(CLI::PositiveNumber);
    command.add_option("--seed", seed, "seed of all random choices")
        ->capture_default_str()
        ->check(CLI::NonNegativeNumber);
    command.add_option("--json", json, "also write the result to this file, as JSON")->type_name("FILE");
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
        command.add_option("--attention", attention, "kind of attention")
            ->capture_default_str()
            ->check(CLI::IsMember(names)),
        command.add_option("--kv-heads", choice.kv_heads, "key-value heads of gqa"),
        command.add_option(
            "--latent-dim", choice.latent_dim,
            "latent rank: values cached per frame and layer; for mla-split of keys, for mla-head of each head"),
        command.add_option("--v-latent-dim", choice.v_latent_dim,
                           "latent rank of mla-split and mla-head for values; 0: as --latent-dim"),
        command.add_option("--rope-dim", choice.rope_dim, "width of the rotary key of mla-decoupled; 0: half a head")};
  }
  const laconic::AttentionChoice& chosen() {
    choice.attention = laconic::from_name<laconic::AttentionName>(attention).value();
    return choice;
  }
  /// Returns the encoder with this attention. Throws where the options contradict each other.
  laconic::EncoderConfig applied_to(const laconic::EncoderConfig& encoder) {
    try {
      return laconic::with_attention(encoder, chosen());
    } catch (const laconic::Error& error) {
      throw laconic::Error(
          laconic::text(error.what(), " (--heads, --kv-heads, --latent-dim, --v-latent-dim, --rope-dim)"));
    }
  }
};

/// Returns a text without characters that a terminal would obey: all control characters but line ends and tabs become
/// '?'. Other bytes stay as they are, for the name of a file may be no UTF-8.
inline std::string without_controls(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto byte = [&](std::size_t at) { return static_cast<unsigned char>(at < text.size() ? text[at] : 0); };
    const bool c1 = byte(i) == 0xC2 && byte(i + 1) >= 0x80 && byte(i + 1) < 0xA0;
    const bool control = c1 || (byte(i) < ' ' && text[i] != '\n' && text[i] != '\t') || byte(i) == 0x7F;
    out += control ? '?' : text[i];
    if (c1) ++i;
  }
  return out;
}

/// Prints a note for a person on stderr.
template <class... Parts>
void say_in_all(const Parts&... parts) {
  std::fprintf(stderr, "%s\n", laconic::text(parts...).c_str());
}
/// Prints a note that is the same in all processes: once.
template <class... Parts>
void say(const Parts&... parts) {
  if (processes().rank() == 0) say_in_all(parts...);
}

/// Prints what had to be converted to be read: the first few files, and how many more.
inline void say_notes(const std::vector<std::string>& notes) {
  for (std::size_t i = 0; i < notes.size() && i < 3; ++i) say("note: ", notes[i]);
  if (notes.size() > 3) say("note: and ", notes.size() - 3, " more such files");
}

/// Returns all names of an enumeration, for options.
template <laconic::NamedEnum Enum>
std::vector<std::string> names_of() {
  std::vector<std::string> out;
  for (const auto& entry : enum_names(Enum{})) out.emplace_back(entry.name);
  return out;
}

/// Returns the most memory that the process has held at once.
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

/// Returns a number with so many significant digits, as printf's %g.
inline std::string general(double value, int digits) {
  char out[64];
  std::snprintf(out, sizeof out, "%.*g", digits, value);
  return out;
}

/// Returns a number with so many digits after the point.
inline std::string fixed(double value, int digits) {
  char out[64];
  std::snprintf(out, sizeof out, "%.*f", digits, value);
  return out;
}
