// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/decode/ctc_beam_search.hpp>
#include <laconic/decode/ngram.hpp>

#include <memory>
#include <string>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Says how a beam search decodes (see `CtcBeamSearch`).
struct BeamDecoding {
  CtcBeamConfig config{};                     ///< width, pruning and weights
  std::shared_ptr<const NgramModel> model{};  ///< language model; null: none
  std::vector<std::string> hotwords{};        ///< words and phrases that are likelier than others
  Index alternatives = 1;                     ///< number of texts in `Transcript::alternatives`
};

}  // namespace LACONIC_ABI
}  // namespace laconic
