// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include "processes.hpp"
#include "terminal.hpp"

#include <laconic/core/parallel.hpp>
#include <laconic/io/json.hpp>
#include <laconic/recognition/recognizer.hpp>

#include <CLI/CLI.hpp>

#include <sys/resource.h>

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

// What the subcommands of `laconic` and `laconic-study` share. Results go to stdout, progress and notes to stderr.

/// Parses the command line and runs what it names. Returns the exit code: 0 only when the job was done.
int run_app(CLI::App& app, int argc, char** argv);

/// Returns the absolute path of a file to write. Throws, before the work is done, unless it may be written there.
inline std::string output_file(const std::string& file) {
  laconic::FileWriter::check(file);
  return laconic::detail::own_descriptor(file) < 0 ? laconic::detail::absolute_path(file).string() : file;
}
/// Throws, before the work is done, unless a folder may be written there.
inline void output_folder(const std::string& folder) { laconic::FolderWriter::check(folder); }

/// Accepts a text for which `is_right` holds; otherwise says what was given and what is expected. Help shows `shown`.
inline CLI::Validator accepts(std::function<bool(const std::string&)> is_right, std::string expected,
                              std::string shown = "") {
  return {[=](const std::string& given) {
            if (is_right(given)) return std::string();
            return laconic::text(given.empty() ? "an empty text" : given, " given, ", expected, " expected");
          },
          std::move(shown)};
}
/// Accepts any text but an empty one, for names of files and folders.
inline CLI::Validator not_empty() {
  return accepts([](const std::string& given) { return !given.empty(); }, "the name of a file or folder");
}
/// Accepts numbers, nan and infinity among them.
inline CLI::Validator number() {
  return accepts(
      [](const std::string& given) {
        double value = 0;
        return CLI::detail::lexical_cast(given, value);
      },
      "a number");
}
/// Accepts a number from min to max. CLI::Range would accept nan, too.
inline CLI::Validator between(double min, double max) {
  const std::string range = laconic::text(min, " to ", max);
  return accepts(
      [=](const std::string& given) {
        double value = 0;
        return CLI::detail::lexical_cast(given, value) && value >= min && value <= max;
      },
      "a number from " + range, laconic::text("FLOAT in [", min, " - ", max, "]"));
}
/// Accepts a whole number of at least min, and at most max if that is given.
inline CLI::Validator whole_number(std::int64_t min = std::numeric_limits<std::int64_t>::min(),
                                   std::int64_t max = std::numeric_limits<std::int64_t>::max()) {
  constexpr std::int64_t lowest = std::numeric_limits<std::int64_t>::min(),
                         highest = std::numeric_limits<std::int64_t>::max();
  const std::string range = max < highest  ? laconic::text(" from ", min, " to ", max)
                            : min > lowest ? laconic::text(" of at least ", min)
                                           : std::string();
  return accepts(
      [=](const std::string& given) {
        std::int64_t value = 0;
        return CLI::detail::lexical_cast(given, value) && value >= min && value <= max;
      },
      "a whole number" + range, range.substr(range.empty() ? 0 : 1));
}

/// Options that every subcommand has.
struct CommonOptions {
  int threads = threads_of_process();
  std::int64_t seed = 1;
  std::string json;

  void add_to(CLI::App& command) {
    command.add_option("--threads", threads, "number of CPU threads")
        ->capture_default_str()
        ->check(whole_number(1, laconic::detail::ThreadTeam::max_threads));
    command.add_option("--seed", seed, "seed of all random choices")->capture_default_str()->check(whole_number(0));
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
