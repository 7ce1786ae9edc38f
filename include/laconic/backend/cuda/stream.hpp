// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cuda/graph_cache.hpp>

#include <cstddef>
#include <cstring>
#include <exception>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {
namespace cuda {

/// Is a stream of work on a device, which it does in the order in which it is given. A thread can record a pass: its
/// work is put off until the pass ends, or until the host needs a result, and is then done by a CUDA graph if a pass of
/// the same shapes came before.
///
/// Work is recorded on the host only, so all calls are allowed during a pass. Those that wait for the device start what
/// was recorded so far, and so does `release`. If a pass throws, what it has recorded is done, as it would be without a
/// recording.
class Stream {
 public:
  /// Makes a stream on the device of this number; without a number, on the current one. Throws `Error` if there is
  /// none.
  explicit Stream(std::optional<int> device) : queue_(device) {}
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  /// Runs a kernel. `name` is for messages; the arguments, of so many bytes, may be reused at once.
  void launch(const char* name, KernelFunction function, Grid grid, int threads, std::size_t shared_bytes,
              const void* arguments, std::size_t bytes) const {
    give({Work::Kind::kernel, nullptr, nullptr, bytes, function, name, grid, threads, shared_bytes}, arguments);
  }
  /// Copies bytes of the host to the device. The memory of the host may be reused at once.
  void to_device(void* to, const void* from, std::size_t bytes) const {
    if (bytes == 0) return;
    const Work work{.kind = Work::Kind::upload, .to = to, .bytes = bytes};
    if (DeviceQueue::is_staged(bytes)) return give(work, from);
    start_recorded();
    queue_.start(work, from);
  }
  /// Copies bytes of the host to the device, in one copy with all others that are given so, before the other work that
  /// is recorded. Each goes to the next multiple of 64 bytes after the one before it, which no other work may use.
  void to_device_first(void* to, const void* from, std::size_t bytes) const {
    if (bytes == 0) return;
    if (!is_recorded()) return to_device(to, from, bytes);
    if (first_.empty()) first_to_ = to;
    const auto at = static_cast<std::size_t>(static_cast<std::byte*>(to) - static_cast<std::byte*>(first_to_));
    first_.resize(at + bytes);
    std::memcpy(first_.data() + at, from, bytes);
  }
  /// Copies bytes of the device to the host, and waits for them.
  void to_host(void* to, const void* from, std::size_t bytes) const {
    start_recorded();
    queue_.to_host(to, from, bytes);
  }
  /// Copies bytes within the device. The ranges must not overlap.
  void copy(void* to, const void* from, std::size_t bytes) const {
    if (bytes > 0) give({.kind = Work::Kind::copy, .to = to, .from = from, .bytes = bytes}, nullptr);
  }
  /// Sets bytes of the device to zero.
  void zero(void* to, std::size_t bytes) const {
    if (bytes > 0) give({.kind = Work::Kind::zero, .to = to, .bytes = bytes}, nullptr);
  }
  /// Waits until all work is done. Throws `Error` if a kernel failed.
  void wait() const {
    start_recorded();
    queue_.wait();
  }
  /// Waits until all work of all streams of the device is done, but for what other threads have recorded.
  void wait_for_all() const {
    start_recorded();
    for (const Stream* stream = innermost(); stream != nullptr; stream = stream->outer_) stream->start_recorded();
    queue_.wait_for_all();
  }

  /// Returns pass(), a value or nothing, the work of which this thread records. Within another recording of this stream
  /// it is a plain call. Throws what the pass or the work throws.
  template <class Pass>
  auto replayed(Pass&& pass) const {
    if (is_recorded()) return pass();
    const Recording recording(*this);
    if constexpr (std::is_void_v<decltype(pass())>) {
      pass();
      recording.end();
    } else {
      auto out = pass();
      recording.end();
      return out;
    }
  }
  /// Says whether the calling thread records this stream.
  bool is_recorded() const {
    const Stream* stream = innermost();
    while (stream != nullptr && stream != this) stream = stream->outer_;
    return stream != nullptr;
  }
  /// Starts what the calling thread has recorded, of all streams, before memory is freed that it may use. An error is
  /// thrown at the end of the pass.
  static void start_all_recorded() noexcept {
    for (const Stream* stream = innermost(); stream != nullptr; stream = stream->outer_) try {
        stream->start_recorded();
      } catch (...) {
        stream->failure_ = std::current_exception();
      }
  }

  /// Returns the queue of the device.
  const DeviceQueue& queue() const { return queue_; }
  /// Returns what became of recorded work.
  const GraphCounts& graph_counts() const { return graphs_.counts(); }
  /// Returns the number of the device.
  int device() const { return queue_.device(); }

 private:
  /// Records a stream in this thread as long as it lives.
  class Recording {
   public:
    explicit Recording(const Stream& stream) : stream_(stream) {
      stream_.outer_ = std::exchange(innermost(), &stream_);
      stream_.failure_ = nullptr;
    }
    Recording(const Recording&) = delete;
    Recording& operator=(const Recording&) = delete;
    ~Recording() {
      try {
        stream_.start_recorded();  // of a pass that has thrown
      } catch (...) {              // it has an error already
      }
      innermost() = stream_.outer_;
    }
    /// Starts what is left. Throws the first error of the work.
    void end() const {
      stream_.start_recorded();
      if (auto failure = std::exchange(stream_.failure_, nullptr)) std::rethrow_exception(failure);
    }

   private:
    const Stream& stream_;
  };

  /// Returns the stream whose recording this thread began last, or null.
  static const Stream*& innermost() {
    thread_local const Stream* stream = nullptr;
    return stream;
  }
  void give(const Work& work, const void* payload) const {
    is_recorded() ? list_.add(work, payload) : queue_.start(work, payload);
  }
  void start_recorded() const {
    if (!is_recorded() || (list_.empty() && first_.empty())) return;
    const struct Emptied {
      const Stream& stream;
      ~Emptied() {
        stream.list_.clear();
        stream.first_.clear();
      }
    } emptied{*this};
    if (!first_.empty())
      list_.add_first({.kind = Work::Kind::upload, .to = first_to_, .bytes = first_.size()}, first_.data());
    graphs_.run(queue_, list_);
  }

  DeviceQueue queue_;
  // Only the thread that records uses these: other threads may wait for a stream that holds their weights.
  mutable WorkList list_{};
  mutable std::vector<std::byte> first_{};  // what is uploaded before the list
  mutable void* first_to_ = nullptr;        // and where it goes
  mutable GraphCache graphs_{};
  mutable const Stream* outer_ = nullptr;  // the recording within which this one began
  mutable std::exception_ptr failure_{};
};

/// Frees memory of `allocate`, once the device has done all work that was given before.
inline void release(int device, void* memory) {
  Stream::start_all_recorded();
  free_memory(device, memory);
}

}  // namespace cuda
}  // namespace LACONIC_ABI
}  // namespace laconic
