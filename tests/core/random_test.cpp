// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include <laconic/core/parameter.hpp>

#include "catch.hpp"

#include <algorithm>
#include <set>

using namespace laconic;

namespace {

/// Counter and key words in the order of the authors' files: the stream is the counter's upper half.
constexpr std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key) {
  const auto wide = [](std::uint32_t low, std::uint32_t high) { return std::uint64_t{high} << 32 | low; };
  return Random(Seed(wide(key[0], key[1])), wide(counter[2], counter[3])).block(wide(counter[0], counter[1]));
}
using Words = std::array<std::uint32_t, 4>;

// philox4x32-10 in kat_vectors of Random123.
static_assert(philox({0, 0, 0, 0}, {0, 0}) == Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
static_assert(philox({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}) ==
              Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
static_assert(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
              Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});

// The parts of a seed are told apart by name, number, order and depth.
static_assert((Seed(1) / "a").value == (Seed(1) / "a").value);
static_assert((Seed(1) / "a").value != (Seed(2) / "a").value);
static_assert((Seed(1) / "a" / "b").value != (Seed(1) / "b" / "a").value);
static_assert((Seed(1) / "ab").value != (Seed(1) / "a" / "b").value);
static_assert((Seed(1) / 0).value != Seed(1).value);
static_assert((Seed(1) / 0).value != (Seed(1) / 1).value);
static_assert((Seed(1) / 12).value != (Seed(1) / 1 / 2).value);

constexpr Index many = 200'000;

}  // namespace

TEST_CASE("uniform numbers", "[random]") {
  const Random random(Seed(3), "uniform");
  double sum = 0, square = 0, lag = 0, least = 1, most = 0;
  std::array<int, 16> bins{};
  for (Index i = 0; i < many; ++i) {
    const double x = random.uniform(static_cast<std::uint64_t>(i));
    sum += x;
    square += (x - 0.5) * (x - 0.5);
    lag += (x - 0.5) * (random.uniform(static_cast<std::uint64_t>(i + 1)) - 0.5);
    least = std::min(least, x);
    most = std::max(most, x);
    ++bins[static_cast<std::size_t>(x * 16)];
  }
  // Within 5 standard deviations.
  CHECK(sum / many == Approx(0.5).margin(5 * std::sqrt(1.0 / 12 / many)));
  CHECK(square / many == Approx(1.0 / 12).margin(5 * std::sqrt(1.0 / 180 / many)));
  CHECK(lag / many == Approx(0).margin(5.0 / 12 / std::sqrt(many)));
  CHECK(least >= 0);
  CHECK(least < 1e-4);
  CHECK(most < 1);
  CHECK(most > 1 - 1e-4);
  for (const int count : bins) CHECK(count == Approx(many / 16).margin(5 * std::sqrt(many / 16)));
}

TEST_CASE("normal numbers", "[random]") {
  const Random random(Seed(3), "normal");
  double moment[5] = {}, lag = 0;
  Index outside = 0;
  for (Index i = 0; i < many; ++i) {
    const double x = random.normal(static_cast<std::uint64_t>(i));
    REQUIRE(std::isfinite(x));
    for (int k = 1; k <= 4; ++k) moment[k] += std::pow(x, k) / many;
    lag += x * random.normal(static_cast<std::uint64_t>(i + 1)) / many;
    outside += std::abs(x) > 1.959963985 ? 1 : 0;
  }
  CHECK(moment[1] == Approx(0).margin(5 / std::sqrt(many)));
  CHECK(moment[2] == Approx(1).margin(5 * std::sqrt(2.0 / many)));
  CHECK(moment[3] == Approx(0).margin(5 * std::sqrt(15.0 / many)));
  CHECK(moment[4] == Approx(3).margin(5 * std::sqrt(96.0 / many)));
  CHECK(lag == Approx(0).margin(5 / std::sqrt(many)));
  CHECK(static_cast<double>(outside) / many == Approx(0.05).margin(5 * std::sqrt(0.05 * 0.95 / many)));
}

TEST_CASE("numbers below a bound", "[random]") {
  const Random random(Seed(3), 1);
  std::array<int, 7> counts{};
  for (std::uint64_t i = 0; i < 70'000; ++i) {
    const Index x = random.below(7, i);
    REQUIRE((x >= 0 && x < 7));
    ++counts[static_cast<std::size_t>(x)];
  }
  for (const int count : counts) CHECK(count == Approx(10'000).margin(5 * std::sqrt(10'000)));
  for (std::uint64_t i = 0; i < 100; ++i) CHECK(random.below(1, i) == 0);
}

TEST_CASE("streams and seeds are told apart", "[random]") {
  std::set<std::uint32_t> seen;
  for (std::uint64_t seed = 0; seed < 10; ++seed)
    for (std::uint64_t stream = 0; stream < 10; ++stream)
      for (std::uint64_t i = 0; i < 8; ++i) seen.insert(Random(Seed(seed), stream).bits(i));
  CHECK(seen.size() == 800);
  CHECK(Random(Seed(1), "a").bits(0) != Random(Seed(1), "b").bits(0));
}

TEST_CASE("shuffling is a permutation that depends on the seed alone", "[random]") {
  std::vector<int> ordered(50);
  for (std::size_t i = 0; i < ordered.size(); ++i) ordered[i] = static_cast<int>(i);
  const auto shuffled = [&](std::uint64_t seed) {
    auto items = ordered;
    shuffle(items, Random(Seed(seed), "shuffle"));
    return items;
  };
  CHECK(shuffled(1) == shuffled(1));
  CHECK(shuffled(1) != shuffled(2));
  CHECK(std::ranges::is_permutation(shuffled(1), ordered));
  // Each item comes first equally often.
  std::array<int, 5> first{};
  for (std::uint64_t seed = 0; seed < 5000; ++seed) {
    std::array<int, 5> items{0, 1, 2, 3, 4};
    shuffle(items, Random(Seed(seed), "shuffle"));
    ++first[static_cast<std::size_t>(items[0])];
  }
  for (const int count : first) CHECK(count == Approx(1000).margin(5 * std::sqrt(1000)));
  std::vector<int> none;
  shuffle(none, Random(Seed(1), 1));
  CHECK(none.empty());
}

TEST_CASE("initial values fill their range", "[random]") {
  Parameter<float> p{100, 50};
  fill_uniform(p, 0.2, Random(Seed(1), "weight"));
  CHECK(p.host().maxCoeff() <= 0.2F);
  CHECK(p.host().minCoeff() >= -0.2F);
  CHECK(p.host().maxCoeff() > 0.199F);
  CHECK(p.host().minCoeff() < -0.199F);
  CHECK(p.host().mean() == Approx(0).margin(5 * 0.2 / std::sqrt(3.0 * 5000)));
}
