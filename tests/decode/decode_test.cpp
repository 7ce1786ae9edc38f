// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include <laconic/backend/cpu.hpp>
#include <laconic/decode/greedy_ctc.hpp>

#include "catch.hpp"

#include <limits>
#include <utility>
#include <vector>

using namespace laconic;
using Ids = std::vector<int>;

namespace {

/// Logits whose likeliest class in each frame is the one given.
Matrix<float> saying(const Ids& best, Index classes) {
  Matrix<float> logits(static_cast<Index>(best.size()), classes);
  for (Index t = 0; t < logits.rows(); ++t)
    for (Index c = 0; c < classes; ++c)
      logits(t, c) = c == best[static_cast<std::size_t>(t)] ? -0.5f : -2 - 0.1f * static_cast<float>(c);
  return logits;
}

Ids decoded(const Ids& best, int blank = 0) {
  const Matrix<float> logits = saying(best, 5);
  return greedy_ctc(view(std::as_const(logits)), blank);
}

}  // namespace

TEST_CASE("greedy CTC collapses runs and drops blanks", "[decode]") {
  CHECK(decoded({0, 1, 1, 0, 2, 2, 2, 0}) == Ids{1, 2});
  CHECK(decoded({3, 3, 0, 3}) == Ids{3, 3});  // a blank between: said twice
  CHECK(decoded({3, 3, 3}) == Ids{3});
  CHECK(decoded({1, 2, 1}) == Ids{1, 2, 1});
  CHECK(decoded({0, 0}).empty());
  CHECK(decoded({}).empty());
  CHECK(decoded({4, 0, 4, 1}, 4) == Ids{0, 1});  // another blank
}

TEST_CASE("greedy CTC reads the rows of a view and of a packed batch", "[decode]") {
  const Matrix<float> logits = saying({1, 1, 2, 2, 0, 2}, 5);
  const Sequences sequences{3, 0, 3};
  Cpu cpu(1);
  CHECK(greedy_ctc(cpu, cpu.input(logits), sequences) ==
        std::vector<Ids>{{1, 2}, {}, {2, 2}});  // runs end with the sequence
  CHECK_THROWS_WITH(greedy_ctc(cpu, cpu.input(logits), Sequences{3, 2}),
                    "greedy_ctc: 6 frames given, the sequences have 5");

  Matrix<float> wide(6, 9);
  wide.setConstant(100);
  wide.leftCols(5) = logits;
  CHECK(greedy_ctc(matrix_view<const float>(wide.data(), 6, 5, 9)) == greedy_ctc(view(std::as_const(logits))));
}

TEST_CASE("greedy CTC refuses what says nothing", "[decode]") {
  Matrix<float> logits = saying({1, 2, 3}, 5);
  logits(1, 4) = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS_WITH(greedy_ctc(view(std::as_const(logits))), "greedy_ctc: frame 1, class 4 is NaN");
  Cpu cpu(1);
  CHECK_THROWS_WITH(greedy_ctc(cpu, cpu.input(logits), Sequences{3}), "greedy_ctc: frame 1, class 4 is NaN");
  CHECK_THROWS_WITH(greedy_ctc(view(std::as_const(logits)), 5), "greedy_ctc: blank 5 given for 5 classes");
  logits(1, 4) = -std::numeric_limits<float>::infinity();  // impossible, not unknown
  CHECK(greedy_ctc(view(std::as_const(logits))) == Ids{1, 2, 3});
}
