// laconic: attention for speech models. SPDX-License-Identifier: MIT
// How work is cut and dealt out to threads, and the memory that large blocks get.
#include <laconic/laconic.hpp>

#include "catch.hpp"

#include <sched.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

using namespace laconic;

TEST_CASE("every task is done once, by one of so many threads", "[parallel]") {
  for (const int threads : {1, 2, 3, 70})  // more than there are queues
    for (const Index tasks : {0, 1, 2, 5, 69, 1000}) {
      CAPTURE(threads, tasks);
      std::vector<std::atomic<int>> done(static_cast<std::size_t>(tasks));
      std::atomic<int> strangers{0};
      kernels::parallel_for(threads, tasks, [&](Index task, int thread) {
        ++done[static_cast<std::size_t>(task)];
        if (thread < 0 || thread >= threads) ++strangers;
      });
      CHECK(strangers == 0);
      for (const auto& times : done) REQUIRE(times == 1);
    }
}

namespace {

/// Waits for what other threads bring about, ten seconds at most.
template <class Condition>
bool comes(Condition&& condition, std::chrono::milliseconds longest = std::chrono::seconds(10)) {
  const auto begin = std::chrono::steady_clock::now();
  while (!condition())
    if (std::chrono::steady_clock::now() - begin > longest) return false;
  return true;
}

/// Runs a region until a second thread has come to it, which a busy machine puts off: a hundred times at most.
template <class Region>
bool is_joined(Region&& region) {
  for (int i = 0; i < 100; ++i)
    if (region(std::chrono::milliseconds(100))) return true;
  return false;
}

}  // namespace

TEST_CASE("each thread begins with its own stretch of the tasks", "[parallel]") {
  constexpr Index tasks = 6;
  std::vector<int> done_by(tasks, -1);
  CHECK(is_joined([&](auto longest) {
    std::atomic<int> begun{0};
    std::atomic<bool> together{true};
    kernels::parallel_for(2, tasks, [&](Index task, int thread) {
      done_by[static_cast<std::size_t>(task)] = thread;
      if (task % 3 != 0) return;
      ++begun;
      if (!comes([&] { return begun == 2; }, longest)) together = false;
    });
    return together.load();
  }));
  CHECK(done_by[0] == 0);
  CHECK(done_by[3] == 1);
}

TEST_CASE("a thread that is done helps the others", "[parallel]") {
  // The first task waits for all others, of which half lie in the stretch of its own thread.
  constexpr Index tasks = 16;
  CHECK(is_joined([&](auto longest) {
    std::atomic<Index> done{0};
    std::atomic<bool> helped{false};
    kernels::parallel_for(2, tasks, [&](Index task, int) {
      if (task == 0) helped = comes([&] { return done == tasks - 1; }, longest);
      ++done;
    });
    return helped.load();
  }));
}

