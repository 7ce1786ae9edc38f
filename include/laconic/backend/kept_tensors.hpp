// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/parameter.hpp>

#include <algorithm>
#include <map>
#include <memory>
#include <utility>

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
    // Growth by a quarter keeps small increases from calling make each time. Entries of weights that no longer exist
    // are dropped first.
    if (!kept_.contains(weight)) std::erase_if(kept_, [](const auto& one) { return one.first.expired(); });
    auto& kept = kept_[weight];
    if (kept.size < size) {
      const Index larger = std::max(size, kept.size + kept.size / 4);
      kept = {larger, make(larger)};
    }
    return kept.value;
  }

 private:
  struct Kept {
    Index size = -1;
    Tensor value{};
  };
  using Weight = std::weak_ptr<const ResidentWeight>;
  std::map<Weight, Kept, std::owner_less<Weight>> kept_{};
};

}  // namespace LACONIC_ABI
}  // namespace laconic
