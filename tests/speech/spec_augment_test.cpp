// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include <laconic/io/json.hpp>
#include <laconic/speech/spec_augment.hpp>
#include <set>

#include "catch.hpp"

using namespace laconic;

namespace {

Matrix<float> augmented(Index frames, Index channels, const SpecAugmentConfig& config, std::uint64_t stream) {
  Matrix<float> features = Matrix<float>::Ones(frames, channels);
  spec_augment(view(features), config, Random(Seed(7), stream));
  return features;
}

/// Width and start of the one band of hidden rows, or of columns.
std::pair<Index, Index> hidden(const Eigen::VectorXf& line) {
  Index width = 0, start = -1;
  for (Index i = 0; i < line.size(); ++i) {
    if (line[i] != 0) continue;
    if (width == 0) start = i;
    REQUIRE(i == start + width);  // in one piece
    ++width;
  }
  return {width, start};
}

}  // namespace

TEST_CASE("one mask has any width and any place, and no other", "[spec_augment]") {
  std::set<std::pair<Index, Index>> times, bands;
  for (std::uint64_t stream = 0; stream < 3000; ++stream) {
    const Matrix<float> time = augmented(12, 5, {1, 3, 1.0, 0, 4}, stream);
    CHECK((time.colwise() - time.col(0)).isZero());  // whole frames
    times.insert(hidden(time.col(0)));
    const Matrix<float> band = augmented(5, 12, {0, 3, 1.0, 1, 3}, stream);
    CHECK((band.rowwise() - band.row(0)).isZero());  // whole channels
    bands.insert(hidden(band.row(0)));
  }
  // Widths 1, 2 and 3 fit 12, 11 and 10 times, and one of width 0 shows nothing.
  CHECK(times.size() == 12 + 11 + 10 + 1);
  CHECK(bands == times);
}

TEST_CASE("widths are uniform", "[spec_augment]") {
  std::vector<int> count(5);
  for (std::uint64_t stream = 0; stream < 5000; ++stream)
    ++count[static_cast<std::size_t>(hidden(augmented(100, 2, {1, 4, 1.0, 0, 0}, stream).col(0)).first)];
  for (const int c : count) CHECK(std::abs(c - 1000) < 150);  // 5 standard deviations
}

TEST_CASE("time masks keep to a part of a short utterance", "[spec_augment]") {
  Index widest = 0;
  for (std::uint64_t stream = 0; stream < 500; ++stream)
    widest = std::max(widest, hidden(augmented(40, 2, {1, 50, 0.2, 0, 0}, stream).col(0)).first);
  CHECK(widest == 8);
}

TEST_CASE("masks depend on the random numbers alone, and leave the rest as it was", "[spec_augment]") {
  const SpecAugmentConfig config;
  CHECK(augmented(200, 80, config, 3) == augmented(200, 80, config, 3));
  CHECK(augmented(200, 80, config, 3) != augmented(200, 80, config, 4));

  const Matrix<float> before = Matrix<float>::Random(200, 80);
  Matrix<float> after = before;
  spec_augment(view(after), config, Random(Seed(7), std::uint64_t{3}));
  const Matrix<float> mask = augmented(200, 80, config, 3);
  CHECK(after == before.cwiseProduct(mask));
  CHECK(mask.sum() < 200 * 80);
  CHECK(mask.sum() > 0.3F * 200 * 80);

  // Two utterances in one packed matrix: only the second is touched.
  Matrix<float> packed = Matrix<float>::Ones(300, 80);
  spec_augment(matrix_view(packed.data() + 100 * 80, 200, 80), config, Random(Seed(7), std::uint64_t{3}));
  CHECK(packed.topRows(100) == Matrix<float>::Ones(100, 80));
  CHECK(packed.bottomRows(200) == mask);
}

TEST_CASE("small features and no masks", "[spec_augment]") {
  CHECK(augmented(0, 80, {}, 1).size() == 0);
  CHECK(augmented(1, 1, {2, 50, 1.0, 2, 10}, 1).size() == 1);
  CHECK(augmented(30, 8, {0, 50, 1.0, 0, 10}, 1) == Matrix<float>::Ones(30, 8));
  CHECK(augmented(30, 8, {5, 0, 1.0, 5, 0}, 1) == Matrix<float>::Ones(30, 8));
  CHECK(augmented(30, 8, {5, 50, 0.0, 0, 0}, 1) == Matrix<float>::Ones(30, 8));
}

TEST_CASE("SpecAugment's configuration", "[spec_augment]") {
  const SpecAugmentConfig config{3, 20, 0.1, 4, 5};
  CHECK(to_json(config).size() == 5);
  CHECK(json_value<SpecAugmentConfig>(to_json(config), "here") == config);
  CHECK_THROWS_WITH(augmented(5, 5, {2, 50, 1.5, 2, 10}, 1),
                    "spec_augment: max_time_fraction 1.5 given, 0 to 1 expected");
  CHECK_THROWS_WITH(augmented(5, 5, {-1, 50, 0.2, 2, 10}, 1),
                    "spec_augment: -1 time masks up to 50 frames and 2 frequency masks up to 10 channels given, at "
                    "least 0 expected");
}
