// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include "common/portions.hpp"

#include <laconic/speech/audio.hpp>
#include <laconic/speech/corpus.hpp>
#include <laconic/speech/vocabulary.hpp>

#include <numeric>
#include <span>
#include <string>
#include <vector>

namespace eval_parts {

using namespace laconic;

/// Utterances, and what is known of each before its samples are read.
struct EvalCorpus {
  std::vector<Utterance> utterances;
  std::vector<double> seconds;          ///< as the files say, not the manifest
  std::vector<std::string> identities;  ///< texts that tell an utterance from others

  /// Reads a corpus, its texts without the punctuation that the vocabulary lacks if `normalize` is true.
  EvalCorpus(const std::string& data, const Vocabulary& vocabulary, bool normalize) : utterances(read_corpus(data)) {
    require(!utterances.empty(), data, ": no utterances");
    for (Utterance& u : utterances)
      if (normalize) u.text = vocabulary.without_punctuation(u.text);
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
