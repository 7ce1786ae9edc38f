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
#include <numeric>
#include <span>
#include <string_view>
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
/// A process keeps log2(its batches) + 1 copies of the gradients on the host.
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
      parameters_.push_back(&p);
      size_ += static_cast<std::size_t>(p.size());
    });
  }

  /// Takes the gradients that the model has as those of this process's next batch, and leaves zeros. In all processes,
  /// `later` batches of the update come after it in their order.
  void add(Index later) {
    if (used_ == sums_.size()) sums_.emplace_back(size_);
    std::vector<T>& own = sums_[used_++];
    context_.take_gradients(parameters_, own);
    for (const Statistic& s : statistics_) {
      const T kept = static_cast<T>(std::pow(1 - s.momentum, static_cast<double>(later)));
      for (std::size_t i = s.begin; i < s.begin + s.size; ++i) own[i] *= kept;
    }
    for (std::size_t batches = ++batches_; batches % 2 == 0; batches /= 2) join_last();
  }
  /// Gives the model the sum of all that was added, in all processes, and begins anew.
  void finish() {
    while (used_ > 1) join_last();
    if (used_ == 0) {  // a process without a batch
      if (sums_.empty()) sums_.emplace_back(size_);
      std::ranges::fill(sums_[0], T{0});
    }
    communicator_.sum(std::span<T>(sums_[0]));
    context_.put_gradients(parameters_, sums_[0]);
    used_ = 0;
    batches_ = 0;
  }

 private:
  /// Adds the last sum to the one before.
  void join_last() {
    T* const both[]{sums_[used_ - 2].data(), sums_[used_ - 1].data()};
    add_in_pairs<T>(both, size_);
    --used_;
  }

  /// Holds the place of a statistic in the sums, and its momentum.
  struct Statistic {
    std::size_t begin, size;
    double momentum;
  };

  Context& context_;
  AnyCommunicator communicator_;
  std::vector<const Parameter<T>*> parameters_;
  std::vector<Statistic> statistics_;
  std::size_t size_ = 0, used_ = 0, batches_ = 0;
  std::vector<std::vector<T>> sums_;  // of 2^k batches, each fewer than the one before; used_ of them
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
