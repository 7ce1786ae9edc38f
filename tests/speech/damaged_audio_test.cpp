// laconic: attention for speech models. SPDX-License-Identifier: MIT
// Audio as it comes from killed recorders, pipes and damaged disks.
#include <laconic/speech/audio.hpp>

#include "catch.hpp"
#include "sound_files.hpp"
#include "temporary_folder.hpp"

#include <fstream>
#include <string>
#include <vector>

using namespace laconic;
namespace fs = std::filesystem;

TEST_CASE("damaged bytes give samples or an Error, never anything else", "[audio]") {
  TemporaryFolder folder;
  const struct {
    const char* name;
    int format;
  } files[] = {
      {"a.wav", wav16}, {"a.flac", SF_FORMAT_FLAC | SF_FORMAT_PCM_16}, {"a.opus", SF_FORMAT_OGG | SF_FORMAT_OPUS}};
  std::uint32_t state = 1;
  const auto random = [&](std::size_t n) { return (state = state * 1664525 + 1013904223) / 65536 % n; };
  int errors = 0;
  for (const auto& f : files) {
    const fs::path path = folder / f.name;
    put(path, f.format, 1, 16000, tone(440, 16000, 0.2));
    const std::string whole = bytes_of(path);
    for (int round = 0; round < 300; ++round) {
      std::string damaged = whole;
      // Mostly in the header, where sizes, rates and numbers of channels are.
      const std::size_t range = round % 4 == 0 ? whole.size() : std::min<std::size_t>(whole.size(), 60);
      for (int k = 0; k < 1 + round % 3; ++k) damaged[random(range)] = static_cast<char>(random(256));
      if (round % 5 == 0) damaged.resize(random(damaged.size()));
      std::ofstream(path, std::ios::binary) << damaged;  // not write_file: its fsync would make this slow
      try {
        const Audio audio = read_audio(path);
        CHECK(!audio.samples.empty());
        CHECK(audio.samples.size() < 1 << 22);
        CHECK(std::ranges::all_of(audio.samples, [](float x) { return std::isfinite(x); }));
      } catch (const Error& e) {
        CHECK(contains(e.what(), path.string()));
        ++errors;
      }
    }
  }
  CHECK(errors > 100);
}

namespace {

/// The pages of an Ogg file.
std::vector<std::string> pages_of(const std::string& ogg) {
  std::vector<std::string> out;
  for (std::size_t at = 0; at < ogg.size();) {
    const auto count = static_cast<unsigned char>(ogg.at(at + 26));
    std::size_t size = 27 + std::size_t{count};
    for (std::size_t i = 0; i < count; ++i) size += static_cast<unsigned char>(ogg.at(at + 27 + i));
    out.push_back(ogg.substr(at, size));
    at += size;
  }
  return out;
}
std::string joined(const std::vector<std::string>& parts) {
  std::string out;
  for (const std::string& part : parts) out += part;
  return out;
}

}  // namespace

