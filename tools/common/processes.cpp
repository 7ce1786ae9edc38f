// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include "processes.hpp"

#include "cli.hpp"

#ifdef LACONIC_HAS_MPI
#include <laconic/distributed/mpi.hpp>
#endif

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <thread>

namespace {

/// Returns the first of these environment variables that is a number above 0, or 0.
int first_of(std::initializer_list<const char*> names) {
  for (const char* name : names)
    if (const char* given = std::getenv(name)) {
      int value = 0;
      std::from_chars(given, given + std::strlen(given), value);
      if (value > 0) return value;
    }
  return 0;
}
/// Returns the number of processes that were started together: by Open MPI, by MPICH and its kin.
int started_together() { return first_of({"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"}); }

laconic::AnyCommunicator joined;
std::vector<const CLI::App*>& shared_commands() {
  static std::vector<const CLI::App*> list;
  return list;
}

}  // namespace

laconic::AnyCommunicator processes() { return joined; }

int processes_on_machine() {
  return std::max(1, first_of({"OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "MV2_COMM_WORLD_LOCAL_SIZE"}));
}
namespace {
/// Returns the number of processors that a process may run on, 0 if that is not known.
int processors_of(pid_t process) {
#ifdef __linux__
  cpu_set_t set;
  return sched_getaffinity(process, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 0;
#else
  return process == 0 ? laconic::hardware_threads() : 0;
#endif
}
/// Returns the number of processors that each process on this machine could have: mpirun, its parent, may use them all.
int processors_of_process() {
  return std::max(1, std::max(processors_of(0), processors_of(getppid())) / processes_on_machine());
}
}  // namespace
int threads_of_process() {
  const int here = laconic::hardware_threads();  // fewer where mpirun has bound the process to some processors
  return processes_on_machine() > 1 ? std::min(here, processors_of_process()) : here;
}
std::string threads_text(int threads) {
  return laconic::text(threads, " threads",
                       joined.size() == 1 ? "" : laconic::text(" in each of ", joined.size(), " processes"));
}

void share_among_processes(CLI::App* command) { shared_commands().push_back(command); }
void require_processes_fit(const CLI::App& app) {
  const CLI::App* given = &app;
  while (!given->get_subcommands().empty()) given = given->get_subcommands().front();
  laconic::require(joined.size() == 1 || std::ranges::count(shared_commands(), given) > 0, given->get_name(), ": ",
                   joined.size(), " processes given by mpirun, one expected: they cannot share this job");
}

#ifdef LACONIC_HAS_MPI
struct Joined::Parts {
  laconic::Mpi mpi;
};
namespace {
laconic::Mpi* mpi_of_program = nullptr;
}

Joined::Joined() {
  const int started = started_together();
  if (started < 2 && std::getenv("PMIX_RANK") == nullptr) return;
  parts_ = std::make_unique<Parts>();
  laconic::require(started == 0 || parts_->mpi.size() == started, "mpirun started ", started, " processes, of which ",
                   parts_->mpi.size(), " found each other: it belongs to another MPI than this program");
  mpi_of_program = &parts_->mpi;
  joined = laconic::AnyCommunicator(parts_->mpi);
  if (processors_of(0) < processors_of_process())
    say("note: mpirun has bound each process to ", processors_of(0), " of the ", processors_of_process(),
        " processors that it could have; --bind-to none does not");
}
Joined::~Joined() {
  joined = {};
  mpi_of_program = nullptr;
}
#else
struct Joined::Parts {};

Joined::Joined() {
  laconic::require(started_together() < 2, "mpirun started ", started_together(),
                   " processes, one expected: this program was built without MPI, so that each would do the whole job");
}
Joined::~Joined() = default;
#endif

void fail_in_all_processes(const char* program, const char* message) {
  if (joined.rank() > 0) std::this_thread::sleep_for(std::chrono::seconds(1));
  say_in_all(std::string_view(program), ": process ", joined.rank(), " of ", joined.size(), ": ",
             std::string_view(message));
#ifdef LACONIC_HAS_MPI
  mpi_of_program->abort(1);
#else
  std::exit(1);
#endif
}
