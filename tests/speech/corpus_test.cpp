// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include <laconic/speech/corpus.hpp>

#include "catch.hpp"
#include "recordings.hpp"
#include "temporary_folder.hpp"

#include <cmath>
#include <fstream>
#include <string>
#include <vector>

using namespace laconic;
namespace fs = std::filesystem;

namespace {

void put(const fs::path& path, const std::string& bytes) {
  fs::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary) << bytes;
}

/// A tenth of a second of a tone.
void put_flac(const fs::path& path) {
  fs::create_directories(path.parent_path());
  SF_INFO info{};
  info.channels = 1;
  info.samplerate = 16000;
  info.format = SF_FORMAT_FLAC | SF_FORMAT_PCM_16;
  SNDFILE* file = sf_open(path.c_str(), SFM_WRITE, &info);
  REQUIRE(file != nullptr);
  std::vector<float> tone(1600);
  for (std::size_t i = 0; i < tone.size(); ++i) tone[i] = 0.3f * std::sin(0.1f * static_cast<float>(i));
  REQUIRE(sf_write_float(file, tone.data(), 1600) == 1600);
  sf_close(file);
}

}  // namespace

TEST_CASE("a manifest is written and read", "[corpus]") {
  TemporaryFolder folder, elsewhere;
  put(folder / "wav/a.wav", "a");
  put(folder / "wav/b \"quoted\".wav", "b");
  put(elsewhere / "c.wav", "c");
  const std::vector<Utterance> utterances{{folder / "wav/a.wav", 1.25, "one two", "anna"},
                                          {folder / "wav/b \"quoted\".wav", 0.1, "", ""},
                                          {elsewhere / "c.wav", 3, "caf\u00e9", "bob"}};
  write_manifest(folder / "all.jsonl", utterances);
  CHECK(read_file(folder / "all.jsonl", 1000)
            .starts_with(
                "{\"audio_filepath\":\"wav/a.wav\",\"duration\":1.25,\"text\":\"one two\",\"speaker\":\"anna\"}\n"));

  const auto read = read_manifest(folder / "all.jsonl");
  REQUIRE(read.size() == 3);
  for (std::size_t i = 0; i < 3; ++i) {
    CHECK(fs::equivalent(read[i].audio_filepath, utterances[i].audio_filepath));
    CHECK(read[i].duration == utterances[i].duration);
    CHECK(read[i].text == utterances[i].text);
    CHECK(read[i].speaker == utterances[i].speaker);
  }

  SECTION("the folder can be moved") {
    TemporaryFolder moved;
    fs::rename(folder / "wav", moved / "wav");
    fs::rename(folder / "all.jsonl", moved / "all.jsonl");
    CHECK(read_manifest(moved / "all.jsonl")[0].audio_filepath == moved / "wav/a.wav");
  }
  SECTION("a text that is not UTF-8 writes nothing") {
    const std::vector<Utterance> bad{{folder / "wav/a.wav", 1, "\xff", ""}};
    CHECK_THROWS_WITH(write_manifest(folder / "bad.jsonl", bad), Catch::Matchers::EndsWith("a.wav is not valid UTF-8"));
    CHECK(folder.names() == std::vector<std::string>{"all.jsonl", "wav"});
  }
}

TEST_CASE("a bad manifest is refused with file and line", "[corpus]") {
  TemporaryFolder folder;
  const fs::path path = folder / "m.jsonl";
  put(folder / "a.wav", "a");
  const std::string good = R"({"audio_filepath": "a.wav", "duration": 1, "text": "one", "offset": 0})";
  const auto message = [&](const std::string& line) {
    put(path, good + "\r\n\n" + line + "\n" + good);
    try {
      read_manifest(path);
    } catch (const Error& e) {
      const std::string what = e.what();
      REQUIRE(what.starts_with(path.string() + ":3: "));
      return what.substr(path.string().size() + 4);
    }
    return std::string("nothing");
  };
  CHECK(message(good) == "nothing");
  CHECK(read_manifest(path).size() == 3);  // the blank line and the unknown key are no utterance and no mistake
  CHECK(message(R"({"audio_filepath": "a.wav", "duration": 1, "text": "one", "offset": -2.5})") ==
        "'offset' is -2.5, seconds expected");
  CHECK(message(R"({"audio_filepath": "a.wav", "duration": 1, "text": "one", "offset": "2"})") ==
        "'offset' is '2', a number expected");
  CHECK(message(R"({"audio_filepath": "a.wav", "duration": 1)").starts_with("not valid JSON: "));
  CHECK(message(R"([1, 2])") == "an array of 2 given, an object expected");
  CHECK(message(R"({"duration": 1, "text": "one"})") == "'audio_filepath' is missing");
  CHECK(message(R"({"audio_filepath": "a.wav", "duration": 1})") == "'text' is missing");
  CHECK(message(R"({"audio_filepath": "a.wav", "duration": "1", "text": "one"})") ==
        "'duration' is '1', a number expected");
  CHECK(message(R"({"audio_filepath": "a.wav", "duration": -1, "text": "one"})") ==
        "'duration' is -1, seconds expected");
  CHECK(message(R"({"audio_filepath": "a.wav", "duration": 1, "text": 1})") == "'text' is 1, a string expected");
  CHECK(message(R"({"audio_filepath": "a.wav", "duration": 1, "text": "one", "speaker": [5]})") ==
        "'speaker' is an array of 1, a string expected");
  CHECK(message(R"({"audio_filepath": "", "duration": 1, "text": "one"})") == "'audio_filepath' is empty");
  CHECK(message(R"({"audio_filepath": "a.wav\u0000b", "duration": 1, "text": "one"})") ==
        "'audio_filepath' is 'a.wav?b', a path without a zero byte expected");
  CHECK(message(R"({"audio_filepath": "gone.wav", "duration": 1, "text": "one"})") ==
        "audio file " + (folder / "gone.wav").string() + " does not exist");
  put(path, "\n");
  CHECK_THROWS_WITH(read_manifest(path), path.string() + ": holds no utterances");
  CHECK_THROWS_WITH(read_manifest(folder / "none.jsonl"), (folder / "none.jsonl").string() + ": no such file");
  CHECK_THROWS_WITH(read_manifest(folder.path), folder.path.string() + ": is a folder, a regular file expected");
}

