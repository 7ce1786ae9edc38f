// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include <laconic/speech/wer.hpp>

#include "catch.hpp"

#include <string>
#include <vector>

using namespace laconic;

namespace {

/// The edit distance by its recursive definition, to compare with.
Index distance(const std::vector<int>& a, const std::vector<int>& b, std::size_t i, std::size_t j) {
  if (i == 0 || j == 0) return static_cast<Index>(i + j);
  return std::min({distance(a, b, i - 1, j - 1) + (a[i - 1] != b[j - 1]), distance(a, b, i - 1, j) + 1,
                   distance(a, b, i, j - 1) + 1});
}

std::string sentence(const std::vector<int>& words) {
  std::string out;
  for (const int w : words) out += text("w", w, ' ');
  return out;
}

}  // namespace

TEST_CASE("word errors are counted by kind", "[wer]") {
  CHECK(word_errors("one two three", "one two three") == WordErrors{0, 0, 0, 3});
  CHECK(word_errors("one two three", "one four three") == WordErrors{1, 0, 0, 3});
  CHECK(word_errors("one two three", "one three") == WordErrors{0, 1, 0, 3});
  CHECK(word_errors("one two three", "one two two three") == WordErrors{0, 0, 1, 3});
  CHECK(word_errors("one two three", "") == WordErrors{0, 3, 0, 3});
  CHECK(word_errors("", "one two") == WordErrors{0, 0, 2, 0});
  CHECK(word_errors("", "") == WordErrors{0, 0, 0, 0});
  CHECK(word_errors("one", "One") == WordErrors{1, 0, 0, 1});
  CHECK(word_errors("  one\ttwo\r\n", "one two") == WordErrors{0, 0, 0, 2});
  CHECK(word_errors("the cat sat on the mat", "cat sat in the the mat") == WordErrors{1, 1, 1, 6});
}

TEST_CASE("word errors are as few as the definition allows", "[wer]") {
  const Random random(Seed(1), "wer");
  std::uint64_t counter = 0;
  for (int trial = 0; trial < 200; ++trial) {
    std::vector<int> a(static_cast<std::size_t>(random.below(7, counter++))),
        b(static_cast<std::size_t>(random.below(7, counter++)));
    for (int& word : a) word = static_cast<int>(random.below(3, counter++));
    for (int& word : b) word = static_cast<int>(random.below(3, counter++));
    const WordErrors errors = word_errors(sentence(a), sentence(b));
    CAPTURE(sentence(a), sentence(b));
    CHECK(errors.errors() == distance(a, b, a.size(), b.size()));
    CHECK(errors.insertions - errors.deletions == static_cast<Index>(b.size()) - static_cast<Index>(a.size()));
    CHECK(errors.reference_words == static_cast<Index>(a.size()));
  }
}

TEST_CASE("a corpus' rate is that of its sum", "[wer]") {
  const std::vector<WordErrors> corpus{word_errors("one two three four", "one two three four"),
                                       word_errors("five", "six")};
  CHECK(total(corpus) == WordErrors{1, 0, 0, 5});
  CHECK(total(corpus).rate() == Approx(0.2));                               // the mean of the utterances' rates is 0.5
  CHECK((word_errors("one", "one two three four")).rate() == Approx(3.0));  // may exceed 1
  CHECK(word_errors("", "one two").rate() == 2);  // no reference words: the number of insertions
  CHECK(WordErrors{}.rate() == 0);
}

TEST_CASE("the bootstrap interval is that of the resampled rate", "[wer]") {
  // 1000 utterances of one word, each wrong with probability 0.1: the rate is binomial, of standard deviation
  // sqrt(0.1 * 0.9 / 1000) = 0.0095, and 95% of it lie within 1.96 of these.
  std::vector<WordErrors> corpus(1000, WordErrors{0, 0, 0, 1});
  for (std::size_t i = 0; i < 100; ++i) corpus[10 * i].substitutions = 1;
  const Interval interval = bootstrap_interval(corpus, 0.95, 2000);
  CHECK(interval.low == Approx(0.1 - 0.0186).margin(0.002));
  CHECK(interval.high == Approx(0.1 + 0.0186).margin(0.002));
  const Interval wider = bootstrap_interval(corpus, 0.99, 2000);
  CHECK(wider.low < interval.low);
  CHECK(wider.high > interval.high);

  SECTION("utterances are resampled, not words: the errors of one stay together") {
    std::vector<WordErrors> clustered(100, WordErrors{0, 0, 0, 10});
    for (std::size_t i = 0; i < 10; ++i) clustered[10 * i].deletions = 10;
    const Interval one = bootstrap_interval(clustered, 0.95, 2000);
    CHECK(one.low == Approx(0.1 - 0.0588).margin(0.012));
    CHECK(one.high == Approx(0.1 + 0.0588).margin(0.012));
  }
  SECTION("the same seed gives the same interval, another seed nearly") {
    CHECK(bootstrap_interval(corpus, 0.95, 2000).low == interval.low);
    const Interval other = bootstrap_interval(corpus, 0.95, 2000, Seed(7));
    CHECK(other.high == Approx(interval.high).margin(0.004));
  }
  SECTION("without spread it is a point") {
    const std::vector<WordErrors> same(20, WordErrors{1, 0, 0, 4});
    CHECK(bootstrap_interval(same).low == 0.25);
    CHECK(bootstrap_interval(same).high == 0.25);
  }
  SECTION("what cannot be asked") {
    CHECK_THROWS_WITH(bootstrap_interval({}), "bootstrap_interval: no utterances given");
    CHECK_THROWS_WITH(bootstrap_interval(corpus, 95), "bootstrap_interval: level 95 given, between 0 and 1 expected");
    CHECK_THROWS_WITH(bootstrap_interval(corpus, 0.95, 0),
                      "bootstrap_interval: 0 resamples given, at least 1 expected");
  }
}

