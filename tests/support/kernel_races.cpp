// laconic: attention for speech models. SPDX-License-Identifier: MIT
// Finds races in emulated kernels: two threads use the same byte, one of them writes it, and no barrier is between. The
// kernels are compiled by g++ with -fsanitize=thread and linked without its library, so that each of their reads and
// writes calls a function of this file, which knows what waits for what on a GPU (as KCSAN does it in Linux). A byte
// has a cell, which keeps who used it last.
//
// Also found: copies whose target is used before they are waited for; registers of another thread; memory after an
// array of shared memory.

#include <laconic/backend/cuda/block.hpp>

#include <cxxabi.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace {

using laconic::Index;
using laconic::cuda::all_threads;
using laconic::cuda::warp_threads;

// Barriers divide the time of the device into intervals, which are numbered; warps divide an interval further.
struct Use {
  std::uint32_t interval = 0;
  std::int16_t thread = 0;
  std::uint16_t warp_interval = 0;

  // Returns the number of the warp; -1: all of them.
  int warp() const { return thread == all_threads ? -1 : thread / warp_threads; }
  friend bool operator==(const Use&, const Use&) = default;
};

enum class Kind : std::uint8_t { untracked, memory, beyond };  // beyond: after an array of shared memory

// A byte of the device's memory, or of shared memory.
struct Cell {
  Use written{}, read{};
  Use read_before{}, read_by_warp{};  // the last reads by another thread, and by another warp, than `read`
  Use first_read{};                   // of the launch
  std::uint32_t copies = 0;           // the group of the copy that writes it, or 0
  Kind kind = Kind::untracked;
};

// Registers of all threads of a block, `each` bytes of one after those of the other.
struct Registers {
  std::uintptr_t begin, each;
  int threads;

  std::uintptr_t end() const { return begin + each * static_cast<std::uintptr_t>(threads); }
};

// Kernels of the same type and grid mostly do the same: so many launches of them are watched.
constexpr int watched_launches = 32;

constexpr std::uintptr_t page_bytes = 4096, gap_bytes = laconic::cuda::detail::EmulatedMemory::gap;
using Page = std::vector<Cell>;

// Finds the page of an address. An address has 48 bits.
class Pages {
 public:
  Page*& operator[](std::uintptr_t page) {
    auto& part = parts_[page >> 18];
    if (part == nullptr) part = std::make_unique<Page*[]>(std::size_t{1} << 18);
    return part[page & ((1 << 18) - 1)];
  }

 private:
  std::vector<std::unique_ptr<Page*[]>> parts_ = std::vector<std::unique_ptr<Page*[]>>(std::size_t{1} << 18);
};

// One block runs at a time, also where several threads of the host run kernels.
std::mutex& running() {
  static std::mutex mutex;
  return mutex;
}
thread_local bool is_watched = false;  // the launch
thread_local bool in_block = false;    // that is watched
thread_local const char* kernel_type = "";
thread_local std::uint32_t launch = 0;  // its first interval
thread_local std::string race_of_block;

