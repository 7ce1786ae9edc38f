// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/io/json.hpp>
#include <laconic/speech/audio.hpp>
#include <laconic/speech/words.hpp>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Describes one recording and its transcript.
struct Utterance {
  std::filesystem::path audio_filepath;  ///< the audio file
  double duration = 0;                   ///< in seconds
  std::string text;                      ///< transcript
  std::string speaker;                   ///< empty if not known
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
  require(is_file(path), path.string(), ": no such file");
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

/// Returns all files of a folder (`std::filesystem::directory_iterator`) or below it (the recursive one), sorted, so
/// that the order of a corpus does not depend on the file system.
template <class Iterator>
std::vector<std::filesystem::path> list_files(const std::filesystem::path& folder) {
  std::error_code error;
  std::vector<std::filesystem::path> files;
  Iterator entry(folder, std::filesystem::directory_options::follow_directory_symlink, error);
  for (; !error && entry != Iterator(); entry.increment(error))
    if (is_file(entry->path())) files.push_back(entry->path());
  require(!error, folder.string(), ": cannot list: ", error.message());
  std::sort(files.begin(), files.end());
  return files;
}
/// Returns all files below a folder, at any depth, sorted.
inline std::vector<std::filesystem::path> files_below(const std::filesystem::path& folder) {
  return list_files<std::filesystem::recursive_directory_iterator>(folder);
}
/// Returns all files of a folder, sorted.
inline std::vector<std::filesystem::path> files_in(const std::filesystem::path& folder) {
  return list_files<std::filesystem::directory_iterator>(folder);
}

/// Returns the length of a recording in seconds, from its header if that says it, else by reading the file.
inline double audio_duration(const std::filesystem::path& path) {
  AudioReader reader(path);
  if (reader.duration() > 0) return reader.duration();
  std::vector<float> block(65536);  // the header of a file written to a pipe
  std::size_t count = 0;
  for (std::size_t more = block.size(); more == block.size(); count += more) more = reader.read(block);
  return static_cast<double>(count) / reader.sample_rate();
}

/// Ends the names of LibriSpeech's transcript files.
inline constexpr std::string_view transcript_ending = ".trans.txt";

}  // namespace detail

/// Reads a NeMo-style manifest: one JSON object a line with `audio_filepath` (relative to the manifest's folder unless
/// absolute), `duration` in seconds, `text` and, if known, `speaker`. Other keys and blank lines are ignored. Throws
/// `Error` with file and line number for bad JSON, a missing key, a wrong type, an `offset` into a recording and audio
/// that does not exist, and for a manifest without utterances.
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
    one.duration = json_member<double>(json, "duration", where);
    one.text = json_member<std::string>(json, "text", where);
    require(!json.contains("offset") || json["offset"] == 0, where,
            ": 'offset' is not 0: parts of a recording are not read; cut them into files of their own");
    if (json.contains("speaker")) one.speaker = json_member<std::string>(json, "speaker", where);
    require(one.duration >= 0, where, ": 'duration' is ", one.duration, ", seconds expected");
    require(detail::is_file(one.audio_filepath), where, ": audio file ", one.audio_filepath.string(),
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
  const std::filesystem::path folder = std::filesystem::absolute(path).parent_path().lexically_normal();
  std::string out;
  for (const Utterance& one : utterances) {
    const std::filesystem::path audio = std::filesystem::absolute(one.audio_filepath).lexically_normal();
    const std::filesystem::path relative = audio.lexically_relative(folder);
    const bool below = !relative.empty() && *relative.begin() != "..";
    nlohmann::ordered_json json;
    json["audio_filepath"] = (below ? relative : audio).string();
    json["duration"] = one.duration;
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
  require(std::filesystem::is_directory(folder, error), folder.string(), ": no such folder");
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
  require(std::filesystem::exists(path, error), path.string(), ": no such file or folder", expected);
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
