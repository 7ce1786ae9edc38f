// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/context.hpp>
#include <laconic/core/parameter.hpp>
#include <laconic/distributed/communicator.hpp>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <functional>
#include <memory>
#include <numeric>
#include <optional>
#include <span>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Sums the gradients of the batches of one update over the processes of a job. Each batch's gradient is computed from
/// zeros, and all are added in pairs (`add_in_pairs`): first those of one process, then over processes. So one process
/// gets the bits of several wherever each of those has 2^k batches. A statistic of batch norm becomes what as many
/// updates in the order of the batches would make of it: v + m (x_i - v) for each batch i in turn, whose part in the
/// sum is therefore (1 - m)^later m (x_i - v), with `later` batches after it.
///
/// The sum over processes goes on while the backward pass of a process's last batch computes further gradients
/// (`begin_last`): in parts of some MiB, from the last parameter of the model to the first.
///
/// An update calls `add` for all batches of a process but the last, then `begin_last`, `computed` and `finish`; or
/// `add` for all, and `finish`. After an exception the object, and the communicator's sums, are over. A process keeps
/// log2(its batches) + 1 copies of the gradients on the host, which the first updates allocate.
template <TrainingContext Context>
class GradientSum {
 public:
  using T = typename Context::Scalar;  ///< the type of an element

  /// Binds the parameters of a model that can be trained. Context, communicator and model must outlive this object.
  template <class Model>
  GradientSum(Context& context, AnyCommunicator communicator, const Model& model)
      : context_(context), communicator_(communicator) {
    model.parameters([&](std::string_view, const Parameter<T>& p) {
      if (!p.trainable) return;
      if (p.role() == Role::statistic) statistics_.push_back({size_, static_cast<std::size_t>(p.size()), p.momentum});
      places_.emplace(&p, parameters_.size());
      parameters_.push_back(&p);
      begins_.push_back(size_);
      size_ += static_cast<std::size_t>(p.size());
    });
    begins_.push_back(size_);
    complete_.resize(parameters_.size());
    left_ = parameters_.size();
  }

  GradientSum(const GradientSum&) = delete;
  GradientSum& operator=(const GradientSum&) = delete;
  /// Leaves the memory of sums that have begun and not ended: other processes may still read it and write to it.
  ~GradientSum() {
    if (left_ < parameters_.size()) static_cast<void>(sums_.release());
  }

  /// Takes the gradients that the model has as those of this process's next batch, and leaves zeros. In all processes,
  /// `later` batches of the update come after it in their order.
  void add(Index later) {
    require(!last_later_, "gradient sum: a batch given after the last one; finish expected");
    take(0, parameters_.size(), next_sum(), later);
    for (std::size_t batches = ++batches_; batches % 2 == 0; batches /= 2) {
      join(used_ - 1, 0, size_);
      --used_;
    }
  }
  /// Begins this process's last batch of the update, after its forward pass; in all processes, `later` batches come
  /// after it. Its gradients are taken as `computed` names them, and the others by `finish`.
  void begin_last(Index later) {
    require(!last_later_, "gradient sum: a second last batch given; finish expected");
    next_sum();
    last_later_ = later;
    for (std::size_t i = 0; i < parameters_.size(); ++i)  // statistics are those of the forward pass
      complete_[i] = parameters_[i]->role() == Role::statistic;
  }
  /// Says that the model has the gradients of these parameters as the last batch leaves them.
  void computed(std::span<const Parameter<T>* const> parameters) {
    require(last_later_.has_value(), "gradient sum: gradients of no batch given; begin_last expected");
    if (communicator_.size() == 1) return;
    for (const Parameter<T>* p : parameters)
      if (const auto found = places_.find(p); found != places_.end()) complete_[found->second] = true;
    std::size_t first = left_;
    while (first > 0 && complete_[first - 1]) --first;
    // The same parts in all processes, whatever `computed` names at a time.
    while (left_ > 0 && begin_of_part() >= first) send(begin_of_part());
    communicator_.advance();
  }
  /// Gives the model the sum of all that was added, in all processes, and begins anew.
  void finish() {
    if (used_ == 0) std::ranges::fill(next_sum(), T{0});  // a process without a batch
    while (left_ > 0) send(begin_of_part());
    communicator_.end_sums();
    context_.put_gradients(parameters_, sums()[0]);
    used_ = 0;
    batches_ = 0;
    last_later_.reset();
    left_ = parameters_.size();
  }

