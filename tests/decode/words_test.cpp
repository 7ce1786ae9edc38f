// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include <laconic/core/random.hpp>
#include <laconic/decode/ctc_align.hpp>
#include <laconic/decode/windowed_logits.hpp>
#include <laconic/decode/word_decoder.hpp>
#include <laconic/speech/subtitles.hpp>

#include "catch.hpp"
#include "golden.hpp"
#include "message_of.hpp"
#include "saying.hpp"

#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

using namespace laconic;
using Catch::Matchers::WithinAbs;

TEST_CASE("tokens have frames and confidence, in blocks as at once", "[decode]") {
  const Matrix<float> logits = saying({0, 1, 1, 0, 2, 2, 1, 1}, 4, 0.7);
  std::vector<CtcToken> whole;
  CtcTokens decoder;
  decoder(view(logits), whole);
  CHECK(whole.size() == 2);  // the last may go on
  decoder.finish(whole);
  REQUIRE(whole.size() == 3);
  CHECK((whole[0].token == 1 && whole[0].begin == 1 && whole[0].end == 3));
  CHECK((whole[1].token == 2 && whole[1].begin == 4 && whole[1].end == 6));
  CHECK((whole[2].token == 1 && whole[2].begin == 6 && whole[2].end == 8));
  CHECK_THAT(whole[0].confidence, WithinAbs(0.7, 1e-6));

  CtcTokens entropy(0, ConfidenceMeasure::entropy);
  std::vector<CtcToken> by_entropy;
  entropy(view(logits), by_entropy);
  const double h = -0.7 * std::log(0.7) - 0.3 * std::log(0.1);
  CHECK_THAT(by_entropy[0].confidence, WithinAbs(1 - h / std::log(4.0), 1e-6));

  for (const Index block : {1, 3}) {
    CtcTokens in_blocks;
    std::vector<CtcToken> parts;
    for (Index t = 0; t < logits.rows(); t += block)
      in_blocks(matrix_view(logits.row(t).data(), std::min(block, logits.rows() - t), 4), parts);
    in_blocks.finish(parts);
    REQUIRE(parts.size() == whole.size());
    for (std::size_t i = 0; i < parts.size(); ++i) {
      CHECK((parts[i].token == whole[i].token && parts[i].begin == whole[i].begin && parts[i].end == whole[i].end));
      CHECK(parts[i].confidence == whole[i].confidence);
    }
  }
  Matrix<float> broken = logits;
  broken(2, 1) = std::numeric_limits<float>::quiet_NaN();
  CHECK(message_of([&] { CtcTokens{}(view(std::as_const(broken)), whole); }) == "ctc: frame 2, class 1 is NaN");
  CHECK(message_of([&] { CtcTokens{4}(view(logits), whole); }) == "ctc: blank 4 given for 4 classes");
}

TEST_CASE("tokens become the words of the decoded text", "[decode]") {
  const auto vocabulary = Vocabulary::characters(std::vector<std::string>{"ab cd"});  // blank, space, a, b, c, d
  const std::vector<int> best{0, 1, 2, 2, 0, 3, 1, 1, 0, 4, 5, 0, 1, 0, 1, 0, 2};
  std::vector<CtcToken> tokens;
  CtcTokens decoder;
  const Matrix<float> logits = saying(best, 6);
  decoder(view(logits), tokens);
  decoder.finish(tokens);
  std::vector<Word> words;
  CtcWords joined(vocabulary, {0.04, 0.02});
  joined(tokens, words);
  CHECK(words.size() == 2);
  CHECK_THAT(joined.begun().value(), WithinAbs(0.02 + 16 * 0.04, 1e-9));
  joined.finish(words);
  REQUIRE(words.size() == 3);
  CHECK((words[0].text == "ab" && words[1].text == "cd" && words[2].text == "a"));
  CHECK_THAT(*words[0].begin, WithinAbs(0.02 + 2 * 0.04, 1e-9));
  CHECK_THAT(*words[0].end, WithinAbs(0.02 + 6 * 0.04, 1e-9));
  CHECK_THAT(*words[1].begin, WithinAbs(0.02 + 9 * 0.04, 1e-9));
  CHECK_THAT(*words[1].confidence, WithinAbs(0.9, 1e-6));

  const auto whole_words = Vocabulary::words(std::vector<std::string>{"one two"});
  words.clear();
  CtcWords of_words(whole_words, {0.04, 0});
  const std::vector<CtcToken> said{{1, 3, 4, 0.5}, {2, 7, 9, 0.6}};
  of_words(said, words);
  REQUIRE(words.size() == 1);
  of_words.finish(words);
  REQUIRE(words.size() == 2);
  CHECK((words[0].text == "one" && words[1].text == "two"));
  CHECK_THAT(*words[1].begin, WithinAbs(0.28, 1e-9));
}

