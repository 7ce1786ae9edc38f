// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cpu/parallel.hpp>
#include <laconic/io/json.hpp>

#include <CLI/CLI.hpp>

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>

// What the subcommands of `laconic` share. Results go to stdout, progress and notes to stderr.

void add_data_command(CLI::App& app);
void add_train_command(CLI::App& app);
void add_convert_command(CLI::App& app);
void add_eval_command(CLI::App& app);
void add_transcribe_command(CLI::App& app);
void add_study_command(CLI::App& app);

/// Options that every subcommand has.
struct CommonOptions {
  int threads = laconic::hardware_threads();
  std::int64_t seed = 1;
  std::string json;

  void add_to(CLI::App& command) {
    command.add_option("--threads", threads, "CPU threads")->capture_default_str()->check(CLI::PositiveNumber);
    command.add_option("--seed", seed, "all random choices follow from it")->capture_default_str()->check(CLI::NonNegativeNumber);
    command.add_option("--json", json, "write the result to this file, too")->type_name("FILE");
  }
  void write(const nlohmann::json& result) const {
    if (!json.empty()) laconic::write_json(json, result);
  }
};

/// A note for a person, on stderr.
template <class... Parts>
void say(const Parts&... parts) {
  std::fprintf(stderr, "%s\n", laconic::text(parts...).c_str());
}

/// A number with some digits after the point.
inline std::string fixed(double value, int digits) {
  char out[64];
  std::snprintf(out, sizeof out, "%.*f", digits, value);
  return out;
}
