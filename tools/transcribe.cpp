// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// laconic transcribe: what a model hears in audio files, or in speech as it comes.
#include "commands.hpp"
#include "common/device_option.hpp"
#include "common/interrupts.hpp"
#include "common/portions.hpp"
#include "common/transcripts.hpp"
#include "decoding_options.hpp"
#include "stream_options.hpp"

#include <laconic/io/json.hpp>
#include <laconic/io/safetensors.hpp>
#include <laconic/recognition/listener.hpp>
#include <laconic/speech/audio.hpp>
#include <laconic/speech/subtitles.hpp>
#include <laconic/speech/vocabulary.hpp>
#include <laconic/speech/voice_activity.hpp>

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <deque>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string_view>
#include <system_error>
#include <utility>

namespace {

using namespace laconic;
using Clock = std::chrono::steady_clock;

struct TranscribeOptions : CommonOptions {
  DeviceOption device;
  std::string model, logits, confidence = "max-probability";
  std::vector<std::string> files;
  StreamOptions stream;
  DecodingOptions decoding;
  bool endpoint = false, vad = false;
  TranscriptOptions transcripts;
  double max_seconds = 600;

  /// Says whether results are needed as JSON, which takes more memory than the words.
  bool wants_json() const { return !json.empty() || transcripts.chosen_format() == TranscriptFormat::json; }
};

/// Collects the logits (frames, tokens) of every file, and writes them as safetensors under the files' paths.
class LogitsFile {
 public:
  /// Keeps the logits of a file, which came in blocks, until they are written.
  void add(const std::string& file, std::vector<float> values, Index tokens) {
    const std::vector<float>& one = values_.emplace_back(std::move(values));
    writer_.add(file, std::array{static_cast<Index>(one.size()) / tokens, tokens}, std::span<const float>(one));
  }
  void write(const std::string& path) const { writer_.write(path); }