 private:
  /// Returns the min bytes of a part: messages of many processes do not become short.
  std::size_t part_bytes() const {
    return std::max(std::size_t{2} << 20, static_cast<std::size_t>(communicator_.size()) * (std::size_t{64} << 10));
  }
  std::vector<std::vector<T>>& sums() { return *sums_; }
  /// Returns the memory of a further sum. Allocates, if no update had as many.
  std::vector<T>& next_sum() {
    if (used_ == sums().size()) sums().emplace_back(size_);
    return sums()[used_++];
  }
  /// Moves the gradients of the parameters first .. last - 1 to their place in `sum`.
  void take(std::size_t first, std::size_t last, std::vector<T>& sum, Index later) {
    const std::size_t begin = begins_[first], end = begins_[last];
    context_.take_gradients(std::span(parameters_).subspan(first, last - first),
                            std::span(sum).subspan(begin, end - begin));
    for (const Statistic& s : statistics_) {
      if (s.begin < begin || s.begin >= end) continue;
      const T kept = static_cast<T>(std::pow(1 - s.momentum, static_cast<double>(later)));
      for (std::size_t i = s.begin; i < s.begin + s.size; ++i) sum[i] *= kept;
    }
  }
  /// Adds the values begin .. end - 1 of sum n to those of the sum before.
  void join(std::size_t n, std::size_t begin, std::size_t end) {
    T* const both[]{sums()[n - 1].data() + begin, sums()[n].data() + begin};
    add_in_pairs<T>(both, end - begin);
  }
  /// Returns the first parameter of the part that comes next over processes: all, if there is no other process.
  std::size_t begin_of_part() const {
    std::size_t first = communicator_.size() == 1 ? 0 : left_;
    while (first > 0 && (begins_[left_] - begins_[first]) * sizeof(T) < part_bytes()) --first;
    return first;
  }
  /// Begins to sum the part from parameter `first` over processes.
  void send(std::size_t first) {
    const std::size_t begin = begins_[first], end = begins_[left_];
    if (last_later_) take(first, left_, sums()[used_ - 1], *last_later_);
    for (std::size_t n = used_; --n > 0;) join(n, begin, end);
    left_ = first;
    communicator_.begin_sum(std::span(sums()[0]).subspan(begin, end - begin));
  }

  /// Holds the place of a statistic in the sums, and its momentum.
  struct Statistic {
    std::size_t begin, size;
    double momentum;
  };

  Context& context_;
  AnyCommunicator communicator_;
  std::vector<const Parameter<T>*> parameters_;
  std::vector<std::size_t> begins_;  // of each parameter's values in a sum, and their number
  std::unordered_map<const Parameter<T>*, std::size_t> places_;
  std::vector<Statistic> statistics_;
  std::size_t size_ = 0, used_ = 0, batches_ = 0;
  // used_ of them hold 2^k batches each, fewer than the one before, and the last batch by itself
  std::unique_ptr<std::vector<std::vector<T>>> sums_ = std::make_unique<std::vector<std::vector<T>>>();
  std::optional<Index> last_later_;  // batches after the last one, while that is computed
  std::vector<bool> complete_;       // whether the last batch's gradient is
  std::size_t left_ = 0;             // parameters whose sums over processes have not begun
};

/// Returns the numbers of tasks in an order in which every block of 2^k that begins at a multiple of 2^k does about the
/// same work, however many such blocks there are. `work[i]` is that of task i. Allocates.
inline std::vector<std::ptrdiff_t> in_even_blocks(std::span<const double> work) {
  std::vector<std::ptrdiff_t> order(work.size());
  std::iota(order.begin(), order.end(), std::ptrdiff_t{0});
  std::ranges::stable_sort(order, std::greater(), [&](std::ptrdiff_t i) { return work[static_cast<std::size_t>(i)]; });
  // Deals sorted tasks to two halves, to one there and back, and each half likewise.
  const auto deal = [](auto& self, std::span<std::ptrdiff_t> tasks) -> void {
    if (tasks.size() <= 2) return;
    const std::size_t half = std::bit_ceil(tasks.size()) / 2;
    std::vector<std::ptrdiff_t> first, second;
    for (std::size_t i = 0; i < tasks.size(); ++i) {
      const bool to_first = second.size() == tasks.size() - half || (first.size() < half && (i % 4 == 0 || i % 4 == 3));
      (to_first ? first : second).push_back(tasks[i]);
    }
    std::ranges::copy(first, tasks.begin());
    std::ranges::copy(second, tasks.begin() + static_cast<std::ptrdiff_t>(half));
    self(self, tasks.first(half));
    self(self, tasks.subspan(half));
  };
  deal(deal, order);
  return order;
}

}  // namespace LACONIC_ABI
}  // namespace laconic
