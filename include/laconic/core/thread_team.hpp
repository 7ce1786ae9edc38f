// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/memory.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <utility>

// Threads and clock of POSIX: <thread> and <chrono> would be a tenth of what <laconic/laconic.hpp> costs to compile.
#include <pthread.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

/// Tells the processor that this thread waits for another one.
inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/// Returns the number of the machine's processors.
inline int processors() { return static_cast<int>(std::max(1L, ::sysconf(_SC_NPROCESSORS_ONLN))); }

/// Returns nanoseconds by a clock that is never set back, or those for which this thread ran (CLOCK_THREAD_CPUTIME_ID).
inline std::int64_t nanoseconds(clockid_t clock = CLOCK_MONOTONIC) {
  timespec now{};
  ::clock_gettime(clock, &now);
  return std::int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

/// Watches how often other programs take the processor of one thread, which calls all functions.
class ProcessorWatch {
 public:
  /// Says whether it is time to look again.
  bool is_due(std::int64_t now) const { return now - seen_ > ms; }

  /// Looks, and says whether this thread was put aside for more than a quarter of its time of late, once for each such
  /// time. Time in which it waited for something itself does not count. Where the system does not tell (RUSAGE_THREAD),
  /// it never was.
  bool is_often_put_aside() {
#ifdef RUSAGE_THREAD
    const std::int64_t now = nanoseconds(), ran = nanoseconds(CLOCK_THREAD_CPUTIME_ID);
    rusage usage{};  // its times would be those of the last tick of the system
    ::getrusage(RUSAGE_THREAD, &usage);
    if (std::exchange(waits_, usage.ru_nvcsw) == usage.ru_nvcsw) {
      awake_of_late_ += now - seen_;
      away_of_late_ += now - seen_ - (ran - ran_);
    }
    seen_ = now;
    ran_ = ran;
    const bool is_often = 4 * away_of_late_ > std::max(awake_of_late_, of_late / 2);
    if (is_often) awake_of_late_ = away_of_late_ = 0;  // what was seen is told once
    if (awake_of_late_ > of_late) {
      awake_of_late_ /= 2;
      away_of_late_ /= 2;
    }
    return is_often;
#else
    return false;
#endif
  }

 private:
  static constexpr std::int64_t ms = 1'000'000, of_late = 60 * ms;

  std::int64_t seen_ = 0, ran_ = 0;  // when it looked last, and for how long the thread had run then
  long waits_ = -1;                  // how often it had waited
  std::int64_t awake_of_late_ = 0, away_of_late_ = 0;
};

/// Makes this thread run regions alone while it lives, as within the tasks of another region.
class InsideRegion {
 public:
  /// Marks this thread.
  InsideRegion() : before_(std::exchange(here(), true)) {}
  InsideRegion(const InsideRegion&) = delete;
  InsideRegion& operator=(const InsideRegion&) = delete;
  /// Restores the mark of before.
  ~InsideRegion() { here() = before_; }

  /// Returns the mark of this thread.
  static bool& here() {
    thread_local bool inside = false;
    return inside;
  }

 private:
  bool before_;
};

/// Runs regions on the threads of the process: the thread that opens a region works in it, and others help it. A region
/// is over when its work is done, not when every thread has come: a helper that the system has put aside joins late or
/// never. Where threads are often put aside, regions have one thread fewer for a while (see `give_way`). Threads that
/// wait look for work for a millisecond and then sleep, sooner where the machine has other work (see `spin`). The
/// opener waits as long as its own tasks took, at least, and then sleeps, which gives its processor to a helper that
/// was put aside. Several threads may open regions at a time; helpers go where there is work.
///
/// Helpers are started when regions first want them and stopped when the process ends. There are at most as many as the
/// machine has processors beside the opener, or as the largest region asks for. After a fork the child has none, and
/// its regions run on their openers alone.
class ThreadTeam {
 public:
  /// Gives the max number of threads in a region.
  static constexpr int max_threads = 64;

  /// Returns the team of this process.
  static ThreadTeam& of_process() {
    static ThreadTeam team;
    return team;
  }
  ThreadTeam() = default;
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;
  /// Stops the helpers. Regions that are opened later run on their openers alone.
  ~ThreadTeam() {
    if (process_ != ::getpid()) return;  // the helpers are those of the parent of a fork
    stopping_ = true;
    ++opened_;
    opened_.notify_all();
    lock();  // for good: no helper is started any more
    for (int i = 0; i < helpers_; ++i) {
      const pthread_t thread = started_[static_cast<std::size_t>(i)].thread;
      if (::pthread_equal(thread, ::pthread_self()) != 0)
        ::pthread_detach(thread);  // a task ends the process
      else
        ::pthread_join(thread, nullptr);
    }
  }

  /// Calls work(what, thread) on this thread with thread 0, and with other numbers below `threads`, 2 to max_threads,
  /// on helpers that come while this thread works. Returns when all of them are done. `work` takes tasks until none is
  /// left and must not throw.
  void run(int threads, void (*work)(void* what, int thread), void* what) {
    const std::int64_t begin = nanoseconds();
    thread_local ProcessorWatch watch;
    if (begin < limited_until_.load(std::memory_order_relaxed))
      threads = std::min(threads, limit_.load(std::memory_order_relaxed));
    if (watch.is_due(begin) && watch.is_often_put_aside()) give_way(threads);
    Region* region = threads < 2 || stopping_.load(std::memory_order_relaxed) ? nullptr : take_region();
    if (region == nullptr) return work_as(0, work, what);
    region->work = work;
    region->what = what;
    region->numbers.store(1, std::memory_order_relaxed);
    region->state.store(is_open | static_cast<std::uint32_t>(threads - 1) << room_shift);
    start_helpers(threads - 1);
    ++opened_;
    for (int i = std::min(threads - 1, sleeping_.load()); i > 0; --i) opened_.notify_one();

    work_as(0, work, what);

    // A helper's last task may take about as long as the opener's did.
    std::uint32_t state = region->state.fetch_and(~is_open);
    const auto is_done = [&] { return ((state = region->state.load()) & count_mask) == 0; };
    if ((state & count_mask) != 0 && !spin(is_done, nanoseconds() - begin)) {
      region->state.fetch_or(is_waited_for);
      while (!is_done()) region->state.wait(state);
    }
    wanted_ -= threads - 1;
    region->state.store(0);
  }

 private:
  // The state of a region is 0 where nobody uses it, and otherwise holds the number of helpers that are in it, in the
  // lowest bits, the number that may be, in the highest, and these marks.
  static constexpr std::uint32_t count_mask = 0xff, is_taken = 1u << 8, is_open = 1u << 9, is_waited_for = 1u << 10;
  static constexpr int room_shift = 16;

  struct alignas(line_bytes) Region {
    std::atomic<std::uint32_t> state{0};
    std::atomic<std::uint64_t> numbers{0};  // a bit for each number of a thread that is in use
    void (*work)(void*, int) = nullptr;
    void* what = nullptr;
  };

  struct Helper {
    ThreadTeam* team;
    int number;
    pthread_t thread;
    int threads;  // of the last region that it was in
  };

  static void work_as(int thread, void (*work)(void*, int), void* what) noexcept {
    const InsideRegion inside;
    work(what, thread);
  }

  /// Waits for a condition without giving up the processor: a millisecond, which is longer than the time between the
  /// kernels of a pass, or 50 microseconds where the machine has other work, and `least`. That it has shows in a thread
  /// that was put aside while it waited, and counts for a second. Returns whether the condition holds.
  template <class Condition>
  bool spin(Condition&& holds, std::int64_t least = 0) {
    constexpr std::int64_t us = 1000, second = 1'000'000 * us;
    if (helpers_.load(std::memory_order_relaxed) >= processors_) return holds();  // some would spin in others' way
    std::int64_t now = nanoseconds();
    const bool busy = now < busy_until_.load(std::memory_order_relaxed);
    const std::int64_t end = now + std::max((busy ? 50 : 1000) * us, least);
    while (now < end) {
      for (int i = 0; i < 16; ++i) {
        if (holds()) return true;
        pause();
      }
      const std::int64_t before = std::exchange(now, nanoseconds());
      if (now - before > 100 * us) busy_until_.store(now + second, std::memory_order_relaxed);
    }
    return false;
  }

  /// Returns a region that nobody uses, or null.
  Region* take_region() {
    for (Region& region : regions_) {
      std::uint32_t free = 0;
      if (region.state.load(std::memory_order_relaxed) == 0 && region.state.compare_exchange_strong(free, is_taken))
        return &region;
    }
    return nullptr;
  }

  void lock() {
    while (locked_.test_and_set(std::memory_order_acquire)) locked_.wait(true);
  }
  void unlock() {
    locked_.clear(std::memory_order_release);
    locked_.notify_one();
  }

  /// Starts helpers for a region that wants so many, if all open regions together want more than there are.
  void start_helpers(int region_wants) {
    const int wanted = std::min({wanted_ += region_wants, std::max(processors_ - 1, region_wants), max_threads - 1});
    if (helpers_ >= wanted || refused_ || locked_.test_and_set(std::memory_order_acquire)) return;
    for (; helpers_ < wanted && process_ == ::getpid(); ++helpers_) {
      Helper& helper = started_[static_cast<std::size_t>(helpers_)];
      helper.team = this;
      helper.number = helpers_;
      if (::pthread_create(&helper.thread, nullptr, help_as, &helper) != 0) {
        refused_ = true;  // no threads or no memory: regions do with the threads that are there
        break;
      }
    }
    unlock();
  }

  static void* help_as(void* helper) {
    static_cast<Helper*>(helper)->team->help(*static_cast<Helper*>(helper));
    return nullptr;
  }

  /// Is what a helper does: waits for regions and works in them, until the process ends.
  void help(Helper& helper) {
    ProcessorWatch watch;
    for (;;) {
      const std::uint32_t seen = opened_;
      if (stopping_) return;
      for (Region& region : regions_) join(region, helper);
      const bool found = spin([&] { return opened_.load(std::memory_order_relaxed) != seen; });
      if (watch.is_due(nanoseconds()) && watch.is_often_put_aside()) give_way(helper.threads);
      if (found) continue;
      ++sleeping_;
      opened_.wait(seen);
      --sleeping_;
    }
  }

  /// Gives regions one thread fewer than `threads` for 300 milliseconds, which is several times what it takes to notice
  /// that a thread is often put aside.
  void give_way(int threads) {
    if (threads < 2) return;
    limit_.store(threads - 1, std::memory_order_relaxed);
    limited_until_.store(nanoseconds() + 300'000'000, std::memory_order_relaxed);
  }

  /// Works in a region if it is open and has room. A helper gets the same number in each region of one size, so that it
  /// meets what its processor's caches hold.
  static void join(Region& region, Helper& helper) {
    std::uint32_t state = region.state.load(std::memory_order_relaxed), room = 0;
    do {
      room = state >> room_shift;
      if ((state & is_open) == 0 || (state & count_mask) >= room) return;
    } while (!region.state.compare_exchange_weak(state, state + 1, std::memory_order_acquire));
    int number = 1 + helper.number % static_cast<int>(room);
    while ((region.numbers.fetch_or(std::uint64_t{1} << number, std::memory_order_acq_rel) >> number & 1) != 0)
      number = 1 + number % static_cast<int>(room);
    work_as(number, region.work, region.what);
    helper.threads = 1 + static_cast<int>(room);
    region.numbers.fetch_and(~(std::uint64_t{1} << number), std::memory_order_acq_rel);
    if ((region.state.fetch_sub(1) & (is_waited_for | count_mask)) == (is_waited_for | 1)) region.state.notify_one();
  }

  const int processors_ = processors();
  std::array<Region, 16> regions_{};
  alignas(line_bytes) std::atomic<std::uint32_t> opened_{0};    // regions so far; helpers wait for it to change
  alignas(line_bytes) std::atomic<int> sleeping_{0};            // helpers that must be woken
  std::atomic<int> wanted_{0};                                  // helpers for all regions that are open
  std::atomic<int> helpers_{0};                                 // those that were started
  std::atomic<bool> stopping_{false}, refused_{false};          // refused: the system gives no more threads
  std::atomic<std::int64_t> busy_until_{0}, limited_until_{0};  // by `nanoseconds`
  std::atomic<int> limit_{max_threads};                         // threads of a region until then
  std::atomic_flag locked_{};                                   // guards the start of helpers
  const pid_t process_ = ::getpid();                            // whose helpers they are
  std::array<Helper, max_threads - 1> started_{};
};

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
