// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include "common/portions.hpp"

#include <laconic/core/enum.hpp>
#include <laconic/recognition/evaluation.hpp>
#include <laconic/speech/audio.hpp>
#include <laconic/speech/corpus.hpp>
#include <laconic/speech/text_normalization.hpp>
#include <laconic/speech/unicode.hpp>
#include <laconic/speech/vocabulary.hpp>
#include <laconic/speech/wer.hpp>

#include <array>
#include <numeric>
#include <span>
#include <string>
#include <vector>

namespace eval_parts {

using namespace laconic;

/// Says how texts are made equal before they are compared.
enum class TextNormalization {
  none,         ///< as the vocabulary writes them
  punctuation,  ///< references without the punctuation that the vocabulary lacks
  basic,        ///< `basic_normalized`
  whisper       ///< `whisper_normalized`
};
constexpr auto enum_names(TextNormalization) {
  using enum TextNormalization;
  return std::to_array<EnumName<TextNormalization>>(
      {{none, "none"}, {punctuation, "punctuation"}, {basic, "basic"}, {whisper, "whisper"}});
}

/// Writes references and hypotheses as they are compared. Texts that are not UTF-8 are not normalised.
class ComparedTexts {
 public:
  /// Compares in the letters of a vocabulary, which must outlive this.
  ComparedTexts(const Vocabulary& vocabulary, TextNormalization normalization)
      : vocabulary_(vocabulary), normalization_(normalization) {}

  std::string reference(const std::string& given) const { return normalized(vocabulary_.written(given)); }
  std::string hypothesis(const std::string& heard) const {
    return normalized(detail::is_utf8(heard) ? detail::composed(heard) : heard);
  }
  /// Says whether hypotheses are rewritten, too, so that their errors are not those that an evaluation counts.
  bool rewrites() const { return normalization_ > TextNormalization::punctuation; }
  /// Counts the errors of an evaluation's first hypotheses again, if they are rewritten.
  void count_again(std::span<const Utterance> utterances, Evaluation& evaluation) const {
    for (std::size_t i = 0; rewrites() && i < evaluation.hypotheses.size(); ++i)
      evaluation.errors[i] = word_errors(reference(utterances[i].text), hypothesis(evaluation.hypotheses[i]));
  }

 private:
  std::string normalized(std::string text) const {
    if (!rewrites() || !detail::is_utf8(text)) return text;
    return normalization_ == TextNormalization::basic ? basic_normalized(text) : whisper_normalized(text);
  }

  const Vocabulary& vocabulary_;
  TextNormalization normalization_;
};

/// Utterances, and what is known of each before its samples are read.
struct EvalCorpus {
  std::vector<Utterance> utterances;
  std::vector<double> seconds;          ///< as the files say, not the manifest
  std::vector<std::string> identities;  ///< texts that tell an utterance from others

  /// Reads a corpus, its texts without the punctuation that the vocabulary lacks if `normalization` says so.
  EvalCorpus(const std::string& data, const Vocabulary& vocabulary, TextNormalization normalization)
      : utterances(read_corpus(data)) {
    require(!utterances.empty(), data, ": no utterances");
    for (Utterance& u : utterances)
      if (normalization == TextNormalization::punctuation) u.text = vocabulary.without_punctuation(u.text);
    for (const Utterance& u : utterances) {
      seconds.push_back(detail::audio_duration(u.audio_filepath, u.part()));
      identities.push_back(
          text(name(u), '\n', u.text, '\n', seconds.back(), '\n', detail::open_to_read(u.audio_filepath).size));
    }
  }
  Index size() const { return static_cast<Index>(utterances.size()); }
  /// Returns the duration of the utterances from `begin` on, in seconds.
  double seconds_from(Index begin) const { return std::accumulate(seconds.begin() + begin, seconds.end(), 0.0); }
  /// Returns as many utterances from `begin` on as fill so many seconds, but at least one if there is any.
  std::span<const Utterance> portion(Index begin, double most) const {
    if (begin == size()) return {};
    const auto first = static_cast<std::size_t>(begin);
    return std::span(utterances).subspan(first, portion_end(seconds, first, most) - first);
  }
  static std::string name(const Utterance& u) {
    return u.audio_filepath.stem().string() + (u.part().offset > 0 ? text('@', *u.offset) : "");
  }
};

}  // namespace eval_parts