TEST_CASE("the interval of a mean is that of the resampled mean", "[wer]") {
  // 1000 numbers, half of them 0 and half of them 2: the mean 1 has a standard deviation of 1 / sqrt(1000) = 0.0316.
  std::vector<double> numbers(1000, 0.0);
  for (std::size_t i = 0; i < 1000; i += 2) numbers[i] = 2;
  const Interval interval = bootstrap_mean(numbers, 0.95, 2000);
  CHECK(interval.low == Approx(1 - 0.062).margin(0.006));
  CHECK(interval.high == Approx(1 + 0.062).margin(0.006));
  const std::vector<double> same(10, 3.5);
  CHECK(bootstrap_mean(same).low == 3.5);
  CHECK(bootstrap_mean(same).high == 3.5);
  CHECK_THROWS_WITH(bootstrap_mean({}), "bootstrap_mean: no utterances given");
  CHECK_THROWS_WITH(bootstrap_mean(same, 95), "bootstrap_mean: level 95 given, between 0 and 1 expected");
  CHECK_THROWS_WITH(bootstrap_mean(same, 0.95, 0), "bootstrap_mean: 0 resamples given, at least 1 expected");
}

TEST_CASE("the interval of a difference draws the same utterances for both", "[wer]") {
  // 1000 utterances of one word; the first system is wrong in every second one, the second in these and 30 more. Each
  // rate has a standard deviation of 0.016; their difference, paired, has one of sqrt(0.03 * 0.97 / 1000) = 0.0054.
  std::vector<WordErrors> first(1000, WordErrors{0, 0, 0, 1});
  for (std::size_t i = 0; i < 1000; i += 2) first[i].substitutions = 1;
  std::vector<WordErrors> second = first;
  for (std::size_t i = 0; i < 30; ++i) second[33 * i + (i % 2 == 0 ? 1 : 0)].substitutions = 1;
  REQUIRE(total(second).errors() == 530);
  const Interval interval = bootstrap_difference(first, second, 0.95, 2000);
  CHECK(interval.low == Approx(0.03 - 0.0106).margin(0.002));
  CHECK(interval.high == Approx(0.03 + 0.0106).margin(0.002));

  SECTION("the other way round it is the same with the other sign") {
    const Interval back = bootstrap_difference(second, first, 0.95, 2000);
    CHECK(back.low == Approx(-interval.high));
    CHECK(back.high == Approx(-interval.low));
  }
  SECTION("equal errors differ by nothing, whatever is drawn") {
    const Interval none = bootstrap_difference(first, first);
    CHECK(none.low == 0);
    CHECK(none.high == 0);
  }
  SECTION("as many errors elsewhere are not told apart") {
    std::vector<WordErrors> elsewhere(1000, WordErrors{0, 0, 0, 1});
    for (std::size_t i = 1; i < 1000; i += 2) elsewhere[i].substitutions = 1;
    const Interval wide = bootstrap_difference(first, elsewhere);
    CHECK(wide.low < 0);
    CHECK(wide.high > 0);
  }
  SECTION("the same seed gives the same interval, another seed nearly") {
    const Interval again = bootstrap_difference(first, second, 0.95, 2000);
    CHECK(again.low == interval.low);
    CHECK(again.high == interval.high);
    const Interval other = bootstrap_difference(first, second, 0.95, 2000, Seed(7));
    CHECK(other.low == Approx(interval.low).margin(0.002));
    const Interval few = bootstrap_difference(first, second, 0.95, 9);
    CHECK(bootstrap_difference(first, second, 0.95, 9, Seed(7)).low != few.low);
  }
  SECTION("what cannot be asked") {
    CHECK_THROWS_WITH(bootstrap_difference(first, std::span(second).first(999)),
                      "bootstrap_difference: 1000 and 999 utterances given, the same ones expected");
    CHECK_THROWS_WITH(bootstrap_difference({}, {}), "bootstrap_difference: no utterances given");
    CHECK_THROWS_WITH(bootstrap_difference(first, second, 95),
                      "bootstrap_difference: level 95 given, between 0 and 1 expected");
    CHECK_THROWS_WITH(bootstrap_difference(first, second, 0.95, 0),
                      "bootstrap_difference: 0 resamples given, at least 1 expected");
    second[4].reference_words = 2;
    CHECK_THROWS_WITH(bootstrap_difference(first, second),
                      "bootstrap_difference: utterance 4 has 1 and 2 reference words, the same utterance expected");
  }
}

TEST_CASE("edits of words name them, in order", "[wer]") {
  const auto edits = word_edits("the cat sat down", "the bat sat up now");
  REQUIRE(edits.size() == 5);
  CHECK(edits[0].is_equal());
  CHECK((edits[1].reference == "cat" && edits[1].hypothesis == "bat"));
  CHECK(edits[2].reference == "sat");
  CHECK(edits[3].reference.empty() != edits[4].reference.empty());  // one of the last two is inserted
  CHECK(word_edits("", "a")[0].reference.empty());
  CHECK(word_edits("a", "")[0].hypothesis.empty());
}

TEST_CASE("characters are code points, with single spaces between words, as jiwer counts them", "[wer]") {
  CHECK(character_errors("one two", "one  to ") == WordErrors{0, 1, 0, 7});
  CHECK(character_errors("\u4f60\u597d", "\u4f60\u4eec\u597d") == WordErrors{0, 0, 1, 2});
  CHECK(character_errors("ab", "ba").errors() == 2);
  CHECK(character_errors("", "") == WordErrors{0, 0, 0, 0});
  CHECK_THROWS_AS(character_errors("\xff", "a"), Error);
}
