// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include "decoding_options.hpp"

#include <laconic/decode/read_ngram.hpp>
#include <laconic/speech/vocabulary.hpp>

using namespace laconic;

std::shared_ptr<const BeamDecoding> DecodingOptions::chosen(const Vocabulary& vocabulary) const {
  if (beam.config.beam_width == 0) {
    require(language_model.empty() && beam.hotwords.empty(), "--lm and --hotwords need a beam search: --beam 0 given");
    return nullptr;
  }
  auto out = std::make_shared<BeamDecoding>(beam);
  for (std::string& one : out->hotwords) one = vocabulary.written(one);
  if (!language_model.empty()) out->model = std::make_shared<NgramModel>(read_ngram_model(language_model));
  return out;
}