#if defined(RUSAGE_THREAD) && defined(__linux__)
TEST_CASE("a thread knows that other programs take its processor, and not its own waiting for that", "[parallel]") {
  cpu_set_t before, one;
  REQUIRE(sched_getaffinity(0, sizeof before, &before) == 0);
  CPU_ZERO(&one);
  for (std::size_t i = 0; i < CPU_SETSIZE && CPU_COUNT(&one) == 0; ++i)
    if (CPU_ISSET(i, &before)) CPU_SET(i, &one);
  std::atomic<bool> over{false};
  REQUIRE(sched_setaffinity(0, sizeof one, &one) == 0);  // for the other thread, too
  std::thread other([&] {
    while (!over) continue;
  });
  laconic::detail::ProcessorWatch watch;
  CHECK(comes([&] { return watch.is_due(laconic::detail::nanoseconds()) && watch.is_often_put_aside(); }));
  over = true;
  other.join();

  laconic::detail::ProcessorWatch of_waiting;
  for (int i = 0; i < 20; ++i) {
    CHECK_FALSE(of_waiting.is_often_put_aside());
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  CHECK(sched_setaffinity(0, sizeof before, &before) == 0);
}
#endif

TEST_CASE("a region is over when its tasks are done, whoever has come", "[parallel]") {
  // The tasks of one region wait for the other region. Whichever threads they hold, the other one ends.
  std::atomic<int> waiting{0};
  std::atomic<bool> over{false}, came{true};
  std::thread first([&] {
    kernels::parallel_for(2, 2, [&](Index, int) {
      ++waiting;
      if (!comes([&] { return over.load(); })) came = false;
    });
  });
  REQUIRE(comes([&] { return waiting > 0; }));
  std::atomic<Index> sum{0};
  for (int i = 0; i < 1000; ++i) kernels::parallel_for(2, 8, [&](Index task, int) { sum += task; });
  over = true;
  first.join();
  CHECK(sum == 28'000);
  CHECK(came);
}

TEST_CASE("many threads open regions at a time", "[parallel]") {
  constexpr int users = 20;  // more than there can be regions
  std::atomic<Index> sum{0};
  std::vector<std::thread> threads;
  for (int user = 0; user < users; ++user)
    threads.emplace_back([&, user] {
      for (int i = 0; i < 200; ++i) kernels::parallel_for(2 + user % 3, 10, [&](Index task, int) { sum += task; });
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(sum == users * 200 * 45);
}

TEST_CASE("a region within another one runs on one thread", "[parallel]") {
  std::atomic<Index> sum{0}, others{0};
  const auto within = [&] {
    const auto self = std::this_thread::get_id();
    kernels::parallel_for(4, 10, [&](Index task, int thread) {
      sum += task;
      if (thread != 0 || std::this_thread::get_id() != self) ++others;
    });
  };
  kernels::parallel_for(3, 50, [&](Index, int) { within(); });
  CHECK(sum == 50 * 45);
  CHECK(others == 0);
#ifdef _OPENMP
#pragma omp parallel num_threads(2)
  if (omp_get_num_threads() == 2) within();
  CHECK(others == 0);
#endif
}

TEST_CASE("a child of a fork computes on one thread", "[parallel]") {
  const auto sum_of = [] {
    std::atomic<Index> sum{0};
    kernels::parallel_for(2, 100, [&](Index task, int) { sum += task; });
    return sum.load();
  };
  CHECK(sum_of() == 4950);
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) ::_exit(sum_of() == 4950 ? 0 : 1);
  int status = -1;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(status == 0);
}

TEST_CASE("blocks cover all, in whole units, and share evenly", "[parallel]") {
  for (const Index size : {0, 1, 7, 8, 9, 128, 129, 370, 1240})
    for (const Index unit : {1, 8})
      for (const int threads : {1, 2, 3}) {
        CAPTURE(size, unit, threads);
        const kernels::Blocks blocks(size, 128, unit, threads);
        Index end = 0;
        for (Index i = 0; i < blocks.count(); ++i) {
          CHECK(blocks[i].begin == end);
          CHECK(blocks[i].begin % unit == 0);
          CHECK((blocks[i].size() > 0 && blocks[i].size() <= std::min<Index>(128, blocks.most())));
          if (i + 1 < blocks.count()) CHECK(blocks[i].size() >= size / blocks.count() / unit * unit);
          end = blocks[i].end;
        }
        CHECK(end == size);
        if (size >= threads * unit) CHECK(blocks.count() % threads == 0);
      }
}

TEST_CASE("parts of sequences cover rows in order, and leave out empty ones", "[parallel]") {
  using Part = std::pair<Index, std::pair<Index, Index>>;
  const auto parts = [](const Sequences& sequences, Range rows) {
    std::vector<Part> out;
    each_part(sequences, rows, [&](Index n, Range part) { out.push_back({n, {part.begin, part.end}}); });
    return out;
  };
  const Sequences sequences{0, 5, 0, 0, 3, 0};
  CHECK(parts(sequences, {0, 8}) == std::vector<Part>{{1, {0, 5}}, {4, {0, 3}}});
  CHECK(parts(sequences, {4, 6}) == std::vector<Part>{{1, {4, 5}}, {4, {0, 1}}});
  CHECK(parts(sequences, {5, 5}).empty());
  CHECK(parts(Sequences{}, {0, 0}).empty());
}

TEST_CASE("large blocks of memory begin at large pages, small ones at lines of the cache", "[memory]") {
  for (const std::size_t bytes :
       {std::size_t{1}, detail::large_page_bytes - 1, detail::large_page_bytes, 3 * detail::large_page_bytes + 5}) {
    auto* memory = static_cast<unsigned char*>(detail::allocate_aligned(bytes));
    const std::size_t alignment = bytes < detail::large_page_bytes ? detail::line_bytes : detail::large_page_bytes;
    CHECK(reinterpret_cast<std::uintptr_t>(memory) % alignment == 0);
    memory[0] = memory[bytes - 1] = 1;
    detail::free_aligned(memory, bytes);
  }
}

TEST_CASE("weights lie end to end, and each keeps the memory that it lies in", "[memory]") {
  auto memory = std::make_unique<kernels::WeightMemory>();
  auto first = memory->take(100), second = memory->take(1);
  CHECK(second.get() == first.get() + 128);
  const auto large = memory->take(Index{40} << 20), third = memory->take(1);
  CHECK(third.get() == second.get() + 64);
  for (const auto& piece : {first, second, large, third})
    CHECK(reinterpret_cast<std::uintptr_t>(piece.get()) % detail::line_bytes == 0);
  memory.reset();
  first.reset();
  *second = std::byte{1};  // still there
  CHECK(*second == std::byte{1});
}