 private:
  std::deque<std::vector<float>> values_;  // stay where they are, for the writer borrows them
  SafetensorsWriter writer_;
};

/// Returns an utterance for JSON.
nlohmann::json utterance(const std::string& said, double begin, double end) {
  return {{"text", said}, {"begin", begin}, {"end", end}};
}

/// Says on standard error what is not heard because no one speaks.
void say_silence(const std::string& of, double silence, double seconds) {
  say("note: ", of, ": ", fixed(silence, 1), " of ", fixed(seconds, 1), " s taken as silence and not heard (--vad)");
}

/// Holds what came of a file.
struct Heard {
  Transcript transcript;
  std::vector<float> logits;    ///< (frames, tokens), if they are wanted
  std::string note,             ///< says what was converted or not heard
      error;                    ///< says why nothing was heard; empty if it was
  bool is_whole = true;         ///< false if a part of the file could not be heard
  nlohmann::json utterances{};  ///< with --vad
  double silence = 0;           ///< seconds that were not heard, with --vad
};

/// Transcribes the stretches of speech in a file, each by itself.
void hear_speech(AudioReader& audio, const Recognizer& recognizer, Workspace& workspace, const TranscriptionConfig& how,
                 Heard& out) {
  const int rate = audio.sample_rate();
  VoiceActivity gate(rate);
  std::vector<float> stretch;
  Transcript& all = out.transcript;
  out.utterances = nlohmann::json::array();
  const auto take = [&](Index at, std::span<const float> samples, bool ends) {
    stretch.insert(stretch.end(), samples.begin(), samples.end());
    if (!ends) return;
    const Transcript one = recognizer.transcribe(stretch, rate, workspace, how);
    const double end = static_cast<double>(at) / rate, begin = end - one.seconds;
    append_words(all.words, one.words, begin);
    if (!one.text.empty()) out.utterances.push_back(utterance(one.text, begin, end));
    all.text += (all.text.empty() || one.text.empty() ? "" : " ") + one.text;
    stretch.clear();
  };
  std::vector<float> block(static_cast<std::size_t>(rate));
  for (std::size_t count = block.size(); count == block.size();) {
    count = audio.read(block);
    gate.push(std::span<const float>(block).first(count), take);
  }
  gate.finish(take);
  all.seconds = static_cast<double>(gate.samples()) / rate;
  out.silence = static_cast<double>(gate.samples() - gate.speech()) / rate;
}

/// Throws for formats in which several recordings would be mixed.
void require_told_apart(const TranscribeOptions& o) {
  require(o.files.size() == 1 || (o.transcripts.format != "srt" && o.transcripts.format != "vtt"),
          "transcribe: --format ", o.transcripts.format, " holds one recording, ", o.files.size(), " given");
  if (o.transcripts.format != "ctm") return;
  std::set<std::string> stems;
  for (const std::string& file : o.files)
    require(stems.insert(std::filesystem::path(file).stem().string()).second, "transcribe: ", file,
            ": --format ctm names a recording by its file without folder and ending, which another one has, too");
}

/// Throws, so that the exit code says it, if some files could not be heard or are not whole.
void require_all_heard(std::size_t files, std::size_t failed, std::size_t parts) {
  require(failed == 0, failed, " of ", files, " files could not be transcribed; they are named above");
  require(parts == 0, parts, " of ", files, " files were not heard whole; the notes say what is missing");
}

/// Transcribes files and prints each, in their order. A file that cannot be read is said, and the
/// others are heard; the exit code is then 1. Several threads hear files of their own if there are enough of them.
void transcribe_files(const TranscribeOptions& o, const Recognizer& recognizer, const TranscriptionConfig& config) {
  if (!o.logits.empty()) {
    std::vector<std::string> names = o.files;
    std::sort(names.begin(), names.end());
    const auto twice = std::adjacent_find(names.begin(), names.end());
    require(twice == names.end(), "transcribe: ", twice == names.end() ? "" : *twice,
            " given twice, but --logits names each file's logits by its path");
  }
  const auto format = o.transcripts.chosen_format();
  const int rate = recognizer.config().features.fbank.sample_rate;
  const bool deal =
      !recognizer.device().gpu && o.threads > 1 && o.files.size() >= static_cast<std::size_t>(2 * o.threads);
  std::vector<std::unique_ptr<Workspace>> workspaces(deal ? static_cast<std::size_t>(o.threads) : 1);
  const auto hear = [&](const std::string& file, std::size_t thread) {
    Heard out;
    try {
      if (!workspaces[thread])
        workspaces[thread] = std::make_unique<Workspace>(deal ? 1 : o.threads, recognizer.device());
      AudioReader audio(file, rate);
      TranscriptionConfig how = config;
      if (!o.logits.empty())
        how.logits = [&](MatrixView<const float> rows) {
          out.logits.insert(out.logits.end(), rows.data(), rows.data() + rows.size());
        };
      if (o.vad)
        hear_speech(audio, recognizer, *workspaces[thread], how, out);
      else
        out.transcript = recognizer.transcribe(audio, *workspaces[thread], how);
      out.note = audio.note();
      out.is_whole = audio.is_whole();
    } catch (const Error& error) {
      out.error = error.what();
    }
    return out;
  };

  nlohmann::json result = nlohmann::json::array();
  LogitsFile logits;
  std::vector<std::string> notes, notes_of_parts;
  std::size_t failed = 0, parts = 0;
  double silence = 0, seconds = 0;
  const std::size_t together = deal ? static_cast<std::size_t>(4 * o.threads) : 1;
  for (std::size_t begin = 0; begin < o.files.size(); begin += together) {
    std::vector<Heard> heard(std::min(together, o.files.size() - begin));
    if (deal)
      kernels::parallel_or_throw(o.threads, static_cast<Index>(heard.size()), [&](std::size_t i, std::size_t thread) {
        heard[i] = hear(o.files[begin + i], thread);
      });
    else
      heard[0] = hear(o.files[begin], 0);
    for (std::size_t i = 0; i < heard.size(); ++i) {
      const std::string& file = o.files[begin + i];
      Heard& one = heard[i];
      if (!one.error.empty()) {
        require(o.files.size() > 1, one.error);
        say("laconic: ", one.error);
        ++failed;
        result.push_back({{"audio_filepath", file}, {"error", one.error}});
        if (format == TranscriptFormat::json) print_transcript(format, file, {}, result.back());
        continue;
      }
      nlohmann::json written;
      if (o.wants_json()) {
        written = to_json(file, one.transcript, one.note, one.is_whole);
        if (o.vad) written.update({{"utterances", std::move(one.utterances)}, {"silence_seconds", one.silence}});
      }
      print_transcript(format, file, one.transcript, written);
      if (!o.json.empty()) result.push_back(std::move(written));
      parts += one.is_whole ? 0U : 1U;
      silence += one.silence;
      seconds += one.transcript.seconds;
      if (!one.note.empty()) (one.is_whole ? notes : notes_of_parts).push_back(one.note);
      if (!o.logits.empty()) logits.add(file, std::move(one.logits), recognizer.vocabulary().size());
    }
    flush_result();
    release_free_memory();
  }
  for (const std::string& note : notes_of_parts) say("note: ", note);  // all: what is missing is said nowhere else
  say_notes(notes);
  if (o.vad) say_silence(o.files.size() == 1 ? o.files[0] : text(o.files.size(), " files"), silence, seconds);
  if (!o.logits.empty()) logits.write(o.logits);
  o.write(result);
  if (!o.logits.empty()) say("logits: ", o.logits);
  require_all_heard(o.files.size(), failed, parts);
}

/// Samples as they come: of a file, or raw 16-bit ones in the machine's order from standard input.
class SampleSource {
 public:
  SampleSource(const std::string& file, int sample_rate) {
    if (file == "-") {
      interrupt_.emplace();
      return;
    }
    reader_.emplace(file, sample_rate);
  }
  /// Returns what of a file was converted or not heard, "" if nothing.
  std::string note() const { return reader_ ? reader_->note() : ""; }
  /// Says whether nothing is known to be missing.
  bool is_whole() const { return !reader_ || reader_->is_whole(); }
  /// Returns the seconds of a file, as far as its header says them; 0 for standard input.
  double duration() const { return reader_ ? reader_->duration() : 0; }
  /// Returns up to `count` samples; fewer only at the end. On standard input an interrupt (Ctrl-C) is the end.
  std::vector<float> next(std::size_t count) {
    std::vector<float> out(count);
    if (reader_) {
      out.resize(reader_->read(out));
      return out;
    }
    std::vector<std::int16_t> raw(count);
    out.resize(read_all(std::as_writable_bytes(std::span(raw))) / sizeof(std::int16_t));
    if (std::exchange(begins_, false)) require_raw(raw, out.size());
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = static_cast<float>(raw[i]) / 32768.0F;
    return out;
  }

