// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/extent.hpp>

#include <algorithm>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Holds a word of a transcript. A decoder that does not measure times or confidence leaves them empty.
struct Word {
  std::string text;                    ///< the word in UTF-8
  std::optional<double> begin{},       ///< start in seconds from the beginning of the speech
      end{};                           ///< end in seconds from the beginning of the speech
  std::optional<double> confidence{};  ///< how sure the model is, 0 to 1 (see `ConfidenceMeasure`)
};

/// Appends words whose times count from `begin` seconds.
inline void append_words(std::vector<Word>& words, std::span<const Word> more, double begin) {
  for (const Word& one : more) {
    words.push_back(one);
    for (std::optional<double>* time : {&words.back().begin, &words.back().end})
      if (*time) **time += begin;
  }
}

/// Says when the frames of an encoder are, in seconds.
struct FrameTimes {
  double shift = 0;   ///< from one frame to the next
  double offset = 0;  ///< begin of frame 0, so that a frame lies in the middle of the samples that it sees

  /// Returns the begin of a frame, which is the end of the one before.
  double operator()(Index frame) const { return std::max(0.0, offset + shift * static_cast<double>(frame)); }
};

}  // namespace LACONIC_ABI
}  // namespace laconic
