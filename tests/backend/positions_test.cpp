// laconic: attention for speech models. SPDX-License-Identifier: MIT
// Tables of positions: bit for bit what their definitions give, number by number.
#include <laconic/backend/autodiff.hpp>
#include <laconic/backend/cpu.hpp>

#include "catch.hpp"
#include "message_of.hpp"

using namespace laconic;

namespace {

double rate(Index m, Index width) {
  return std::pow(10000.0, -2 * static_cast<double>(m) / static_cast<double>(width));
}

/// Places of rows, one after the other.
std::vector<double> places(const RowPositions& at) {
  std::vector<double> out;
  for (Index n = 0; n < at.sequences.size(); ++n)
    for (Index i = 0; i < at.sequences.length(n); ++i)
      out.push_back(
          static_cast<double>((at.firsts.empty() ? 0 : at.firsts[static_cast<std::size_t>(n)]) + at.step * i));
  return out;
}

template <class T>
Matrix<T> sinusoids(const RowPositions& at, Index width) {
  const auto place = places(at);
  return Matrix<T>::NullaryExpr(at.sequences.rows(), width, [&](Index r, Index c) {
    const double angle = place[static_cast<std::size_t>(r)] * rate(c / 2, width);
    return static_cast<T>(c % 2 == 0 ? std::sin(angle) : std::cos(angle));
  });
}

template <class T>
Matrix<T> rotary(const RowPositions& at, Index width, Index rate_width, const IndexList& pairs) {
  const auto place = places(at);
  return Matrix<T>::NullaryExpr(at.sequences.rows(), width, [&](Index r, Index c) {
    const Index pair = c % (width / 2);
    const double angle = place[static_cast<std::size_t>(r)] * rate(pairs.size() > 0 ? pairs[pair] : pair, rate_width);
    return static_cast<T>(c < width / 2 ? std::cos(angle) : std::sin(angle));
  });
}

}  // namespace

TEMPLATE_TEST_CASE("tables of positions are those of their definitions, on any number of threads", "", float, double) {
  using T = TestType;
  const Sequences sequences{1, 0, 70, 333, 3};
  const std::vector<Index> firsts{5, 7, 100000, 0, 20};
  const std::vector<Index> top{69};
  const Sequences one{139};
  const RowPositions all[] = {{sequences}, {sequences, firsts}, {one, top, -1}, {Sequences()}};
  for (const int threads : {1, 3}) {
    Cpu<T> cpu(threads);
    for (const RowPositions& at : all) {
      for (const Index width : {1, 2, 7, 64}) CHECK(cpu.output(cpu.sinusoids(at, width)) == sinusoids<T>(at, width));
      const IndexList none, some{0, 3, 30};
      CHECK(cpu.output(cpu.rotary_table(at, 16, 16, none)) == rotary<T>(at, 16, 16, none));
      CHECK(cpu.output(cpu.rotary_table(at, 6, 64, some)) == rotary<T>(at, 6, 64, some));
    }
  }
}

TEST_CASE("a tape takes tables of positions as values without a derivative") {
  Cpu<double> cpu(1);
  Autodiff tape(cpu);
  const Sequences sequences{4};
  CHECK(tape.sinusoids({sequences}, 8).node == -1);
  CHECK(tape.output(tape.sinusoids({sequences}, 8)) == sinusoids<double>({sequences}, 8));
  CHECK(tape.output(tape.rotary_table({sequences}, 8, 8, {})) == rotary<double>({sequences}, 8, 8, {}));
  CHECK(tape.output(tape.fill(2, 3, -1.5)) == Matrix<double>::Constant(2, 3, -1.5));
}

TEST_CASE("a table of rotations refuses sizes that do not fit") {
  Cpu cpu(1);
  const Sequences sequences{4};
  const RowPositions at{sequences};
  CHECK(message_of([&] { cpu.rotary_table(at, 7, 7, {}); }) == "rotary_table: width 7 given, an even number expected");
  CHECK(message_of([&] {
          cpu.rotary_table(at, 8, 8, {1, 2});
        }) == "rotary_table: 2 pairs given, none or half of the width 8 expected");
  CHECK(message_of([&] { cpu.rotary_table(at, 8, 6, {}); }) ==
        "rotary_table: rates of width 6 given, at least 8 expected");
}