TEST_CASE("a manifest as NeMo writes them", "[corpus]") {
  TemporaryFolder folder;
  write_wav(folder / "a.wav", {std::vector<float>(32000, 0.25F), 16000});
  put(folder / "m.jsonl", R"({"audio_filepath": "a.wav", "duration": null, "text": "one", "speaker": 12}
{"audio_filepath": "a.wav", "text": "two", "speaker": null}
{"audio_filepath": "a.wav", "duration": 0.25, "text": "three", "offset": 0.5}
{"audio_filepath": "a.wav", "text": "four", "offset": 1.5, "duration": null}
{"audio_filepath": "a.wav", "duration": 0.5, "text": "five", "offset": 0}
{"audio_filepath": "a.wav", "duration": 0.5, "text": "six", "offset": null}
)");
  const auto read = read_manifest(folder / "m.jsonl");
  REQUIRE(read.size() == 6);
  CHECK(read[0].speaker == "12");
  CHECK(read[0].duration == 0);
  CHECK(read[1].speaker.empty());
  const std::vector<double> seconds{2, 2, 0.25, 0.5, 0.5, 2};
  for (std::size_t i = 0; i < read.size(); ++i) {
    INFO("line " << i + 1);
    CHECK(detail::audio_duration(read[i].audio_filepath, read[i].part()) == seconds[i]);
    CHECK(read_audio(read[i].audio_filepath, 0, nullptr, read[i].part()).duration() == seconds[i]);
  }
  write_manifest(folder / "again.jsonl", read);
  const auto again = read_manifest(folder / "again.jsonl");
  for (std::size_t i = 0; i < read.size(); ++i) {
    CHECK(again[i].offset == read[i].offset);
    CHECK(again[i].duration == read[i].duration);
  }
}

TEST_CASE("links and hidden files in a corpus", "[corpus]") {
  TemporaryFolder folder;
  const fs::path corpus = folder / "clean";
  put_flac(corpus / "7/2/7-2-0000.flac");
  put(corpus / "7/2/7-2.trans.txt", "7-2-0000 ONE\n");
  put(corpus / "7/2/._7-2-0000.flac", "of macOS");
  put(corpus / "7/2/._7-2.trans.txt", "of macOS");
  put_flac(corpus / ".trash/9-9-0000.flac");
  put_flac(folder / "other/8-2-0000.flac");
  put(folder / "other/8-2.trans.txt", "8-2-0000 TWO\n");
  fs::create_directory_symlink(corpus, corpus / "7/2/up");            // to a folder that it is in
  fs::create_directory_symlink(folder.path, corpus / "7/2/further");  // in which other corpora are, too
  fs::create_directory_symlink(corpus / "7", corpus / "6");           // to one that is listed anyway
  fs::create_directory_symlink(folder / "other", corpus / "8");
  const auto read = read_librispeech(corpus);
  REQUIRE(read.size() == 2);
  CHECK(read[0].audio_filepath == corpus / "7/2/7-2-0000.flac");
  CHECK(read[1].audio_filepath == corpus / "8/8-2-0000.flac");
}

TEST_CASE("a recording whose header does not say how long it is, is heard", "[corpus]") {
  TemporaryFolder folder;
  const fs::path path = folder / "a.flac";
  put_flac(path);
  std::string bytes = read_file(path, 1 << 20);
  bytes[21] = static_cast<char>(bytes[21] & 0xf0);  // 36 bits of the number of samples
  bytes.replace(22, 4, 4, '\0');
  put(path, bytes);
  CHECK(detail::audio_duration(path) == 0.1);
}

TEST_CASE("attack: a text file of nothing but ends of lines", "[corpus]") {
  TemporaryFolder folder;
  put(folder / "m.jsonl", std::string(20'000'000, '\n') + "{");  // each was kept as a string of 32 bytes
  CHECK_THROWS_WITH(read_manifest(folder / "m.jsonl"),
                    Catch::Matchers::StartsWith((folder / "m.jsonl").string() + ":20000001: not valid JSON"));
}

