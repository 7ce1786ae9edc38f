// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include <fstream>
#include <laconic/speech/audio.hpp>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "catch.hpp"
#include "recordings.hpp"
#include "sound_files.hpp"
#include "temporary_folder.hpp"

using namespace laconic;
namespace fs = std::filesystem;

TEST_CASE("WAV is written and read", "[audio]") {
  TemporaryFolder folder;
  const Audio audio{tone(440, 16000, 0.25), 16000};
  write_wav(folder / "a.wav", audio);
  CHECK(fs::file_size(folder / "a.wav") == 44 + 2 * 4000);
  std::string note = "old";
  const Audio back = read_audio(folder / "a.wav", 16000, &note);
  CHECK(note.empty());
  CHECK(back.sample_rate == 16000);
  CHECK(back.duration() == 0.25);
  CHECK(difference(back.samples, audio.samples) <= 0.5F / 32768);

  // What was read is written back bit for bit, and libsndfile agrees with the format.
  write_wav(folder / "b.wav", back);
  CHECK(bytes_of(folder / "a.wav") == bytes_of(folder / "b.wav"));
  put(folder / "c.wav", wav16, 1, 16000, back.samples);
  CHECK(read_audio(folder / "c.wav").samples == back.samples);
}

TEST_CASE("written samples are clipped and rounded", "[audio]") {
  TemporaryFolder folder;
  write_wav(folder / "a.wav", {{-2, -1, -0.6F / 32768, 0.4F / 32768, 0.6F / 32768, 1, 1e30F}, 8000});
  CHECK(read_audio(folder / "a.wav").samples ==
        std::vector<float>{-1, -1, -1.0F / 32768, 0, 1.0F / 32768, 32767.0F / 32768, 32767.0F / 32768});
}

TEST_CASE("what cannot be written leaves nothing, and the old file as it was", "[audio]") {
  TemporaryFolder folder;
  const fs::path path = folder / "a.wav";
  CHECK_THROWS_WITH(write_wav(path, {{}, 16000}), path.string() + ": no samples to write");
  CHECK_THROWS_WITH(write_wav(path, {{0, std::numeric_limits<float>::quiet_NaN()}, 16000}),
                    path.string() + ": sample 1 to write is not a finite number");
  CHECK_THROWS_WITH(write_wav(path, {{0}, 0}), path.string() + ": a sample rate of 0 Hz, at least 1 expected");
  CHECK_THROWS_AS(write_wav(folder / "none/a.wav", {{0}, 16000}), Error);
  CHECK(folder.names().empty());

  write_wav(path, {{0.5F}, 16000});
  CHECK_THROWS_AS(write_wav(path, {{std::numeric_limits<float>::infinity()}, 16000}), Error);
  CHECK(read_audio(path).samples == std::vector<float>{0.5F});
  CHECK(folder.names() == std::vector<std::string>{"a.wav"});
  if (fs::exists("/dev/full"))
    CHECK_THROWS_WITH(write_wav("/dev/full", {{0}, 16000}), "/dev/full: cannot write: No space left on device");
}

