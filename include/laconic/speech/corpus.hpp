// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/io/json.hpp>
#include <laconic/speech/audio.hpp>
#include <laconic/speech/words.hpp>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Describes one recording, or a part of one, and its transcript.
struct Utterance {
  std::filesystem::path audio_filepath;  ///< the audio file
  double duration = 0;                   ///< in seconds; 0: not known
  std::string text;                      ///< transcript
  std::string speaker;                   ///< empty if not known
  std::optional<double> offset = {};     ///< seconds before it; empty: it is the whole file, whatever `duration` says

  /// Returns the part of the file that it is.
  AudioPart part() const { return offset ? AudioPart{*offset, duration} : AudioPart{}; }
};

namespace detail {

/// Says whether a path is a regular file that can be seen. Does not throw.
inline bool is_file(const std::filesystem::path& path) {
  std::error_code ignored;
  return std::filesystem::is_regular_file(path, ignored);
}

/// Calls `visit(line, where)` for each line of a text file of at most 1 GiB that is not blank, without its end ("\n" or
/// "\r\n"); `where` is "FILE:NUMBER". Lines are not kept, because a file may consist of line ends only.
template <class Visit>
void each_line(const std::filesystem::path& path, Visit&& visit) {
  require(is_there(path), path.string(), ": no such file");
  const std::string all = read_file(path, std::size_t{1} << 30);
  std::size_t number = 0;
  for (std::size_t begin = 0; begin < all.size();) {
    const std::size_t end = std::min(all.find('\n', begin), all.size());
    const auto line = std::string_view(all).substr(begin, end - begin - (end > begin && all[end - 1] == '\r' ? 1 : 0));
    ++number;
    if (line.find_first_not_of(" \t\r\n\v\f") != std::string_view::npos) visit(line, text(path.string(), ':', number));
    begin = end + 1;
  }
}

/// Collects the files of a folder, and with `deep` of all folders below it. What is hidden (".name": macOS leaves files
/// "._name" next to others) is left out. A link is followed, but not to a folder that it is in, and no folder is listed
/// twice.
struct FileList {
  std::vector<std::filesystem::path> files{};
  std::set<std::filesystem::path> listed{};  ///< folders, without links

  /// Adds a folder. Throws `Error` if one cannot be listed.
  void add(const std::filesystem::path& folder, bool deep) {
    const std::filesystem::path real = resolved(folder);
    if (!listed.insert(real).second) return;
    std::error_code error;
    std::vector<std::filesystem::path> entries, folders, links;
    std::filesystem::directory_iterator entry(folder, error);
    for (; !error && entry != std::filesystem::directory_iterator(); entry.increment(error))
      entries.push_back(entry->path());
    require(!error, folder.string(), ": cannot list: ", error.message());
    for (std::filesystem::path& path : entries) {
      std::error_code ignored;
      if (path.filename().string().starts_with('.')) continue;
      if (is_file(path))
        files.push_back(std::move(path));
      else if (deep && std::filesystem::is_directory(path, ignored))
        (std::filesystem::is_symlink(path, ignored) ? links : folders).push_back(std::move(path));
    }
    std::sort(folders.begin(), folders.end());
    std::sort(links.begin(), links.end());
    for (const std::filesystem::path& one : folders) add(one, deep);
    for (const std::filesystem::path& one : links) {
      const std::filesystem::path target = resolved(one);
      const auto ends = std::mismatch(target.begin(), target.end(), real.begin(), real.end());
      if (ends.first != target.end()) add(one, deep);  // else the link is in its target
    }
  }
};
/// Returns all files below a folder, at any depth, sorted, so that the order of a corpus does not depend on the file
/// system.
inline std::vector<std::filesystem::path> files_below(const std::filesystem::path& folder) {
  FileList list;
  list.add(folder, true);
  std::sort(list.files.begin(), list.files.end());
  return list.files;
}
/// Returns all files of a folder, sorted.
inline std::vector<std::filesystem::path> files_in(const std::filesystem::path& folder) {
  FileList list;
  list.add(folder, false);
  std::sort(list.files.begin(), list.files.end());
  return list.files;
}

/// Returns the length of a recording, or of a part, in seconds: from its header if that says it, else by reading the
/// file.
inline double audio_duration(const std::filesystem::path& path, AudioPart part = {}) {
  AudioReader reader(path, 0, part);
  if (reader.duration() > 0) return reader.duration();
  std::vector<float> block(65536);
  std::size_t count = 0;
  for (std::size_t more = block.size(); more == block.size(); count += more) more = reader.read(block);
  return static_cast<double>(count) / reader.sample_rate();
}

/// Ends the names of LibriSpeech's transcript files.
inline constexpr std::string_view transcript_ending = ".trans.txt";

}  // namespace detail

