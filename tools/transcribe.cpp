// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// laconic transcribe: what a model hears in audio files, or in speech as it comes.
#include "commands.hpp"
#include "common/portions.hpp"
#include "stream_options.hpp"

#include <laconic/decode/greedy_ctc.hpp>
#include <laconic/io/safetensors.hpp>
#include <laconic/recognition/dataset.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <deque>
#include <optional>
#include <span>
#include <string_view>

namespace {

using namespace laconic;
using Clock = std::chrono::steady_clock;

struct TranscribeOptions : CommonOptions {
  std::string model, logits;
  std::vector<std::string> files;
  StreamOptions stream;
  double max_seconds = 600, at_once = 80;
};

/// Collects the logits (frames, tokens) of every file, and writes them as safetensors under the files' paths.
class LogitsFile {
 public:
  /// Keeps logits until they are written, and returns them.
  const Matrix<float>& add(const std::string& file, Matrix<float> logits) {
    const Matrix<float>& one = logits_.emplace_back(std::move(logits));
    writer_.add(file, std::array{one.rows(), one.cols()},
                std::span<const float>(one.data(), static_cast<std::size_t>(one.size())));
    return one;
  }
  void write(const std::string& path) const { writer_.write(path); }

 private:
  std::deque<Matrix<float>> logits_;  // stay where they are, for the writer borrows them
  SafetensorsWriter writer_;
};

/// Holds what is heard in a portion of the files.
struct Heard {
  std::vector<std::string> texts;
  std::vector<double> seconds;
  std::vector<std::string> notes;
};

/// Transcribes a portion, and collects its logits if there is a file for them.
Heard hear(std::span<const Utterance> files, const Recognizer& recognizer, int threads, LogitsFile* logits) {
  Dataset data = load_dataset(files, recognizer.config().features, nullptr, threads);
  Workspace workspace(threads);  // its memory goes with the portion, for the next one has other shapes
  Heard out;
  if (logits == nullptr) out.texts = recognizer.evaluate(data, workspace).hypotheses;
  for (std::size_t i = 0; i < files.size(); ++i) {
    const Example& example = data.examples[i];
    out.seconds.push_back(example.seconds);
    if (logits == nullptr) continue;
    const auto& one = logits->add(files[i].audio_filepath.string(), recognizer.logits(example.features, workspace));
    out.texts.push_back(recognizer.vocabulary().decode(
        greedy_ctc(view(one), recognizer.vocabulary().blank(), recognizer.vocabulary().labels())));
  }
  out.notes = std::move(data.notes);
  return out;
}

/// Transcribes files in portions, so that memory holds one at a time, and prints each portion when it is done. Packed
/// utterances are independent of each other, so that portions change no result.
void transcribe_files(const TranscribeOptions& o, const Recognizer& recognizer) {
  std::vector<Utterance> files;
  std::vector<double> seconds;
  for (const std::string& file : o.files) {
    files.push_back({file, 0, "", ""});
    seconds.push_back(detail::audio_duration(file));  // throws before any work is done for a file that is no audio
  }
  if (!o.logits.empty()) {
    std::vector<std::string> names = o.files;
    std::sort(names.begin(), names.end());
    const auto twice = std::adjacent_find(names.begin(), names.end());
    require(twice == names.end(), "transcribe: ", twice == names.end() ? "" : *twice,
            " given twice, but --logits names each file's logits by its path");
  }
  nlohmann::json result = nlohmann::json::array();
  LogitsFile logits;
  struct Notes {
    std::vector<std::string> all;
    ~Notes() { say_notes(all); }  // also where a later portion fails
  } notes;
  for (std::size_t begin = 0, end; begin < files.size(); begin = end) {
    end = portion_end(seconds, begin, o.at_once);
    const Heard heard = hear(std::span<const Utterance>(files).subspan(begin, end - begin), recognizer, o.threads,
                             o.logits.empty() ? nullptr : &logits);
    for (std::size_t i = begin; i < end; ++i) {
      const std::string& said = heard.texts[i - begin];
      std::printf("%s\n", without_controls(text(o.files[i], ": ", said)).c_str());
      result.push_back({{"audio_filepath", o.files[i]}, {"text", said}, {"seconds", heard.seconds[i - begin]}});
    }
    std::fflush(stdout);
    release_free_memory();
    notes.all.insert(notes.all.end(), heard.notes.begin(), heard.notes.end());
  }
  if (!o.logits.empty()) logits.write(o.logits);
  o.write(result);
  if (!o.logits.empty()) std::printf("logits: %s\n", o.logits.c_str());
}

/// Samples as they come: of a file, or raw 16-bit ones in the machine's order from standard input.
class SampleSource {
 public:
  SampleSource(const std::string& file, int sample_rate) {
    if (file == "-") return;
    reader_.emplace(file, sample_rate);
    if (const std::string note = reader_->note(); !note.empty()) say("note: ", note);
  }
  /// Up to `count` samples; fewer only at the end.
  std::vector<float> next(std::size_t count) {
    std::vector<float> out(count);
    if (reader_) {
      out.resize(reader_->read(out));
      return out;
    }
    std::vector<std::int16_t> raw(count);
    out.resize(std::fread(raw.data(), sizeof(std::int16_t), count, stdin));
    require(std::ferror(stdin) == 0, "standard input: cannot be read");
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = static_cast<float>(raw[i]) / 32768.0F;
    return out;
  }

