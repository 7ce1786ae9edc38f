// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// Times the sum of gradients over the processes of mpirun against MPI's own MPI_Allreduce, in turns:
//   mpirun -n 2 exchange [--mb 100] [--rounds 9]
#include <laconic/distributed/mpi.hpp>

#include <CLI/CLI.hpp>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <vector>

using namespace laconic;

namespace {

/// Returns the seconds until the last process is done.
template <class Run>
double seconds_of(Mpi& mpi, Run&& run) {
  mpi.barrier();
  const auto start = std::chrono::steady_clock::now();
  run();
  mpi.barrier();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> list) {
  std::ranges::sort(list);
  return list[list.size() / 2];
}

}  // namespace

int main(int argc, char** argv) {
  Mpi mpi;
  std::vector<double> megabytes{0.1, 1, 10, 100};
  int rounds = 9;
  CLI::App app{"exchange: the sum of gradients over processes against MPI_Allreduce"};
  app.add_option("--mb", megabytes, "sizes in MB (10^6 bytes), with commas between")->delimiter(',');
  app.add_option("--rounds", rounds, "turns; the table has their medians")->check(CLI::PositiveNumber);
  CLI11_PARSE(app, argc, argv);
  if (mpi.rank() == 0)
    std::printf("%d processes\n%10s %12s %15s %22s %s\n", mpi.size(), "MB", "laconic, ms", "Allreduce, ms",
                "Allreduce / laconic", "(quartiles)");
  for (const double mb : megabytes) {
    std::vector<float> values(static_cast<std::size_t>(mb * 1e6 / sizeof(float)), 0.001f);
    std::vector<double> own, theirs, ratios;
    for (int round = -4; round < rounds; ++round) {
      const double a = seconds_of(mpi, [&] { mpi.sum(std::span(values)); });
      const double b = seconds_of(mpi, [&] {
        MPI_Allreduce(MPI_IN_PLACE, values.data(), static_cast<int>(values.size()), MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
      });
      std::ranges::fill(values, 0.001f);
      if (round < 0) continue;  // warms up all memory that sums take in turn
      own.push_back(a);
      theirs.push_back(b);
      ratios.push_back(b / a);
    }
    if (mpi.rank() > 0) continue;
    std::ranges::sort(ratios);
    std::printf("%10.1f %12.2f %15.2f %22.2f (%.2f to %.2f)\n", mb, 1e3 * median(own), 1e3 * median(theirs),
                median(ratios), ratios[ratios.size() / 4], ratios[3 * ratios.size() / 4]);
  }
}
