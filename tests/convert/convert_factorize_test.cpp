// laconic: attention for speech models. SPDX-License-Identifier: MIT
// Factors of keys and values: by random projections, for given inputs and queries; and which layer gets which rank.
#include "convert_factors.hpp"

#include <laconic/convert/allocate.hpp>

#include <limits>
#include <numeric>

using namespace laconic;

namespace {

/// Frames whose channels are correlated and of different strength; their mean of x^T x.
Matrix<double> inputs(Index frames, Index channels) {
  return with_spectrum(frames, channels, 70,
                       [&](double i) { return std::sqrt(static_cast<double>(frames)) * std::exp(-0.2 * i); });
}
const ActivationPca<double> pca{{}, false};

/// The least that ranks within a budget can lose, by trying them all.
double least_lost(const std::vector<std::vector<double>>& spectra, std::vector<Index>& ranks, Index left,
                  Index multiple) {
  if (ranks.size() == spectra.size()) return lost(spectra, ranks);
  double least = std::numeric_limits<double>::infinity();
  for (Index rank = multiple; rank <= std::min<Index>(left, static_cast<Index>(spectra[ranks.size()].size()));
       rank += multiple) {
    ranks.push_back(rank);
    least = std::min(least, least_lost(spectra, ranks, left - rank, multiple));
    ranks.pop_back();
  }
  return least;
}
std::vector<std::vector<double>> random_spectra(std::size_t layers, Index size, std::uint64_t seed) {
  std::vector<std::vector<double>> out(layers);
  for (std::size_t l = 0; l < layers; ++l) {
    const Matrix<double> noise = random_matrix(1, size, seed + l, std::pow(3, static_cast<double>(l % 3))).cwiseAbs();
    out[l].assign(noise.data(), noise.data() + size);
    std::sort(out[l].begin(), out[l].end(), std::greater<>());
  }
  return out;
}
constexpr RankAllocation allocations[] = {RankAllocation::uniform, RankAllocation::energy,
                                          RankAllocation::water_filling};

}  // namespace

TEST_CASE("random projections come within 1% of the exact factors", "[convert]") {
  const auto check = [](const Matrix<double>& w, Index rank, double within) {
    INFO("rank " << rank);
    const Matrix<double> k = w.topRows(w.rows() / 3), v = w.bottomRows(w.rows() - k.rows());
    const JointFactors exact = JointSvd::factorize(k, v, rank);
    for (const Index iterations : {2, 4}) {
      const JointFactors near = RandomizedSvd{.power_iterations = iterations}.factorize(k, v, rank);
      CHECK(near.predicted_error == Approx((w - product(near)).norm() / w.norm()).epsilon(1e-10).margin(1e-14));
      CHECK(near.discarded == Approx((w - product(near)).squaredNorm()).epsilon(1e-10).margin(1e-26));
      CHECK(near.predicted_error <= (1 + (iterations == 2 ? within : 0.01)) * exact.predicted_error + 1e-14);
      CHECK(near.predicted_error >= exact.predicted_error * (1 - 1e-6));
      for (std::size_t i = 0; i < static_cast<std::size_t>(rank); ++i)
        CHECK(near.singular_values[i] <= exact.singular_values[i] * (1 + 1e-6));
      check_form(near, rank);
    }
  };
  for (const Index rank : {1, 5, 20, 60}) {
    check(random_matrix(200, 100, 1), rank, 0.02);
    check(with_spectrum(200, 100, 2, [](double i) { return 1 / (1 + i); }), rank, rank < 60 ? 0.01 : 0.02);
    check(with_spectrum(200, 100, 3, [](double i) { return std::pow(0.9, i); }), rank, 0.01);
    check(with_spectrum(60, 100, 4, [](double i) { return 1 / (1 + i); }), rank, 0.01);
  }
  // Small ones drown in the fifth power unless the columns are made orthonormal on the way.
  check(with_spectrum(200, 100, 5, [](double i) { return std::pow(10, -0.3 * i); }), 18, 0.01);
}

