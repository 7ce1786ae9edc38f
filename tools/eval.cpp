// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// laconic eval: word error rate of a model, whole utterances or streamed.
#include "commands.hpp"
#include "common/device_option.hpp"
#include "common/portions.hpp"
#include "common/status_line.hpp"
#include "decoding_options.hpp"
#include "eval_corpus.hpp"
#include "eval_details.hpp"
#include "stream_options.hpp"
#include "unknown_tokens.hpp"

#include <laconic/recognition/dataset.hpp>
#include <laconic/recognition/fingerprint.hpp>
#include <laconic/speech/audio.hpp>
#include <laconic/speech/corpus.hpp>
#include <laconic/speech/wer.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <numeric>
#include <optional>
#include <span>

namespace {

using namespace laconic;
using namespace eval_parts;

struct EvalOptions : CommonOptions {
  DeviceOption device;
  std::string model, data, transcripts, normalize = "none";
  StreamOptions stream;
  DecodingOptions decoding;
  bool cer = false, by_speaker = false, by_word = false;
  Index streams = 16;
  double at_once = 80;  // what a batch holds

  TextNormalization normalization() const { return from_name<TextNormalization>(normalize).value(); }
  /// Seconds of speech in a portion. Streams need more than one utterance each to be busy most of the time.
  double portion_seconds() const { return at_once * static_cast<double>(stream.streaming ? streams : 1); }
};

/// Holds the results for the first utterances of a corpus.
struct Findings {
  Evaluation whole;             ///< whole utterances
  StreamedEvaluation streamed;  ///< empty unless they are streamed, too
  Index not_whole = 0;          ///< recordings of which a part could not be heard

  Index done() const { return static_cast<Index>(whole.hypotheses.size()); }
  const Evaluation& wanted(bool streaming) const { return streaming ? streamed : whole; }

  Findings& operator+=(const Findings& more) {
    whole += more.whole;
    streamed += more.streamed;
    not_whole += more.not_whole;
    return *this;
  }

  static constexpr void fields(auto& self, auto&& visit) {
    visit("whole", self.whole);
    visit("streamed", self.streamed);
    visit("not_whole", self.not_whole);
  }
};

/// Returns the texts of all processes, in their order.
std::vector<std::string> of_all_processes(const std::vector<std::string>& own) {
  AnyCommunicator all = processes();
  std::vector<std::string> out;
  for (int rank = 0; rank < all.size(); ++rank) {
    std::string count = text(own.size());
    broadcast_text(all, count, rank);
    for (std::size_t i = 0; i < std::stoul(count); ++i)
      broadcast_text(all, out.emplace_back(rank == all.rank() ? own[i] : std::string()), rank);
  }
  return out;
}
/// Adds up what all processes found at the same time.
Findings sum_of_all_processes(const Findings& own) {
  if (processes().size() == 1) return own;
  Findings out;
  double whole = 0, streamed = 0;
  for (const std::string& json : of_all_processes({to_json(own).dump()})) {
    const auto one = json_value<Findings>(parse_json(json, "processes"), "processes");
    out += one;
    whole = std::max(whole, one.whole.compute_seconds);
    streamed = std::max(streamed, one.streamed.compute_seconds);
  }
  out.whole.compute_seconds = whole;
  out.streamed.compute_seconds = streamed;
  return out;
}

/// Returns null for an option that was not given.
nlohmann::json optional_json(const std::optional<Index>& value) {
  return value ? nlohmann::json(*value) : nlohmann::json();
}

/// Says whether a file of this name is replaced, or made: next to a pipe or a device there is no place for another.
bool is_replaced(const std::string& file) {
  std::error_code ignored;
  return detail::own_descriptor(file) < 0 &&
         (!detail::is_there(file) || std::filesystem::is_regular_file(file, ignored));
}

/// Returns what tells a file from another one of its name: the name as JSON can hold it, size and time. "" for none.
std::string file_identity(const std::string& file) {
  if (file.empty()) return "";
  std::error_code error;
  const auto size = std::filesystem::file_size(file, error);
  const auto time = std::filesystem::last_write_time(file, error);
  return Fingerprint::of_texts(std::array{file, text(size), text(time.time_since_epoch().count())});
}

/// Keeps findings beside the result's file until that is written, so that a run that was stopped can go on.
class PartialFile {
 public:
  PartialFile(const EvalOptions& o, const Recognizer& recognizer, const EvalCorpus& corpus)
      : corpus_(corpus), streaming_(o.stream.streaming) {
    // Beside a pipe or a device there is no place.
    if (o.json.empty() || !is_replaced(o.json)) return;
    path_ = o.json + ".partial";
    run_ = {{"model", to_json(recognizer.config())},
            {"parameters", recognizer.fingerprint()},
            {"vocabulary", Fingerprint::of_texts(std::array{recognizer.vocabulary().to_json().dump()})}};
    if (o.decoding.beam.config.beam_width > 0)
      run_["beam"] = {{"search", to_json(o.decoding.beam.config)},
                      {"lm", file_identity(o.decoding.language_model)},
                      {"hotwords", o.decoding.beam.hotwords}};
    if (o.normalization() != TextNormalization::none) run_["normalize"] = o.normalize;
    if (streaming_)
      run_["streaming"] = {{"streams", o.streams},
                           {"chunk", optional_json(o.stream.chunk)},
                           {"left_context", optional_json(o.stream.left_context)},
                           {"cache", o.stream.cache},
                           {"block_ms", o.stream.block_ms}};
  }