TEST_CASE("every format, depth, number of channels and rate", "[audio]") {
  TemporaryFolder folder;
  struct {
    const char* name;
    int format, channels, rate;
    float tolerance;
    const char* note;
  } const cases[] = {
      {"a.wav", wav16, 1, 16000, 1e-4F, ""},
      {"a.wav", wav16, 2, 16000, 1e-4F, "2 channels averaged"},
      {"a.wav", wav16, 6, 16000, 1e-4F, "6 channels averaged"},
      {"a.wav", SF_FORMAT_WAV | SF_FORMAT_PCM_U8, 1, 16000, 1e-2F, "8-bit samples converted"},
      {"a.wav", SF_FORMAT_WAV | SF_FORMAT_PCM_24, 1, 16000, 1e-6F, "24-bit samples converted"},
      {"a.wav", SF_FORMAT_WAV | SF_FORMAT_PCM_32, 1, 16000, 1e-6F, "32-bit samples converted"},
      {"a.wav", SF_FORMAT_WAV | SF_FORMAT_FLOAT, 1, 16000, 0, ""},
      {"a.wav", SF_FORMAT_WAV | SF_FORMAT_DOUBLE, 1, 16000, 0, "64-bit float samples converted"},
      {"a.wav", SF_FORMAT_WAV | SF_FORMAT_ULAW, 1, 16000, 2e-2F, ""},
      {"a.flac", SF_FORMAT_FLAC | SF_FORMAT_PCM_16, 1, 16000, 1e-4F, ""},
      {"a.flac", SF_FORMAT_FLAC | SF_FORMAT_PCM_24, 2, 16000, 1e-6F, "24-bit samples converted; 2 channels averaged"},
      {"a.aiff", SF_FORMAT_AIFF | SF_FORMAT_PCM_16, 1, 16000, 1e-4F, ""},
      {"a.wav", wav16, 1, 44100, 2e-4F, "44100 Hz resampled to 16000 Hz"},
      {"a.wav", wav16, 1, 8000, 2e-4F, "8000 Hz resampled to 16000 Hz"},
      {"a.wav", SF_FORMAT_WAV | SF_FORMAT_PCM_24, 2, 48000, 2e-4F,
       "24-bit samples converted; 2 channels averaged; 48000 Hz resampled to 16000 Hz"},
  };
  for (const auto& c : cases) {
    INFO(c.name << ' ' << std::hex << c.format << std::dec << ' ' << c.channels << ' ' << c.rate);
    const fs::path path = folder / c.name;
    // The mean of the channels is the tone; no channel alone is.
    const std::vector<float> mono = tone(440, c.rate, 0.5, 0.4);
    std::vector<float> samples;
    for (const float x : mono)
      for (int k = 0; k < c.channels; ++k)
        samples.push_back(x + 0.1F * static_cast<float>(k) - 0.05F * static_cast<float>(c.channels - 1));
    put(path, c.format, c.channels, c.rate, samples);
    std::string note;
    const Audio audio = read_audio(path, 16000, &note);
    CHECK(note == (*c.note == 0 ? "" : path.string() + ": " + c.note));
    CHECK(audio.sample_rate == 16000);
    CHECK(difference(audio.samples, tone(440, 16000, 0.5, 0.4), c.rate == 16000 ? 0 : 400) <= c.tolerance);
    CHECK(read_audio(path).sample_rate == c.rate);
  }
}

TEST_CASE("Ogg Opus", "[audio]") {
  TemporaryFolder folder;
  put(folder / "a.opus", SF_FORMAT_OGG | SF_FORMAT_OPUS, 1, 16000, tone(440, 16000, 1));
  std::string note;
  const Audio audio = read_audio(folder / "a.opus", 16000, &note);
  CHECK(note.empty());
  CHECK(audio.sample_rate == 16000);
  CHECK(std::abs(audio.duration() - 1) < 0.02);
  double energy = 0;
  for (const float x : audio.samples) energy += static_cast<double>(x * x);
  CHECK(energy / static_cast<double>(audio.samples.size()) == Approx(0.125).epsilon(0.05));
}