TEST_CASE("a corpus in LibriSpeech's layout", "[corpus]") {
  TemporaryFolder folder;
  for (const char* id : {"7-2-0000", "7-2-0001"}) put_flac(folder / (std::string("7/2/") + id + ".flac"));
  put_flac(folder / "10/3/10-3-0000.flac");
  put(folder / "7/2/7-2.trans.txt", "7-2-0000 ONE TWO \n7-2-0001 IT'S\n");
  put(folder / "10/3/10-3.trans.txt", "10-3-0000 THREE");

  const auto read = read_corpus(folder.path);
  REQUIRE(read.size() == 3);
  CHECK(read[0].text == "THREE");
  CHECK(read[0].speaker == "10");
  CHECK(read[0].duration == Approx(0.1));
  CHECK(read[1].text == "ONE TWO");
  CHECK(read[1].audio_filepath == folder / "7/2/7-2-0000.flac");
  CHECK(read[2].text == "IT'S");

  SECTION("a transcript without audio") {
    fs::remove(folder / "7/2/7-2-0001.flac");
    CHECK_THROWS_WITH(read_librispeech(folder.path), (folder / "7/2/7-2.trans.txt").string() + ":2: audio file " +
                                                         (folder / "7/2/7-2-0001.flac").string() + " does not exist");
  }
  SECTION("audio without a transcript") {
    put_flac(folder / "8/1/8-1-0000.flac");
    CHECK_THROWS_WITH(read_librispeech(folder.path),
                      (folder / "8/1/8-1-0000.flac").string() + ": has no line in a *.trans.txt of its folder");
  }
  SECTION("two transcripts") {
    put(folder / "7/2/7-2.trans.txt", "7-2-0000 ONE\n7-2-0001 TWO\n7-2-0000 ONE\n");
    CHECK_THROWS_WITH(read_librispeech(folder.path), (folder / "7/2/7-2-0000.flac").string() + ": has two transcripts");
  }
  SECTION("a line without text") {
    put(folder / "7/2/7-2.trans.txt", "7-2-0000 ONE\n7-2-0001\n");
    CHECK_THROWS_WITH(read_librispeech(folder.path),
                      Catch::Matchers::EndsWith(":2: \"SPEAKER-CHAPTER-NUMBER TEXT\" expected"));
  }
  SECTION("audio that is none") {
    put(folder / "7/2/7-2-0001.flac", "no audio");
    CHECK_THROWS_WITH(
        read_librispeech(folder.path),
        Catch::Matchers::StartsWith((folder / "7/2/7-2-0001.flac").string() + ": cannot read as audio: "));
  }
}

TEST_CASE("what is no corpus is refused with what is one", "[corpus]") {
  TemporaryFolder folder;
  const std::string expected =
      "; a manifest (.jsonl or .json) or a folder with *.trans.txt files (LibriSpeech) expected";
  CHECK_THROWS_WITH(read_corpus(folder / "none"), (folder / "none").string() + ": no such file or folder" + expected);
  put(folder / "a.txt", "x");
  CHECK_THROWS_WITH(read_corpus(folder / "a.txt"), (folder / "a.txt").string() + ": is none" + expected);
  CHECK_THROWS_WITH(read_corpus(folder.path),
                    folder.path.string() + ": a folder without *.trans.txt files (LibriSpeech) below it");
  put(folder / "train.jsonl", "x");
  CHECK_THROWS_WITH(read_corpus(folder.path),
                    Catch::Matchers::EndsWith(" below it; in it are the manifests train.jsonl: give one of them"));
}

TEST_CASE("a folder of LibriSpeech is read", "[corpus]") {
  const auto read = read_corpus(recordings / "librispeech");
  REQUIRE(read.size() == 1);
  CHECK(read[0].text == "HE COULD WAIT NO LONGER");
  CHECK(read[0].duration == Approx(33360 / 16000.0));
  CHECK(read[0].speaker == "1089");
}

TEST_CASE("real corpora are read", "[corpus][data]") {
  if (const fs::path folder = data_folder("librispeech"); !folder.empty()) {
    const auto read = read_corpus(folder);
    REQUIRE(read.size() == 6);
    CHECK(read[0].text == "MISTER QUILTER IS THE APOSTLE OF THE MIDDLE CLASSES AND WE ARE GLAD TO WELCOME HIS GOSPEL");
    CHECK(read[0].duration == Approx(93680 / 16000.0));
    CHECK(read[0].speaker == "1272");
  }
  if (const fs::path folder = data_folder("speechocean762"); !folder.empty()) {
    const auto read = read_corpus(folder / "dev.jsonl");
    CHECK(read.size() == 1260);
    double seconds = 0;
    for (const Utterance& one : read) seconds += one.duration;
    CHECK(seconds / 3600 == Approx(1.36).margin(0.01));
    CHECK(read[0].duration == Approx(detail::audio_duration(read[0].audio_filepath)).margin(0.02));
  }
}
