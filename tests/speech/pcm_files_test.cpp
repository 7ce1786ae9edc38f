// laconic: attention for speech models. SPDX-License-Identifier: MIT
// WAV, RF64, AIFF, AU and other files of plain samples as killed recorders, pipes and editors leave them.
#include <laconic/speech/audio.hpp>

#include "catch.hpp"
#include "sound_files.hpp"
#include "temporary_folder.hpp"

#include <fstream>
#include <string>
#include <vector>

using namespace laconic;
namespace fs = std::filesystem;

namespace {

std::string chunk(const std::string& name, const std::string& bytes, std::int64_t size = -1) {
  return name + detail::wav_size(size < 0 ? static_cast<std::int64_t>(bytes.size()) : size) + bytes +
         std::string(bytes.size() % 2, '\0');
}
std::string riff(const std::string& chunks) {
  return "RIFF" + detail::wav_size(4 + static_cast<std::int64_t>(chunks.size())) + "WAVE" + chunks;
}

}  // namespace

TEST_CASE("WAV files that recorders have left unfinished", "[audio]") {
  const TemporaryFolder folder;
  const fs::path path = folder / "a.wav";
  const std::string name = path.string();
  write_wav(path, {tone(440, 16000, 1), 16000});
  const std::vector<float> all = read_audio(path).samples;
  const std::string bytes = bytes_of(path), format = bytes.substr(20, 16), pcm = bytes.substr(44);
  const auto written = [&](const std::string& content) {
    write_file(path, content);
    return Heard(path);
  };

  Heard heard = written(riff(chunk("fmt ", format) + chunk("data", pcm, 0)));
  CHECK(heard.note == name + ": the header says 0 bytes of samples; all 32000 that follow are heard");
  CHECK(heard.whole);
  CHECK(read_audio(path).samples == all);
  CHECK(AudioReader(path).duration() == 1);
  heard = written("RIFF" + std::string(4, '\0') + "WAVE" + chunk("fmt ", format) + chunk("data", pcm, 0));
  CHECK(read_audio(path).samples == all);

  heard = written(riff(chunk("fmt ", format) + chunk("data", pcm.substr(0, 10000)) + chunk("LIST", "abc") +
                       chunk("data", pcm.substr(10000))));
  CHECK(heard.note == name + ": 2 parts of samples are heard one after the other");
  CHECK(read_audio(path).samples == all);

  write_file(path, riff(chunk("fmt ", format) + chunk("data", "") + chunk("LIST", "information")));
  CHECK(error_of(path) == name + ": holds no samples");
  std::string zero = format;
  zero.replace(4, 4, 4, '\0');
  write_file(path, riff(chunk("fmt ", zero) + chunk("data", pcm)));
  CHECK(error_of(path) == name + ": its header says 1 channels at 0 Hz, at least 1 of each expected");
  zero = format;
  zero.replace(2, 2, 2, '\0');
  write_file(path, riff(chunk("fmt ", zero) + chunk("data", pcm)));
  CHECK(error_of(path) == name + ": its header says 0 channels at 16000 Hz, at least 1 of each expected");

  // A recorder that had last written a size long ago; and zeros that fill a sector, which are nothing.
  heard = written(riff(chunk("fmt ", format) + chunk("data", pcm.substr(0, 8000), 8000) + pcm.substr(9000)));
  CHECK_FALSE(heard.whole);
  CHECK(heard.seconds == 0.25);
  CHECK(contains(heard.note, "follow 23000 bytes that are not heard (0.72 s if they are samples)"));
  heard = written(riff(chunk("fmt ", format) + chunk("data", pcm)) + std::string(5000, '\0'));
  CHECK(heard.whole);
  CHECK(heard.note.empty());
  const std::string silence(100000, '\0');  // longer than what is read at a time
  heard = written(riff(chunk("fmt ", format) + chunk("data", pcm.substr(0, 16000), 16000) + silence) +
                  pcm.substr(16000) + silence);
  CHECK_FALSE(heard.whole);
  CHECK(heard.seconds == 0.5);
  CHECK(contains(heard.note, "follow 116000 bytes that are not heard (3.62 s if they are samples)"));
}

