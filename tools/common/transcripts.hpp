// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include "cli.hpp"

#include <string>
#include <vector>

/// Says how transcripts are printed.
enum class TranscriptFormat {
  text,  ///< "FILE: TEXT"
  json,  ///< an object a recording, with words
  srt,   ///< subtitles (SubRip)
  vtt,   ///< subtitles (WebVTT)
  ctm    ///< a word a line, with times
};
constexpr auto enum_names(TranscriptFormat) {
  using enum TranscriptFormat;
  return std::to_array<laconic::EnumName<TranscriptFormat>>(
      {{text, "text"}, {json, "json"}, {srt, "srt"}, {vtt, "vtt"}, {ctm, "ctm"}});
}

/// The options of commands that print transcripts of recordings.
struct TranscriptOptions {
  std::string format = "text";
  double window_seconds = laconic::TranscriptionConfig{}.window_seconds;

  /// Adds the options and returns that of windows. `formats` says what the formats are.
  CLI::Option* add_to(CLI::App& command, const std::string& formats);
  TranscriptFormat chosen_format() const { return laconic::from_name<TranscriptFormat>(format).value(); }
};

/// Returns words with times for JSON.
nlohmann::json to_json(const std::vector<laconic::Word>& words);

/// Returns what came of a recording, for JSON: text, words, the best texts of a beam search, and what was not heard.
nlohmann::json to_json(const std::string& file, const laconic::Transcript& heard, const std::string& note,
                       bool is_whole);

/// Prints a transcript in the chosen format; `json` is what `to_json` returned for it.
void print_transcript(TranscriptFormat format, const std::string& file, const laconic::Transcript& heard,
                      const nlohmann::json& json);
