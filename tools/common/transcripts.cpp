// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include "transcripts.hpp"

#include <laconic/speech/subtitles.hpp>

using namespace laconic;

nlohmann::json to_json(const std::vector<Word>& words) {
  nlohmann::json out = nlohmann::json::array();
  for (const Word& one : words) {
    out.push_back({{"word", one.text}, {"begin", one.begin.value_or(0)}, {"end", one.end.value_or(0)}});
    if (one.confidence) out.back()["confidence"] = *one.confidence;
  }
  return out;
}

void print_transcript(TranscriptFormat format, const std::string& file, const Transcript& heard) {
  std::string out;
  switch (format) {
    case TranscriptFormat::json:
      out = nlohmann::json{{"audio_filepath", file},
                           {"text", heard.text},
                           {"seconds", heard.seconds},
                           {"words", to_json(heard.words)}}
                .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) +
            '\n';
      break;
    case TranscriptFormat::srt:
      out = to_srt(heard.words);
      break;
    case TranscriptFormat::vtt:
      out = to_vtt(heard.words);
      break;
    case TranscriptFormat::ctm:
      out = to_ctm(heard.words, std::filesystem::path(file).stem().string());
      break;
    default:
      out = text(file, ": ", heard.text, '\n');
  }
  print(Lines{out});
}
