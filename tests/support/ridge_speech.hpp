// laconic: attention for speech models. SPDX-License-Identifier: MIT
// A synthetic corpus that a small model learns in seconds.
#pragma once

#include "catch.hpp"

#include <laconic/recognition/dataset.hpp>

namespace laconic {

inline constexpr Index mels = 8;
inline const std::vector<std::string> words{"ba", "da", "ga", "ma"};

/// Returns synthetic speech: each word is a ridge in its own channels for a few frames, with noise only between words.
inline Dataset corpus(Index utterances, Seed seed) {
  const Vocabulary vocabulary = Vocabulary::words(words);
  Dataset out;
  for (Index u = 0; u < utterances; ++u) {
    const Random random(seed, static_cast<std::uint64_t>(u));
    std::uint64_t draw = 0;
    Example e;
    std::vector<int> channel;
    const auto put = [&](Index frames, int of) { channel.insert(channel.end(), static_cast<std::size_t>(frames), of); };
    const Index count = 2 + random.below(3, draw++);
    put(4, -1);
    for (Index i = 0; i < count; ++i) {
      const auto word = static_cast<std::size_t>(random.below(static_cast<Index>(words.size()), draw++));
      e.text += (i > 0 ? " " : "") + words[word];
      put(5 + random.below(3, draw++), 2 * static_cast<int>(word));
      put(3 + random.below(3, draw++), -1);
    }
    e.features.resize(static_cast<Index>(channel.size()), mels);
    for (Index t = 0; t < e.features.rows(); ++t)
      for (Index f = 0; f < mels; ++f) {
        const int at = channel[static_cast<std::size_t>(t)];
        e.features(t, f) =
            static_cast<float>(0.4 * random.uniform(draw++) - 0.2 + (at == f || at + 1 == f ? 1.5 : -0.3));
      }
    e.labels = vocabulary.encode(e.text);
    e.name = text("utterance", u);
    e.seconds = 0.01 * static_cast<double>(e.features.rows());
    out.examples.push_back(std::move(e));
  }
  return out;
}

}  // namespace laconic
