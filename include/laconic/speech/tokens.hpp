// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/enum.hpp>

namespace laconic {
inline namespace LACONIC_ABI {

/// What a vocabulary is made of: characters (UTF-8 code points, the space among them) or whole words.
enum class Tokens { characters, words };

/// As config.json, corpus.json and the command line say it.
constexpr auto enum_names(Tokens) {
  return std::to_array<EnumName<Tokens>>({{Tokens::characters, "characters"}, {Tokens::words, "words"}});
}

}  // namespace LACONIC_ABI
}  // namespace laconic
