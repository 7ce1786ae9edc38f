// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <cstdlib>
#include <filesystem>
#include <iostream>

/// The recordings that come with the tests, and what they are: tests/data/README.md.
inline const std::filesystem::path recordings = std::filesystem::path(LACONIC_SOURCE_DIR) / "tests" / "data";

/// Returns the folder of a larger set of recordings, which does not come with the project, or an empty path after a
/// line that says so.
inline std::filesystem::path data_folder(const char* set) {
  const char* told = std::getenv("LACONIC_DATA");
  const std::filesystem::path folder = std::filesystem::path(told != nullptr ? told : LACONIC_DATA_DIR) / set;
  if (std::filesystem::is_directory(folder)) return folder;
  std::cout << "skipped: no " << folder.string() << " (set LACONIC_DATA)\n";
  return {};
}