 private:
  /// Reads standard input until the bytes are full, or it ends. Returns the number of bytes.
  std::size_t read_all(std::span<std::byte> bytes) const {
    std::size_t got = 0;
    while (got < bytes.size()) {
      pollfd inputs[] = {{STDIN_FILENO, POLLIN, 0}, {interrupt_->descriptor(), POLLIN, 0}};
      if (::poll(inputs, 2, -1) < 0 && errno == EINTR) continue;
      if (inputs[1].revents != 0) break;
      const ssize_t count = ::read(STDIN_FILENO, bytes.data() + got, bytes.size() - got);
      if (count < 0 && errno == EINTR) continue;
      require(count >= 0, "standard input: cannot be read: ", std::generic_category().message(errno));
      if (count == 0) break;
      got += static_cast<std::size_t>(count);
    }
    return got;
  }
  /// Throws for the header of an audio file, which would be heard as samples.
  static void require_raw(const std::vector<std::int16_t>& raw, std::size_t count) {
    const std::string_view head(reinterpret_cast<const char*>(raw.data()), count * sizeof(std::int16_t));
    for (const std::string_view name : {"RIFF", "RIFX", "RF64", "fLaC", "OggS", "FORM", "caff", "ID3"})
      require(!head.starts_with(name), "standard input: begins with ", name,
              ", as an audio file does; raw 16-bit samples expected (ffmpeg -i FILE -f s16le -ac 1 -ar RATE -)");
  }

  std::optional<AudioReader> reader_;           // empty: standard input
  std::optional<FinishOnInterrupt> interrupt_;  // set: standard input
  bool begins_ = true;
};

/// Prints words as they become final, in lines that begin with a name.
class TextLine {
 public:
  explicit TextLine(std::string name) : name_(std::move(name)) {}
  /// Ends the line that was begun, also where an error ends the work.
  ~TextLine() {
    if (!begins_) end();
  }
  TextLine(const TextLine&) = delete;
  TextLine& operator=(const TextLine&) = delete;

  void show(std::string_view text) {
    if (text.size() <= shown_) return;
    std::string_view more = text.substr(shown_);
    if (begins_ && more.front() == ' ') more.remove_prefix(1);
    if (std::exchange(begins_, false)) print(name_);
    print(more);
    flush_result();
    shown_ = text.size();
  }
  /// Ends the line; the next word begins another.
  void end() {
    print("\n");
    flush_result();
    begins_ = ends_ = true;
  }
  /// Ends the last line. There is at least one.
  void finish() {
    if (!begins_ || !ends_) {
      if (begins_) print(name_);
      end();
    }
  }