TEST_CASE("an alignment is the likeliest path of all, in blocks as at once", "[decode]") {
  const Index frames = 7, classes = 4;
  Random random(Seed(5), "align");
  for (const std::vector<int>& labels : {std::vector<int>{1, 2, 3}, {2, 2}, {3}, {1, 2, 1, 1}}) {
    Matrix<float> logits(frames, classes);
    for (Index i = 0; i < logits.size(); ++i)
      logits.data()[i] = static_cast<float>(6 * random.uniform(static_cast<std::uint64_t>(i)));
    Matrix<double> log_probs = logits.cast<double>();
    for (Index t = 0; t < frames; ++t) log_probs.row(t).array() -= std::log(log_probs.row(t).array().exp().sum());
    double best = -1e9;  // over all ways to choose a class for each frame
    std::vector<int> path, best_path;
    for (Index code = 0; code < Index{1} << (2 * frames); ++code) {
      path.clear();
      double sum = 0;
      for (Index t = 0; t < frames; ++t) {
        path.push_back(static_cast<int>(code >> (2 * t) & 3));
        sum += log_probs(t, path.back());
      }
      std::vector<int> read;
      for (std::size_t t = 0; t < path.size(); ++t)
        if (path[t] != 0 && (t == 0 || path[t] != path[t - 1])) read.push_back(path[t]);
      if (read != labels || sum <= best) continue;
      best = sum;
      best_path = path;
    }
    for (const Index block : {frames, Index{1}, Index{3}}) {
      CtcAligner aligner(labels);
      for (Index t = 0; t < frames; t += block)
        aligner(matrix_view(std::as_const(logits).data() + t * classes, std::min(block, frames - t), classes));
      const CtcAlignment found = aligner.finish();
      std::vector<int> found_path(static_cast<std::size_t>(frames), 0);
      double sum = 0;
      for (const float one : found.log_probs) sum += static_cast<double>(one);
      CHECK_THAT(sum, WithinAbs(best, 1e-5));
      REQUIRE(found.tokens.size() == labels.size());
      for (std::size_t i = 0; i < labels.size(); ++i) {
        CHECK(found.tokens[i].token == labels[i]);
        double mean = 0;
        for (Index t = found.tokens[i].begin; t < found.tokens[i].end; ++t) {
          found_path[static_cast<std::size_t>(t)] = labels[i];
          mean += std::exp(log_probs(t, labels[i])) / static_cast<double>(found.tokens[i].end - found.tokens[i].begin);
        }
        CHECK_THAT(found.tokens[i].confidence, WithinAbs(mean, 1e-5));
      }
      CHECK(found_path == best_path);
    }
  }
}

TEST_CASE("alignments are those of torchaudio, and nearly those of ctc-segmentation", "[decode]") {
  const SafetensorsFile golden = golden_file("align.safetensors");
  for (const std::string name : {"short", "noisy", "long"}) {
    CAPTURE(name);
    const auto get = [&](const std::string& what) { return tensor<float>(golden, text(name, '/', what)); };
    const Matrix<float> logits = get("logits"), given = get("labels"), begin = get("begin"), end = get("end"),
                        score = get("score"), segmented = get("segmented");
    std::vector<int> labels;
    for (Index i = 0; i < given.cols(); ++i) labels.push_back(static_cast<int>(given(0, i)));
    CtcAligner aligner(labels);
    aligner(view(logits));
    const CtcAlignment found = aligner.finish();
    REQUIRE(found.tokens.size() == labels.size());
    int within_a_frame = 0;
    for (Index i = 0; i < given.cols(); ++i) {
      const CtcToken& one = found.tokens[static_cast<std::size_t>(i)];
      CHECK(one.token == labels[static_cast<std::size_t>(i)]);
      CHECK(static_cast<float>(one.begin) == begin(0, i));
      CHECK(static_cast<float>(one.end) == end(0, i));
      CHECK_THAT(one.confidence, WithinAbs(static_cast<double>(score(0, i)), 1e-4));
      within_a_frame += std::abs(static_cast<float>(one.begin) - segmented(0, i)) <= 1 ? 1 : 0;
    }
    CHECK(within_a_frame >= 0.9 * static_cast<double>(labels.size()));  // it may pass over weak labels
  }
}

