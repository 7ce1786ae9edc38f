// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include "digits.hpp"
#include "process.hpp"

#include <array>
#include <cmath>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

// Corpora of connected digits spoken by the program espeak-ng.

namespace laconic {
inline namespace LACONIC_ABI {

/// Holds the settings of a corpus spoken by espeak-ng.
struct SpeakConfig : ConnectedDigitsConfig {
  /// Voices of train, valid and test: English accents and timbres of espeak-ng, ACCENT+VARIANT.
  std::vector<std::string> voices{"en-us",     "en-us+m3",       "en-us+f2",          "en-us+m7",
                                  "en-gb+m1",  "en-gb+f1",       "en-gb+f4",          "en-gb-x-rp+m4",
                                  "en-029+m5", "en-gb-x-gbclan", "en-gb-scotland+m2", "en-gb-scotland+f3"};
  /// Voices of holdout.
  std::vector<std::string> held_out_voices{"en-us+f5", "en-gb+m6", "en-gb-x-gbcwmd+m8"};
  Index train_styles = 8,  ///< ways of speaking (a speed and a pitch) of each voice in train, used by no other part
      valid_styles = 1,    ///< ways of speaking of each voice in valid
      test_styles = 2;     ///< ways of speaking of each voice in test and in holdout
};

namespace detail {

/// The pieces of sound between pauses of at least `pause` samples. Quiet is what stays below 1/300 of the peak (-50
/// dB).
inline std::vector<std::span<const float>> cut_at_pauses(std::span<const float> x, std::size_t pause) {
  float peak = 0;
  for (const float value : x) peak = std::max(peak, std::abs(value));
  std::vector<std::span<const float>> pieces;
  std::size_t begin = 0, end = 0;  // the current piece; empty before the first
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (!(std::abs(x[i]) > peak / 300)) continue;
    if (end == 0 || i - end >= pause) {
      if (end > 0) pieces.push_back(x.subspan(begin, end - begin));
      begin = i;
    }
    end = i + 1;
  }
  if (end > 0) pieces.push_back(x.subspan(begin, end - begin));
  return pieces;
}

/// Renders one way of speaking of a voice: all ten digits once. They are said in one run, each a paragraph, and cut
/// apart at the pauses, which are longer than 270 ms at 200 words a minute; quiet within a digit is shorter than 90 ms.
inline DigitSpeaker render_digits(const std::string& voice, Index words_per_minute, Index pitch, int sample_rate,
                                  const std::filesystem::path& file) {
  std::string all;
  for (const std::string_view word : digit_words) all += text(word, ".\n\n");
  const std::string doing = text("say the digits with the voice ", voice);
  run_or_throw(
      {"espeak-ng", "-v", voice, "-s", text(words_per_minute), "-p", text(pitch), "-w", file.string(), "--", all},
      doing);
  require(is_file(file), "espeak-ng: wrote no audio when asked to ", doing);  // it exits with 0 on a full disk
  const Audio audio = read_audio(file);
  ::unlink(file.c_str());
  const auto pieces = cut_at_pauses(audio.samples, static_cast<std::size_t>(audio.sample_rate) * 150 / 1000);
  require(pieces.size() == 10, "espeak-ng: ", pieces.size(), " words heard when asked to ", doing, ", 10 expected");
  DigitSpeaker out{voice, {}};
  for (std::size_t digit = 0; digit < 10; ++digit)
    out.digits[digit].push_back(make_clip(resample(pieces[digit], audio.sample_rate, sample_rate), sample_rate));
  return out;
}

}  // namespace detail

/// Makes the corpus of `make_digits_corpus` with the program espeak-ng in place of recordings: many voices in many ways
/// of speaking (130 to 200 words a minute, pitch 20 to 80 of 99), an utterance in one of them. Train, valid and test
/// have the same voices in different ways of speaking; holdout.jsonl has further voices. Digits are rendered once for
/// each way of speaking and joined as recordings are, so the program does not run for each utterance, and the task is
/// the same. Throws `Error` if espeak-ng is missing or fails, and otherwise as `make_digits_corpus` does.
inline void make_spoken_corpus(const SpeakConfig& config, const Progress& progress = {}) {
  detail::check(config);
  for (const Index styles : {config.train_styles, config.valid_styles, config.test_styles})
    require(1 <= styles && styles <= 1000, config.out.string(), ": ", styles,
            " ways of speaking given, 1 to 1000 expected");
  std::vector<DigitSplit> splits{{"train", config.train_utterances, {}},
                                 {"valid", config.valid_utterances, {}},
                                 {"test", config.test_utterances, {}},
                                 {"holdout", config.test_utterances, {}}};
  const std::array<Index, 4> styles{config.train_styles, config.valid_styles, config.test_styles, config.test_styles};
  require(!config.voices.empty(), config.out.string(), ": no voices given");
  if (config.held_out_voices.empty()) splits.pop_back();

  struct Style {
    std::size_t split;
    std::string voice;
    Index speed, pitch;
  };
  std::vector<Style> plan;
  const auto draw = [&](const std::string& voice, std::size_t first_split, std::size_t end_split) {
    const Random random(config.seed, std::string_view(voice));
    std::set<std::pair<Index, Index>> used;
    std::uint64_t counter = 0;
    for (std::size_t s = first_split; s < end_split; ++s)
      for (Index n = 0; n < styles[s]; counter += 2) {
        const Index speed = 130 + random.below(71, counter), pitch = 20 + random.below(61, counter + 1);
        if (!used.emplace(speed, pitch).second) continue;
        plan.push_back({s, voice, speed, pitch});
        ++n;
      }
  };
  for (const std::string& voice : config.voices) draw(voice, 0, 3);
  for (const std::string& voice : config.held_out_voices) draw(voice, 3, 4);

  std::vector<DigitSpeaker> spoken(plan.size());
  {
    const FolderWriter scratch(config.out);  // never committed, so it is removed in any case
    detail::SharedProgress shared(progress, "rendering voices", static_cast<Index>(plan.size()));
    kernels::parallel_or_throw(config.threads, static_cast<Index>(plan.size()), [&](std::size_t i) {
      spoken[i] = detail::render_digits(plan[i].voice, plan[i].speed, plan[i].pitch, config.sample_rate,
                                        scratch.path() / text(i, ".wav"));
      shared.one_done();
    });
  }
  for (std::size_t i = 0; i < plan.size(); ++i) splits[plan[i].split].speakers.push_back(std::move(spoken[i]));
  detail::write_connected_digits(
      config, splits,
      {{"made_from", "espeak-ng"},
       {"styles_a_voice", {{"train", styles[0]}, {"valid", styles[1]}, {"test", styles[2]}, {"holdout", styles[3]}}}},
      progress);
}

}  // namespace LACONIC_ABI
}  // namespace laconic
