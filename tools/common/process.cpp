// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include "process.hpp"

#include <laconic/core/error.hpp>
#include <laconic/io/descriptor.hpp>

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <memory>
#include <system_error>

extern char** environ;

using laconic::require;

namespace {

/// Owns a temporary file without a name.
using TemporaryFile = std::unique_ptr<std::FILE, int (*)(std::FILE*)>;
TemporaryFile temporary_file(const std::string& program) {
  TemporaryFile file(std::tmpfile(), std::fclose);
  require(file != nullptr, program, ": cannot make a temporary file for it: ",
          file != nullptr ? std::string() : std::generic_category().message(errno));
  return file;
}

/// Reads a descriptor to its end.
std::string read_all(int descriptor) {
  std::string out;
  char block[65536];
  while (true) {
    const ssize_t count = ::read(descriptor, block, sizeof block);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return out;
    out.append(block, static_cast<std::size_t>(count));
  }
}

}  // namespace

ProgramEnd run_program(std::vector<std::string> arguments, std::string_view input) {
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  // A file, unlike a pipe, lets a program end before it has read all, and write while nobody reads.
  const TemporaryFile script = temporary_file(arguments.at(0)), errors = temporary_file(arguments.at(0));
  require(std::fwrite(input.data(), 1, input.size(), script.get()) == input.size() && std::fflush(script.get()) == 0,
          arguments.at(0), ": cannot write a temporary file for its input");
  std::rewind(script.get());
  int ends[2];
  require(::pipe2(ends, O_CLOEXEC) == 0, arguments.at(0), ": cannot make a pipe for its output");
  const laconic::detail::Descriptor from(ends[0]);
  laconic::detail::Descriptor to(ends[1]);

  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ::fileno(script.get()), STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, to.get(), STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, ::fileno(errors.get()), STDERR_FILENO);
  // This program may wait for signals in a thread of its own (interrupts.hpp); the other one takes them as usual.
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t none;
  sigemptyset(&none);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
  ProgramEnd end;
  pid_t child = 0;
  end.start_error = posix_spawnp(&child, argv[0], &actions, &attributes, argv.data(), environ);
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&actions);
  if (end.start_error != 0) return end;
  to.close();
  end.output = read_all(from.get());
  while (::waitpid(child, &end.status, 0) < 0 && errno == EINTR) {
  }
  std::rewind(errors.get());
  char line[500] = "";
  if (std::fgets(line, sizeof line, errors.get()) != nullptr) end.errors = line;
  while (!end.errors.empty() && end.errors.back() == '\n') end.errors.pop_back();
  return end;
}

void run_or_throw(std::vector<std::string> arguments, std::string_view doing) {
  const std::string name = arguments.at(0);
  const ProgramEnd end = run_program(std::move(arguments));
  require(end.start_error != ENOENT, name, ": program not found on PATH (Debian, Ubuntu: apt-get install ", name, ')');
  require(end.start_error == 0, name, ": cannot start: ", std::generic_category().message(end.start_error));
  const bool exited = WIFEXITED(end.status);
  require(end.status == 0, name, ": failed to ", doing, exited ? " (exit code " : " (signal ",
          exited ? WEXITSTATUS(end.status) : WTERMSIG(end.status), end.errors.empty() ? ")" : "): ", end.errors);
}