TEST_CASE("of a damaged Ogg file what is there is heard, and what is not is said", "[audio]") {
  const TemporaryFolder folder;
  const fs::path path = folder / "a.ogg";
  for (const int codec : {SF_FORMAT_OPUS, SF_FORMAT_VORBIS}) {
    INFO((codec == SF_FORMAT_OPUS ? "Opus" : "Vorbis"));
    std::vector<float> noise = tone(440, 16000, 6);
    std::uint32_t state = 1;
    for (float& x : noise) x += static_cast<float>((state = state * 1664525 + 1013904223) >> 16) / 262144;
    put(path, SF_FORMAT_OGG | codec, 1, 16000, noise);
    const std::string whole = bytes_of(path);
    const Heard all(path);
    CHECK(all.whole);
    CHECK(all.note.empty());
    CHECK(all.seconds == Approx(6).margin(0.01));
    const std::vector<std::string> pages = pages_of(whole);
    REQUIRE(pages.size() >= 6);

    std::vector<std::string> lost = pages;  // a page that never came
    lost.erase(lost.end() - 3);
    write_file(path, joined(lost));
    const Heard without(path);
    CHECK_FALSE(without.whole);
    CHECK(without.missing > 0.1);
    CHECK(without.missing + without.seconds == Approx(6).margin(0.1));
    CHECK(contains(without.note, path.string() + ": pages are missing or damaged; "));
    CHECK(contains(without.note, " s are missing"));

    std::string damaged = whole;  // one byte of a page, which libogg then drops
    damaged[whole.size() - pages.back().size() - pages[pages.size() - 2].size() - 100] ^= 1;
    write_file(path, damaged);
    const Heard dropped(path);
    CHECK_FALSE(dropped.whole);
    CHECK(dropped.missing + dropped.seconds == Approx(6).margin(0.1));
    CHECK(contains(dropped.note, "pages are missing or damaged"));

    for (const std::size_t cut :
         {whole.size() - 1, whole.size() - pages.back().size()}) {  // within a page, and between
      write_file(path, whole.substr(0, cut));
      const Heard part(path);
      CHECK_FALSE(part.whole);
      CHECK(part.seconds > 3);
      CHECK(contains(part.note, "ends before the mark of its end"));
    }

    put(folder / "b.ogg", SF_FORMAT_OGG | codec, 1, 16000, tone(300, 16000, 2));
    const std::string second = bytes_of(folder / "b.ogg");
    write_file(path, whole + second + whole);
    const Heard chain(path);
    CHECK(chain.whole);
    CHECK(chain.seconds == Approx(14).margin(0.03));
    CHECK(chain.note == path.string() + ": 3 streams are heard one after the other");
    CHECK(AudioReader(path).duration() == Approx(14).margin(0.03));
    write_file(path, whole + second.substr(0, second.size() / 2));
    CHECK_FALSE(Heard(path).whole);
    put(folder / "b.ogg", SF_FORMAT_OGG | codec, 1, 24000, tone(300, 24000, 1));
    write_file(path, whole + bytes_of(folder / "b.ogg"));
    CHECK(error_of(path) == path.string() + ": stream 2 of 2 has 24000 Hz, 16000 expected, as the first");
  }
}

