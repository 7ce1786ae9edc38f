// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/enum.hpp>

namespace laconic {
inline namespace LACONIC_ABI {

/// Says what the tokens of a vocabulary are.
enum class Tokens {
  characters,  ///< UTF-8 code points, with the space
  words        ///< whole words
};

/// Names the values of Tokens as in config.json, corpus.json and on the command line.
constexpr auto enum_names(Tokens) {
  return std::to_array<EnumName<Tokens>>({{Tokens::characters, "characters"}, {Tokens::words, "words"}});
}

}  // namespace LACONIC_ABI
}  // namespace laconic