class Races final : public laconic::cuda::KernelObserver {
 public:
  void on_allocation(void* memory, std::size_t bytes) override {
    const std::lock_guard lock(running());
    const auto begin = reinterpret_cast<std::uintptr_t>(memory);
    allocations_[begin] = bytes;
    mark(begin, bytes, Kind::memory);
  }
  void on_release(void* memory) override {
    const std::lock_guard lock(running());
    const auto found = allocations_.find(reinterpret_cast<std::uintptr_t>(memory));
    if (found == allocations_.end()) return;
    mark(found->first, found->second, Kind::untracked);
    allocations_.erase(found);
  }
  void on_launch(const char* kernel, laconic::cuda::Grid grid) override {
    const std::lock_guard lock(running());
    is_watched = launches_[{kernel, grid.x, grid.y}]++ < watched_launches;
    kernel_type = kernel;
    launch = ++interval_;
  }
  void on_block(Index x, Index y) override {
    if (!is_watched) return;
    running().lock();
    in_block = true;
    x_ = x, y_ = y;
    block_ = ++interval_;
    warp_interval_ = 0;
  }
  void on_block_end() noexcept override {
    if (!in_block) return;
    race_of_block = std::exchange(race_, "");
    for (const auto& [begin, bytes] : shared_) mark(begin, bytes, Kind::untracked);
    shared_.clear();
    for (const Registers& r : registers_)
      for (std::uintptr_t page = r.begin / page_bytes; page <= (r.end() - 1) / page_bytes; ++page)
        if (pages_[page] == &of_registers_) pages_[page] = nullptr;  // where the memory is freed, it may become others'
    registers_.clear();
    done_ = copies_++;
    in_block = false;
    running().unlock();
  }
  void check() override {
    const std::string race = std::exchange(race_of_block, "");
    laconic::require(race.empty(), race);
  }
  void on_shared(void* memory, std::size_t bytes) override {
    if (!in_block) return;
    const auto begin = reinterpret_cast<std::uintptr_t>(memory);
    for (std::uintptr_t page = begin / page_bytes; page <= (begin + bytes + gap_bytes - 1) / page_bytes; ++page)
      if (pages_[page] == nullptr || pages_[page] == &none_) pages_[page] = make_page(page);
    mark(begin, bytes, Kind::memory);
    mark(begin + bytes, gap_bytes, Kind::beyond);
    shared_.push_back({begin, bytes + gap_bytes});
  }
  void on_registers(void* memory, std::size_t each, int threads) override {
    if (!in_block) return;
    const auto begin = reinterpret_cast<std::uintptr_t>(memory);
    registers_.push_back({begin, each, threads});
    for (std::uintptr_t page = begin / page_bytes; page <= (registers_.back().end() - 1) / page_bytes; ++page)
      if (pages_[page] == nullptr || pages_[page] == &none_) pages_[page] = &of_registers_;
  }
  void on_barrier() override {
    if (!in_block) return;
    ++interval_;
    warp_interval_ = 0;
  }
  void on_warp_barrier() override {
    if (in_block) ++warp_interval_;
  }
  void on_copy(void* to, const void* from, int bytes) override {
    if (!in_block) return;
    use(from, static_cast<std::size_t>(bytes), false);
    use(to, 16, true);
    for (std::uintptr_t i = 0; i < 16; ++i)
      if (Cell* const cell = cell_of(reinterpret_cast<std::uintptr_t>(to) + i)) cell->copies = copies_;
  }
  void on_copies_end() override {
    if (in_block) ++copies_;
  }
  void on_copies_done(int unfinished) override {
    if (!in_block) return;
    done_ = std::max(done_, copies_ - static_cast<std::uint32_t>(unfinished) - 1);
  }

  // The calling emulated thread reads or writes bytes.
  void use(const void* memory, std::size_t bytes, bool writes) {
    const auto begin = reinterpret_cast<std::uintptr_t>(memory);
    const Use now{interval_, static_cast<std::int16_t>(laconic::cuda::emulated_thread()), warp_interval_};
    for (std::uintptr_t at = begin, end; at < begin + bytes; at = end) {
      end = std::min(begin + bytes, (at / page_bytes + 1) * page_bytes);
      Page* const page = page_of(at);
      if (page == &of_registers_) use_register(at, now);
      if (page == &of_registers_ || page == &none_) continue;
      for (std::uintptr_t i = at; i < end; ++i) use((*page)[i % page_bytes], now, writes);
    }
  }