TEST_CASE("random projections: equal seeds, equal factors; full rank loses nothing", "[convert]") {
  const Matrix<double> k = random_matrix(70, 50, 1), v = random_matrix(90, 50, 2);
  const auto down = [&](const RandomizedSvd& method) { return method.factorize(k, v, 7).down; };
  CHECK(down({}) == down({}));
  CHECK(down({.seed = Seed(1)}) != down({}));
  CHECK(down({.power_iterations = 1}) != down({}));
  for (const Index rank : {50, 40}) {
    const JointFactors exact = JointSvd::factorize(k, v, rank), near = RandomizedSvd{}.factorize(k, v, rank);
    CHECK(product(near) == product(exact));  // the sketch would be as large as the matrix
    if (rank == 50) CHECK((product(near) - below(k, v)).norm() < 1e-12 * below(k, v).norm());
  }
  const JointFactors rough = RandomizedSvd{.oversampling = 0, .power_iterations = 0}.factorize(k, v, 7);
  CHECK(rough.predicted_error == Approx((below(k, v) - product(rough)).norm() / below(k, v).norm()).epsilon(1e-12));
  CHECK(rough.predicted_error > JointSvd::factorize(k, v, 7).predicted_error);
  CHECK_THROWS_WITH((RandomizedSvd{.oversampling = -1}.factorize(k, v, 7)),
                    "factorize: oversampling -1 and 4 power iterations given, at least 0 expected of both");
  CHECK_THROWS_WITH(RandomizedSvd{}.factorize(k, v, 51), "factorize: rank 51 given, expected 1 .. d_model = 50");
}

TEST_CASE("components of the outputs are the best latent for given inputs", "[convert]") {
  const Index d = 20;
  for (const auto& [k_rows, v_rows] : {std::pair<Index, Index>{24, 12}, {8, 8}, {4, 0}, {0, 30}}) {
    const Matrix<double> k = random_matrix(k_rows, d, 1), v = 2 * random_matrix(v_rows, d, 2), w = below(k, v);
    for (const Index frames : {200, 7}) {
      const Matrix<double> x = inputs(frames, d), g = second_moment(x),
                           seen = w * x.transpose() / std::sqrt(static_cast<double>(frames));
      const auto error = [&](const JointFactors& f) {
        return (x * (w - product(f)).transpose()).squaredNorm() / static_cast<double>(frames);
      };
      for (const Index rank : {1, 6, 13, 20}) {
        INFO(k_rows << " + " << v_rows << " outputs, " << frames << " frames, rank " << rank);
        const JointFactors f = pca.factorize(k, v, rank, {g, g, {}, {}});
        CHECK(f.discarded == Approx(error(f)).epsilon(1e-9).margin(1e-14 * seen.squaredNorm()));
        CHECK(f.discarded == Approx(tail(seen, rank)).epsilon(1e-8).margin(1e-12));
        CHECK(f.predicted_error == Approx(std::sqrt(error(f) / seen.squaredNorm())).epsilon(1e-9).margin(1e-7));
        CHECK(f.discarded <= error(JointSvd::factorize(k, v, rank)) + 1e-12);
        check_form(f, rank);
        if (rank >= std::min(d, w.rows())) CHECK((product(f) - w).norm() < 1e-12 * w.norm());  // for any inputs
        const auto s = singular_values(seen);
        for (std::size_t i = 0; i < std::min(s.size(), f.singular_values.size()); ++i)
          CHECK(f.singular_values[i] == Approx(s[i]).epsilon(1e-6).margin(1e-6));
        CHECK(f.singular_values.size() == static_cast<std::size_t>(d));
      }
    }
  }
  const Matrix<double> k = random_matrix(8, d, 1);
  CHECK(product(pca.factorize(k, k, 3, {})) == product(JointSvd::factorize(k, k, 3)));  // nothing known of the inputs
  const Matrix<double> white = Matrix<double>::Identity(d, d);
  CHECK((product(pca.factorize(k, k, 3, {white, white, {}, {}})) - product(JointSvd::factorize(k, k, 3))).norm() <
        1e-9);
  // Of what seven frames say nothing of, the strongest weights are kept.
  const Matrix<double> g = second_moment(inputs(7, d)),
                       weights = with_spectrum(30, d, 3, [](double i) { return std::exp(-0.3 * i); });
  const Matrix<double> nothing(0, d);
  CHECK(pca.factorize(weights, nothing, 14, {g, g, {}, {}}).down.rows() == 14);
  CHECK((product(pca.factorize(weights, nothing, 14, {g, g, {}, {}})) - weights).norm() <
        2 * std::sqrt(tail(weights, 7)));
  CHECK_THROWS_WITH(pca.factorize(k, k, 3, {g.topLeftCorner(9, 9), g.topLeftCorner(9, 9), {}, {}}),
                    "factorize: statistics of 9 inputs given, 20 expected");
}

