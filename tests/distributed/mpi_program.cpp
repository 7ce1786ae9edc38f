// laconic: attention for speech models. SPDX-License-Identifier: MIT
// Run by mpirun: the sums and texts that processes exchange are those that one process computes alone, bit for bit.
#include <laconic/core/random.hpp>
#include <laconic/distributed/mpi.hpp>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

using namespace laconic;

static_assert(Communicator<Mpi>);

namespace {

/// Values of a process: their sum depends on the order.
template <class T>
std::vector<T> values_of(int rank, std::size_t n) {
  const Random random(Seed(5), static_cast<std::uint64_t>(rank));
  std::vector<T> out(n);
  for (std::size_t i = 0; i < n; ++i)
    out[i] = i < 1000 ? static_cast<T>(random.uniform(i) - 0.5) : out[i - 1000] * static_cast<T>(1.1);
  return out;
}

template <class T>
void check_sum(Mpi& mpi, std::size_t n) {
  std::vector<std::vector<T>> all;
  std::vector<T*> terms;
  for (int rank = 0; rank < mpi.size(); ++rank) all.push_back(values_of<T>(rank, n));
  for (auto& one : all) terms.push_back(one.data());
  std::vector<T> sum = all[static_cast<std::size_t>(mpi.rank())];
  mpi.sum(std::span(sum));
  add_in_pairs<T>(terms, n);
  require(n == 0 || std::memcmp(sum.data(), terms[0], n * sizeof(T)) == 0, "the sum of ", n, " values differs");
}

/// Several sums that are under way together, of processes that go on with them at times of their own.
void check_begun(Mpi& mpi) {
  std::vector<std::vector<float>> own;
  const std::size_t sizes[]{3, std::size_t{3} << 19, 0, 1000, (std::size_t{1} << 20) + 5};
  for (const std::size_t n : sizes) own.push_back(values_of<float>(mpi.rank(), n));
  const auto idle = [&](int step) {
    for (int i = 0; i < (mpi.rank() + step) % 3; ++i) {
      mpi.advance();
      std::this_thread::sleep_for(std::chrono::milliseconds(mpi.rank()));
    }
  };
  for (std::size_t k = 0; k < own.size(); ++k) {
    mpi.begin_sum(std::span(own[k]));
    idle(static_cast<int>(k));
  }
  double count = 1;
  mpi.begin_sum(std::span(&count, 1));
  mpi.end_sums();
  require(count == mpi.size(), "a sum of doubles is ", count);
  for (std::size_t k = 0; k < own.size(); ++k) {
    std::vector<float> together = values_of<float>(mpi.rank(), sizes[k]);
    mpi.sum(std::span(together));
    require(together.empty() || std::memcmp(own[k].data(), together.data(), together.size() * sizeof(float)) == 0,
            "sum ", k, " of those that were under way together differs");
  }
}

}  // namespace

int main(int argc, char** argv) {
  Mpi mpi;
  try {
    require(argc == 3 && mpi.size() == std::atoi(argv[1]), mpi.size(), " processes");
    // Fewer than processes, one exchange, and several with a rest.
    for (const std::size_t n : {std::size_t{0}, std::size_t{1}, std::size_t{2}, std::size_t{1000}, std::size_t{1} << 19,
                                (std::size_t{5} << 17) + 7}) {
      check_sum<float>(mpi, n);
      check_sum<double>(mpi, n);
    }
    check_begun(mpi);
    for (int root = 0; root < mpi.size(); ++root) {
      std::string text(static_cast<std::size_t>(mpi.rank()) * 1000, static_cast<char>('a' + mpi.rank()));
      broadcast_text(mpi, text, root);
      require(text == std::string(static_cast<std::size_t>(root) * 1000, static_cast<char>('a' + root)), "text of ",
              root);
    }
    require_equal_in_all(mpi, "settings", "settings");
    // The last process leaves the job: mpirun must end the others, who wait for it.
    require(std::strcmp(argv[2], "fail") != 0 || mpi.rank() < mpi.size() - 1, "this process fails");
    mpi.barrier();
  } catch (const Error& error) {
    std::fprintf(stderr, "process %d of %d: %s\n", mpi.rank(), mpi.size(), error.what());
    mpi.abort(3);
  }
  if (mpi.rank() == 0) std::printf("%d processes agree\n", mpi.size());
}
