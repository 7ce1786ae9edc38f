// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/extent.hpp>

#include <algorithm>
#include <array>
#include <initializer_list>

namespace laconic {
inline namespace LACONIC_ABI {

/// Lists a few numbers of a configuration, one for each layer of a stack. It can be a constant expression and never
/// allocates.
class IndexList {
 public:
  using value_type = Index;              ///< the type of an element
  static constexpr Index capacity = 64;  ///< max number of elements

  /// Makes an empty list.
  constexpr IndexList() = default;
  /// Makes a list of these values. Throws `Error` for more than `capacity`.
  constexpr IndexList(std::initializer_list<Index> values) {
    for (const Index value : values) push_back(value);
  }

  /// Appends a value. Throws `Error` if the list is full.
  constexpr void push_back(Index value) {
    require(size_ < capacity, "a list of more than ", capacity, " numbers given");
    values_[static_cast<std::size_t>(size_++)] = value;
  }
  /// Returns the number of elements.
  constexpr Index size() const { return size_; }
  /// Returns element i, unchecked.
  constexpr Index operator[](Index i) const { return values_[static_cast<std::size_t>(i)]; }
  /// Returns a pointer to the first element.
  constexpr const Index* begin() const { return values_.data(); }
  /// Returns a pointer past the last element.
  constexpr const Index* end() const { return values_.data() + size_; }
  /// Says whether two lists have the same elements.
  friend constexpr bool operator==(const IndexList& a, const IndexList& b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end());
  }

 private:
  std::array<Index, capacity> values_{};
  Index size_ = 0;
};

}  // namespace LACONIC_ABI
}  // namespace laconic
