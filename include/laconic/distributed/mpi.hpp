// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/distributed/communicator.hpp>

#define OMPI_SKIP_MPICXX 1   // Open MPI's classes for C++, which the standard has dropped
#define MPICH_SKIP_MPICXX 1  // likewise MPICH's
#include <mpi.h>

#include <array>
#include <chrono>
#include <climits>
#include <concepts>
#include <cstdlib>
#include <deque>
#include <thread>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Implements a communicator by MPI (target `laconic::mpi`): process `rank` of those that `mpirun` started. One thread
/// calls it. Sums have the same bits whatever algorithm MPI chooses: each process gets a chunk of everybody's values,
/// adds them in pairs, and sends the sums to all. That is the volume of a ring: 2 (size - 1) / size of the
/// values leave each process. Values go in pieces, of which some are under way at a time.
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
    for (MPI_Comm* one : {&world_, &scattering_, &gathering_}) MPI_Comm_dup(MPI_COMM_WORLD, one);
    MPI_Comm_rank(world_, &rank_);
    MPI_Comm_size(world_, &size_);
  }
  Mpi(const Mpi&) = delete;
  Mpi& operator=(const Mpi&) = delete;
  /// Leaves MPI if the constructor started it. All processes must come here, or one call `abort`.
  ~Mpi() {
    for (MPI_Comm* one : {&world_, &scattering_, &gathering_}) MPI_Comm_free(one);
    if (owns_) MPI_Finalize();
  }

  /// Returns the number of this process, from 0.
  int rank() const { return rank_; }
  /// Returns the number of processes.
  int size() const { return size_; }

  /// Replaces the values by their sums over all processes, and ends sums that were begun before. Allocates as
  /// `begin_sum` does.
  template <class T>
  void sum(std::span<T> values) {
    begin_sum(values);
    end_sums();
  }
  /// Begins to replace floats or doubles by their sums over all processes. Until `end_sums` the values must stay where
  /// they are, also if an error ends the work before. The first calls take up to four times 512 KiB of memory, or four
  /// times 64 KiB for each process, and each call some for its list of pieces.
  template <class T>
  void begin_sum(std::span<T> values) {
    static_assert(std::same_as<T, float> || std::same_as<T, double>, "sums: floats or doubles expected");
    if (size_ == 1) return;
    for (std::size_t begin = 0, most = piece_bytes() / sizeof(T); begin < values.size(); begin += most)
      waiting_.push_back({values.data() + begin, std::min(most, values.size() - begin), std::same_as<T, double>});
    advance();
  }
  /// Goes on with sums that were begun, without waiting for other processes. Says whether there was anything to do.
  bool advance() {
    for (bool any = false;; any = true) {
      if (!waiting_.empty() && scattered_ - gathered_ < lanes_.size()) {
        scatter(lane(scattered_++), waiting_.front());
        waiting_.pop_front();
      } else if (added_ < scattered_ && is_done(lane(added_).request)) {
        Lane& own = lane(added_++);
        own.piece.is_double ? add_and_gather<double>(own) : add_and_gather<float>(own);
      } else if (gathered_ < added_ && is_done(lane(gathered_).request)) {
        ++gathered_;
      } else {
        return any;
      }
    }
  }
  /// Returns when all sums that were begun are done. Waits asleep after a moment, so that others can use the processor.
  void end_sums() {
    wait_until([&] { return waiting_.empty() && gathered_ == scattered_; }, [&] { return advance(); });
  }

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
    wait_until([&] { return is_done(all); }, [] { return false; });
  }

  /// Ends all processes.
  [[noreturn]] void abort(int code) {
    MPI_Abort(world_, code);
    std::abort();  // MPI_Abort is not declared to end
  }

 private:
  static constexpr std::chrono::microseconds awake{200}, asleep{100};
  /// Holds values of one type that all processes sum together.
  struct Piece {
    void* values;
    std::size_t count;
    bool is_double;
  };
  /// Holds a piece that is under way.
  struct Lane {
    Piece piece;
    MPI_Request request;
    std::vector<int> counts, offsets, own_counts, own_offsets;  // of each process's chunk, and of this one's by process
    std::vector<std::byte> values;                              // everybody's values of this process's chunk
  };

  /// Returns the bytes of a piece: it stays in the caches, and messages of many processes do not become short.
  std::size_t piece_bytes() const {
    return std::max(std::size_t{1} << 19, static_cast<std::size_t>(size_) * (std::size_t{64} << 10));
  }
  /// Returns where piece number n is under way.
  Lane& lane(std::size_t n) { return lanes_[n % lanes_.size()]; }
  static MPI_Datatype type_of(const Piece& piece) { return piece.is_double ? MPI_DOUBLE : MPI_FLOAT; }
  static bool is_done(MPI_Request& request) {
    int done = 0;
    MPI_Test(&request, &done, MPI_STATUS_IGNORE);
    return done != 0;
  }

  /// Begins to send every process its chunk of the piece. All processes do this with the pieces in the same order, and
  /// likewise `add_and_gather`, as MPI wants it of the calls on one communicator.
  void scatter(Lane& own, const Piece& piece) {
    const auto size = static_cast<std::size_t>(size_);
    if (own.values.empty()) {
      own.values.resize(piece_bytes() + size * sizeof(double));  // chunks are rounded up
      for (auto* list : {&own.counts, &own.offsets, &own.own_counts, &own.own_offsets}) list->resize(size);
    }
    own.piece = piece;
    const auto chunk_of = [&](int r) { return share_of(static_cast<std::ptrdiff_t>(piece.count), r, size_); };
    const auto length = static_cast<int>(chunk_of(rank_).end - chunk_of(rank_).begin);
    for (int r = 0; r < size_; ++r) {
      const auto i = static_cast<std::size_t>(r);
      own.counts[i] = static_cast<int>(chunk_of(r).end - chunk_of(r).begin);
      own.offsets[i] = static_cast<int>(chunk_of(r).begin);
      own.own_counts[i] = length;
      own.own_offsets[i] = r * length;
    }
    MPI_Ialltoallv(piece.values, own.counts.data(), own.offsets.data(), type_of(piece), own.values.data(),
                   own.own_counts.data(), own.own_offsets.data(), type_of(piece), scattering_, &own.request);
  }
  /// Adds everybody's values of this process's chunk, and begins to send the sums to all.
  template <class T>
  void add_and_gather(Lane& own) {
    const auto rank = static_cast<std::size_t>(rank_);
    std::vector<T*> terms;
    for (const int offset : own.own_offsets) terms.push_back(reinterpret_cast<T*>(own.values.data()) + offset);
    add_in_pairs<T>(terms, static_cast<std::size_t>(own.counts[rank]));
    std::copy_n(terms[0], own.counts[rank], static_cast<T*>(own.piece.values) + own.offsets[rank]);
    MPI_Iallgatherv(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, own.piece.values, own.counts.data(), own.offsets.data(),
                    type_of(own.piece), gathering_, &own.request);
  }

  /// Returns when `is_over()`. Calls `step()` until then, asleep in between if it has had nothing to do for a moment.
  template <class IsOver, class Step>
  static void wait_until(IsOver is_over, Step step) {
    for (auto since = std::chrono::steady_clock::now(); !is_over();) {
      const auto now = std::chrono::steady_clock::now();
      if (step())
        since = now;
      else if (now - since > awake)
        std::this_thread::sleep_for(asleep);
    }
  }

  MPI_Comm world_ = MPI_COMM_NULL, scattering_ = MPI_COMM_NULL, gathering_ = MPI_COMM_NULL;
  int rank_ = 0, size_ = 1;
  bool owns_ = false;
  std::deque<Piece> waiting_;
  std::array<Lane, 4> lanes_;
  std::size_t scattered_ = 0, added_ = 0, gathered_ = 0;  // pieces so far
};

}  // namespace LACONIC_ABI
}  // namespace laconic