TEST_CASE("sizes and parts of WAV files", "[audio]") {
  const TemporaryFolder folder;
  const fs::path path = folder / "a.wav";
  const std::string name = path.string();
  write_wav(path, {tone(440, 16000, 1), 16000});
  const std::vector<float> all = read_audio(path).samples;
  const std::string bytes = bytes_of(path), format = chunk("fmt ", bytes.substr(20, 16)), pcm = bytes.substr(44);
  for (const std::int64_t size : {0x7fffeffeLL, 0x7ffff000LL, 0x7fffffffLL, 0x80000000LL, 0xfffff000LL, 0xffffffffLL}) {
    INFO(std::hex << size);  // of programs that write to a pipe
    write_file(path, riff(format + chunk("data", pcm, size)));
    CHECK(Heard(path).note.empty());
    CHECK(read_audio(path).samples == all);
  }
  for (const std::int64_t size : {0x7fff0000LL, 0x80000002LL, 0xb0000000LL, 0xfff00000LL}) {
    write_file(path, riff(format + chunk("data", pcm, size)));
    CHECK(error_of(path) == text(name, ": cut short: the header says ", size, " bytes of samples, but 32000 follow"));
  }
  // Empty chunks of samples are none, and a size that is not known leaves the chunks before it as they are.
  const std::string list = chunk("LIST", std::string(5000, 'x')), empty = chunk("data", "");
  write_file(path, riff(format + empty + list + chunk("data", pcm)));
  CHECK(Heard(path).note.empty());
  CHECK(read_audio(path).samples == all);
  for (const std::string& chunks :
       {format + empty + list + chunk("data", pcm.substr(0, 9000)) + chunk("data", pcm.substr(9000)),
        format + chunk("data", pcm.substr(0, 9000)) + chunk("data", pcm.substr(9000), 0xffffffff),
        empty + list + format + chunk("data", pcm.substr(0, 9000)) + chunk("data", pcm.substr(9000))}) {
    write_file(path, riff(chunks));
    CHECK(Heard(path).note == name + ": 2 parts of samples are heard one after the other");
    CHECK(read_audio(path).samples == all);
  }
  std::string parts;
  for (std::size_t i = 0; i < detail::max_sound_parts; ++i) parts += chunk("data", "ab");
  write_file(path, riff(format + parts));
  CHECK(Heard(path).seconds == Approx(0.625));
  write_file(path, riff(format + parts + chunk("data", "ab")));
  CHECK(error_of(path) == name + ": its sound is in more than 10000 parts, at most 10000 expected");
}

TEST_CASE("MP3 in a WAV file is heard, though its length is an estimate", "[audio]") {
  const TemporaryFolder folder;
  const fs::path path = folder / "a.wav";
  if (!writes_mp3()) return;
  put(path, mp3, 1, 16000, tone(440, 16000, 2.5));
  std::string frames = bytes_of(path);
  const auto first = detail::read_mp3_header(frames);
  REQUIRE(first);
  frames = frames.substr(static_cast<std::size_t>(first->size));
  // MPEGLAYER3WAVEFORMAT of Microsoft: 0x55, channels, rate, bytes a second, bytes and bits a block; 12 bytes more.
  const std::string format = std::string("\x55\0\1\0\x80\x3e\0\0\x40\x02\0\0\1\0\0\0\x0c\0", 18) +
                             std::string("\1\0\2\0\0\0\x80\4\1\0\x71\5", 12);
  write_file(path, riff(chunk("fmt ", format) + chunk("fact", std::string(4, '\0')) + chunk("data", frames)));
  const Heard heard(path);
  CHECK(heard.seconds == Approx(2.5).margin(0.15));
  CHECK(heard.whole);
}

