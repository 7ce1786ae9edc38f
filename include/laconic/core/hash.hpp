// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/version.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace laconic {
inline namespace LACONIC_ABI {

/// Computes a 64-bit hash that tells data apart. It is not cryptographic.
class Hash {
 public:
  /// Adds the number of bytes, then the bytes. Returns the hash itself, for chained calls.
  Hash& add(const void* data, std::size_t bytes) {
    add(bytes);
    for (std::size_t i = 0; i < bytes; i += sizeof(std::uint64_t)) {
      std::uint64_t word = 0;
      std::memcpy(&word, static_cast<const char*>(data) + i, std::min(bytes - i, sizeof word));
      add(word);
    }
    return *this;
  }
  /// Adds one word. Returns the hash itself, for chained calls.
  Hash& add(std::uint64_t word) {
    value_ = (value_ ^ word) * 0x9E3779B97F4A7C15;
    value_ ^= value_ >> 29;
    return *this;
  }
  /// Returns the hash of all that was added, which depends on the order.
  std::uint64_t value() const { return value_; }

 private:
  std::uint64_t value_ = 0xcbf29ce484222325;
};

}  // namespace LACONIC_ABI
}  // namespace laconic