 private:
  std::string name_;
  std::size_t shown_ = 0;
  bool begins_ = true, ends_ = false;  // the next word begins a line; a line has ended
};

/// Pushes samples, and finishes after the last. Where the stream is full, the error says which option makes it longer.
Index pushed(Listener& listener, std::span<const float> samples, bool is_last) try {
  const Index frames = listener.push(samples);
  if (is_last) listener.finish();
  return frames;
} catch (const Error& error) {
  const std::string what = error.what();
  throw Error(what + (what.find("max_frames") == std::string::npos ? "" : " (--max-seconds)"));
}

/// Hears a file, or standard input, as it comes. Appends the result to `results` if that is to be written, and says
/// whether all was heard.
bool stream_file(const TranscribeOptions& o, const Recognizer& recognizer, const TranscriptionConfig& how,
                 const std::string& file, nlohmann::json& results) {
  const RecognizerConfig& config = recognizer.config();
  const int rate = config.features.fbank.sample_rate;
  SampleSource source(file, rate);
  const double most = std::max(o.max_seconds, source.duration() + 1);
  const StreamConfig streaming = o.stream.config(1, static_cast<Index>(most * config.frames_per_second()), o.threads);
  const auto format = o.transcripts.chosen_format();
  const std::string name = file == "-" ? "-" : std::filesystem::path(file).stem().string();
  TextLine line(o.files.size() > 1 ? file + ": " : "");
  std::size_t count = 0,  // samples
      printed = 0;        // words of CTM
  std::vector<double> pushes;
  double compute = 0, seconds = 0, last_end = 0;
  nlohmann::json utterances = nlohmann::json::array();
  const auto show = [&](const std::string& text) {
    if (format == TranscriptFormat::text) line.show(text);
  };
  const auto end_utterance = [&](const std::string& said, double begin, double end) {
    last_end = end;
    if (said.empty()) return;
    if (o.wants_json()) utterances.push_back(utterance(said, begin, end));
    if (format == TranscriptFormat::text) line.end();
  };
  const auto gate = o.vad ? std::optional(VoiceActivityConfig()) : std::nullopt;
  Listener listener([&] { return recognizer.stream(streaming, how); }, rate, gate,
                    [&](const SpeechStretch& stretch) {
                      show(listener.text());
                      end_utterance(stretch.text, stretch.begin, stretch.end);
                    });
  const auto block = std::max<std::size_t>(1, static_cast<std::size_t>(o.stream.block_ms * rate / 1000));
  for (bool more = true; more;) {
    const std::vector<float> samples = source.next(block);
    more = samples.size() == block;
    count += samples.size();
    seconds = static_cast<double>(count) / rate;
    const auto start = Clock::now();
    const Index final_frames = pushed(listener, samples, !more);
    const double took = std::chrono::duration<double>(Clock::now() - start).count();
    if (final_frames > 0 || !more) pushes.push_back(took);  // the others only wait for a chunk
    compute += took;
    show(listener.text());
    if (o.endpoint && (listener.is_endpoint() || !more)) {
      const std::string said = listener.next_utterance();
      show(listener.text());
      end_utterance(said, last_end, seconds);
    }
    if (format != TranscriptFormat::ctm) continue;
    print(Lines{to_ctm(std::span(listener.words()).subspan(printed), name)});
    flush_result();
    printed = listener.words().size();
  }
  if (format == TranscriptFormat::text) line.finish();
  const FeatureStreams& streams = listener.streams();
  std::sort(pushes.begin(), pushes.end());
  const double chunk = static_cast<double>(streams.chunk_rows()) * config.features.fbank.frame_shift_ms,
               worst = 1e3 * pushes.back();
  const double window = static_cast<double>(streams.first_rows() - 1) * config.features.fbank.frame_shift_ms +
                        config.features.fbank.frame_length_ms;
  say(fixed(seconds, 2), " s of speech in ", fixed(compute, 3), " s (real-time factor ",
      fixed(compute / std::max(seconds, 1e-9), 4), "); words wait for ", fixed(window - chunk, 0), " to ",
      fixed(window, 0), " ms of speech, and then up to ", fixed(worst, 1), " ms for the computer (median ",
      fixed(1e3 * pushes[pushes.size() / 2], 1), "); ", streams.attention_bytes(), " bytes of key-value cache");
  const std::string note = source.note();
  const bool is_printed_whole =
      format == TranscriptFormat::json || format == TranscriptFormat::srt || format == TranscriptFormat::vtt;
  nlohmann::json result;
  if (is_printed_whole || o.wants_json()) {
    const Transcript heard{listener.text(), listener.words(), seconds};
    if (o.wants_json()) {
      result = to_json(file, heard, note, source.is_whole());
      if (o.vad) result["silence_seconds"] = listener.silence();
      if (o.vad || o.endpoint) result["utterances"] = std::move(utterances);
    }
    if (is_printed_whole) print_transcript(format, file, heard, result);
  }
  if (!note.empty()) say("note: ", note);
  if (o.vad) say_silence(file == "-" ? "standard input" : file, listener.silence(), seconds);
  if (o.json.empty()) return source.is_whole();
  result.update({{"compute_seconds", compute},
                 {"push_seconds_median", pushes[pushes.size() / 2]},
                 {"push_seconds_most", pushes.back()},
                 {"chunk_ms", chunk},
                 {"window_ms", window},
                 {"attention_bytes", streams.attention_bytes()},
                 {"convolution_bytes", streams.convolution_bytes()}});
  results.push_back(std::move(result));
  return source.is_whole();
}

void transcribe(const TranscribeOptions& o) {
  require_told_apart(o);
  Recognizer recognizer = Recognizer::load(o.model);
  recognizer.prepare(o.threads, o.device.chosen());
  const TranscriptionConfig how{.window_seconds = o.transcripts.window_seconds,
                                .confidence = from_name<ConfidenceMeasure>(o.confidence).value(),
                                .beam = o.decoding.chosen(recognizer.vocabulary())};
  if (!o.stream.streaming) {
    for (const auto& file : o.files) require(file != "-", "transcribe: standard input needs --streaming");
    return transcribe_files(o, recognizer, how);
  }
  nlohmann::json result = nlohmann::json::array();
  std::size_t failed = 0, parts = 0;
  for (const auto& file : o.files) try {
      parts += stream_file(o, recognizer, how, file, result) ? 0U : 1U;
    } catch (const Error& error) {
      if (o.files.size() == 1) throw;
      say("laconic: ", error.what());
      result.push_back({{"audio_filepath", file}, {"error", error.what()}});
      if (o.transcripts.chosen_format() == TranscriptFormat::json)
        print_transcript(TranscriptFormat::json, file, {}, result.back());
      ++failed;
    }
  o.write(result);
  require_all_heard(o.files.size(), failed, parts);
}

}  // namespace