namespace detail {

/// Returns the seconds of this name in a line of a manifest, or nothing if there are none. Throws `Error` for anything
/// but a number not below 0.
inline std::optional<double> seconds_in(const nlohmann::json& json, const char* name, const std::string& where) {
  if (!json.contains(name) || json[name].is_null()) return std::nullopt;
  const auto seconds = json_member<double>(json, name, where);
  require(seconds >= 0, where, ": '", name, "' is ", seconds, ", seconds expected");
  return seconds;
}

}  // namespace detail

/// Reads a NeMo-style manifest: one JSON object a line with `audio_filepath` (relative to the manifest's folder unless
/// absolute), `text` and, if known, `duration` in seconds and `speaker` (a text or a number). With an `offset` in
/// seconds, 0 too, an utterance is a part of the recording, from there for its duration or to the end; without one it
/// is all of it. Other keys and blank lines are ignored. Throws `Error` with file and line number for bad JSON, a
/// missing key, a wrong type and audio that does not exist, and for a manifest without utterances.
inline std::vector<Utterance> read_manifest(const std::filesystem::path& path) {
  const std::filesystem::path folder = path.parent_path();
  std::vector<Utterance> utterances;
  detail::each_line(path, [&](std::string_view line, const std::string& where) {
    const nlohmann::json json = parse_json(line, where);
    Utterance one;
    const auto file = json_member<std::string>(json, "audio_filepath", where);
    require(!file.empty(), where, ": 'audio_filepath' is empty");
    require(file.find('\0') == std::string::npos, where, ": 'audio_filepath' is ", detail::in_quotes(file),
            ", a path without a zero byte expected");
    one.audio_filepath = folder / file;  // keeps an absolute path
    one.text = json_member<std::string>(json, "text", where);
    one.duration = detail::seconds_in(json, "duration", where).value_or(0);
    const std::optional<double> offset = detail::seconds_in(json, "offset", where);
    if (offset && (*offset > 0 || one.duration > 0)) one.offset = offset;
    if (json.contains("speaker") && json["speaker"].is_number_integer())
      one.speaker = json["speaker"].dump();
    else if (json.contains("speaker") && !json["speaker"].is_null())
      one.speaker = json_member<std::string>(json, "speaker", where);
    require(detail::is_there(one.audio_filepath), where, ": audio file ", one.audio_filepath.string(),
            " does not exist");
    utterances.push_back(std::move(one));
  });
  require(!utterances.empty(), path.string(), ": holds no utterances");
  return utterances;
}

/// Writes a manifest that `read_manifest` reads, whole or not at all. Audio below the manifest's folder is named
/// relative to it, so that the folder can be moved; other audio by its absolute path. Throws `Error` for texts that are
/// not UTF-8.
inline void write_manifest(const std::filesystem::path& path, std::span<const Utterance> utterances) {
  const std::filesystem::path folder = detail::absolute_path(path).parent_path().lexically_normal();
  std::string out;
  for (const Utterance& one : utterances) {
    const std::filesystem::path audio = detail::absolute_path(one.audio_filepath).lexically_normal();
    const std::filesystem::path relative = audio.lexically_relative(folder);
    const bool below = !relative.empty() && *relative.begin() != "..";
    nlohmann::ordered_json json;
    json["audio_filepath"] = (below ? relative : audio).string();
    if (one.offset) json["offset"] = *one.offset;
    if (one.duration > 0) json["duration"] = one.duration;
    json["text"] = one.text;
    if (!one.speaker.empty()) json["speaker"] = one.speaker;
    try {
      out += json.dump();
    } catch (const nlohmann::json::exception&) {
      throw Error(text(path.string(), ": cannot write as JSON: path, text or speaker of ", audio.string(),
                       " is not valid UTF-8"));
    }
    out += '\n';
  }
  write_file(path, out);
}

