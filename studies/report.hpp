// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/io/json.hpp>

#include <cstdint>
#include <filesystem>
#include <string>

/// results.json: a list of rows, one for each model, stage, test set and seed; written anew with every row.
class StudyResults {
 public:
  /// Takes up the rows of an earlier run. Throws where the file holds something else.
  explicit StudyResults(std::filesystem::path path);
  const nlohmann::json& rows() const { return rows_; }
  bool has(const std::string& name, const std::string& stage, const std::string& test_set, std::int64_t seed) const;
  /// Adds a row, in place of an earlier one of the same name, stage, test set and seed.
  void put(nlohmann::json row);

 private:
  std::filesystem::path path_;
  nlohmann::json rows_ = nlohmann::json::array();
};

/// Writes report.md, summary.txt, wer_cache.{gp,dat,png,svg} and conversion_error.{gp,dat,png,svg} into the folder.
void write_report(const std::filesystem::path& folder, const nlohmann::json& rows, const std::string& command,
                  int threads);