TEST_CASE("audio that is none, or not whole", "[audio]") {
  TemporaryFolder folder;
  const fs::path path = folder / "a.wav";
  const std::string name = path.string();

  CHECK(error_of(path) == name + ": cannot open: No such file or directory");
  CHECK(error_of(folder.path) == folder.path.string() + ": is a folder, a regular file expected");
  CHECK(error_of("/dev/zero") == "/dev/zero: is a device, a regular file expected");
  REQUIRE(::mkfifo((folder / "pipe").c_str(), 0600) == 0);
  CHECK(contains(error_of(folder / "pipe"), ": is a pipe, a regular file expected"));  // and does not wait for a writer
  write_file(path, "");
  CHECK(error_of(path) == name + ": an empty file, an audio file expected");
  write_file(path, "RIFF");
  CHECK(contains(error_of(path), name + ": cannot read as audio: "));
  write_file(path, "This is a text, and no sound.\n");
  CHECK(contains(error_of(path), name + ": cannot read as audio: "));
  CHECK(error_of(path).find('\n') == std::string::npos);

  write_wav(path, {tone(440, 16000, 0.5), 16000});
  const std::string whole = bytes_of(path);
  CHECK(error_of(path, -1) == name + ": a sample rate of -1 Hz given, 0 or more expected");
  CHECK(contains(error_of(path, 16000 * 300),
                 ": resample: from 16000 Hz to 4800000 Hz given, a ratio from 1/256 to 256"));
  write_file(path, whole.substr(0, 9044));
  CHECK(error_of(path) == name + ": cut short: the header says 16000 bytes of samples, but 9000 follow");
  write_file(path, whole.substr(0, 44));
  CHECK(error_of(path) == name + ": cut short: the header says 16000 bytes of samples, but 0 follow");
  std::string lying = whole;
  lying.replace(40, 4, "\xff\xff\xff\x7e");
  write_file(path, lying);
  CHECK(error_of(path) == name + ": cut short: the header says 2130706431 bytes of samples, but 16000 follow");
  lying.replace(40, 4, "\xff\xff\xff\xff");  // as written to a pipe: the size was not known
  write_file(path, lying);
  CHECK(read_audio(path).samples.size() == 8000);
  lying.replace(40, 4, std::string(4, '\0'));
  write_file(path, lying.substr(0, 44));
  CHECK(error_of(path) == name + ": holds no samples");

  put(path, SF_FORMAT_WAV | SF_FORMAT_FLOAT, 1, 16000, {0, 0.5F, std::numeric_limits<float>::quiet_NaN(), 0});
  CHECK(error_of(path) == name + ": sample 2 is not a finite number");
  put(path, SF_FORMAT_WAV | SF_FORMAT_FLOAT, 2, 16000, {0, 0, 0, -std::numeric_limits<float>::infinity()});
  CHECK(error_of(path) == name + ": sample 1 is not a finite number");

  const fs::path flac = folder / "a.flac";
  put(flac, SF_FORMAT_FLAC | SF_FORMAT_PCM_16, 1, 16000, tone(440, 16000, 2));
  const std::string compressed = bytes_of(flac);
  for (const std::size_t part : {2U, 3U, 10U}) {
    write_file(flac, compressed.substr(0, compressed.size() * (part - 1) / part));
    INFO(error_of(flac));
    CHECK(error_of(flac).starts_with(flac.string() + ": c"));  // cannot read, or cut short
  }
  std::string damaged = compressed;
  damaged.replace(damaged.size() / 2, 50, std::string(50, 'U'));
  write_file(flac, damaged);
  CHECK(contains(error_of(flac), ": cannot read as audio after "));
  damaged = compressed;
  damaged[23] = 1;  // of the header's number of samples: 32000 + 65536
  write_file(flac, damaged);
  CHECK(error_of(flac) == flac.string() + ": cut short: the header says 97536 samples, but 32000 could be read");
}