TEST_CASE("a long alignment is decided on the way, and a lost one is said", "[decode]") {
  std::vector<int> best, labels;
  for (int i = 0; i < 5000; ++i) {
    best.push_back(i % 3 == 0 ? 1 + i / 3 % 4 : 0);
    if (i % 3 == 0) labels.push_back(best.back());
  }
  const Matrix<float> logits = saying(best, 5);
  CtcAligner aligner(labels, 0, 50);
  aligner(view(logits));
  const CtcAlignment found = aligner.finish();
  REQUIRE(found.tokens.size() == labels.size());
  for (std::size_t i = 0; i < labels.size(); ++i) {
    REQUIRE(found.tokens[i].begin == static_cast<Index>(3 * i));
    REQUIRE(found.tokens[i].end == static_cast<Index>(3 * i + 1));
  }
  CHECK_THAT(found.score(0, 5000), WithinAbs(std::log(0.9), 1e-5));

  CHECK(message_of([&] {
          CtcAligner few(std::vector<int>{1, 1, 2});
          few(matrix_view(logits.data(), 3, 5));
          few.finish();
        }) == "align: 3 frames given, at least 4 expected for 3 tokens");
  CHECK(message_of([] {
          CtcAligner(std::vector<int>{1, 0});
        }) == "align: label 0 given, labels of 0 or more that are not the blank (0) expected");
  CHECK(message_of([&] { CtcAligner(std::vector<int>{5})(view(logits)); }) == "align: label 5 given for 5 classes");
  CHECK(message_of([&] {  // the text of the end alone: paths to it are dropped
          CtcAligner lost(std::vector<int>(1000, 4), 0, 5);
          lost(matrix_view(logits.data(), 2500, 5));
          lost.finish();
        })
            .starts_with("align: the text does not fit the recording"));
}

TEST_CASE("windows give the logits of the whole where the model sees a frame at a time", "[decode]") {
  // The class of a frame of 4 samples is their value, so that the whole is known; in the first and last 3 frames of a
  // window, where a model knows less, it is another.
  const Index classes = 6;
  std::vector<int> said;
  for (int i = 0; i < 400; ++i) said.push_back(i % 7 == 0 || i % 31 < 6 ? 0 : i / 5 % 5 + 1);
  std::vector<float> samples;
  for (const int one : said) samples.insert(samples.end(), 4, static_cast<float>(one));
  const auto model = [&](std::span<const float> heard) {
    std::vector<int> best;
    for (std::size_t i = 0; i + 4 <= heard.size(); i += 4) best.push_back(static_cast<int>(heard[i]));
    const std::size_t n = best.size();
    if (n < said.size())
      for (std::size_t i = 0; i < std::min<std::size_t>(3, n); ++i) best[i] = best[n - 1 - i] = 5;
    return saying(best, classes);
  };
  std::vector<int> got;
  const auto take = [&](MatrixView<const float> rows) {
    for (Index t = 0; t < rows.rows(); ++t) {
      Index best = 0;
      rows.row(t).maxCoeff(&best);
      got.push_back(static_cast<int>(best));
    }
  };
  for (const std::size_t block : {std::size_t{1}, std::size_t{37}, samples.size()}) {
    for (const Index window : {200, 163, 5000}) {
      got.clear();
      WindowedLogits windows(model, {4, window, window / 4});
      for (std::size_t i = 0; i < samples.size(); i += block)
        windows.push(std::span(samples).subspan(i, std::min(block, samples.size() - i)), take);
      windows.finish(take);
      REQUIRE(got.size() == said.size());
      const std::size_t edge = window > 1600 ? 0 : 3;  // of the recording itself
      for (std::size_t i = edge; i + edge < said.size(); ++i) REQUIRE(got[i] == said[i]);
    }
  }
  CHECK(message_of([&] {
          WindowedLogits(model, {4, 3, 0});
        }) == "windows: of 3 samples given, at least one frame of 4 expected");
  CHECK(message_of([&] {
          WindowedLogits(model, {4, 100, 51});
        }) == "windows: an overlap of 51 samples given, 0 to half of the window's 100 expected");
}

TEST_CASE("words become subtitles and CTM", "[speech]") {
  const std::vector<Word> words{{"a<b", 0.5, 1.25, 0.5}, {"&", 1.3, 1.5, 0.25}, {"next", 3.0, 3661.0071, {}}};
  CHECK(to_srt(words) == "1\n00:00:00,500 --> 00:00:01,500\na<b &\n\n2\n00:00:03,000 --> 01:01:01,007\nnext\n\n");
  CHECK(to_vtt(words) ==
        "WEBVTT\n\n00:00:00.500 --> 00:00:01.500\na&lt;b &amp;\n\n00:00:03.000 --> 01:01:01.007\nnext\n\n");
  CHECK(to_ctm(words, "my file") ==
        "my_file 1 0.500 0.750 a<b 0.5000\nmy_file 1 1.300 0.200 & 0.2500\nmy_file 1 3.000 3658.007 next\n");
  CHECK(to_srt({}).empty());
  CHECK(message_of([] { to_srt(std::vector<Word>{{"x", {}, {}, {}}}); }) == "subtitles: the word \"x\" has no times");

  std::vector<Word> many;
  for (int i = 0; i < 60; ++i) many.push_back({"\xc3\xa4\xc3\xb6\xc3\xbc\xc3\x9f", 0.2 * i, 0.2 * i + 0.2, {}});
  for (const Subtitle& one : subtitles(many)) {
    CHECK(one.end - one.begin <= 7.0001);
    const auto line_end = one.text.find('\n');
    CHECK(detail::count_characters(one.text.substr(0, line_end)) <= 42);
    if (line_end != std::string::npos) CHECK(detail::count_characters(one.text.substr(line_end + 1)) <= 42);
  }
}
