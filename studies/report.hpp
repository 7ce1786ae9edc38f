// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/io/json.hpp>

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

/// results.json: a list of rows, one for each model, stage, test set and seed; written anew with every row. Of several
/// processes, those after the first write results-of-N.json beside it, until `gather`.
class StudyResults {
 public:
  /// Takes up the rows of an earlier run, of all its processes. Throws where a file holds something else.
  explicit StudyResults(std::filesystem::path path);
  /// Waits for all processes. Then the first has the rows of all in its file, by seed and in the order of these names,
  /// and the others' files are gone.
  void gather(const std::vector<std::string>& names);
  const nlohmann::json& rows() const { return rows_; }
  bool has(const std::string& name, const std::string& stage, const std::string& test_set, std::int64_t seed) const;
  /// Adds a row, in place of an earlier one of the same name, stage, test set and seed.
  void put(nlohmann::json row);

 private:
  void add(nlohmann::json row);
  void read(const std::filesystem::path& path);
  std::vector<std::filesystem::path> files_of_others() const;

  std::filesystem::path path_, own_path_;
  nlohmann::json rows_ = nlohmann::json::array();
};

/// Writes report.md, summary.txt, wer_cache.{gp,dat,png,svg} and conversion_error.{gp,dat,png,svg} into the folder.
void write_report(const std::filesystem::path& folder, const nlohmann::json& rows, const std::string& command,
                  int threads);