 private:
  void use_register(std::uintptr_t at, const Use& now) {
    for (const Registers& r : registers_) {
      if (at < r.begin || at >= r.end()) continue;
      const Use owner{interval_, static_cast<std::int16_t>((at - r.begin) / r.each), 0};
      if (owner.thread != now.thread) report("uses a register that belongs to", now, &owner);
    }
  }
  void use(Cell& cell, const Use& now, bool writes) {
    if (cell.kind == Kind::untracked) return;
    if (!writes && cell.read == now && cell.copies <= done_) return;
    if (cell.kind == Kind::beyond) return report("uses memory after an array of shared memory", now);
    if (cell.copies > done_) report("uses the target of an unfinished copy by", now, &cell.written);
    if (is_race(cell.written, now))
      report(writes ? "writes what was written by" : "reads what was written by", now, &cell.written);
    if (!writes) {
      if (cell.first_read.interval < launch) cell.first_read = now;
      if (cell.read.interval != now.interval || cell.read.thread != now.thread) cell.read_before = cell.read;
      if (cell.read.interval != now.interval || cell.read.warp() != now.warp()) cell.read_by_warp = cell.read;
      cell.read = now;
      return;
    }
    for (const Use& before : {cell.read, cell.read_before, cell.read_by_warp, cell.first_read})
      if (is_race(before, now)) report("writes what was read by", now, &before);
    cell.written = now;
    cell.copies = 0;
  }
  // Says whether nothing is waited for between two uses, one of which writes.
  bool is_race(const Use& before, const Use& now) const {
    if (before.interval < launch) return false;
    if (before.interval < block_) return true;  // another block of this launch
    if (before.interval != now.interval || before.thread == now.thread) return false;
    return before.warp() != now.warp() || now.warp() == -1 || before.warp_interval == now.warp_interval;
  }
  // Keeps the first race of a block.
  void report(const char* what, const Use& now, const Use* before = nullptr) {
    if (!race_.empty()) return;
    const auto name = [](const Use& use) {
      return use.thread == all_threads ? std::string("every thread") : "thread " + std::to_string(use.thread);
    };
    char* const kernel = abi::__cxa_demangle(kernel_type, nullptr, nullptr, nullptr);
    race_ = laconic::text("Cuda: race in block (", x_, ", ", y_, ") of ", kernel != nullptr ? kernel : kernel_type,
                          ": ", name(now), " ", what);
    if (before != nullptr)
      race_ += laconic::text(" ", name(*before), before->interval < block_ ? " of another block" : "");
    std::free(kernel);
  }

  // Sets what bytes are, where their pages are known. Others are made when they are used.
  void mark(std::uintptr_t begin, std::uintptr_t bytes, Kind kind) {
    const std::uintptr_t end = begin + bytes;
    for (std::uintptr_t at = begin; at < end; at = (at / page_bytes + 1) * page_bytes) {
      Page*& page = pages_[at / page_bytes];
      if (page == &none_) page = nullptr;
      if (page == nullptr || page == &of_registers_) continue;
      for (std::uintptr_t i = at; i < end && i / page_bytes == at / page_bytes; ++i)
        (*page)[i % page_bytes] = {.kind = kind};
    }
  }
  // Makes a page, of which the device's memory is known.
  Page* make_page(std::uintptr_t page) {
    owned_.push_back(std::make_unique<Page>(page_bytes));
    const std::uintptr_t begin = page * page_bytes;
    for (auto next = last_allocation_before(begin); next != allocations_.end() && next->first < begin + page_bytes;
         ++next)
      for (std::uintptr_t i = std::max(begin, next->first);
           i < std::min(begin + page_bytes, next->first + next->second); ++i)
        (*owned_.back())[i % page_bytes].kind = Kind::memory;
    return owned_.back().get();
  }
  Page* page_of(std::uintptr_t address) {
    Page*& page = pages_[address / page_bytes];
    if (page != nullptr) return page;
    const std::uintptr_t begin = address / page_bytes * page_bytes;
    auto next = last_allocation_before(begin);
    while (next != allocations_.end() && next->first + next->second <= begin) ++next;
    return page =
               next != allocations_.end() && next->first < begin + page_bytes ? make_page(begin / page_bytes) : &none_;
  }
  // Returns the cell of a byte, or null if nothing of its page has one.
  Cell* cell_of(std::uintptr_t address) {
    Page* const page = page_of(address);
    return page == &none_ || page == &of_registers_ ? nullptr : &(*page)[address % page_bytes];
  }
  std::map<std::uintptr_t, std::size_t>::iterator last_allocation_before(std::uintptr_t address) {
    auto next = allocations_.lower_bound(address);
    return next == allocations_.begin() ? next : std::prev(next);
  }