TEST_CASE("an MP3 file that does not tell its length is heard to its end", "[audio]") {
  const TemporaryFolder folder;
  const fs::path path = folder / "a.mp3";
  SF_INFO info{};
  info.channels = 1;
  info.samplerate = 16000;
  info.format = mp3;
  std::vector<float> sound(4 * 16000);  // silence, then noise: the bit rate of the first frame says nothing of the rest
  std::uint32_t state = 1;
  for (std::size_t i = 16000; i < sound.size(); ++i)
    sound[i] = static_cast<float>((state = state * 1664525 + 1013904223) >> 16) / 131072;
  {
    const detail::SoundFile file(sf_open(path.c_str(), SFM_WRITE, &info), sf_close);
    if (file == nullptr) {
      WARN("skipped: this libsndfile writes no MP3");
      return;
    }
    int variable = SF_BITRATE_MODE_VARIABLE;
    sf_command(file.get(), SFC_SET_BITRATE_MODE, &variable, sizeof variable);
    REQUIRE(sf_write_float(file.get(), sound.data(), 64000) == 64000);
  }
  const std::string whole = bytes_of(path);
  CHECK(Heard(path).seconds == Approx(4).margin(0.01));
  const auto first = detail::read_mp3_header(whole);
  REQUIRE(first);
  const std::string bare = whole.substr(static_cast<std::size_t>(first->size));
  write_file(path, bare);
  const Heard heard(path);
  CHECK(heard.seconds == Approx(4).margin(0.15));  // with what the encoder adds on both sides
  CHECK(heard.seconds > 4);
  CHECK(heard.whole);
  CHECK(heard.note.empty());
  write_file(path, bare.substr(0, bare.size() / 2));
  const Heard cut(path);
  CHECK(cut.seconds > 1);
  CHECK(cut.note == path.string() + ": it ends within a frame, so that more may be missing");
  CHECK_FALSE(cut.whole);
  write_file(path, whole.substr(0, whole.size() / 2));
  const Heard half(path);  // by its first frame it is known how much there should be
  CHECK(half.missing > 1);
  CHECK(half.missing + half.seconds == Approx(4).margin(0.2));
  write_file(path, whole + whole);
  CHECK(Heard(path).seconds == Approx(8).margin(0.3));
  CHECK(contains(Heard(path).note, " are heard"));
  write_file(path, bare.substr(0, bare.size() / 2) + std::string(3000, 'x') + bare.substr(bare.size() / 2 + 2000));
  const Heard damaged(path);
  CHECK_FALSE(damaged.whole);
  CHECK(contains(damaged.note, " bytes are no frames of MP3"));

  std::vector<std::size_t> frames{0};  // places of all of them in `bare`
  while (const auto frame = detail::read_mp3_header(bare.substr(frames.back(), 4)))
    frames.push_back(frames.back() + static_cast<std::size_t>(frame->size));
  REQUIRE(frames.back() == bare.size());
  const std::string before = bare.substr(0, frames[frames.size() / 2]), after = bare.substr(before.size());
  // What looks like the beginning of a tag, but leads neither to a frame nor to the end.
  for (const std::string& tag :
       {std::string("ID3\x04\0\0\0\0\0\x05", 10), std::string("ID3\x04\0\0\0\x7f\x7f\x7f", 10)}) {
    write_file(path, before + tag + after);
    const Heard tagged(path);
    CHECK(tagged.seconds == heard.seconds);
    CHECK_FALSE(tagged.whole);
    CHECK(tagged.note == path.string() + ": 10 bytes are no frames of MP3");
  }
  write_file(path, before + std::string("ID3\x04\0\0\0\0\0\x05", 10) + "12345" + after);
  CHECK(Heard(path).whole);
  CHECK(Heard(path).seconds == heard.seconds);
  // Zeros at the end are told from what follows them, with and without a number of frames.
  const std::string zeros(70000, '\0'), junk(20000, 'x');
  write_file(path, bare + zeros);
  CHECK(Heard(path).note == path.string() + ": it ends with 70000 zeros, in whose place there may have been sound");
  write_file(path, whole + zeros);
  CHECK(Heard(path).note.empty());
  for (const std::string& file : {bare, whole}) {
    for (const std::string& rest : {zeros + junk, junk + zeros}) {
      write_file(path, file + rest);
      const Heard filled(path);
      CHECK_FALSE(filled.whole);
      CHECK(filled.note == path.string() + ": 90000 bytes are no frames of MP3");
    }
  }
  write_file(path, before + junk + after + zeros);
  CHECK(Heard(path).note == path.string() +
                                ": it ends with 70000 zeros, in whose place there may have been sound; "
                                "20000 bytes are no frames of MP3");
  std::string parts = before + after;
  for (std::size_t i = 0; i < detail::max_sound_parts; ++i) parts += "x" + bare.substr(0, frames[2]);
  write_file(path, parts);
  CHECK(error_of(path) == path.string() + ": its sound is in more than 10000 parts, at most 10000 expected");
}

TEST_CASE("files that were written one after the other are heard, or said not to be", "[audio]") {
  const TemporaryFolder folder;
  const fs::path path = folder / "a";
  const std::vector<float> second = tone(440, 16000, 1);
  for (const int kind : {SF_FORMAT_WAV, SF_FORMAT_RF64, SF_FORMAT_AU, SF_FORMAT_W64, SF_FORMAT_CAF}) {
    INFO(std::hex << kind);
    put(path, kind | SF_FORMAT_PCM_16, 1, 16000, second);
    const std::string whole = bytes_of(path);
    CHECK(Heard(path).whole);
    write_file(path, whole + std::string(3000, '\0'));
    CHECK(Heard(path).whole);
    write_file(path, whole + std::string(5000, '\0') + whole);
    CHECK_FALSE(Heard(path).whole);
    write_file(path, whole + whole);
    const Heard both(path);
    CHECK(both.seconds == 1);
    CHECK_FALSE(both.whole);
    CHECK(contains(both.note, text("after the samples that the header tells of follow ", whole.size())));
    write_file(path, whole.substr(0, whole.size() - 1000));
    CHECK(contains(error_of(path), ": cut short: the header says 32"));
  }
  put(path, SF_FORMAT_FLAC | SF_FORMAT_PCM_16, 1, 16000, second);
  const std::string flac = bytes_of(path);
  const std::vector<float> once = read_audio(path).samples;
  write_file(path, flac + flac);
  const Heard both(path);
  CHECK(both.whole);
  CHECK(both.note == path.string() + ": 2 streams are heard one after the other");
  std::vector<float> twice = once;
  twice.insert(twice.end(), once.begin(), once.end());
  CHECK(read_audio(path).samples == twice);
  write_file(path, flac + flac.substr(0, flac.size() / 2));
  const std::string why = error_of(path);  // as this libFLAC says it, or an older one
  CHECK((why.starts_with(path.string() + ": cannot read as audio after 16000 samples: ") ||
         contains(why, ": cut short: the header says 16000 samples")));
}