TEST_CASE("errors of keys count by their queries, those of values by the output projection", "[convert]") {
  const Index d = 20, dim = 10;
  const Matrix<double> k = random_matrix(30, d, 1), v = 5 * random_matrix(30, d, 2), w = below(k, v),
                       g = second_moment(inputs(100, d));
  const auto metrics = [&](std::uint64_t seed, Index rank) {  // of three heads
    Matrix<double> out(30, dim);
    for (Index h = 0; h < 3; ++h) {
      const Matrix<double> half =
          random_matrix(rank, dim, seed + static_cast<std::uint64_t>(h), static_cast<double>(1 + 3 * h));
      out.middleRows(h * dim, dim) = half.transpose() * half;
    }
    return out;
  };
  const auto energy = [&](const Matrix<double>& rows, const Matrix<double>& metric) {
    double sum = 0;
    for (Index h = 0; h < 3; ++h) {
      const Matrix<double> head = rows.middleRows(h * dim, dim);
      sum += (head.transpose() * metric.middleRows(h * dim, dim) * head).cwiseProduct(g).sum();
    }
    return sum;
  };
  for (const Index metric_rank : {15, 2}) {
    const Matrix<double> of_k = metrics(11, metric_rank), of_v = metrics(21, metric_rank);
    const LayerStatistics weighted{g, g, of_k, of_v}, plain{g, g, {}, {}};
    const auto error = [&](const JointFactors& f) {
      return energy(k - f.k_up * f.down, of_k) / energy(k, of_k) + energy(v - f.v_up * f.down, of_v) / energy(v, of_v);
    };
    Matrix<double> seen = w;  // as the weights have it: the optimum is its tail
    for (Index h = 0; h < 6; ++h) {
      const Matrix<double> metric =
          (h < 3 ? of_k / energy(k, of_k) : of_v / energy(v, of_v)).middleRows(h % 3 * dim, dim);
      seen.middleRows(h * dim, dim) = (root(metric) * seen.middleRows(h * dim, dim) * root(g)).eval();
    }
    for (const Index rank : {1, 5, 12}) {
      INFO("metrics of rank " << metric_rank << ", rank " << rank);
      const JointFactors f = pca.factorize(k, v, rank, weighted);
      CHECK(error(f) == Approx(tail(seen, rank)).epsilon(1e-3).margin(1e-5));
      CHECK(error(f) < error(pca.factorize(k, v, rank, plain)));
      CHECK(error(f) < error(JointSvd::factorize(k, v, rank)));
      CHECK(f.singular_values[0] <= std::sqrt(2.0));  // of all the energy, 1 for keys and 1 for values
      check_form(f, rank);
      // What is reported is not weighted.
      CHECK(f.discarded == Approx(((w - product(f)) * g).cwiseProduct(w - product(f)).sum()).epsilon(1e-10));
      // Given the way down, no way up is nearer, even where errors are not weighted.
      const Matrix<double> latent = f.down * g * f.down.transpose(),
                           best_up = w * g * f.down.transpose() * latent.inverse();
      if (metric_rank > dim) CHECK((below(f.k_up, f.v_up) - best_up).norm() < 1e-3 * best_up.norm());
    }
    CHECK((product(pca.factorize(k, v, d, weighted)) - w).norm() < 1e-9 * w.norm());
  }
  const Matrix<double> zero = Matrix<double>::Zero(30, dim);
  CHECK((product(pca.factorize(k, v, d, {g, g, zero, zero})) - w).norm() < 1e-9 * w.norm());
}

TEST_CASE("singular values go where they are wanted, and the function stays", "[convert]") {
  const Matrix<double> half = random_matrix(5, 12, 2), k = random_matrix(6, 5, 1) * half,
                       v = random_matrix(9, 5, 3) * half;
  const JointFactors up = JointSvd::factorize(k, v, 8);  // three channels more than the weights fill
  for (const SingularValues where : {SingularValues::up, SingularValues::down, SingularValues::both}) {
    INFO(to_name(where));
    JointFactors f = up;
    detail::place(f.down, f.k_up, f.v_up, where);
    CHECK((product(f) - product(up)).norm() < 1e-13 * product(up).norm());
    for (Index i = 0; i < 5; ++i) {
      const double s = up.singular_values[static_cast<std::size_t>(i)];
      const double of_down = where == SingularValues::up ? 1 : where == SingularValues::down ? s : std::sqrt(s);
      CHECK(f.down.row(i).norm() == Approx(of_down));
      CHECK(below(f.k_up, f.v_up).col(i).norm() == Approx(s / of_down));
    }
    for (Index i = 5; i < 8; ++i) CHECK(f.down.row(i).norm() == Approx(1));  // can learn
  }
}

