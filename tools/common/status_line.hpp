// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include "terminal.hpp"

#include <unistd.h>

#include <ctime>
#include <string>
#include <utility>

/// A line on stderr about work that goes on: rewritten every second on a terminal, repeated every 20 s elsewhere.
class StatusLine {
 public:
  StatusLine() = default;
  StatusLine(const StatusLine&) = delete;
  StatusLine& operator=(const StatusLine&) = delete;
  ~StatusLine() { end(); }

  /// Returns whether it is time for another line.
  bool due() const { return std::time(nullptr) - shown_ >= (terminal_ ? 1 : 20); }
  void show(const std::string& line) {
    shown_ = std::time(nullptr);
    terminal::write_note((terminal_ ? "\r\033[K" : "") + without_line_ends(line) + (terminal_ ? "" : "\n"));
    open_ = terminal_;
  }
  /// Lets what is printed next have a line of its own.
  void end() {
    if (std::exchange(open_, false)) terminal::write_note("\n");
  }

 private:
  bool terminal_ = ::isatty(STDERR_FILENO) == 1, open_ = false;
  std::time_t shown_ = 0;
};
