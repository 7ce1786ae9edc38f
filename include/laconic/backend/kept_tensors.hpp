// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/parameter.hpp>

#include <algorithm>
#include <memory>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Keeps what a context derives from resident weights (`kept_for`) from call to call, until weights that no longer
/// exist make room for another one.
template <class Tensor>
class KeptTensors {
 public:
  /// Returns make(n) for some n >= size, kept from an earlier call with this weight if there is one that is large
  /// enough.
  template <class Make>
  Tensor get(const std::shared_ptr<const ResidentWeight>& weight, Index size, Make&& make) {
    const auto entry = std::find_if(kept_.begin(), kept_.end(), [&](const Kept& one) {
      return !one.weight.owner_before(weight) && !weight.owner_before(one.weight);
    });
    if (entry != kept_.end() && entry->size >= size) return entry->value;
    if (entry == kept_.end()) {
      std::erase_if(kept_, [](const Kept& one) { return one.weight.expired(); });
      kept_.push_back({weight, size, make(size)});
      return kept_.back().value;
    }
    // Growth by a quarter keeps small increases from calling make each time.
    const Index larger = std::max(size, entry->size + entry->size / 4);
    entry->value = make(larger);
    entry->size = larger;
    return entry->value;
  }

 private:
  struct Kept {
    std::weak_ptr<const ResidentWeight> weight;
    Index size;
    Tensor value;
  };
  std::vector<Kept> kept_{};
};

}  // namespace LACONIC_ABI
}  // namespace laconic
