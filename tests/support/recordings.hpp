// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <cstdlib>
#include <filesystem>
#include <iostream>

/// Names the folder of the recordings that come with the tests (see tests/data/README.md).
inline const std::filesystem::path recordings = std::filesystem::path(LACONIC_SOURCE_DIR) / "tests" / "data";

/// Returns the folder of a larger set of recordings, which does not come with the project. If it is missing, prints a
/// line that says so and returns an empty path.
inline std::filesystem::path data_folder(const char* set) {
  const char* told = std::getenv("LACONIC_DATA");
  const std::filesystem::path folder = std::filesystem::path(told != nullptr ? told : LACONIC_DATA_DIR) / set;
  if (std::filesystem::is_directory(folder)) return folder;
  std::cout << "skipped: no " << folder.string() << " (set LACONIC_DATA)\n";
  return {};
}
