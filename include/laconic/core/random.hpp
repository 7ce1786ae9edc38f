// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/extent.hpp>

#include <array>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <string_view>
#include <utility>

namespace laconic {
inline namespace LACONIC_ABI {

namespace detail {

/// Returns the 64-bit FNV-1a hash of a name, begun at `h`.
constexpr std::uint64_t hash(std::string_view name, std::uint64_t h = 0xcbf29ce484222325) {  // FNV-1a
  for (const char c : name) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return h;
}

}  // namespace detail

/// Names the source of all randomness of a run. `seed / "layers" / 3` is a seed of its own for that part, so that what
/// one part draws does not depend on which other parts exist.
struct Seed {
  std::uint64_t value = 0;  ///< the number that a user gives
  /// Makes the seed 0.
  constexpr Seed() = default;
  /// Makes a seed of a number.
  constexpr explicit Seed(std::uint64_t v) : value(v) {}

  /// Returns the seed of a named part.
  friend constexpr Seed operator/(Seed seed, std::string_view part) {
    return Seed(detail::hash(part, (seed.value + 1) * 0x9E3779B97F4A7C15));
  }
  /// Returns the seed of a numbered part.
  friend constexpr Seed operator/(Seed seed, Index part) {
    return Seed((seed / "#").value + static_cast<std::uint64_t>(part) * 0xD1B54A32D192ED03);
  }
};

/// Generates counter-based random numbers. Number i of a stream is a function of (seed, stream, i) only, so results
/// depend neither on threads nor on the order of evaluation. The generator is Philox4x32-10 (Salmon et al. 2011,
/// "Parallel random numbers: as easy as 1, 2, 3") and gives the authors' known answers. Nothing allocates.
class Random {
 public:
  /// Selects a stream by number.
  constexpr Random(Seed seed, std::uint64_t stream) : seed_(seed.value), stream_(stream) {}
  /// Selects a stream by name.
  constexpr Random(Seed seed, std::string_view name) : Random(seed, detail::hash(name)) {}

  /// Computes the blocks of `Count` counters, beginning at `first`: word w of each goes to w0 .. w3. All arithmetic is
  /// in 64 bits, so that a compiler vectorises it.
  template <int Count>
  constexpr void blocks(std::uint64_t first, std::uint64_t* w0, std::uint64_t* w1, std::uint64_t* w2,
                        std::uint64_t* w3) const {
    constexpr std::uint64_t half = 0xffffffff;
    for (int i = 0; i < Count; ++i) {
      w0[i] = (first + static_cast<std::uint64_t>(i)) & half;
      w1[i] = (first + static_cast<std::uint64_t>(i)) >> 32;
      w2[i] = stream_ & half;
      w3[i] = stream_ >> 32;
    }
    std::uint64_t k0 = seed_ & half, k1 = seed_ >> 32;
    for (int round = 0; round < 10; ++round) {
      for (int i = 0; i < Count; ++i) {
        const std::uint64_t a = 0xD2511F53 * w0[i], b = 0xCD9E8D57 * w2[i];
        w0[i] = (b >> 32) ^ w1[i] ^ k0;
        w1[i] = b & half;
        w2[i] = (a >> 32) ^ w3[i] ^ k1;
        w3[i] = a & half;
      }
      k0 = (k0 + 0x9E3779B9) & half;
      k1 = (k1 + 0xBB67AE85) & half;
    }
  }
  /// Returns the four 32-bit words of one counter.
  constexpr std::array<std::uint32_t, 4> block(std::uint64_t counter) const {
    std::uint64_t x[4];
    blocks<1>(counter, x, x + 1, x + 2, x + 3);
    return {low(x[0]), low(x[1]), low(x[2]), low(x[3])};
  }

  /// Returns number i, uniform among all 32-bit words.
  constexpr std::uint32_t bits(std::uint64_t i) const { return block(i / 4)[i % 4]; }
  /// Returns number i, uniform in [0, 1), a multiple of 2^-32.
  constexpr double uniform(std::uint64_t i) const { return bits(i) * 0x1p-32; }
  /// Returns number i, uniform among 0 .. n-1.
  constexpr Index below(Index n, std::uint64_t i) const {
    return static_cast<Index>((static_cast<std::uint64_t>(bits(i)) * static_cast<std::uint64_t>(n)) >> 32);
  }
  /// Returns number i, standard normal (Box-Muller).
  double normal(std::uint64_t i) const {
    const auto x = block(i / 2);
    const std::size_t pair = 2 * (i % 2);
    const double radius = std::sqrt(-2 * std::log((x[pair] + 1.0) * 0x1p-32));
    return radius * std::cos(2 * std::numbers::pi * (x[pair + 1] * 0x1p-32));
  }

 private:
  static constexpr std::uint32_t low(std::uint64_t x) { return static_cast<std::uint32_t>(x); }

  std::uint64_t seed_, stream_;
};

/// Puts the items in random order (Fisher-Yates). The order is the same on every machine for the same seed and stream.
template <class Container>
void shuffle(Container& items, const Random& random) {
  for (std::size_t i = items.size(); i > 1; --i)
    std::swap(items[i - 1], items[static_cast<std::size_t>(random.below(static_cast<Index>(i), i))]);
}

}  // namespace LACONIC_ABI
}  // namespace laconic