TEST_CASE("RF64 files whose sizes were never written", "[audio]") {
  const TemporaryFolder folder;
  const fs::path path = folder / "a.wav";
  const std::string name = path.string();
  put(path, SF_FORMAT_RF64 | SF_FORMAT_PCM_16, 1, 16000, tone(440, 16000, 1));
  const std::vector<float> all = read_audio(path).samples;
  std::string bytes = bytes_of(path);
  REQUIRE(bytes.substr(12, 4) == "ds64");
  bytes.replace(20, 24, 24, '\0');
  const std::size_t at = bytes.find("data") + 4;
  for (const std::int64_t size : {std::int64_t{32000}, std::int64_t{0}, std::int64_t{0xffffffff}}) {
    bytes.replace(at, 4, detail::wav_size(size));
    write_file(path, bytes);
    const Heard heard(path);
    CHECK(heard.whole);
    CHECK(read_audio(path).samples == all);
    if (size == 32000)
      CHECK(heard.note.empty());
    else
      CHECK(heard.note == name + ": the header says 0 bytes of samples; all 32000 that follow are heard");
  }
  bytes.replace(at, 4, detail::wav_size(32002));
  write_file(path, bytes);
  CHECK(error_of(path) == name + ": cut short: the header says 32002 bytes of samples, but 32000 follow");
  bytes.replace(at, 4, detail::wav_size(16000));  // and what follows is noted
  write_file(path, bytes);
  CHECK(Heard(path).seconds == 0.5);
  CHECK(contains(Heard(path).note, "follow 16000 bytes that are not heard (0.50 s if they are samples)"));
}

TEST_CASE("files of plain samples that were cut off, or never finished", "[audio]") {
  const TemporaryFolder folder;
  const fs::path path = folder / "a";
  const std::string name = path.string();
  const auto pcm16 = [](int kind) { return kind | SF_FORMAT_PCM_16; };
  for (const int kind : {SF_FORMAT_AU, SF_FORMAT_AIFF, SF_FORMAT_RF64, SF_FORMAT_W64}) {
    INFO(std::hex << kind);
    put(path, pcm16(kind), 1, 16000, tone(440, 16000, 1));
    const std::string whole = bytes_of(path);
    CHECK(Heard(path).seconds == 1);
    CHECK(Heard(path).note.empty());
    write_file(path, whole.substr(0, whole.size() / 2));
    CHECK(error_of(path).starts_with(name + ": cut short: the header says 32"));
    for (const std::size_t size : {9U, 30U, 50U}) {
      write_file(path, whole.substr(0, size));
      CHECK(error_of(path).starts_with(name + ": "));
    }
  }
  put(path, pcm16(SF_FORMAT_AU), 1, 16000, tone(440, 16000, 1));
  const std::string au = bytes_of(path);
  std::string changed = au;
  changed.replace(8, 4, 4, '\0');
  write_file(path, changed);
  CHECK(Heard(path).seconds == 1);
  CHECK(Heard(path).note == name + ": the header says 0 bytes of samples; all 32000 that follow are heard");
  changed = au;
  changed.replace(16, 4, 4, '\0');
  write_file(path, changed);
  CHECK(error_of(path) == name + ": its header says 1 channels at 0 Hz, at least 1 of each expected");
  put(path, pcm16(SF_FORMAT_AIFF), 1, 16000, tone(440, 16000, 1));
  changed = bytes_of(path);
  changed.replace(changed.find("SSND") + 4, 4, std::string("\0\0\0\x08", 4));
  write_file(path, changed);
  CHECK(Heard(path).seconds == 1);
  CHECK(contains(Heard(path).note, "the header says 0 bytes of samples"));
  // Annotations are no samples.
  const std::string head = changed.substr(0, changed.find("SSND")), note(
                                                                        "ANNO\0\0\0\x08"
                                                                        "the note",
                                                                        16);
  for (const std::string& samples :
       {std::string(), std::string("SSND\0\0\0\0", 8), std::string("SSND\0\0\0\x08\0\0\0\0\0\0\0\0", 16)}) {
    write_file(path, head + note + samples);
    CHECK(error_of(path) == name + ": holds no samples");
    write_file(path, head + samples + note + note);
    CHECK(error_of(path) == name + ": holds no samples");
  }
}

TEST_CASE("a WAV file whose format follows its samples is heard", "[audio]") {
  const TemporaryFolder folder;
  const fs::path path = folder / "a.wav";
  write_wav(path, {tone(440, 16000, 1), 16000});
  const std::vector<float> all = read_audio(path).samples;
  const std::string bytes = bytes_of(path), format = bytes.substr(20, 16), pcm = bytes.substr(44);
  write_file(path, riff(chunk("LIST", "abc") + chunk("data", pcm) + chunk("fmt ", format)));
  CHECK(Heard(path).whole);
  CHECK(read_audio(path).samples == all);
}
