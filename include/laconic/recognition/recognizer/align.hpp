// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/decode/ctc_align.hpp>
#include <laconic/recognition/recognizer.hpp>
#include <laconic/recognition/recognizer/inline.hpp>
#include <laconic/recognition/recognizer/transcriber.hpp>
#include <laconic/speech/vocabulary.hpp>
#include <laconic/speech/words.hpp>

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

/// Holds the labels of a text, and which of them are a word's.
struct LabelsOfText {
  std::optional<int> space;  // the class between words, if there is one
  std::vector<int> labels;
  std::vector<Range> words;              // labels of each word
  std::vector<std::string> not_written;  // characters or words that the vocabulary lacks

  explicit LabelsOfText(const Vocabulary& vocabulary) {
    for (int i = 0; i < static_cast<int>(vocabulary.size()) && vocabulary.kind() == Tokens::characters; ++i)
      if (i != vocabulary.blank() && vocabulary.token(i) == " ") space = i;
  }
  /// Appends a word, without what the vocabulary lacks.
  void add_word(std::string_view word, const Vocabulary& vocabulary) {
    std::vector<int> own = known(word, vocabulary);
    if (space && !own.empty() && !labels.empty()) labels.push_back(*space);
    const auto begin = static_cast<Index>(labels.size());
    labels.insert(labels.end(), own.begin(), own.end());
    words.push_back({begin, static_cast<Index>(labels.size())});
  }

 private:
  /// Returns the labels of a word without what the vocabulary lacks.
  std::vector<int> known(std::string_view word, const Vocabulary& vocabulary) {
    std::string left = vocabulary.written(word);
    for (const std::string& one : vocabulary.unknown(left))
      for (auto at = left.find(one); at != std::string::npos; at = left.find(one, at)) {
        not_written.push_back(one);
        left.erase(at, one.size());
      }
    if (left.empty() || vocabulary.unknown(left).empty()) return vocabulary.encode(left);
    not_written.emplace_back(word);
    return {};
  }
};

}  // namespace detail

LACONIC_RECOGNIZER_INLINE AlignedText Recognizer::align(AudioReader& audio, std::span<const std::string> lines,
                                                        Workspace& workspace, const TranscriptionConfig& how) const {
  detail::LabelsOfText given(vocabulary());
  AlignedText out;
  for (const std::string& line : lines) {
    const std::string joined = detail::join_words(line);
    const auto first = static_cast<Index>(out.words.size());
    for (const std::string_view word : detail::split_words(joined)) {
      given.add_word(word, vocabulary());
      out.words.push_back({std::string(word)});
    }
    out.lines.push_back({joined, {first, static_cast<Index>(out.words.size())}});
  }
  require(!given.labels.empty(), "align: a text without a token of the vocabulary given");
  out.not_written = std::move(given.not_written);

  CtcAligner aligner(given.labels, vocabulary().blank());
  const auto take = [&](MatrixView<const float> rows) {
    if (how.logits) how.logits(rows);
    aligner(rows);
  };
  detail::RecordingLogits logits(*this, workspace, how.window_seconds);
  detail::read_all(audio, *this, [&](std::span<const float> samples) { logits.push(samples, take); });
  logits.finish(take);
  out.seconds = logits.seconds();

  const CtcAlignment found = aligner.finish();
  const FrameTimes time = frame_times();
  const auto token = [&](Index i) -> const CtcToken& { return found.tokens[static_cast<std::size_t>(i)]; };
  for (std::size_t w = 0; w < out.words.size(); ++w) {
    const Range own = given.words[w];
    if (own.size() == 0) continue;
    double sum = 0;
    for (Index i = own.begin; i < own.end; ++i) sum += token(i).confidence;
    out.words[w].begin = time(token(own.begin).begin);
    out.words[w].end = time(token(own.end - 1).end);
    out.words[w].confidence = sum / static_cast<double>(own.size());
  }
  for (AlignedLine& line : out.lines) {
    std::optional<Range> labels;
    for (Index w = line.words.begin; w < line.words.end; ++w) {
      const Range own = given.words[static_cast<std::size_t>(w)];
      if (own.size() > 0) labels = Range{labels ? labels->begin : own.begin, own.end};
    }
    if (!labels) continue;
    const Index begin = token(labels->begin).begin, end = token(labels->end - 1).end;
    line.begin = time(begin);
    line.end = time(end);
    line.score = found.score(begin, end);
  }
  return out;
}

}  // namespace LACONIC_ABI
}  // namespace laconic
