// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/recognition/dataset.hpp>

#include <deque>
#include <future>

namespace laconic {
inline namespace LACONIC_ABI {

/// Makes the batches of a plan in the background while others are trained on: reads and masks the features that are not
/// kept in memory. `ahead` batches are made at once, each on a thread of its own. The batches are the same for any
/// number.
class BatchLoader {
 public:
  /// Starts with batch `first` of the plan. The dataset must outlive this object. Throws `Error` for a negative batch
  /// or `ahead` below 1.
  BatchLoader(const Dataset& data, std::vector<std::vector<Index>> plan, Index first, const SpecAugmentConfig& augment,
              Seed seed, int ahead = 1)
      : data_(data), plan_(std::move(plan)), augment_(augment), seed_(seed), next_(static_cast<std::size_t>(first)) {
    require(first >= 0 && ahead > 0, "batches: first ", first, " and ", ahead,
            " ahead given, at least 0 and 1 expected");
    for (int i = 0; i < ahead; ++i) start_next();
  }
  /// Not copyable: threads read the members.
  BatchLoader(const BatchLoader&) = delete;
  /// Not assignable.
  BatchLoader& operator=(const BatchLoader&) = delete;

  /// Waits for the next batch and returns it. Throws what making it threw, and `Error` after the last.
  SpeechBatch next() {
    require(!coming_.empty(), "batches: all ", plan_.size(), " have been taken");
    std::future<SpeechBatch> batch = std::move(coming_.front());
    coming_.pop_front();
    batch.wait();  // the next one starts only when one is done, so that there are at most `ahead` threads
    start_next();
    return batch.get();
  }

 private:
  /// Starts making the next batch, if there is one.
  void start_next() {
    if (next_ >= plan_.size()) return;
    coming_.push_back(
        std::async(std::launch::async, [this, at = next_] { return make_batch(data_, plan_[at], &augment_, seed_); }));
    ++next_;
  }

  const Dataset& data_;
  const std::vector<std::vector<Index>> plan_;
  const SpecAugmentConfig augment_;
  Seed seed_;
  std::size_t next_;
  std::deque<std::future<SpeechBatch>> coming_;  // last: its destructor waits for threads that read the others
};

}  // namespace LACONIC_ABI
}  // namespace laconic