  /// Nothing where there is no such file; throws where it belongs to another run.
  Findings read() const {
    if (processes().rank() > 0 || path_.empty() || !detail::is_there(path_)) return {};
    const nlohmann::json json = read_json(path_, std::size_t{1} << 30);
    auto found = json_member<Findings>(json, "found", path_);
    const auto size = found.whole.hypotheses.size();
    require_same_run(json.value("run", nlohmann::json()), run(std::min(found.done(), corpus_.size())), path_,
                     "name for --json");
    require(found.whole.errors.size() == size && found.whole.losses.size() == size &&
                found.streamed.hypotheses.size() == (streaming_ ? size : 0) &&
                found.streamed.errors.size() == found.streamed.hypotheses.size(),
            path_, ": contradicts itself; delete it to start anew");
    say("going on after ", size, " of ", corpus_.size(), " utterances, which ", path_, " holds");
    return found;
  }
  void write(const Findings& found) const {
    if (!path_.empty()) write_file(path_, json_text({{"run", run(found.done())}, {"found", to_json(found)}}) + '\n');
  }
  void remove() const {
    if (!path_.empty()) ::unlink(path_.c_str());
  }

 private:
  /// Returns the description that a resumed run must share with the stopped one, of which `done` utterances are done.
  nlohmann::json run(Index done) const {
    nlohmann::json out = run_;
    out["utterances_done"] = done;
    out["data"] = Fingerprint::of_texts(std::span(corpus_.identities).first(static_cast<std::size_t>(done)));
    return out;
  }