TEST_CASE("tags before and after sound are no sound", "[audio]") {
  const TemporaryFolder folder;
  const fs::path path = folder / "a";
  // An ID3v2 tag of 5000 bytes that look like frames of MP3; an APE tag, of which the footer alone tells; ID3v1.
  std::string frames;
  while (frames.size() < 5000) frames += "\xff\xfb\x90\x40";
  const std::string id3 = std::string("ID3\x04\0\0\0\0\x27\x08", 10) + frames,
                    ape = frames + "APETAGEX" + detail::wav_size(2000) + detail::wav_size(5032) + detail::wav_size(1) +
                          std::string(12, '\0'),
                    id3v1 = "TAG" + std::string(125, ' ');
  for (const int format : {wav16, SF_FORMAT_FLAC | SF_FORMAT_PCM_16, SF_FORMAT_OGG | SF_FORMAT_VORBIS,
                           SF_FORMAT_AIFF | SF_FORMAT_PCM_16, mp3}) {
    INFO(std::hex << format);
    SF_INFO info{.frames = 0, .samplerate = 16000, .channels = 1, .format = format, .sections = 0, .seekable = 0};
    if (sf_format_check(&info) == 0) continue;  // no MP3 in an older libsndfile
    put(path, format, 1, 16000, tone(440, 16000, 2));
    const std::string bytes = bytes_of(path);
    const std::vector<float> bare = read_audio(path).samples;
    for (const std::string& file : {id3 + bytes, bytes + ape, id3 + id3 + bytes + ape + id3v1, bytes + id3v1}) {
      write_file(path, file);
      const Heard heard(path);
      CHECK(heard.whole);
      CHECK(heard.note.empty());
      CHECK(read_audio(path).samples == bare);
    }
    std::string tags;
    for (int i = 0; i < 8; ++i) tags += id3v1;
    write_file(path, bytes + tags);
    CHECK(read_audio(path).samples == bare);
    if ((format & SF_FORMAT_TYPEMASK) != SF_FORMAT_MPEG) continue;
    write_file(path, id3 + bytes + id3v1 + id3 + bytes + id3v1);  // of two files in a row
    CHECK(Heard(path).whole);
    CHECK(Heard(path).seconds == Approx(4).margin(0.2));
    std::string changed = bytes;  // decoders do not believe this first frame, and estimate the length
    changed[6] = '\x55';
    write_file(path, changed);
    CHECK(Heard(path).seconds == Approx(2).margin(0.1));
  }
}

