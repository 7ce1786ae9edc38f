// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/distributed/communicator.hpp>

#define OMPI_SKIP_MPICXX 1   // Open MPI's classes for C++, which the standard has dropped
#define MPICH_SKIP_MPICXX 1  // likewise MPICH's
#include <mpi.h>

#include <chrono>
#include <climits>
#include <cstdlib>
#include <thread>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Implements a communicator by MPI (target `laconic::mpi`): process `rank` of those that `mpirun` started. One thread
/// calls it. Sums have the same bits whatever algorithm MPI chooses: each process gets a chunk of everybody's values,
/// adds them in pairs, and sends the sums to all. That is the volume of a ring: 2 (size - 1) / size of the
/// values leave each process.
///
/// An error inside MPI, as when another process is gone, ends the program with MPI's message.
class Mpi {
 public:
  /// Joins the processes of MPI_COMM_WORLD. Starts MPI unless the program has.
  Mpi() {
    int started = 0;
    MPI_Initialized(&started);
    owns_ = started == 0;
    int provided = MPI_THREAD_SINGLE;
    if (owns_) MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided);
    MPI_Comm_dup(MPI_COMM_WORLD, &world_);
    MPI_Comm_rank(world_, &rank_);
    MPI_Comm_size(world_, &size_);
  }
  Mpi(const Mpi&) = delete;
  Mpi& operator=(const Mpi&) = delete;
  /// Leaves MPI if the constructor started it. All processes must come here, or one call `abort`.
  ~Mpi() {
    MPI_Comm_free(&world_);
    if (owns_) MPI_Finalize();
  }

  /// Returns the number of this process, from 0.
  int rank() const { return rank_; }
  /// Returns the number of processes.
  int size() const { return size_; }

  /// Replaces the values by their sums over all processes. The first call takes 2 MiB of memory, or
  /// 64 KiB for each process.
  void sum(std::span<float> values) { sum_of(values, MPI_FLOAT); }
  /// Replaces the values by their sums over all processes.
  void sum(std::span<double> values) { sum_of(values, MPI_DOUBLE); }

  /// Replaces the bytes by those of process `root`.
  void broadcast(std::span<std::byte> bytes, int root) {
    if (size_ == 1) return;
    barrier();
    for (std::size_t begin = 0; begin < bytes.size(); begin += INT_MAX)
      MPI_Bcast(bytes.data() + begin, static_cast<int>(std::min<std::size_t>(INT_MAX, bytes.size() - begin)), MPI_BYTE,
                root, world_);
  }
  /// Returns when all processes have called it. Waits asleep after a moment, so that others can use the processor.
  void barrier() {
    MPI_Request all;
    MPI_Ibarrier(world_, &all);
    const auto start = std::chrono::steady_clock::now();
    for (int here = 0;;) {
      MPI_Test(&all, &here, MPI_STATUS_IGNORE);
      if (here != 0) return;
      if (std::chrono::steady_clock::now() - start > awake) std::this_thread::sleep_for(asleep);
    }
  }

  /// Ends all processes.
  [[noreturn]] void abort(int code) {
    MPI_Abort(world_, code);
    std::abort();  // MPI_Abort is not declared to end
  }

 private:
  static constexpr std::chrono::microseconds awake{200}, asleep{100};
  /// Returns what is exchanged at once: it stays in the caches, and messages of many processes do not become short.
  std::size_t piece_bytes() const {
    return std::max(std::size_t{2} << 20, static_cast<std::size_t>(size_) * (std::size_t{64} << 10));
  }

  template <class T>
  void sum_of(std::span<T> values, MPI_Datatype type) {
    if (size_ == 1) return;
    barrier();
    const auto size = static_cast<std::size_t>(size_);
    if (scratch_.empty()) scratch_.resize(piece_bytes() + size * sizeof(double));  // shares are rounded up
    for (std::size_t begin = 0, most = piece_bytes() / sizeof(T); begin < values.size(); begin += most)
      sum_piece(values.subspan(begin, std::min(most, values.size() - begin)), type, size);
  }
  /// Sums values of which all processes together fit the scratch memory once.
  template <class T>
  void sum_piece(std::span<T> values, MPI_Datatype type, std::size_t size) {
    std::vector<int> counts(size), offsets(size), own_counts(size), own_offsets(size);
    std::vector<T*> terms(size);
    const Share own = share_of(static_cast<std::ptrdiff_t>(values.size()), rank_, size_);
    const std::ptrdiff_t length = own.end - own.begin;
    for (int r = 0; r < size_; ++r) {
      const auto i = static_cast<std::size_t>(r);
      const Share share = share_of(static_cast<std::ptrdiff_t>(values.size()), r, size_);
      counts[i] = static_cast<int>(share.end - share.begin);
      offsets[i] = static_cast<int>(share.begin);
      own_counts[i] = static_cast<int>(length);
      own_offsets[i] = static_cast<int>(r * length);
      terms[i] = reinterpret_cast<T*>(scratch_.data()) + r * length;
    }
    MPI_Alltoallv(values.data(), counts.data(), offsets.data(), type, scratch_.data(), own_counts.data(),
                  own_offsets.data(), type, world_);
    add_in_pairs<T>(terms, static_cast<std::size_t>(length));
    std::copy_n(terms[0], length, values.data() + own.begin);
    MPI_Allgatherv(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, values.data(), counts.data(), offsets.data(), type, world_);
  }

  MPI_Comm world_ = MPI_COMM_NULL;
  int rank_ = 0, size_ = 1;
  bool owns_ = false;
  std::vector<std::byte> scratch_;
};

}  // namespace LACONIC_ABI
}  // namespace laconic
