// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/extent.hpp>

#include <algorithm>
#include <array>
#include <initializer_list>

namespace laconic {
inline namespace LACONIC_ABI {

/// A few numbers in a configuration that may be a constant expression: one for each of a stack of layers.
class IndexList {
 public:
  using value_type = Index;
  static constexpr Index capacity = 64;

  constexpr IndexList() = default;
  constexpr IndexList(std::initializer_list<Index> values) {
    for (const Index value : values) push_back(value);
  }

  constexpr void push_back(Index value) {
    require(size_ < capacity, "a list of more than ", capacity, " numbers given");
    values_[static_cast<std::size_t>(size_++)] = value;
  }
  constexpr Index size() const { return size_; }
  constexpr Index operator[](Index i) const { return values_[static_cast<std::size_t>(i)]; }
  constexpr const Index* begin() const { return values_.data(); }
  constexpr const Index* end() const { return values_.data() + size_; }
  friend constexpr bool operator==(const IndexList& a, const IndexList& b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end());
  }

 private:
  std::array<Index, capacity> values_{};
  Index size_ = 0;
};

}  // namespace LACONIC_ABI
}  // namespace laconic