  const EvalCorpus& corpus_;
  bool streaming_;
  std::string path_;
  nlohmann::json run_;
};

/// Goes through a corpus in portions, so that memory holds one at a time. Packed utterances are independent of each
/// other, so that portions change no result.
Findings evaluate_in_portions(const EvalOptions& o, const Recognizer& recognizer, const EvalCorpus& corpus,
                              const ComparedTexts& texts, const PartialFile& partial) {
  Findings found = sum_of_all_processes(partial.read());
  const double longest = *std::max_element(corpus.seconds.begin(), corpus.seconds.end());
  const auto longest_frames =
      static_cast<Index>(std::ceil(longest * recognizer.config().frames_per_second())) + 2;  // resampling rounds up
  const StreamConfig stream = o.stream.config(o.streams, longest_frames, o.threads);
  const TranscriptionConfig how{.beam = o.decoding.chosen(recognizer.vocabulary())};
  const double all = corpus.seconds_from(0), ahead = corpus.seconds_from(found.done());
  const auto start = std::chrono::steady_clock::now();
  StatusLine line;
  std::vector<std::string> notes;
  while (found.done() < corpus.size()) {
    release_free_memory();           // what the portion before held
    std::span<const Utterance> own;  // each process takes the next portion
    Index begin = found.done();
    for (int rank = 0; rank <= processes().rank(); ++rank) {
      own = corpus.portion(begin, o.portion_seconds());
      begin += static_cast<Index>(own.size());
    }
    Findings portion;
    if (!own.empty()) {
      Dataset data = load_dataset(own, recognizer.config().features, nullptr, o.threads);
      add_labels(data, recognizer.vocabulary());
      portion.not_whole =
          std::count_if(data.examples.begin(), data.examples.end(), [](const Example& e) { return !e.is_whole; });
      notes.insert(notes.end(), data.notes.begin(), data.notes.end());
      // Its memory goes with the portion, for the next one has other shapes.
      Workspace workspace(o.threads, recognizer.device());
      portion.whole = recognizer.evaluate(data, workspace, how);
      texts.count_again(own, portion.whole);
      if (o.stream.streaming) {
        portion.streamed = recognizer.evaluate_streamed(data, stream, o.stream.block_frames(recognizer.config()), how);
        texts.count_again(own, portion.streamed);
      }
    }
    found += sum_of_all_processes(portion);
    if (found.done() == corpus.size()) break;
    if (processes().rank() > 0) continue;
    partial.write(found);
    if (!line.due()) continue;
    const Evaluation& e = found.wanted(o.stream.streaming);
    const double left = corpus.seconds_from(found.done()),
                 took = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    line.show(text(found.done(), " of ", corpus.size(), " utterances  ", fixed((all - left) / 60, 1), " of ",
                   fixed(all / 60, 1), " min of speech  real-time factor ",
                   fixed(e.compute_seconds / e.audio_seconds, 3), "  WER ", fixed(100 * e.wer(), 2), "%  ",
                   fixed(took / (ahead - left) * left, 0), " s left"));
  }
  line.end();
  say_notes(of_all_processes(notes));
  return found;
}

/// One JSON object a line: name, text and hypothesis as they were compared.
void write_transcripts(const std::filesystem::path& path, const ComparedTexts& texts, const EvalCorpus& corpus,
                       const Evaluation& evaluation) {
  std::string out;
  for (std::size_t i = 0; i < corpus.utterances.size(); ++i) {
    const Utterance& u = corpus.utterances[i];
    out += json_text({{"name", EvalCorpus::name(u)},
                      {"text", texts.reference(u.text)},
                      {"hypothesis", texts.hypothesis(evaluation.hypotheses[i])}}) +
           '\n';
  }
  write_file(path, out);
}

/// Adds the name, errors and loss of each utterance, for `laconic compare`.
void add_utterances(nlohmann::json& result, const EvalCorpus& corpus, const Evaluation& evaluation,
                    std::span<const double> losses) {
  for (std::size_t i = 0; i < corpus.utterances.size(); ++i) {
    result["utterance_names"].push_back(EvalCorpus::name(corpus.utterances[i]));
    result["utterance_errors"].push_back(evaluation.errors[i].errors());
    result["utterance_words"].push_back(evaluation.errors[i].reference_words);
    result["utterance_losses"].push_back(losses[i] < 0 ? nlohmann::json() : nlohmann::json(losses[i]));
  }
}

/// Returns the costs of streaming: memory, latency, and transcripts that changed.
nlohmann::json stream_json(const StreamedEvaluation& e, const Recognizer& recognizer, Index changed) {
  return {{"streams", e.streams},
          {"chunk", e.chunk},
          {"left_context", e.left_context},
          {"chunk_seconds", static_cast<double>(e.chunk) / recognizer.config().frames_per_second()},
          {"attention_bytes", e.attention_bytes},
          {"convolution_bytes", e.convolution_bytes},
          {"feature_bytes", e.feature_bytes},
          {"push_seconds_median", e.push_quantile(0.5)},
          {"push_seconds_95", e.push_quantile(0.95)},
          {"real_time_factor", e.compute_seconds / e.audio_seconds},
          {"transcripts_changed", changed}};
}

void eval(const EvalOptions& o) {
  Recognizer recognizer = Recognizer::load(o.model);
  if (o.stream.streaming) recognizer.config().features.require_streamable();
  const EvalCorpus corpus(o.data, recognizer.vocabulary(), o.normalization());
  const ComparedTexts texts(recognizer.vocabulary(), o.normalization());
  say("reading ", corpus.size(), " utterances ...");
  const PartialFile partial(o, recognizer, corpus);
  recognizer.prepare(o.threads, o.device.chosen());
  const Findings found = evaluate_in_portions(o, recognizer, corpus, texts, partial);
  if (processes().rank() > 0) return;
  const UnknownTokens unknown(corpus.utterances, recognizer.vocabulary());
  if (unknown.texts > 0) {
    const bool helps =
        o.normalization() == TextNormalization::none && recognizer.vocabulary().kind() == Tokens::characters;
    say(without_controls(text("note: ", unknown.sentence(), ". ",
                              texts.rewrites() ? "These texts have no loss"
                                               : "Words with them are counted as errors, and these texts have no loss",
                              helps ? "; --normalize punctuation takes punctuation away" : "")));
  }
  const Evaluation& evaluation = found.wanted(o.stream.streaming);
  nlohmann::json streaming;
  std::string streaming_lines;
  if (o.stream.streaming) {
    const StreamedEvaluation& streamed = found.streamed;
    Index changed = 0;
    for (std::size_t i = 0; i < corpus.utterances.size(); ++i)
      changed += streamed.hypotheses[i] != found.whole.hypotheses[i];
    streaming = stream_json(streamed, recognizer, changed);
    streaming_lines = text(
        "streamed: ", o.streams, " at once, chunks of ", fixed(streaming["chunk_seconds"].get<double>(), 2), " s, ",
        streamed.attention_bytes, " + ", streamed.convolution_bytes, " + ", streamed.feature_bytes,
        " bytes a stream (keys and values, convolutions, features)\na push that makes frames final takes ",
        fixed(1e3 * streamed.push_quantile(0.5), 2), " ms (95%: ", fixed(1e3 * streamed.push_quantile(0.95), 2), "); ",
        changed, " of ", corpus.size(), " transcripts differ from those of whole utterances under the model's mask\n");
  }
  const std::vector<double> losses = found.whole.known_losses();
  const WordErrors errors = evaluation.total_errors();
  const Seed seed(static_cast<std::uint64_t>(o.seed));
  const Interval interval = bootstrap_interval(evaluation.errors, 0.95, 1000, seed);
  nlohmann::json result{{"model", o.model},
                        {"data", o.data},
                        {"normalize", o.normalize},
                        {"encoder", to_name(recognizer.config().model)},
                        {"attention", to_name(recognizer.config().encoder.attention)},
                        {"device", recognizer.device().name()},
                        {"utterances", corpus.size()},
                        {"wer", 100 * errors.rate()},
                        {"wer_low", 100 * interval.low},
                        {"wer_high", 100 * interval.high},
                        {"substitutions", errors.substitutions},
                        {"deletions", errors.deletions},
                        {"insertions", errors.insertions},
                        {"reference_words", errors.reference_words},
                        {"texts_with_unknown", unknown.texts},
                        {"unknown", unknown.in_texts},
                        {"not_whole", found.not_whole},
                        {"audio_seconds", corpus.seconds_from(0)},
                        {"compute_seconds", evaluation.compute_seconds},
                        {"cache_bytes_per_second", recognizer.cache_bytes_per_second()},
                        {"parameters", recognizer.count_parameters()},
                        {"peak_memory_bytes", peak_resident_bytes()}};
  if (o.stream.streaming) result["streaming"] = streaming;
  std::string loss_line;
  if (!losses.empty()) {
    const Interval of_loss = bootstrap_mean(losses, 0.95, 1000, seed);
    result.update({{"loss", found.whole.loss()}, {"loss_low", of_loss.low}, {"loss_high", of_loss.high}});
    loss_line = text("CTC loss ", fixed(found.whole.loss(), 3), " [", fixed(of_loss.low, 3), ", ",
                     fixed(of_loss.high, 3), "] an utterance",
                     losses.size() == corpus.utterances.size()
                         ? ""
                         : text(", of the ", losses.size(), " whose texts the vocabulary can write in their time"),
                     '\n');
  }
  add_utterances(result, corpus, evaluation, found.whole.losses);
  // Before any file is written: a disk that is full costs no result.
  print("WER ", fixed(100 * errors.rate(), 2), "% [", fixed(100 * interval.low, 2), ", ", fixed(100 * interval.high, 2),
        "]  (", errors.substitutions, " substitutions, ", errors.deletions, " deletions, ", errors.insertions,
        " insertions in ", errors.reference_words, " words; 95% interval by utterance)\n", Lines{loss_line},
        to_name(recognizer.config().encoder.attention), ", ", recognizer.count_parameters(), " parameters, ",
        fixed(recognizer.cache_bytes_per_second(), 0), " bytes of key-value cache a second of speech\n",
        fixed(corpus.seconds_from(0), 1), " s of speech in ", fixed(evaluation.compute_seconds, 2), " s (",
        fixed(corpus.seconds_from(0) / evaluation.compute_seconds, 0), " times real time, ", threads_text(o.threads),
        ")\n", Lines{streaming_lines});
  const EvalDetails details(texts, corpus, evaluation, o.cer);
  details.add_to(result);
  details.print_wanted(o.cer, o.by_speaker, o.by_word);
  if (!o.transcripts.empty()) write_transcripts(o.transcripts, texts, corpus, evaluation);
  o.write(result);
  partial.remove();
  require(found.not_whole == 0, o.data, ": ", found.not_whole, " of ", corpus.size(),
          " recordings were not heard whole; the notes say what is missing");
}

}  // namespace

