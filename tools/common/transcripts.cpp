// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include "transcripts.hpp"

#include <laconic/speech/subtitles.hpp>

using namespace laconic;

CLI::Option* TranscriptOptions::add_to(CLI::App& command, const std::string& formats) {
  command.add_option("--format", format, formats)
      ->capture_default_str()
      ->check(CLI::IsMember(names_of<TranscriptFormat>()));
  return command
      .add_option("--window", window_seconds,
                  "seconds of a window; longer recordings are heard in windows that overlap by an eighth")
      ->capture_default_str()
      ->check(between(1, 1e6));
}

nlohmann::json to_json(const std::vector<Word>& words) {
  nlohmann::json out = nlohmann::json::array();
  for (const Word& one : words) {
    out.push_back({{"word", one.text}, {"begin", one.begin.value_or(0)}, {"end", one.end.value_or(0)}});
    if (one.confidence) out.back()["confidence"] = *one.confidence;
  }
  return out;
}

nlohmann::json to_json(const std::string& file, const Transcript& heard, const std::string& note, bool is_whole) {
  nlohmann::json out{
      {"audio_filepath", file}, {"text", heard.text}, {"seconds", heard.seconds}, {"words", to_json(heard.words)}};
  for (const Alternative& one : heard.alternatives)
    out["alternatives"].push_back({{"text", one.text}, {"score", one.score}, {"log_prob", one.log_prob}});
  if (!note.empty()) out["notes"] = {note};
  if (!is_whole) out["is_whole"] = false;
  return out;
}

void print_transcript(TranscriptFormat format, const std::string& file, const Transcript& heard,
                      const nlohmann::json& json) {
  switch (format) {
    case TranscriptFormat::json:
      print(json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace), "\n");
      break;
    case TranscriptFormat::srt:
      print(Lines{to_srt(heard.words)});
      break;
    case TranscriptFormat::vtt:
      print(Lines{to_vtt(heard.words)});
      break;
    case TranscriptFormat::ctm:
      print(Lines{to_ctm(heard.words, std::filesystem::path(file).stem().string())});
      break;
    default:
      print(file, ": ", heard.text, "\n");
  }
}
