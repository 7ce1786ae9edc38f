// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// laconic transcribe: what a model hears in audio files, or in speech as it comes.
#include "commands.hpp"
#include "stream_options.hpp"

#include <laconic/decode/greedy_ctc.hpp>
#include <laconic/io/safetensors.hpp>
#include <laconic/recognition/dataset.hpp>

#include <array>
#include <chrono>

namespace {

using namespace laconic;
using Clock = std::chrono::steady_clock;

struct TranscribeOptions : CommonOptions {
  std::string model, logits;
  std::vector<std::string> files;
  StreamOptions stream;
  double max_seconds = 600;
};

/// Returns what every file says, and writes its logits (frames, tokens) as safetensors, under its path.
std::vector<std::string> write_logits(const TranscribeOptions& o, const Recognizer& recognizer, const Dataset& data) {
  Workspace workspace(o.threads);
  std::vector<Matrix<float>> logits;
  std::vector<std::string> hypotheses;
  SafetensorsWriter writer;
  logits.reserve(data.examples.size());  // the writer borrows them
  for (std::size_t i = 0; i < data.examples.size(); ++i) {
    const auto& one = logits.emplace_back(recognizer.logits(data.examples[i].features, workspace));
    hypotheses.push_back(recognizer.vocabulary().decode(greedy_ctc(view(one))));
    writer.add(o.files[i], std::array{one.rows(), one.cols()},
               std::span<const float>(one.data(), static_cast<std::size_t>(one.size())));
  }
  writer.write(o.logits);
  return hypotheses;
}

void transcribe_files(const TranscribeOptions& o, const Recognizer& recognizer) {
  std::vector<Utterance> utterances;
  for (const std::string& file : o.files) utterances.push_back({file, 0, "", ""});
  const Dataset data = load_dataset(utterances, recognizer.config().features, nullptr, o.threads);
  say_notes(data.notes);
  Workspace workspace(o.threads);
  const auto hypotheses =
      o.logits.empty() ? recognizer.evaluate(data, workspace).hypotheses : write_logits(o, recognizer, data);
  nlohmann::json result = nlohmann::json::array();
  for (std::size_t i = 0; i < o.files.size(); ++i) {
    std::printf("%s: %s\n", o.files[i].c_str(), hypotheses[i].c_str());
    result.push_back({{"audio_filepath", o.files[i]}, {"text", hypotheses[i]}, {"seconds", data.examples[i].seconds}});
  }
  o.write(result);
  if (!o.logits.empty()) std::printf("logits: %s\n", o.logits.c_str());
}

/// Samples as they come: of a file, or raw 16-bit ones in the machine's order from standard input.
class SampleSource {
 public:
  SampleSource(const std::string& file, int sample_rate) {
    if (file == "-") return;
    std::string note;
    samples_ = read_audio(file, sample_rate, &note).samples;
    if (!note.empty()) say("note: ", note);
    from_file_ = true;
  }
  /// Up to `count` samples; fewer only at the end.
  std::vector<float> next(std::size_t count) {
    std::vector<float> out(count);
    if (from_file_) {
      out.resize(std::min(count, samples_.size() - at_));
      std::copy_n(samples_.begin() + static_cast<std::ptrdiff_t>(at_), out.size(), out.begin());
      at_ += out.size();
      return out;
    }
    std::vector<std::int16_t> raw(count);
    out.resize(std::fread(raw.data(), sizeof(std::int16_t), count, stdin));
    require(std::ferror(stdin) == 0, "standard input: cannot be read");
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = static_cast<float>(raw[i]) / 32768.0F;
    return out;
  }

 private:
  bool from_file_ = false;
  std::vector<float> samples_;
  std::size_t at_ = 0;
};

/// Prints words as they become final.
class TextLine {
 public:
  void show(const std::string& text) {
    if (text.size() <= shown_) return;
    std::printf("%s", text.c_str() + shown_);
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
  if (o.files.size() > 1) std::printf("%s: ", file.c_str());
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
  o->stream.add_to(*command, "print words as they become final, with latency and real-time factor");
  logits->excludes("--streaming");
  command->add_option("--max-seconds", o->max_seconds, "max seconds of a stream that keeps all frames")
      ->capture_default_str()
      ->check(between(1.0, 1e6));
  command->footer(
      "Example:\n  laconic transcribe --model runs/mha speech.wav\n"
      "  arecord -q -t raw -f S16_LE -r 16000 -c 1 | laconic transcribe --model runs/live --streaming -");
  command->callback([=] { transcribe(*o); });
}