  Pages pages_{};
  Page none_{}, of_registers_{};  // stand for pages without tracked bytes, and with registers
  std::vector<std::unique_ptr<Page>> owned_{};
  std::map<std::uintptr_t, std::size_t> allocations_{};
  std::map<std::tuple<const char*, Index, Index>, int> launches_{};
  std::vector<std::pair<std::uintptr_t, std::uintptr_t>> shared_{};  // of the block
  std::vector<Registers> registers_{};
  Index x_ = 0, y_ = 0;
  std::uint32_t interval_ = 0, block_ = 0;
  std::uint16_t warp_interval_ = 0;
  std::uint32_t copies_ = 1 << 16, done_ = copies_ - 1;  // the group that copies join; the last one that is done
  std::string race_{};
};

// It is not destroyed, since contexts may free memory after it.
Races* const races = [] {
  auto* const out = new Races;
  laconic::cuda::kernel_observer() = out;
  return out;
}();

void use(const void* memory, std::size_t bytes, bool writes) {
  if (!in_block) return;
  in_block = false;  // what the observer itself reads and writes
  races->use(memory, bytes, writes);
  in_block = true;
}

}  // namespace

// What g++ calls for each read and write. The names are those of its library.
extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_atomic_signal_fence(int) {}
void __tsan_read_range(void* at, std::size_t bytes) { use(at, bytes, false); }
void __tsan_write_range(void* at, std::size_t bytes) { use(at, bytes, true); }
#define LACONIC_USES(bytes)                                              \
  void __tsan_read##bytes(void* at) { use(at, bytes, false); }           \
  void __tsan_write##bytes(void* at) { use(at, bytes, true); }           \
  void __tsan_unaligned_read##bytes(void* at) { use(at, bytes, false); } \
  void __tsan_unaligned_write##bytes(void* at) { use(at, bytes, true); }
LACONIC_USES(1)
LACONIC_USES(2)
LACONIC_USES(4)
LACONIC_USES(8)
LACONIC_USES(16)
// Atomic values are the host's: of counters and shared pointers.
#define LACONIC_ATOMICS(type, bits)                                                                               \
  type __tsan_atomic##bits##_load(const volatile type* at, int) { return __atomic_load_n(at, __ATOMIC_SEQ_CST); } \
  void __tsan_atomic##bits##_store(volatile type* at, type value, int) {                                          \
    __atomic_store_n(at, value, __ATOMIC_SEQ_CST);                                                                \
  }                                                                                                               \
  type __tsan_atomic##bits##_fetch_add(volatile type* at, type value, int) {                                      \
    return __atomic_fetch_add(at, value, __ATOMIC_SEQ_CST);                                                       \
  }                                                                                                               \
  type __tsan_atomic##bits##_fetch_sub(volatile type* at, type value, int) {                                      \
    return __atomic_fetch_sub(at, value, __ATOMIC_SEQ_CST);                                                       \
  }                                                                                                               \
  int __tsan_atomic##bits##_compare_exchange_weak(volatile type* at, type* expected, type value, int, int) {      \
    return __atomic_compare_exchange_n(at, expected, value, true, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);            \
  }
LACONIC_ATOMICS(unsigned char, 8)
LACONIC_ATOMICS(unsigned, 32)
LACONIC_ATOMICS(unsigned long, 64)
}
