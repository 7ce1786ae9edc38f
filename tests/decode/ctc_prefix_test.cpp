// laconic: attention for speech models. SPDX-License-Identifier: MIT
// Prefix scores of CTC against the sum over all alignments, and the joint beam search.
#include <laconic/decode/beam_search.hpp>
#include <laconic/decode/ctc_prefix.hpp>

#include "gradient_check.hpp"
#include "message_of.hpp"

#include <map>

using namespace laconic;

namespace {

Matrix<double> log_probs_of(Index frames, Index vocab, std::uint64_t seed) {
  Matrix<double> out = random_matrix(frames, vocab, seed);
  for (Index t = 0; t < frames; ++t) out.row(t).array() -= std::log(out.row(t).array().exp().sum());
  return out;
}

/// Returns the probability of each text, as the sum over all alignments; token 0 is the blank.
std::map<std::vector<int>, double> all_texts(const Matrix<double>& log_probs) {
  std::map<std::vector<int>, double> out;
  Index alignments = 1;
  for (Index t = 0; t < log_probs.rows(); ++t) alignments *= log_probs.cols();
  for (Index number = 0; number < alignments; ++number) {
    std::vector<int> tokens;
    double sum = 0;
    int before = 0;
    for (Index t = 0, rest = number; t < log_probs.rows(); ++t, rest /= log_probs.cols()) {
      const auto token = static_cast<int>(rest % log_probs.cols());
      sum += log_probs(t, token);
      if (token != 0 && token != before) tokens.push_back(token);
      before = token;
    }
    out[tokens] += std::exp(sum);
  }
  return out;
}

/// A decoder to which all tokens are equally probable.
struct Indifferent {
  using Context = Cpu<double>;
  using Tensor = Context::Tensor;
  Tensor append(const TokenRows& tokens, std::span<const Index>) {
    return cpu.input(Matrix<double>::Zero(tokens.sequences.size(), 3).eval());
  }
  void begin(Index, Index) {}
  void fork(Index, Index) {}
  Index slots() const { return 40; }
  Index vocab_size() const { return 3; }
  Index room(Index) const { return 100; }
  Context& context() { return cpu; }
  Context cpu;
};

}  // namespace

TEST_CASE("a prefix score is the probability of all texts that begin so") {
  const Matrix<double> log_probs = log_probs_of(6, 3, 1);
  const auto texts = all_texts(log_probs);
  const CtcPrefixScorer scorer(log_probs, 1);
  for (const std::vector<int>& prefix :
       {std::vector<int>{}, {1}, {2}, {1, 1}, {1, 2}, {2, 1, 2}, {1, 1, 1}, {2, 2, 1, 1}}) {
    auto state = scorer.start();
    for (const int token : prefix) state = scorer.extend(state, token);
    double begins = 0, is = 0;
    for (const auto& [text, probability] : texts) {
      if (text.size() >= prefix.size() && std::equal(prefix.begin(), prefix.end(), text.begin())) begins += probability;
      if (text == prefix) is += probability;
    }
    CHECK(std::abs(std::exp(state.score) - begins) < 1e-12);
    CHECK(std::abs(std::exp(scorer.prefix(state, 0)) - is) < 1e-12);
  }
  // No text of 4 equal tokens fits 6 frames: they need a blank between.
  auto state = scorer.start();
  for (int i = 0; i < 4; ++i) state = scorer.extend(state, 1);
  CHECK(std::exp(state.score) == 0);
}

TEST_CASE("a wide beam finds the most probable text of CTC alone") {
  for (const std::uint64_t seed : {1U, 2U, 3U, 4U}) {
    const Matrix<double> log_probs = 3 * log_probs_of(5, 3, seed);
    Matrix<double> normal = log_probs;
    for (Index t = 0; t < 5; ++t) normal.row(t).array() -= std::log(normal.row(t).array().exp().sum());
    const auto texts = all_texts(normal);
    const auto best =
        std::max_element(texts.begin(), texts.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
    Indifferent decoder;
    const BeamConfig config{.beams = 40, .max_new_tokens = 8, .end_token = 0, .length_penalty = 0};
    const auto found = beam_search(decoder, std::array{0}, config, 0, CtcPrefixScorer(normal, 1));
    std::vector<int> tokens = found.at(0).tokens;
    REQUIRE(tokens.back() == 0);
    tokens.pop_back();
    CHECK(tokens == best->first);
    CHECK(std::abs(found[0].score - std::log(best->second)) < 1e-9);
    // Together with a decoder that gives 1/3 to each token.
    const auto joint = beam_search(decoder, std::array{0}, config, 0, CtcPrefixScorer(normal, 0.6));
    tokens = joint.at(0).tokens;
    const double of_decoder = static_cast<double>(tokens.size()) * std::log(1.0 / 3);
    tokens.pop_back();
    CHECK(std::abs(joint[0].score - (0.4 * of_decoder + 0.6 * std::log(texts.at(tokens)))) < 1e-9);
  }
}

TEST_CASE("numbers out of range are refused") {
  const Matrix<double> some = log_probs_of(4, 3, 1), none(0, 3);
  CHECK(message_of([&] { CtcPrefixScorer(some, 1.5); }) == "CTC prefix scorer: weight 1.5 given, 0 to 1 expected");
  CHECK(message_of([&] { CtcPrefixScorer(none, 0.5); }) == "CTC prefix scorer: no frames given, at least one expected");
  CHECK(message_of([&] { CtcPrefixScorer(some, 0.5, 3); }) == "CTC prefix scorer: blank 3 given, 0 to 2 expected");
  Matrix<double> broken = some;
  broken(2, 1) = std::nan("");
  CHECK(message_of([&] { CtcPrefixScorer(broken, 0.5); }) ==
        "CTC prefix scorer: values that are NaN or above 0 given, log probabilities expected");
  const CtcPrefixScorer scorer(some, 0.5);
  std::vector<double> of_more_tokens(4);
  CHECK(message_of([&] { scorer.add(scorer.start(), std::span(of_more_tokens)); }) ==
        "CTC prefix scorer: a decoder of 4 tokens given, 3 expected, as the CTC head has");
  CHECK(message_of([&] { scorer.extend(scorer.start(), 0); }) ==
        "CTC prefix scorer: token 0 goes on with a hypothesis, but it is the blank; it must be the search's end_token");
}
