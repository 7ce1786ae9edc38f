// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/distributed/communicator.hpp>

#include <memory>
#include <string>

namespace CLI {
class App;
}

// Programs that mpirun starts several times. Only process 0 prints and writes.

/// Returns the processes that share this program's job; alone, unless mpirun started several.
laconic::AnyCommunicator processes();

/// Returns the number of this job's processes on this machine.
int processes_on_machine();
/// Returns the number of threads of a process where nothing else is said: all that the machine offers, shared by the
/// processes on it.
int threads_of_process();
/// Returns "4 threads", or how many each process has.
std::string threads_text(int threads);

/// Calls f in process 0 and then, when it is done, in the others. Returns what it returns.
template <class F>
auto first_alone(F&& f) {
  laconic::AnyCommunicator all = processes();
  if (all.rank() > 0) all.barrier();
  auto out = f();
  if (all.rank() == 0) all.barrier();
  return out;
}

/// Says that several processes can share the job of this subcommand. Others are refused to them.
void share_among_processes(CLI::App* command);
/// Throws `Error` if several processes were started, and the subcommand that was given is not for several.
void require_processes_fit(const CLI::App& app);

/// Joins the processes that mpirun started, for the life of this object.
class Joined {
 public:
  /// Throws `Error` if there are several and this program was built without MPI.
  Joined();
  Joined(const Joined&) = delete;
  Joined& operator=(const Joined&) = delete;
  ~Joined();

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

/// Prints that this process of several failed, and ends all. If all fail alike, process 0 alone says it.
[[noreturn]] void fail_in_all_processes(const char* program, const char* message);
