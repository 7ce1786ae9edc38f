// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <vector>

/// The times that one thing took, in the order of size.
struct Latency {
  std::vector<double> seconds;

  double median() const { return (seconds[(seconds.size() - 1) / 2] + seconds[seconds.size() / 2]) / 2; }
  double min() const { return seconds.front(); }
  double max() const { return seconds.back(); }
};
