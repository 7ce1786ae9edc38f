// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/distributed/communicator.hpp>

#include <barrier>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

/// Processes of a job that are threads of this one: what `Communicator` asks, in a few lines.
class ThreadProcess {
 public:
  struct Job {
    explicit Job(int size) : all(size), given(static_cast<std::size_t>(size)) {}
    std::barrier<> all;
    std::vector<void*> given;  ///< by rank: the memory that a function of the process was called with
  };
  ThreadProcess(Job& job, int rank) : job_(job), rank_(rank) {}

  int rank() const { return rank_; }
  int size() const { return static_cast<int>(job_.given.size()); }
  template <class T>
  void sum(std::span<T> values) {
    std::vector<T> own(values.begin(), values.end());
    give(own.data());
    std::vector<std::vector<T>> copies;
    std::vector<T*> terms;
    for (void* one : job_.given) copies.emplace_back(static_cast<T*>(one), static_cast<T*>(one) + values.size());
    for (auto& one : copies) terms.push_back(one.data());
    laconic::add_in_pairs<T>(terms, values.size());
    std::copy(copies[0].begin(), copies[0].end(), values.begin());
    barrier();
  }
  template <class T>
  void begin_sum(std::span<T> values) {
    begun_.push_back([this, values] { sum(values); });
  }
  void advance() {}
  void end_sums() {
    for (const auto& one : std::exchange(begun_, {})) one();
  }
  void broadcast(std::span<std::byte> bytes, int root) {
    give(bytes.data());
    const void* from = job_.given[static_cast<std::size_t>(root)];
    if (rank_ != root && !bytes.empty()) std::memcpy(bytes.data(), from, bytes.size());
    barrier();
  }
  void barrier() { job_.all.arrive_and_wait(); }

 private:
  void give(void* memory) {
    job_.given[static_cast<std::size_t>(rank_)] = memory;
    barrier();
  }
  Job& job_;
  int rank_;
  std::vector<std::function<void()>> begun_;
};

/// Runs `task(communicator)` in so many processes at once, and returns what each threw, "" where nothing. A task that
/// throws leaves its job: the others must not wait for it any more.
template <class Task>
std::vector<std::string> in_processes(int size, Task&& task) {
  ThreadProcess::Job job(size);
  std::vector<std::string> errors(static_cast<std::size_t>(size));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank)
    threads.emplace_back([&, rank] {
      ThreadProcess process(job, rank);
      try {
        task(process);
      } catch (const std::exception& error) {
        errors[static_cast<std::size_t>(rank)] = error.what();
        job.all.arrive_and_drop();
      }
    });
  for (std::thread& one : threads) one.join();
  return errors;
}