TEST_CASE("a file is read in blocks", "[audio]") {
  TemporaryFolder folder;
  const std::vector<float> mono = tone(440, 44100, 1.7);
  std::vector<float> stereo;
  for (const float x : mono) stereo.insert(stereo.end(), {x, 0.3F * x});
  put(folder / "a.wav", wav16, 1, 16000, mono);
  put(folder / "a.flac", SF_FORMAT_FLAC | SF_FORMAT_PCM_24, 1, 8000, mono);
  put(folder / "stereo.wav", wav16, 2, 44100, stereo);
  put(folder / "stereo.flac", SF_FORMAT_FLAC | SF_FORMAT_PCM_16, 2, 48000, stereo);
  put(folder / "a.opus", SF_FORMAT_OGG | SF_FORMAT_OPUS, 1, 24000, mono);
  put(folder / "short.wav", wav16, 1, 11025, {0.25F});
  for (const std::string& name : folder.names())
    for (const int rate : {0, 16000, 22050}) {
      const fs::path path = folder / name;
      std::string note;
      const Audio whole = read_audio(path, rate, &note);
      for (const std::size_t size : {1U, 333U, 4097U, 65536U, 1000000U}) {
        if (size == 1 && rate == 22050) continue;  // slow
        INFO(name << " at " << rate << " Hz in blocks of " << size);
        AudioReader reader(path, rate);
        CHECK(reader.sample_rate() == whole.sample_rate);
        CHECK(reader.duration() == Approx(whole.duration()).margin(1.0 / whole.sample_rate));
        CHECK(reader.note() == note);
        std::vector<float> block(size), samples;
        std::size_t count = size;
        while (count == size) {
          count = reader.read(block);
          samples.insert(samples.end(), block.begin(), block.begin() + static_cast<std::ptrdiff_t>(count));
        }
        CHECK(samples == whole.samples);
        CHECK(reader.read(block) == 0);
      }
      if (rate != 0 && rate != read_audio(path).sample_rate)
        CHECK(whole.samples == resample(read_audio(path).samples, read_audio(path).sample_rate, rate));
    }
}

