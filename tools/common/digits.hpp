// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/parallel.hpp>
#include <laconic/core/random.hpp>
#include <laconic/io/json.hpp>
#include <laconic/speech/audio.hpp>
#include <laconic/speech/corpus.hpp>
#include <laconic/speech/subtitles.hpp>
#include <laconic/speech/vocabulary.hpp>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <limits>
#include <map>
#include <mutex>
#include <numeric>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

// Corpora of connected digits ("three one four one five"), joined from recordings of single digits.

namespace laconic {
inline namespace LACONIC_ABI {

/// Words of the digits 0 to 9.
inline constexpr std::array<std::string_view, 10> digit_words{"zero", "one", "two",   "three", "four",
                                                              "five", "six", "seven", "eight", "nine"};

/// Holds the settings that corpora of connected digits share, whatever the single digits come from.
struct ConnectedDigitsConfig {
  std::filesystem::path out;         ///< a folder that does not exist or is empty
  Seed seed;                         ///< seed of all that is drawn
  Index train_utterances = 4000,     ///< number in train.jsonl
      valid_utterances = 200,        ///< number in valid.jsonl
      test_utterances = 500;         ///< number in test.jsonl and in holdout.jsonl
  Index min_digits = 3,              ///< min digits of an utterance
      max_digits = 7;                ///< max digits of an utterance
  Index max_gap_ms = 200;            ///< max pause before, between and after digits
  int sample_rate = 8000;            ///< rate of the written files, in Hz
  Tokens tokens = Tokens::words;     ///< the kind of vocabulary that training on the corpus takes
  int threads = hardware_threads();  ///< number of threads; the corpus does not depend on it
};

/// Shows the stage of the work and how much of it is done. Called by one thread at a time.
using Progress = std::function<void(std::string_view stage, Index done, Index total)>;

/// Holds one recorded digit.
struct DigitClip {
  std::vector<float> samples;  ///< amplitudes
  float floor = 0;             ///< RMS of its quietest 10 ms: the noise of the room
};

/// Holds one speaker's recordings of each digit.
struct DigitSpeaker {
  std::string name;                               ///< name of the speaker
  std::array<std::vector<DigitClip>, 10> digits;  ///< recordings of 0 to 9
};

/// Describes a part of a corpus, NAME.jsonl: `utterances` evenly over `speakers`.
struct DigitSplit {
  std::string name;                    ///< NAME
  Index utterances = 0;                ///< number of utterances
  std::vector<DigitSpeaker> speakers;  ///< speakers with the clips of this part
};

namespace detail {

/// Holds the smallest amplitude of 16-bit audio.
inline constexpr float least_amplitude = 1.0f / 32768;

/// Makes a clip from samples. The first and last 5 ms fade, so that recordings that were cut do not click.
inline DigitClip make_clip(std::vector<float> samples, int sample_rate) {
  const auto window = static_cast<std::size_t>(std::max(sample_rate / 100, 1));
  DigitClip clip{std::move(samples), 1};
  std::vector<float>& x = clip.samples;
  for (std::size_t begin = 0; begin == 0 || begin + window <= x.size(); begin += window) {
    float energy = 0;
    const std::size_t end = std::min(begin + window, x.size());
    for (std::size_t i = begin; i < end; ++i) energy += x[i] * x[i];
    clip.floor = std::min(clip.floor, std::sqrt(energy / static_cast<float>(std::max<std::size_t>(end - begin, 1))));
  }
  const std::size_t fade = std::min(window / 2, x.size() / 2);
  for (std::size_t i = 0; i < fade; ++i) {
    const float gain = (static_cast<float>(i) + 0.5f) / static_cast<float>(fade);
    x[i] *= gain;
    x[x.size() - 1 - i] *= gain;
  }
  return clip;
}

/// Draws the digits of a speaker's utterances: lengths uniform, each digit equally often (to one), in random order.
inline std::vector<std::vector<int>> draw_digits(const ConnectedDigitsConfig& config, Index utterances,
                                                 std::string_view stream) {
  const Random lengths(config.seed, text(stream, " lengths"));
  std::vector<std::vector<int>> out;
  std::size_t total = 0;
  for (Index u = 0; u < utterances; ++u) {
    const Index n =
        config.min_digits + lengths.below(config.max_digits - config.min_digits + 1, static_cast<std::uint64_t>(u));
    out.emplace_back(static_cast<std::size_t>(n));
    total += static_cast<std::size_t>(n);
  }
  std::vector<int> deck(total);
  const Index first = lengths.below(10, static_cast<std::uint64_t>(utterances));
  for (std::size_t i = 0; i < total; ++i) deck[i] = static_cast<int>((i + static_cast<std::size_t>(first)) % 10);
  shuffle(deck, Random(config.seed, text(stream, " digits")));
  for (auto& digits : out)
    for (int& digit : digits) {
      digit = deck.back();
      deck.pop_back();
    }
  return out;
}

/// Holds joined clips, and when each of them begins and ends, in samples.
struct JoinedClips {
  std::vector<float> samples;
  std::vector<Range> clips;
};

/// Joins clips with gaps. A gap is filled with noise as loud as the quieter of its neighbours' rooms, and digital
/// silence anywhere with noise of 1 LSB: the log energies of zeros are far below any recording's, and a model would
/// learn to cut there.
inline JoinedClips join_clips(std::span<const DigitClip* const> clips, const ConnectedDigitsConfig& config,
                              const Random& random) {
  JoinedClips joined;
  std::vector<float>& out = joined.samples;
  std::uint64_t counter = 0;
  const auto noise = [&](float rms) {
    return std::sqrt(3.0f) * rms * static_cast<float>(2 * random.uniform(counter++) - 1);
  };
  const auto gap = [&](float floor) {
    const double ms = static_cast<double>(config.max_gap_ms) * random.uniform(counter++);
    const long samples = std::lround(ms * config.sample_rate / 1000);
    for (long i = 0; i < samples; ++i) out.push_back(noise(std::max(floor, least_amplitude)));
  };
  for (std::size_t i = 0; i < clips.size(); ++i) {
    gap(i == 0 ? clips[i]->floor : std::min(clips[i - 1]->floor, clips[i]->floor));
    const auto begin = static_cast<Index>(out.size());
    for (const float sample : clips[i]->samples)
      out.push_back(clips[i]->floor < least_amplitude ? sample + noise(least_amplitude) : sample);
    joined.clips.push_back({begin, static_cast<Index>(out.size())});
  }
  gap(clips.back()->floor);
  return joined;
}

/// Throws `Error` for settings that make no sense and for an `out` that is not empty.
inline void check(const ConnectedDigitsConfig& config) {
  const std::string out = config.out.string();
  require(!out.empty(), "connected digits: no folder to write to given");
  std::error_code error;
  Partials::all().locked([&] { Partials::all().remove_stale(resolved(config.out), partial_prefix("")); });
  if (is_there(config.out))
    require(std::filesystem::is_directory(config.out, error) && std::filesystem::is_empty(config.out, error), out,
            ": exists and is not an empty folder; give another or remove it");
  require(config.train_utterances > 0 && config.valid_utterances > 0 && config.test_utterances > 0, out, ": ",
          config.train_utterances, " training, ", config.valid_utterances, " validation and ", config.test_utterances,
          " test utterances given, at least 1 of each expected");
  require(1 <= config.min_digits && config.min_digits <= config.max_digits && config.max_digits <= 1000, out, ": ",
          config.min_digits, " to ", config.max_digits, " digits given, 1 to 1000 expected");
  require(0 <= config.max_gap_ms && config.max_gap_ms <= 10000, out, ": gaps to ", config.max_gap_ms,
          " ms given, 0 to 10000 expected");
  require(4000 <= config.sample_rate && config.sample_rate <= 192000, out, ": ", config.sample_rate,
          " Hz given, 4000 to 192000 expected");
  require(config.threads > 0, out, ": ", config.threads, " threads given, at least 1 expected");
}

/// Counts what several threads have done, and shows it.
class SharedProgress {
 public:
  /// Starts a stage of `total` things at 0. `progress` must outlive this object.
  SharedProgress(const Progress& progress, std::string_view stage, Index total)
      : progress_(progress), stage_(stage), total_(total) {}
  /// Counts one more. May be called from several threads.
  void one_done() {
    const std::lock_guard lock(mutex_);
    ++done_;
    if (progress_) progress_(stage_, done_, total_);
  }

 private:
  std::mutex mutex_;
  const Progress& progress_;
  std::string_view stage_;
  Index done_ = 0, total_;
};

/// Returns digits of a speaker, each drawn from that speaker's recordings, joined.
inline JoinedClips say_digits(const ConnectedDigitsConfig& config, const DigitSpeaker& speaker,
                              std::span<const int> digits, const std::string& stream) {
  const Random pick(config.seed, stream + " clips");
  std::vector<const DigitClip*> clips;
  for (const int digit : digits) {
    const auto& choice = speaker.digits[static_cast<std::size_t>(digit)];
    clips.push_back(&choice[static_cast<std::size_t>(pick.below(static_cast<Index>(choice.size()), clips.size()))]);
  }
  return join_clips(clips, config, Random(config.seed, stream));
}

/// Writes NAME.jsonl, its audio and NAME.ctm, which has the begin and the duration of every word, and returns the entry
/// for corpus.json.
inline nlohmann::json write_split(const ConnectedDigitsConfig& config, const DigitSplit& split,
                                  const std::filesystem::path& folder, SharedProgress& progress) {
  struct Plan {
    const DigitSpeaker* speaker;
    std::string stream;
    std::vector<int> digits;
  };
  std::vector<Plan> plans;
  std::set<std::string> names;
  const auto speakers = static_cast<Index>(split.speakers.size());
  for (Index s = 0; s < speakers; ++s) {
    const DigitSpeaker& speaker = split.speakers[static_cast<std::size_t>(s)];
    const Index share = split.utterances / speakers + (s < split.utterances % speakers ? 1 : 0);
    const std::string stream = text(split.name, ' ', s);
    for (auto& digits : draw_digits(config, share, stream))
      plans.push_back({&speaker, text(stream, ' ', plans.size()), std::move(digits)});
    if (share > 0) names.insert(speaker.name);
  }

  std::vector<Utterance> utterances(plans.size());
  std::vector<std::string> times(plans.size());
  kernels::parallel_or_throw(config.threads, static_cast<Index>(plans.size()), [&](std::size_t i) {
    Utterance& one = utterances[i];
    for (const int digit : plans[i].digits) {
      if (!one.text.empty()) one.text += ' ';
      one.text += digit_words[static_cast<std::size_t>(digit)];
    }
    JoinedClips said = say_digits(config, *plans[i].speaker, plans[i].digits, plans[i].stream);
    std::vector<Word> words;
    const auto seconds = [&](Index sample) { return static_cast<double>(sample) / config.sample_rate; };
    for (std::size_t n = 0; n < said.clips.size(); ++n)
      words.push_back({std::string(digit_words[static_cast<std::size_t>(plans[i].digits[n])]),
                       seconds(said.clips[n].begin), seconds(said.clips[n].end)});
    const Audio audio{std::move(said.samples), config.sample_rate};
    std::string number = text(i);
    number.insert(0, number.size() < 6 ? 6 - number.size() : 0, '0');
    one.audio_filepath = folder / "wav" / text(split.name, '_', number, ".wav");
    one.duration = audio.duration();
    one.speaker = plans[i].speaker->name;
    times[i] = to_ctm(words, one.audio_filepath.stem().string());
    write_wav(one.audio_filepath, audio);
    progress.one_done();
  });
  shuffle(utterances, Random(config.seed, text(split.name, " order")));
  write_manifest(folder / (split.name + ".jsonl"), utterances);
  write_file(folder / (split.name + ".ctm"), std::accumulate(times.begin(), times.end(), std::string()));
  double seconds = 0;
  for (const Utterance& one : utterances) seconds += one.duration;
  return {{"utterances", split.utterances}, {"seconds", seconds}, {"speakers", names}};
}

/// Writes the corpus, whole or not at all: wav/, a manifest for each part, and corpus.json with `made` (how it was
/// made).
inline void write_connected_digits(const ConnectedDigitsConfig& config, std::span<const DigitSplit> splits,
                                   nlohmann::json made, const Progress& progress) {
  FolderWriter folder(config.out);
  make_folder(folder.path() / "wav");
  Index total = 0;
  for (const DigitSplit& split : splits) total += split.utterances;
  SharedProgress shared(progress, "writing utterances", total);
  for (const DigitSplit& split : splits) made["splits"][split.name] = write_split(config, split, folder.path(), shared);
  made["seed"] = config.seed.value;
  made["tokens"] = to_json(config.tokens);
  made["digits"] = {config.min_digits, config.max_digits};
  made["gap_ms"] = {0, config.max_gap_ms};
  made["sample_rate"] = config.sample_rate;
  write_json(folder.path() / "corpus.json", made);
  folder.commit();
}

/// Lists the recordings of a folder by speaker, digit and index.
struct DigitRecordings {
  /// Files by speaker, digit and index.
  std::map<std::string, std::array<std::map<Index, std::filesystem::path>, 10>> speakers;

  /// Lists a folder. Throws `Error` for a misnamed file, two of the same name, and a folder without recordings.
  explicit DigitRecordings(const std::filesystem::path& folder) {
    std::error_code error;
    require(is_there(folder) && std::filesystem::is_directory(folder, error), folder.string(), ": no such folder");
    for (const std::filesystem::path& file : files_in(folder)) {
      if (file.extension() != ".wav") continue;
      const std::string name = file.stem().string();
      const std::size_t first = name.find('_'), last = name.rfind('_');
      Index index = -1;
      const bool three_parts =
          first == 1 && last > first + 1 && last != std::string::npos && name[0] >= '0' && name[0] <= '9';
      const char* end = name.data() + name.size();
      const bool number = three_parts && std::from_chars(name.data() + last + 1, end, index).ptr == end && index >= 0;
      require(number, file.string(), ": the name of a recording is {digit}_{speaker}_{index}.wav");
      auto& same = speakers[name.substr(2, last - 2)][static_cast<std::size_t>(name[0] - '0')];
      const auto [entry, is_new] = same.emplace(index, file);
      require(is_new, file.string(), ": the same digit, speaker and index as ", entry->second.string());
    }
    require(!speakers.empty(), folder.string(), ": holds no recordings {digit}_{speaker}_{index}.wav");
  }

  /// Reads a speaker's recordings with indices first .. last, and appends to `notes` what had to be converted. Throws
  /// `Error` if a digit has none.
  DigitSpeaker read(const std::string& name, Index first, Index last, int sample_rate,
                    std::vector<std::string>& notes) const {
    DigitSpeaker out{name, {}};
    for (std::size_t digit = 0; digit < 10; ++digit) {
      for (const auto& [index, file] : speakers.at(name)[digit])
        if (first <= index && index <= last) {
          std::string note;
          Audio audio = read_audio(file, sample_rate, &note);
          if (!note.empty()) notes.push_back(std::move(note));
          out.digits[digit].push_back(make_clip(std::move(audio.samples), sample_rate));
        }
      require(!out.digits[digit].empty(), "recordings of ", name, ": no digit ", digit, " with an index from ", first,
              " to ", last);
    }
    return out;
  }

  /// Returns the names of all speakers for a message.
  std::string names() const {
    std::string out;
    for (const auto& [name, unused] : speakers) out += (out.empty() ? "" : ", ") + name;
    return out;
  }
};

}  // namespace detail

/// Holds the settings of a corpus made from recordings of single digits.
struct DigitsConfig : ConnectedDigitsConfig {
  std::filesystem::path recordings;  ///< a folder of {digit}_{speaker}_{index}.wav
  std::string holdout_speaker;       ///< heard only in holdout.jsonl; empty: none
};

/// Makes a corpus of connected digits from recordings named like those of the Free Spoken Digit Dataset, whose own
/// split is kept: recordings 0-4 of each digit and speaker are for tests, the rest for training. An utterance is digits
/// of one speaker with gaps between them; speakers and digits are balanced.
///   train.jsonl    recordings 8 and on
///   valid.jsonl    recordings 5-7, which train.jsonl does not use: choosing a model neither sees test recordings nor
///                  rewards memorising recordings
///   test.jsonl     recordings 0-4 of the same speakers
///   holdout.jsonl  all recordings of the speaker held out, who is in no other part
/// `corpus.json` says how it was made. The folder appears when it is complete; equal configurations give equal bytes.
/// Returns a note for each recording that had to be converted to be read. Throws `Error` for an unreadable, empty or
/// misnamed recording, a digit that a part lacks, an unknown speaker and an `out` that is not empty.
inline std::vector<std::string> make_digits_corpus(const DigitsConfig& config, const Progress& progress = {}) {
  detail::check(config);
  const detail::DigitRecordings recordings(config.recordings);
  const std::string& held_out = config.holdout_speaker;
  require(held_out.empty() || recordings.speakers.contains(held_out), config.recordings.string(), ": no speaker \"",
          held_out, "\" to hold out; known: ", recordings.names());
  require(held_out.empty() || recordings.speakers.size() > 1, config.recordings.string(), ": ", held_out,
          " is the only speaker and cannot be held out");

  constexpr Index last = std::numeric_limits<Index>::max();
  std::vector<std::string> notes;
  const auto read = [&](const std::string& name, Index from, Index to) {
    return recordings.read(name, from, to, config.sample_rate, notes);
  };
  std::vector<DigitSplit> splits{{"train", config.train_utterances, {}},
                                 {"valid", config.valid_utterances, {}},
                                 {"test", config.test_utterances, {}}};
  for (const auto& [name, unused] : recordings.speakers) {
    if (name == held_out) continue;
    splits[0].speakers.push_back(read(name, 8, last));
    splits[1].speakers.push_back(read(name, 5, 7));
    splits[2].speakers.push_back(read(name, 0, 4));
  }
  if (!held_out.empty()) splits.push_back({"holdout", config.test_utterances, {read(held_out, 0, last)}});
  detail::write_connected_digits(
      config, splits,
      {{"made_from", "recordings of single digits"},
       {"recordings", config.recordings.string()},
       {"holdout_speaker", held_out},
       {"recordings_used", {{"train", "8 and on"}, {"valid", "5-7"}, {"test", "0-4"}, {"holdout", "all"}}}},
      progress);
  return notes;
}

}  // namespace LACONIC_ABI
}  // namespace laconic