void add_eval_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("eval", "word error rate of a model on a corpus, with its 95% interval");
  const auto o = std::make_shared<EvalOptions>();
  o->add_to(*command);
  o->device.add_to(*command);
  command->add_option("--model", o->model, "model folder")->required()->type_name("DIR");
  command->add_option("--data", o->data, "manifest or LibriSpeech folder")->required()->type_name("PATH");
  command
      ->add_option("--transcripts", o->transcripts,
                   "write texts and hypotheses, as they are compared, to this file, a JSON object a line")
      ->type_name("FILE");
  command
      ->add_option("--at-once", o->at_once,
                   "seconds of speech in memory at once (streamed: for each stream); changes no result")
      ->capture_default_str()
      ->check(between(0.001, 1e6));
  command
      ->add_option("--normalize", o->normalize,
                   "how texts are made equal before they are compared; punctuation: without what of it the vocabulary "
                   "lacks, a typographic apostrophe is a plain one; basic: any language, in small letters without "
                   "marks, punctuation and symbols; whisper: English, with numbers in digits, contractions written "
                   "out, American spelling. The latter two are Whisper's normalisers and rewrite hypotheses, too")
      ->capture_default_str()
      ->check(CLI::IsMember(names_of<TextNormalization>()));
  command->get_option("--json")->description(
      "also write the result to this file, as JSON; FILE.partial keeps what is done until then, and the same command "
      "goes on "
      "from it");
  command->add_flag("--cer", o->cer, "print the character error rate, too: for languages without spaces");
  command->add_flag("--by-speaker", o->by_speaker, "print the word error rate of each speaker");
  command->add_flag("--by-word", o->by_word, "print the words that are most often missing, too many, or others");
  o->decoding.add_to(*command);
  o->stream.add_to(*command, "evaluate speech that comes block by block to many streams at once");
  command->add_option("--streams", o->streams, "number of streams at once")
      ->capture_default_str()
      ->check(whole_number(1));
  share_among_processes(command);
  command->footer(
      "Texts are compared as the vocabulary writes them, in Unicode's composed form (NFC): in capitals where it has no "
      "small letters, in small ones where it has no capitals.\n\n"
      "Example:\n  laconic eval --model runs/mha --data digits/test.jsonl\n"
      "  laconic eval --model wav2vec2-conformer-rel-pos-large-960h-ft --data LibriSpeech/test-clean --json "
      "clean.json\n"
      "  laconic eval --model runs/mha --data LibriSpeech/test-clean --normalize whisper\n"
      "  laconic eval --model runs/live --data digits/test.jsonl --streaming --cache int8\n"
      "  mpirun --bind-to none -n 4 laconic eval --model runs/mha --data LibriSpeech/test-clean");
  command->callback([=] {
    if (!o->transcripts.empty()) o->transcripts = output_file(o->transcripts);
    eval(*o);
  });
}