TEST_CASE("a recording longer than its header is trusted for is read whole", "[audio]") {
  const TemporaryFolder folder;
  Audio audio{std::vector<float>((std::size_t{1} << 22) + 200'000), 8000};
  for (std::size_t i = 0; i < audio.samples.size(); ++i) audio.samples[i] = static_cast<float>(i % 1000) / 1024;
  write_wav(folder / "long.wav", audio);
  const Audio read = read_audio(folder / "long.wav");
  REQUIRE(read.samples.size() == audio.samples.size());
  CHECK(std::equal(read.samples.end() - 1000, read.samples.end(), audio.samples.end() - 1000,
                   [](float a, float b) { return std::abs(a - b) < 1e-4F; }));
}

TEST_CASE("what is wrong with a file is said when a block of it is read, or before", "[audio]") {
  TemporaryFolder folder;
  const auto error_in_blocks = [](const fs::path& path, int rate) -> std::string {
    try {
      AudioReader reader(path, rate);
      std::vector<float> block(1000);
      while (reader.read(block) > 0) {
      }
    } catch (const Error& e) {
      return e.what();
    }
    return "no error";
  };
  put(folder / "whole.flac", SF_FORMAT_FLAC | SF_FORMAT_PCM_16, 1, 16000, tone(440, 16000, 2));
  const std::string whole = bytes_of(folder / "whole.flac");
  write_file(folder / "half.flac", whole.substr(0, whole.size() / 2));
  std::string lying = whole;
  lying[23] = 1;  // of the header's number of samples
  write_file(folder / "lying.flac", lying);
  write_wav(folder / "cut.wav", {tone(440, 16000, 0.5), 16000});
  write_file(folder / "cut.wav", bytes_of(folder / "cut.wav").substr(0, 9044));
  put(folder / "silent.wav", wav16, 1, 16000, {});
  std::vector<float> samples(100000);
  samples[90000] = std::numeric_limits<float>::quiet_NaN();
  put(folder / "nan.wav", SF_FORMAT_WAV | SF_FORMAT_FLOAT, 1, 16000, samples);
  write_file(folder / "words.wav", "This is a text, and no sound.\n");
  CHECK(error_in_blocks(folder / "whole.flac", 8000) == "no error");
  for (const char* name : {"half.flac", "lying.flac", "cut.wav", "silent.wav", "nan.wav", "words.wav", "none.wav"})
    for (const int rate : {0, 8000}) {
      INFO(name << " at " << rate << " Hz");
      CHECK(error_in_blocks(folder / name, rate) == error_of(folder / name, rate));
      CHECK(error_of(folder / name, rate).starts_with((folder / name).string() + ": "));
    }
}

TEST_CASE("attack: a chunk of a WAV file as long as 32 bits can say", "[audio]") {
  TemporaryFolder folder;
  for (const char* size : {"\xf8\xff\xff\xff", "\xf7\xff\xff\xff",
                           "\xff\xff\xff\xff"}) {  // 2^32 with what is before it: the next was itself
    const auto path = folder / "a.wav";
    write_file(path, std::string("RIFF\x14\0\0\0WAVELIST", 16) + std::string(size, 4));
    CHECK(error_of(path).starts_with(path.string() + ": cannot read as audio: "));
  }
}

TEST_CASE("a part of a recording", "[audio]") {
  const TemporaryFolder folder;
  const std::vector<float> mono = tone(440, 16000, 2);
  put(folder / "a.wav", wav16, 1, 16000, mono);
  put(folder / "a.flac", SF_FORMAT_FLAC | SF_FORMAT_PCM_16, 1, 16000, mono);
  put(folder / "a.ogg", SF_FORMAT_OGG | SF_FORMAT_VORBIS, 1, 16000, mono);
  const std::string vorbis = bytes_of(folder / "a.ogg");
  write_file(folder / "chain.ogg", vorbis + vorbis);
  for (const std::string& name : folder.names()) {
    INFO(name);
    const fs::path path = folder / name;
    const std::vector<float> all = read_audio(path).samples;
    for (const auto& [offset, duration] : {std::pair(0.5, 0.25), std::pair(0.0, 1.5), std::pair(1.75, 0.0),
                                           std::pair(1.75, 9.0), std::pair(1.9, 0.0001)}) {
      const auto begin = static_cast<std::ptrdiff_t>(offset * 16000);
      const auto end = duration > 0
                           ? std::min(static_cast<std::ptrdiff_t>(all.size()), begin + std::lround(duration * 16000))
                           : static_cast<std::ptrdiff_t>(all.size());
      const std::vector<float> expected(all.begin() + begin, all.begin() + end);
      CHECK(difference(read_audio(path, 0, nullptr, {offset, duration}).samples, expected) < 1e-4F);
      CHECK(AudioReader(path, 0, {offset, duration}).duration() ==
            Approx(static_cast<double>(expected.size()) / 16000).margin(0.01));
    }
    CHECK_THROWS_WITH(read_audio(path, 0, nullptr, {5, 1}),
                      Catch::Matchers::StartsWith(path.string() + ": an offset of 5 s given, but it ends after "));
  }
}

TEST_CASE("resampling keeps what fits into the band and removes the rest", "[audio]") {
  const std::pair<int, int> rates[] = {{16000, 8000}, {8000, 16000}, {44100, 16000}, {16000, 22050},
                                       {11, 10},      {9, 10},       {48000, 16000}, {16000, 16000}};
  for (const auto& [from, to] : rates) {
    INFO(from << " to " << to);
    const int low = std::min(from, to);
    const double seconds = 20000.0 / low;
    const std::vector<float> in = tone(0.4 * low, from, seconds);
    const std::vector<float> out = resample(in, from, to);
    CHECK(out.size() == static_cast<std::size_t>((static_cast<Index>(in.size()) * to + from - 1) / from));
    std::vector<float> expected = tone(0.4 * low, to, seconds + 1);
    expected.resize(out.size());
    CHECK(difference(out, expected, 1000) < 1e-4F);  // in time too: no delay
    if (from > to) {
      const std::vector<float> gone = resample(tone(0.51 * low, from, seconds), from, to);
      CHECK(difference(gone, std::vector<float>(gone.size()), 1000) < 1e-3F);
    }
  }
}

TEST_CASE("resampling short signals and impossible rates", "[audio]") {
  CHECK(resample({}, 8000, 16000).empty());
  for (std::size_t n = 1; n < 40; ++n) {
    const std::vector<float> in(n, 0.5F);
    CHECK(resample(in, 8000, 16000).size() == 2 * n);
    CHECK(resample(in, 48000, 16000).size() == (n + 2) / 3);
    CHECK(resample(in, 256, 1).size() == 1);
    CHECK(resample(in, 1, 256).size() == 256 * n);
  }
  // Allocators may place the result just after the samples.
  std::vector<float> both(48, 0.5F);
  std::span<const float> in = std::span(both).first(36);
  CHECK(laconic::detail::Resampler(48000, 16000)(in, true, std::span(both).subspan(36)) == 12);
  const std::vector<float> one{1};
  CHECK_THROWS_WITH(resample(one, 0, 16000), "resample: from 0 Hz to 16000 Hz given, positive rates expected");
  CHECK_THROWS_WITH(resample(one, 257, 1), "resample: from 257 Hz to 1 Hz given, a ratio from 1/256 to 256 expected");
}

TEST_CASE("audio is read from several threads", "[audio]") {
  TemporaryFolder folder;
  std::vector<fs::path> paths;
  std::vector<std::vector<float>> expected;
  for (int i = 0; i < 4; ++i) {
    paths.push_back(folder / (std::to_string(i) + ".flac"));
    put(paths.back(), SF_FORMAT_FLAC | SF_FORMAT_PCM_16, 1, 44100, tone(200 + 100 * i, 44100, 0.2));
    expected.push_back(read_audio(paths.back(), 16000).samples);
  }
  std::vector<int> same(8);
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < same.size(); ++i)
    threads.emplace_back([&, i] {
      for (int k = 0; k < 5; ++k) same[i] += read_audio(paths[i % 4], 16000).samples == expected[i % 4] ? 1 : 0;
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(same == std::vector<int>(8, 5));
}

TEST_CASE("a real recording", "[audio]") {
  const fs::path path = recordings / "librispeech/test-clean/1089/134691/1089-134691-0000.flac";
  std::string note;
  const Audio audio = read_audio(path, 16000, &note);
  CHECK(note.empty());
  CHECK(audio.sample_rate == 16000);
  CHECK(audio.samples.size() == 33360);
  double sum = 0;  // FLAC is exact: every sample is a 16-bit integer
  for (const float x : audio.samples) sum += std::abs(32768.0 * static_cast<double>(x));
  CHECK(sum == 26651444);
  CHECK(read_audio(path, 8000, &note).samples.size() == 16680);
  CHECK(note == path.string() + ": 16000 Hz resampled to 8000 Hz");
}

TEST_CASE("real recordings of many kinds", "[audio][data]") {
  if (const fs::path folder = data_folder("fsdd"); !folder.empty()) {
    std::string note;
    const Audio audio = read_audio(folder / "0_george_0.wav", 16000, &note);
    CHECK(note == (folder / "0_george_0.wav").string() + ": 8000 Hz resampled to 16000 Hz");
    CHECK(audio.samples.size() == 2 * read_audio(folder / "0_george_0.wav").samples.size());
    int count = 0;
    for (const auto& entry : fs::directory_iterator(folder)) {
      if (entry.path().extension() != ".wav" || count >= 200) continue;
      CHECK(read_audio(entry.path(), 8000, &note).duration() > 0.1);
      CHECK(note.empty());
      ++count;
    }
    CHECK(count > 0);
  }
  if (const fs::path folder = data_folder("librispeech"); !folder.empty()) {
    const Audio audio = read_audio(folder / "test-clean/1089/134686/1089-134686-0000.flac");
    CHECK(audio.sample_rate == 16000);
    CHECK(audio.samples.size() == 166960);
  }
  if (const fs::path folder = data_folder("speechocean762/train"); !folder.empty()) {
    int count = 0;
    for (const auto& entry : fs::directory_iterator(folder)) {
      if (entry.path().extension() != ".opus" || count >= 50) continue;
      const Audio audio = read_audio(entry.path(), 16000);
      CHECK(audio.duration() > 0.5);
      CHECK(std::ranges::any_of(audio.samples, [](float x) { return std::abs(x) > 0.01F; }));
      ++count;
    }
    CHECK(count > 0);
  }
}
