// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <string_view>
#include <vector>

// Other programs, run from this one. POSIX.

/// Says whether a program's own output is shown.
enum class ProgramOutput { shown, hidden };

/// Holds how a program ended.
struct ProgramEnd {
  int start_error = 0;  ///< errno where it could not be started; else 0
  int status = 0;       ///< as waitpid gives it

  bool succeeded() const { return start_error == 0 && status == 0; }
};

/// Runs a program of the PATH, with `input` on its standard input, and waits for its end. Arguments go to it as they
/// are: no shell reads them.
ProgramEnd run_program(std::vector<std::string> arguments, ProgramOutput output, std::string_view input = "");

/// Runs a program and throws unless it exits with 0: "NAME: failed to DOING (exit code 1)". Its output is hidden.
void run_or_throw(std::vector<std::string> arguments, std::string_view doing);
