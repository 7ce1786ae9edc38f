// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <string_view>
#include <vector>

// The one place that starts other programs. POSIX.

/// Holds how a program ended, and what it wrote.
struct ProgramEnd {
  int start_error = 0;  ///< errno where it could not be started; else 0
  int status = 0;       ///< as waitpid gives it
  std::string output;   ///< all that it wrote to its standard output
  std::string errors;   ///< first line that it wrote to its standard error

  bool succeeded() const { return start_error == 0 && status == 0; }
};

/// Runs a program of the PATH, with `input` on its standard input, and waits for its end. Arguments go to it as they
/// are: no shell reads them. Whoever calls this puts "--" before an argument that could be taken for an option. Throws
/// where memory or temporary files are short.
ProgramEnd run_program(std::vector<std::string> arguments, std::string_view input = "");

/// Runs a program and throws unless it exits with 0: "NAME: failed to DOING (exit code 1): its first error".
void run_or_throw(std::vector<std::string> arguments, std::string_view doing);