TEST_CASE("frames that a FLAC file lacks are noted", "[audio]") {
  const TemporaryFolder folder;
  const fs::path path = folder / "a.flac";
  std::vector<float> noise(40000);
  std::uint32_t state = 1;
  for (float& x : noise) x = static_cast<float>((state = state * 1664525 + 1013904223) >> 16) / 131072;
  put(path, SF_FORMAT_FLAC | SF_FORMAT_PCM_16, 1, 16000, noise);
  const std::string whole = bytes_of(path);
  std::vector<std::size_t> frames;
  std::int64_t block = 0;
  for (std::size_t at = 42; at + 16 < whole.size(); ++at) {
    const auto frame = detail::read_flac_header(std::string_view(whole).substr(at, 16), 4096);
    if (!frame || frame->begin != static_cast<std::int64_t>(frames.size()) * 4096) continue;
    frames.push_back(at);
    block = std::max(block, frame->size);
  }
  REQUIRE(frames.size() == 10);
  REQUIRE(block == 4096);
  CHECK(Heard(path).whole);
  for (const std::size_t lost : {2U, 8U}) {  // also the last but one
    write_file(path, whole.substr(0, frames[lost]) + whole.substr(frames[lost + 1]));
    try {
      const Heard heard(path);
      CHECK_FALSE(heard.whole);
      CHECK(contains(heard.note, ": frames are missing; 0.26 s of what is heard may be silence in their place"));
    } catch (const Error& error) {  // an older libFLAC
      CHECK(contains(error.what(), "cut short: the header says 40000 samples"));
    }
  }
  // The first frames, in whose place there is no silence.
  for (const std::size_t lost : {1U, 3U, 9U}) {
    write_file(path, whole.substr(0, frames[0]) + whole.substr(frames[lost]));
    const Heard heard(path);
    CHECK_FALSE(heard.whole);
    CHECK(heard.missing == Approx(static_cast<double>(lost) * 4096 / 16000));
    CHECK(heard.seconds + heard.missing == Approx(2.5));
    CHECK(contains(heard.note, ": its first frames are missing; "));
  }
  // Metadata may hold what looks like a frame: here those after the first.
  const std::string pretended = "test" + whole.substr(frames[5], frames[7] - frames[5]);
  std::string head = whole.substr(0, 42);
  head += '\x02';
  for (const int shift : {16, 8, 0}) head += static_cast<char>(pretended.size() >> shift & 0xff);
  const std::string with_block = head + pretended + whole.substr(42);
  for (const std::string& file : {with_block, whole + with_block}) {
    write_file(path, file);
    const Heard heard(path);
    CHECK(heard.whole);
    CHECK(heard.note.find("missing") == std::string::npos);
  }
  // A header that tells of too little, as where it was written first; and bytes that follow the last frame.
  std::string changed = whole;
  changed.replace(22, 4, std::string("\0\0\0\x01", 4));
  write_file(path, changed);
  const Heard all(path);
  CHECK(all.seconds == 2.5);
  CHECK(all.whole);
  CHECK(all.note == path.string() + ": the header says 1 samples; all 40000 are heard");
  write_file(path, whole + std::string(500, 'x'));
  CHECK(Heard(path).seconds == 2.5);
  write_file(path, whole + std::string(50000, 'x'));
  CHECK_FALSE(Heard(path).whole);
  std::string stream = whole.substr(0, 42), streams;  // with no other metadata
  stream[4] |= '\x80';
  for (std::size_t i = 0; i <= detail::max_sound_parts; ++i) streams += stream;
  write_file(path, streams);
  CHECK(error_of(path) == path.string() + ": its sound is in more than 10000 parts, at most 10000 expected");
  // A frame of silence has fewer bytes than the longest header.
  put(path, SF_FORMAT_FLAC | SF_FORMAT_PCM_16, 1, 16000, std::vector<float>(16000));
  CHECK(Heard(path).seconds == 1);
  CHECK(Heard(path).whole);
  CHECK(Heard(path).note.empty());
}

TEST_CASE("an MP3 file with something else before it is heard with a note", "[audio]") {
  const TemporaryFolder folder;
  const fs::path path = folder / "a.mp3";
  if (!writes_mp3()) return;
  put(path, mp3, 1, 16000, tone(440, 16000, 2));
  const std::string bytes = bytes_of(path);
  write_file(path, std::string(3000, 'x') + bytes);
  const Heard heard(path);
  CHECK(heard.seconds == Approx(2).margin(0.01));
  CHECK_FALSE(heard.whole);
  CHECK(contains(heard.note, "its first 3000 bytes are no frames of MP3"));
  write_file(path, std::string(3000, 'x'));
  CHECK(contains(error_of(path), "cannot read as audio"));
}

TEST_CASE("float samples that no recording has are refused", "[audio]") {
  const TemporaryFolder folder;
  const fs::path path = folder / "a.wav";
  std::vector<float> samples = tone(440, 16000, 0.1);
  samples[7] = 1e30F;
  put(path, SF_FORMAT_WAV | SF_FORMAT_FLOAT, 1, 16000, samples);
  CHECK(contains(error_of(path), "sample 7 is 1e+30, 1 or less expected, or 2^31 or less where floats hold integers"));
}
