// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include "process.hpp"

#include <laconic/core/error.hpp>

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <memory>
#include <system_error>

extern char** environ;

using laconic::require;

ProgramEnd run_program(std::vector<std::string> arguments, ProgramOutput output, std::string_view input) {
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  // A file, unlike a pipe, lets a program end before it has read all.
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> script(std::tmpfile(), std::fclose);
  require(script != nullptr && std::fwrite(input.data(), 1, input.size(), script.get()) == input.size() &&
              std::fflush(script.get()) == 0,
          arguments.at(0), ": cannot write a temporary file for its input");
  std::rewind(script.get());

  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ::fileno(script.get()), STDIN_FILENO);
  if (output == ProgramOutput::hidden)
    for (const int stream : {STDOUT_FILENO, STDERR_FILENO})
      posix_spawn_file_actions_addopen(&actions, stream, "/dev/null", O_WRONLY, 0);
  ProgramEnd end;
  pid_t child = 0;
  end.start_error = posix_spawnp(&child, argv[0], &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (end.start_error != 0) return end;
  while (::waitpid(child, &end.status, 0) < 0 && errno == EINTR) {
  }
  return end;
}

void run_or_throw(std::vector<std::string> arguments, std::string_view doing) {
  const std::string name = arguments.at(0);
  const ProgramEnd end = run_program(std::move(arguments), ProgramOutput::hidden);
  require(end.start_error != ENOENT, name, ": program not found on PATH (Debian, Ubuntu: apt-get install ", name, ')');
  require(end.start_error == 0, name, ": cannot start: ", std::generic_category().message(end.start_error));
  const bool exited = WIFEXITED(end.status);
  require(end.status == 0, name, ": failed to ", doing, exited ? " (exit code " : " (signal ",
          exited ? WEXITSTATUS(end.status) : WTERMSIG(end.status), ')');
}