 private:
  std::optional<AudioReader> reader_;  // empty: standard input
};

/// Prints words as they become final.
class TextLine {
 public:
  void show(std::string_view text) {
    if (text.size() <= shown_) return;
    std::printf("%s", without_controls(text.substr(shown_)).c_str());
    std::fflush(stdout);
    shown_ = text.size();
  }

 private:
  std::size_t shown_ = 0;
};

nlohmann::json stream_file(const TranscribeOptions& o, const Recognizer& recognizer, const std::string& file) {
  const RecognizerConfig& config = recognizer.config();
  const int rate = config.features.fbank.sample_rate;
  SampleSource source(file, rate);
  SpeechStream stream =
      recognizer.stream(o.stream.config(1, static_cast<Index>(o.max_seconds * config.frames_per_second()), o.threads));
  const FeatureStreams& streams = stream.streams();
  TextLine line;
  std::vector<double> pushes;
  double compute = 0, seconds = 0;
  if (o.files.size() > 1) std::printf("%s: ", without_controls(file).c_str());
  const auto block = std::max<std::size_t>(1, static_cast<std::size_t>(o.stream.block_ms * rate / 1000));
  for (bool more = true; more;) {
    const std::vector<float> samples = source.next(block);
    more = samples.size() == block;
    seconds += static_cast<double>(samples.size()) / rate;
    const auto start = Clock::now();
    const Index final_frames = stream.push(samples);
    if (!more) stream.finish();
    const double took = std::chrono::duration<double>(Clock::now() - start).count();
    if (final_frames > 0 || !more) pushes.push_back(took);  // the others only wait for a chunk
    compute += took;
    line.show(stream.text());
  }
  std::printf("\n");
  std::sort(pushes.begin(), pushes.end());
  const double chunk = static_cast<double>(streams.chunk_rows()) * config.features.fbank.frame_shift_ms,
               worst = 1e3 * pushes.back();
  const double window = static_cast<double>(streams.first_rows() - 1) * config.features.fbank.frame_shift_ms +
                        config.features.fbank.frame_length_ms;
  say(fixed(seconds, 2), " s of speech in ", fixed(compute, 3), " s (real-time factor ",
      fixed(compute / std::max(seconds, 1e-9), 4), "); words wait for ", fixed(window - chunk, 0), " to ",
      fixed(window, 0), " ms of speech, and then up to ", fixed(worst, 1), " ms for the computer (median ",
      fixed(1e3 * pushes[pushes.size() / 2], 1), "); ", streams.attention_bytes(), " bytes of key-value cache");
  return {{"audio_filepath", file},
          {"text", stream.text()},
          {"seconds", seconds},
          {"compute_seconds", compute},
          {"push_seconds_median", pushes[pushes.size() / 2]},
          {"push_seconds_most", pushes.back()},
          {"chunk_ms", chunk},
          {"window_ms", window},
          {"attention_bytes", streams.attention_bytes()},
          {"convolution_bytes", streams.convolution_bytes()}};
}

void transcribe(const TranscribeOptions& o) {
  Recognizer recognizer = Recognizer::load(o.model);
  recognizer.prepare(o.threads);
  if (!o.stream.streaming) {
    for (const auto& file : o.files) require(file != "-", "transcribe: standard input needs --streaming");
    return transcribe_files(o, recognizer);
  }
  nlohmann::json result = nlohmann::json::array();
  for (const auto& file : o.files) result.push_back(stream_file(o, recognizer, file));
  o.write(result);
}

}  // namespace

void add_transcribe_command(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("transcribe", "write down what is said in audio files, or in speech as it comes");
  const auto o = std::make_shared<TranscribeOptions>();
  o->add_to(*command);
  command->add_option("--model", o->model, "model folder")->required()->type_name("DIR");
  command
      ->add_option("files", o->files,
                   "WAV, FLAC or Ogg files; with --streaming also -: raw 16-bit samples, one channel at the model's "
                   "rate, on standard input")
      ->required()
      ->type_name("FILE");
  CLI::Option* logits =
      command
          ->add_option("--logits", o->logits, "write the logits (frames, tokens) of each file to this safetensors file")
          ->type_name("FILE");
  CLI::Option* at_once =
      command->add_option("--at-once", o->at_once, "seconds of speech in memory at once; changes no result")
          ->capture_default_str()
          ->check(between(0.001, 1e6));
  o->stream.add_to(*command, "print words as they become final, with latency and real-time factor");
  logits->excludes("--streaming");
  at_once->excludes("--streaming");
  command->add_option("--max-seconds", o->max_seconds, "max seconds of a stream that keeps all frames")
      ->capture_default_str()
      ->check(between(1.0, 1e6));
  command->footer(
      "Example:\n  laconic transcribe --model runs/mha speech.wav\n"
      "  arecord -q -t raw -f S16_LE -r 16000 -c 1 | laconic transcribe --model runs/live --streaming -");
  command->callback([=] { transcribe(*o); });
}
