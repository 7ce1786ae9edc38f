// laconic: attention for speech models. SPDX-License-Identifier: MIT
// CTC against PyTorch (tests/golden/ctc.py), against the sum over all paths, and on targets that are impossible.
#include <laconic/backend/autodiff.hpp>
#include <laconic/backend/cpu.hpp>
#include <laconic/io/safetensors.hpp>

#include "gradient_check.hpp"

#include <filesystem>
#include <set>

using namespace laconic;

namespace {

template <class T = double>
std::vector<T> tensor(const SafetensorsFile& file, const std::string& name) {
  std::vector<T> out;
  Index size = 1;
  for (const Index extent : file.info(name).shape) size *= extent;
  out.resize(static_cast<std::size_t>(size));
  file.read(name, std::span<T>(out));
  return out;
}

Sequences lengths_of(const std::vector<double>& numbers) {
  std::vector<Index> lengths(numbers.begin(), numbers.end());
  return Sequences(std::span<const Index>(lengths));
}

/// -ln of the sum of the probabilities of every path that collapses to the labels.
double by_enumeration(const Matrix<double>& logits, const std::vector<int>& labels, int blank) {
  const Index frames = logits.rows(), vocab = logits.cols();
  double total = 0;
  std::vector<Index> path(static_cast<std::size_t>(frames), 0);
  for (;;) {
    std::vector<int> collapsed;
    double probability = 1;
    for (Index t = 0; t < frames; ++t) {
      const Index token = path[static_cast<std::size_t>(t)];
      probability *= std::exp(logits(t, token)) / logits.row(t).array().exp().sum();
      if (token != blank && (t == 0 || token != path[static_cast<std::size_t>(t - 1)]))
        collapsed.push_back(static_cast<int>(token));
    }
    if (collapsed == labels) total += probability;
    Index t = 0;
    while (t < frames && ++path[static_cast<std::size_t>(t)] == vocab) path[static_cast<std::size_t>(t++)] = 0;
    if (t == frames) return -std::log(total);
  }
}

}  // namespace

TEMPLATE_TEST_CASE("CTC equals PyTorch", "[ctc][golden]", float, double) {
  const SafetensorsFile file(std::filesystem::path(LACONIC_GOLDEN_DIR) / "ctc.safetensors");
  std::set<std::string> cases;
  for (const std::string& name : file.names()) cases.insert(name.substr(0, name.find('/')));
  REQUIRE(cases.size() == 9);
  int infinite = 0, empty = 0;
  for (const std::string& name : cases)
    for (const int threads : {1, 3}) {
      INFO(name);
      const auto sequences = lengths_of(tensor(file, name + "/lengths"));
      const auto numbers = tensor(file, name + "/labels");
      const Labels labels{std::vector<int>(numbers.begin(), numbers.end()),
                          lengths_of(tensor(file, name + "/label_lengths"))};
      const Index vocab = file.info(name + "/logits").shape[1];
      Matrix<TestType> logits(sequences.rows(), vocab);
      file.read(name + "/logits", std::span<TestType>(logits.data(), static_cast<std::size_t>(logits.size())));
      const auto expected_losses = tensor(file, name + "/loss"), expected = tensor(file, name + "/grad");

      Cpu<TestType> cpu(threads);
      Autodiff<Cpu<TestType>> tape(cpu);
      const auto x = tape.variable(logits);
      const auto losses = tape.ctc(x, sequences, labels, 0);
      tape.backward(tape.mean_finite(losses), static_cast<double>(sequences.size()));
      REQUIRE(losses.rows() == sequences.size());
      for (Index n = 0; n < sequences.size(); ++n) {
        const double loss = static_cast<double>(losses.value.row(n)[0]),
                     wanted = expected_losses[static_cast<std::size_t>(n)];
        if (std::isinf(wanted)) {
          CHECK(loss == std::numeric_limits<double>::infinity());
          ++infinite;
        } else {
          CHECK(std::abs(loss - wanted) <= 1e-5 * std::max(1.0, std::abs(wanted)));
        }
        empty += labels.sequences.length(n) == 0 ? 1 : 0;
      }
      const auto& gradient = tape.gradient(x);
      REQUIRE(gradient.size() == static_cast<Index>(expected.size()));
      double worst = 0;
      for (std::size_t i = 0; i < expected.size(); ++i)
        worst = std::max(worst, std::abs(static_cast<double>(gradient.data()[i]) - expected[i]));
      CHECK(worst < 1e-5);
    }
  CHECK(infinite > 4);
  CHECK(empty > 4);
}