/// Reads a corpus in the layout of LibriSpeech: below `folder`, at any depth, SPEAKER/CHAPTER/ with *.trans.txt files
/// of lines "SPEAKER-CHAPTER-NUMBER TEXT" and a .flac of that name for each. Throws `Error` for a line without its
/// audio file and for an audio file without its line.
inline std::vector<Utterance> read_librispeech(const std::filesystem::path& folder) {
  std::error_code error;
  require(detail::is_there(folder) && std::filesystem::is_directory(folder, error), folder.string(),
          ": no such folder");
  std::vector<std::filesystem::path> audio, transcripts;
  for (const std::filesystem::path& file : detail::files_below(folder)) {
    if (file.extension() == ".flac") audio.push_back(file);
    if (file.string().ends_with(detail::transcript_ending)) transcripts.push_back(file);
  }
  require(!transcripts.empty(), folder.string(), ": no *", detail::transcript_ending,
          " below it, as LibriSpeech has them");

  std::vector<Utterance> utterances;
  std::vector<std::filesystem::path> used;
  for (const std::filesystem::path& transcript : transcripts) {
    detail::each_line(transcript, [&](std::string_view line, const std::string& where) {
      const std::size_t space = line.find(' ');
      require(space != std::string_view::npos && space > 0, where, ": \"SPEAKER-CHAPTER-NUMBER TEXT\" expected");
      const std::string id(line.substr(0, space));
      Utterance one;
      one.audio_filepath = transcript.parent_path() / (id + ".flac");
      one.text = detail::join_words(line.substr(space));
      one.speaker = id.substr(0, id.find('-'));
      require(detail::is_file(one.audio_filepath), where, ": audio file ", one.audio_filepath.string(),
              " does not exist");
      one.duration = detail::audio_duration(one.audio_filepath);
      used.push_back(one.audio_filepath);
      utterances.push_back(std::move(one));
    });
  }
  std::sort(used.begin(), used.end());
  const auto twice = std::adjacent_find(used.begin(), used.end());
  require(twice == used.end(), twice == used.end() ? std::string() : twice->string(), ": has two transcripts");
  for (const std::filesystem::path& file : audio)
    require(std::binary_search(used.begin(), used.end(), file), file.string(), ": has no line in a *",
            detail::transcript_ending, " of its folder");
  return utterances;
}

/// Reads a corpus: a .jsonl or .json file as a manifest, a folder with *.trans.txt below it as LibriSpeech. Throws
/// `Error` for anything else.
inline std::vector<Utterance> read_corpus(const std::filesystem::path& path) {
  constexpr std::string_view expected =
      "; a manifest (.jsonl or .json) or a folder with *.trans.txt files (LibriSpeech) expected";
  std::error_code error;
  require(detail::is_there(path), path.string(), ": no such file or folder", expected);
  if (!std::filesystem::is_directory(path, error)) {
    require(path.extension() == ".jsonl" || path.extension() == ".json", path.string(), ": is none", expected);
    return read_manifest(path);
  }
  std::string manifests;
  for (const std::filesystem::path& file : detail::files_in(path))
    if (file.extension() == ".jsonl") manifests += (manifests.empty() ? "" : ", ") + file.filename().string();
  const auto below = detail::files_below(path);
  const bool librispeech = std::any_of(below.begin(), below.end(), [](const std::filesystem::path& file) {
    return file.string().ends_with(detail::transcript_ending);
  });
  require(librispeech, path.string(), ": a folder without *", detail::transcript_ending,
          " files (LibriSpeech) below it",
          manifests.empty() ? "" : "; in it are the manifests " + manifests + ": give one of them");
  return read_librispeech(path);
}

}  // namespace LACONIC_ABI
}  // namespace laconic
