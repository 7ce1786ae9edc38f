// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/error.hpp>
#include <laconic/speech/word.hpp>
#include <laconic/speech/words.hpp>

#include <cmath>
#include <cstddef>
#include <cstdio>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

// Words with times as subtitles (SubRip, WebVTT) and as CTM, the format of NIST's scoring tools and of Kaldi.

namespace laconic {
inline namespace LACONIC_ABI {

/// Holds what is shown at once: one or two lines.
struct Subtitle {
  double begin = 0, end = 0;  ///< in seconds
  std::string text;           ///< words, with a line end in it if they take two lines
};

namespace detail {

/// Returns the begin and the end of a word. Throws `Error` if it has none.
inline std::pair<double, double> times_of(const Word& word) {
  require(word.begin && word.end, "subtitles: the word \"", word.text, "\" has no times");
  return {*word.begin, *word.end};
}

/// Returns the characters of a word as far as a reader sees them: bytes that do not continue a character.
inline std::size_t count_characters(std::string_view word) {
  std::size_t out = 0;
  for (const char c : word) out += (static_cast<unsigned char>(c) & 0xC0) != 0x80 ? 1 : 0;
  return out;
}

/// Returns a time as hours:minutes:seconds, the point before the milliseconds as given.
inline std::string clock_time(double seconds, char point) {
  const auto ms = static_cast<long long>(std::llround(seconds * 1000));
  char out[64];
  std::snprintf(out, sizeof out, "%02lld:%02lld:%02lld%c%03lld", ms / 3600000, ms / 60000 % 60, ms / 1000 % 60, point,
                ms % 1000);
  return out;
}

}  // namespace detail

/// Groups words into subtitles: at most 2 lines of 42 characters (a longer word has a line of its own) and 7 seconds; a
/// pause of a second or more ends one. Throws `Error` for words without times. Allocates.
inline std::vector<Subtitle> subtitles(std::span<const Word> words) {
  constexpr std::size_t line_length = 42;
  constexpr double longest = 7, pause = 1;
  std::vector<Subtitle> out;
  std::size_t in_line = 0;
  bool second_line = false;
  for (const Word& word : words) {
    const auto [begin, end] = detail::times_of(word);
    const std::size_t length = detail::count_characters(word.text);
    const bool fits = in_line + 1 + length <= line_length;
    if (out.empty() || begin - out.back().end >= pause || end - out.back().begin > longest || (!fits && second_line)) {
      out.push_back({begin, end, word.text});
      in_line = length;
      second_line = false;
      continue;
    }
    out.back().text += fits ? ' ' : '\n';
    out.back().text += word.text;
    out.back().end = end;
    in_line = fits ? in_line + 1 + length : length;
    second_line |= !fits;
  }
  return out;
}

/// Returns words as SubRip (.srt) has them. Throws `Error` for words without times. Allocates.
inline std::string to_srt(std::span<const Word> words) {
  std::string out;
  std::size_t number = 0;
  for (const Subtitle& one : subtitles(words))
    out += text(++number, '\n', detail::clock_time(one.begin, ','), " --> ", detail::clock_time(one.end, ','), '\n',
                one.text, "\n\n");
  return out;
}

/// Returns words as WebVTT (.vtt) has them; '&', '<' and '>' are escaped. Throws `Error` for words without times.
/// Allocates.
inline std::string to_vtt(std::span<const Word> words) {
  std::string out = "WEBVTT\n\n";
  for (const Subtitle& one : subtitles(words)) {
    out += text(detail::clock_time(one.begin, '.'), " --> ", detail::clock_time(one.end, '.'), '\n');
    for (const char c : one.text) out += c == '&' ? "&amp;" : c == '<' ? "&lt;" : c == '>' ? "&gt;" : std::string(1, c);
    out += "\n\n";
  }
  return out;
}

/// Returns words as CTM has them: a line "RECORDING 1 BEGIN DURATION WORD CONFIDENCE" each, times in seconds. White
/// space in the name of the recording becomes '_'. Throws `Error` for words without times. Allocates.
inline std::string to_ctm(std::span<const Word> words, std::string_view recording) {
  std::string name(recording);
  for (char& c : name)
    if (detail::white_space.find(c) != std::string_view::npos) c = '_';
  std::string out;
  for (const Word& word : words) {
    const auto [begin, end] = detail::times_of(word);
    char numbers[96];
    std::snprintf(numbers, sizeof numbers, " 1 %.3f %.3f ", begin, end - begin);
    out += name + numbers + word.text;
    if (word.confidence) {
      std::snprintf(numbers, sizeof numbers, " %.4f", *word.confidence);
      out += numbers;
    }
    out += '\n';
  }
  return out;
}

}  // namespace LACONIC_ABI
}  // namespace laconic
