// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// laconic eval: word error rate of a model, whole utterances or streamed.
#include "progress.hpp"
#include "stream_options.hpp"

namespace {

using namespace laconic;

struct EvalOptions : CommonOptions {
  std::string model, data, transcripts;
  StreamOptions stream;
  Index streams = 16;
};

/// One JSON object a line: name, text, hypothesis.
void write_transcripts(const std::filesystem::path& path, const Dataset& data, const Evaluation& evaluation) {
  std::string out;
  for (std::size_t i = 0; i < data.examples.size(); ++i)
    out += nlohmann::json{{"name", data.examples[i].name}, {"text", data.examples[i].text}, {"hypothesis", evaluation.hypotheses[i]}}.dump() + '\n';
  write_file(path, out);
}

/// What each utterance cost, for `laconic compare`. On a line each, where write_json would take one for every number.
void write_result(const std::filesystem::path& path, const nlohmann::json& result, const Dataset& data, const Evaluation& evaluation) {
  nlohmann::json names = nlohmann::json::array(), errors = names, words = names;
  for (std::size_t i = 0; i < data.examples.size(); ++i) {
    names.push_back(data.examples[i].name);
    errors.push_back(evaluation.errors[i].errors());
    words.push_back(evaluation.errors[i].reference_words);
  }
  // Names of files and folders may be no UTF-8, which must not cost the result.
  const auto line = [](const nlohmann::json& value, int indent = -1) {
    return value.dump(indent, ' ', false, nlohmann::json::error_handler_t::replace);
  };
  std::string out = line(result, 2);
  out.resize(out.size() - 2);  // "\n}"
  write_file(path, text(out, ",\n  \"utterance_names\": ", line(names), ",\n  \"utterance_errors\": ", line(errors),
                        ",\n  \"utterance_words\": ", line(words), "\n}\n"));
}

/// What a stream costs beside its errors.
nlohmann::json stream_json(const StreamedEvaluation& e, const Recognizer& recognizer, Index changed) {
  return {{"streams", e.streams},
          {"chunk", e.chunk},
          {"left_context", e.left_context},
          {"chunk_seconds", static_cast<double>(e.chunk) / recognizer.config.frames_per_second()},
          {"attention_bytes", e.attention_bytes},
          {"convolution_bytes", e.convolution_bytes},
          {"feature_bytes", e.feature_bytes},
          {"push_seconds_median", e.push_quantile(0.5)},
          {"push_seconds_95", e.push_quantile(0.95)},
          {"real_time_factor", e.compute_seconds / e.audio_seconds},
          {"transcripts_changed", changed}};
}

void eval(const EvalOptions& o) {
  const Recognizer recognizer = Recognizer::load(o.model);
  const auto utterances = read_corpus(o.data);
  require(!utterances.empty(), o.data, ": no utterances");
  say("reading ", utterances.size(), " utterances ...");
  const Dataset data = load_dataset(utterances, recognizer.config.features, nullptr, o.threads);
  say_notes(data.notes);
  Cpu<float> cpu(o.threads);
  Evaluation evaluation = recognizer.evaluate(cpu, data);
  nlohmann::json streaming;
  std::string streaming_lines;
  if (o.stream.streaming) {
    const StreamedEvaluation streamed = recognizer.evaluate_streamed(data, o.stream.config(recognizer.config, o.streams, data, o.threads), o.stream.block_frames(recognizer.config));
    Index changed = 0;
    for (std::size_t i = 0; i < data.examples.size(); ++i) changed += streamed.hypotheses[i] != evaluation.hypotheses[i];
    streaming = stream_json(streamed, recognizer, changed);
    streaming_lines = text("streamed: ", o.streams, " at once, chunks of ", fixed(streaming["chunk_seconds"].get<double>(), 2), " s, ", streamed.attention_bytes,
                           " + ", streamed.convolution_bytes, " + ", streamed.feature_bytes,
                           " bytes a stream (keys and values, convolutions, features)\na push that makes frames final takes ",
                           fixed(1e3 * streamed.push_quantile(0.5), 2), " ms (95%: ", fixed(1e3 * streamed.push_quantile(0.95), 2), "); ", changed, " of ",
                           data.size(), " transcripts differ from those of whole utterances under the model's mask\n");
    evaluation = streamed;
  }
  const WordErrors errors = evaluation.total_errors();
  const Interval interval = bootstrap_interval(evaluation.errors, 0.95, 1000, Seed(static_cast<std::uint64_t>(o.seed)));
  if (!o.transcripts.empty()) write_transcripts(o.transcripts, data, evaluation);
  nlohmann::json result{
           {"model", o.model},
           {"data", o.data},
           {"encoder", to_name(recognizer.config.model)},
           {"attention", to_name(recognizer.config.encoder.attention)},
           {"utterances", data.size()},
           {"wer", 100 * errors.rate()},
           {"wer_low", 100 * interval.low},
           {"wer_high", 100 * interval.high},
           {"substitutions", errors.substitutions},
           {"deletions", errors.deletions},
           {"insertions", errors.insertions},
           {"reference_words", errors.reference_words},
           {"audio_seconds", evaluation.audio_seconds},
           {"compute_seconds", evaluation.compute_seconds},
           {"cache_bytes_per_second", recognizer.cache_bytes_per_second()},
           {"parameters", recognizer.count_parameters()},
           {"peak_memory_bytes", peak_resident_bytes()}};
  if (o.stream.streaming) result["streaming"] = streaming;
  if (!o.json.empty()) write_result(o.json, result, data, evaluation);
  std::printf("WER %.2f%% [%.2f, %.2f]  (%td substitutions, %td deletions, %td insertions in %td words; 95%% interval by utterance)\n",
              100 * errors.rate(), 100 * interval.low, 100 * interval.high, errors.substitutions, errors.deletions, errors.insertions,
              errors.reference_words);
  std::printf("%s, %td parameters, %.0f bytes of key-value cache a second of speech\n%.1f s of speech in %.2f s (%.0f times real time, %d threads)\n",
              std::string(to_name(recognizer.config.encoder.attention)).c_str(), recognizer.count_parameters(), recognizer.cache_bytes_per_second(),
              evaluation.audio_seconds, evaluation.compute_seconds, evaluation.audio_seconds / evaluation.compute_seconds, o.threads);
  std::printf("%s", streaming_lines.c_str());
}

}  // namespace

void add_eval_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("eval", "word error rate of a model on a corpus, with its 95% interval");
  const auto o = std::make_shared<EvalOptions>();
  o->add_to(*command);
  command->add_option("--model", o->model, "model folder")->required()->type_name("DIR");
  command->add_option("--data", o->data, "manifest or LibriSpeech folder")->required()->type_name("PATH");
  command->add_option("--transcripts", o->transcripts, "write texts and hypotheses to this file, a JSON object a line")->type_name("FILE");
  o->stream.add_to(*command, "as speech that comes block by block to many streams at once");
  command->add_option("--streams", o->streams, "utterances at once, streamed")->capture_default_str()->check(CLI::PositiveNumber);
  command->footer("Example:\n  laconic eval --model runs/mha --data digits/test.jsonl\n"
                  "  laconic eval --model runs/live --data digits/test.jsonl --streaming --cache int8");
  command->callback([=] { eval(*o); });
}
