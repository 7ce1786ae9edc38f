// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include "common/cli.hpp"

#include <laconic/recognition/dataset.hpp>
#include <laconic/speech/corpus.hpp>
#include <laconic/speech/vocabulary.hpp>

#include <algorithm>
#include <map>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

// Texts of a corpus that a model's vocabulary cannot write.

namespace laconic {

/// Characters or words of the texts that the vocabulary does not have, and in how many texts each is.
struct UnknownTokens {
  std::map<std::string, Index> in_texts;
  Index texts = 0;    ///< texts with at least one
  std::string first;  ///< the audio file of the first of them

  UnknownTokens(std::span<const Utterance> utterances, const Vocabulary& vocabulary) : all_(utterances.size()) {
    what_ = to_name(vocabulary.kind());
    for (const Utterance& u : utterances) {
      std::set<std::string, std::less<>> unknown;
      try {
        unknown = vocabulary.unknown(u.text);
      } catch (const Error&) {
        unknown = {"bytes that are not UTF-8"};
      }
      if (unknown.empty()) continue;
      if (texts++ == 0) first = u.audio_filepath.string();
      for (const std::string& one : unknown) ++in_texts[one];
    }
  }
  /// Returns how many texts have what the vocabulary lacks, and what that is, the most frequent first.
  std::string sentence() const {
    std::vector<std::pair<Index, std::string>> order;
    for (const auto& [one, count] : in_texts) order.emplace_back(-count, one);
    std::sort(order.begin(), order.end());
    constexpr std::size_t shown = 20;
    std::string list;
    for (std::size_t i = 0; i < std::min(order.size(), shown); ++i)
      list += text(i > 0 ? ", " : "", '"', order[i].second, "\" (", -order[i].first, ')');
    return text(texts, " of ", all_, " texts have ", what_, " that the vocabulary lacks: ", list,
                order.size() > shown ? text(" and ", order.size() - shown, " more") : "", " (in so many texts)");
  }

 private:
  std::size_t all_;
  std::string_view what_;
};

/// Adds labels to the examples whose text the vocabulary can write. The others have no loss, but errors in their words.
inline void add_labels(Dataset& data, const Vocabulary& vocabulary) {
  data.blank = vocabulary.blank();
  for (Example& e : data.examples) {
    try {
      e.labels = vocabulary.encode(e.text);
    } catch (const Error&) {
    }
  }
}

}  // namespace laconic