void add_transcribe_command(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("transcribe", "write down what is said in audio files, or in speech as it comes");
  const auto o = std::make_shared<TranscribeOptions>();
  o->add_to(*command);
  o->device.add_to(*command);
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
  CLI::Option* window = o->transcripts.add_to(
      *command, "text; json: an object a file, with words; srt, vtt: subtitles; ctm: a word a line, with times");
  command->add_option("--confidence", o->confidence, "what a word's confidence is")
      ->capture_default_str()
      ->check(CLI::IsMember(names_of<ConfidenceMeasure>()));
  o->decoding.add_to(*command);
  o->decoding.add_alternatives_to(*command);
  o->stream.add_to(*command, "print words as they become final, with latency and real-time factor");
  command
      ->add_flag("--endpoint", o->endpoint,
                 "begin a new line where an utterance ends: after 1.2 s of silence (2.4 s before any word), or 20 s")
      ->needs("--streaming");
  command
      ->add_flag("--vad", o->vad,
                 "hear only the stretches of speech, each as an utterance of its own, until 0.5 s of silence; the note "
                 "says how much was taken as silence")
      ->excludes("--endpoint")
      ->excludes(logits)
      ->excludes("--n-best");
  logits->excludes("--streaming");
  window->excludes("--streaming");
  command->get_option("--n-best")->excludes("--streaming");
  command->get_option("--confidence")->excludes("--beam");
  command->add_option("--max-seconds", o->max_seconds, "max seconds of a stream that keeps all frames")
      ->capture_default_str()
      ->check(between(1.0, 1e6));
  command->footer(
      "Example:\n  laconic transcribe --model runs/mha speech.wav\n"
      "  laconic transcribe --model runs/mha --format srt talk.flac > talk.srt\n"
      "  arecord -q -t raw -f S16_LE -r 16000 -c 1 | laconic transcribe --model runs/live --streaming -");
  command->callback([=] {
    if (!o->logits.empty()) o->logits = output_file(o->logits);  // said before the work
    transcribe(*o);
  });
}