TEST_CASE("CTC is the sum over all paths", "[ctc]") {
  Cpu<double> cpu(1);
  for (const int blank : {0, 1, 2})
    for (const Index frames : {1, 2, 5}) {
      const Matrix<double> logits = random_matrix(frames, 3, static_cast<std::uint64_t>(frames));
      const int a = blank == 0 ? 1 : 0, b = blank == 2 ? 1 : 2;
      for (const std::vector<int>& labels :
           std::vector<std::vector<int>>{{}, {a}, {a, b}, {a, a}, {b, b, a}, {a, b, a, b, a, b}}) {
        INFO("blank " << blank << ", " << frames << " frames, " << labels.size() << " labels");
        const auto loss = cpu.ctc(cpu.input(logits), Sequences{frames},
                                  {labels, Sequences{static_cast<Index>(labels.size())}}, blank);
        const double expected = by_enumeration(logits, labels, blank);
        if (std::isinf(expected))
          CHECK(loss.row(0)[0] == expected);
        else
          CHECK(loss.row(0)[0] == Approx(expected).epsilon(1e-12));
      }
    }
}

TEST_CASE("an impossible target spoils no batch", "[ctc]") {
  const Matrix<double> logits = random_matrix(7, 4, 1);
  const Sequences sequences{4, 1, 2, 0, 0};
  const Labels labels{{1, 2, 3, 3, 1}, Sequences{2, 2, 0, 1, 0}};
  Cpu<double> cpu(1);
  Autodiff<Cpu<double>> tape(cpu);
  const auto x = tape.variable(logits);
  const auto losses = tape.ctc(x, sequences, labels, 0);
  const auto loss = tape.mean_finite(losses);
  const auto at = [&](Index n) { return losses.value.row(n)[0]; };
  CHECK(std::isinf(at(1)));
  CHECK(std::isinf(at(3)));  // a label and no frame
  CHECK(at(4) == 0);         // no label and no frame: certain
  CHECK(loss.value.row(0)[0] == Approx((at(0) + at(2)) / 5));
  tape.backward(loss);
  CHECK(tape.gradient(x).view().allFinite());
  CHECK(tape.gradient(x).view().row(4).cwiseAbs().maxCoeff() == 0);
  CHECK(tape.gradient(x).view().row(0).cwiseAbs().maxCoeff() > 0.01);
}

TEST_CASE("certain and impossible tokens", "[ctc]") {
  Cpu<double> cpu(1);
  Matrix<double> logits = Matrix<double>::Constant(3, 3, -1e30);
  logits(0, 1) = logits(1, 0) = logits(2, 2) = 1e30;
  const auto loss = [&](std::vector<int> labels) {
    Tensor<double> derivative;
    const Index n = static_cast<Index>(labels.size());
    const auto out = cpu.ctc(cpu.input(logits), Sequences{3}, {std::move(labels), Sequences{n}}, 0, &derivative);
    CHECK(derivative.view().allFinite());
    return out.row(0)[0];
  };
  CHECK(loss({1, 2}) == 0);
  CHECK(loss({2, 1}) > 1e29);
  logits = Matrix<double>::Constant(3, 3, -std::numeric_limits<double>::infinity());
  logits(0, 1) = logits(1, 0) = logits(2, 2) = 0;
  CHECK(loss({1, 2}) == 0);
  CHECK(std::isinf(loss({2, 1})));
}

TEST_CASE("faults in the logits show in the mean loss", "[ctc]") {
  Matrix<double> logits = random_matrix(4, 3, 1);
  logits(2, 1) = std::numeric_limits<double>::quiet_NaN();
  Cpu<double> cpu(1);
  const auto losses = cpu.ctc(cpu.input(logits), Sequences{2, 2}, {{1, 2}, Sequences{1, 1}}, 0);
  CHECK(std::isfinite(losses.row(0)[0]));
  CHECK(std::isnan(losses.row(1)[0]));
  CHECK(std::isnan(cpu.mean_finite(losses).row(0)[0]));
}

TEST_CASE("CTC refuses what does not fit", "[ctc]") {
  Cpu<double> cpu(1);
  const Matrix<double> logits = random_matrix(4, 3, 1);
  const auto ctc = [&](const Sequences& sequences, const Labels& labels, int blank = 0) {
    return cpu.ctc(cpu.input(logits), sequences, labels, blank);
  };
  CHECK_NOTHROW(ctc({4}, {{1}, {1}}));
  CHECK_THROWS_WITH(ctc({4}, {{1}, {1, 0}}), "ctc: 2 label sequences given for 1 sequences of logits");
  CHECK_THROWS_WITH(ctc({4}, {{1}, {2}}), "ctc: 1 labels given, their sequences hold 2");
  CHECK_THROWS_WITH(ctc({5}, {{1}, {1}}), "ctc: 4 rows of logits given, their sequences have 5");
  CHECK_THROWS_WITH(ctc({4}, {{1}, {1}}, 3), "ctc: blank 3 given, expected 0 .. 2");
  CHECK_THROWS_WITH(ctc({4}, {{1}, {1}}, -1), "ctc: blank -1 given, expected 0 .. 2");
  for (const int token : {-1, 0, 3})
    CHECK_THROWS_WITH(ctc({4}, {{token}, {1}}),
                      text("ctc: label ", token, " given, expected 0 .. 2 except the blank 0"));
}