TEST_CASE("ranks fit the budget, the hardware and the layers", "[convert]") {
  for (const Index size : {16, 13})
    for (const Index multiple : {1, 4, 8})
      for (const Index budget : {24, 25, 31, 40, 48, 1000}) {
        const auto spectra = random_spectra(3, size, static_cast<std::uint64_t>(budget));
        std::vector<Index> none;
        const double least = least_lost(spectra, none, budget, multiple);
        double water = 0;
        for (const RankAllocation how : allocations) {
          INFO(to_name(how) << ", " << size << " singular values, multiples of " << multiple << ", budget " << budget);
          const std::vector<Index> ranks = allocate_ranks(spectra, budget, multiple, how);
          REQUIRE(ranks.size() == 3);
          for (const Index rank : ranks) CHECK((rank >= multiple && rank <= size && rank % multiple == 0));
          const Index sum = std::accumulate(ranks.begin(), ranks.end(), Index{0});
          CHECK(sum <= budget);
          if (how == RankAllocation::uniform) CHECK((ranks[0] == ranks[1] && ranks[1] == ranks[2]));
          // All that can be given is given.
          if (how != RankAllocation::uniform)
            CHECK(sum == std::min(budget / multiple, 3 * (size / multiple)) * multiple);
          CHECK(lost(spectra, ranks) >= least * (1 - 1e-12));
          if (how == RankAllocation::water_filling) water = lost(spectra, ranks);
        }
        CHECK(water == Approx(least));
      }
}

TEST_CASE("equal layers share evenly, and nothing is spent on nothing", "[convert]") {
  const std::vector<double> falling{8, 4, 2, 1, 0.5, 0.25, 0.125, 0.0625};
  for (const RankAllocation how : allocations) {
    INFO(to_name(how));
    CHECK(allocate_ranks(std::vector{falling, falling, falling}, 12, 2, how) == std::vector<Index>{4, 4, 4});
    CHECK(allocate_ranks(std::span(&falling, 1), 5, 1, how) == std::vector<Index>{5});
  }
  const std::vector<double> short_one{3, 0, 0, 0, 0, 0, 0, 0}, zero(8);
  CHECK(allocate_ranks(std::vector{falling, short_one, zero}, 24, 1, RankAllocation::water_filling) ==
        std::vector<Index>{8, 1, 1});
  CHECK(allocate_ranks(std::vector{falling, short_one, zero}, 24, 1, RankAllocation::energy) ==
        std::vector<Index>{8, 1, 1});
  // A layer of equal shape and less energy: the same part of it is kept, or less of it.
  std::vector<double> weak = falling;
  for (double& value : weak) value /= 4;
  CHECK(allocate_ranks(std::vector{falling, weak}, 8, 1, RankAllocation::energy) == std::vector<Index>{4, 4});
  CHECK(allocate_ranks(std::vector{falling, weak}, 8, 1, RankAllocation::water_filling) == std::vector<Index>{5, 3});

  const auto refused = [&](Index budget, Index multiple, std::vector<std::vector<double>> spectra) {
    try {
      allocate_ranks(spectra, budget, multiple, RankAllocation::energy);
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  const std::vector<double> equal{1, 1}, unequal{1, 16};
  CHECK(allocate_ranks(std::vector{falling, weak}, 8, 1, RankAllocation::fisher, equal) == std::vector<Index>{5, 3});
  CHECK(allocate_ranks(std::vector{falling, weak}, 8, 1, RankAllocation::fisher, unequal) == std::vector<Index>{4, 4});
  CHECK_THROWS_WITH(allocate_ranks(std::vector{falling, weak}, 8, 1, RankAllocation::fisher),
                    "allocate_ranks: fisher with 0 weights given for 2 layers");
  CHECK_THROWS_WITH(allocate_ranks(std::vector{falling, weak}, 8, 1, RankAllocation::uniform, equal),
                    "allocate_ranks: uniform with 2 weights given for 2 layers");
  CHECK(refused(15, 8, {falling, falling}) ==
        "allocate_ranks: a budget of 15 floats a frame given for 2 layers, at least 8 each expected");
  CHECK(refused(-1, 1, {falling}) ==
        "allocate_ranks: a budget of -1 floats a frame given for 1 layers, at least 1 each expected");
  CHECK(refused(9, 0, {falling}) == "allocate_ranks: ranks that are multiples of 0 given, positive numbers expected");
  CHECK(refused(90, 9, {falling}) == "allocate_ranks: layer 0 has 8 singular values, at least 9 expected");
  CHECK(refused(9, 1, {}) == "allocate_ranks: no layers given");
  CHECK(refused(9, 1, {{1, -2}}) ==
        "allocate_ranks: singular value 1 of layer 0 is -2, a finite one of at least 0 expected");
  CHECK(refused(9, 1, {{std::numeric_limits<double>::quiet_NaN()}}) ==
        "allocate_ranks: singular value 0 of layer 0 is nan, a finite one of at least 0 expected");
}
