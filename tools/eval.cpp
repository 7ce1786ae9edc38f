// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// laconic eval: word error rate of a model. laconic transcribe: what it hears.
#include "progress.hpp"

namespace {

using namespace laconic;

struct EvalOptions : CommonOptions {
  std::string model, data, transcripts;
  std::vector<std::string> files;
};

/// One JSON object a line: name, text, hypothesis.
void write_transcripts(const std::filesystem::path& path, const Dataset& data, const Evaluation& evaluation) {
  std::string out;
  for (std::size_t i = 0; i < data.examples.size(); ++i)
    out += nlohmann::json{{"name", data.examples[i].name}, {"text", data.examples[i].text}, {"hypothesis", evaluation.hypotheses[i]}}.dump() + '\n';
  write_file(path, out);
}

void eval(const EvalOptions& o) {
  const Recognizer recognizer = Recognizer::load(o.model);
  const auto utterances = read_corpus(o.data);
  require(!utterances.empty(), o.data, ": no utterances");
  say("reading ", utterances.size(), " utterances ...");
  const Dataset data = load_dataset(utterances, recognizer.config.features, nullptr, o.threads);
  say_notes(data.notes);
  Cpu<float> cpu(o.threads);
  const Evaluation evaluation = recognizer.evaluate(cpu, data);
  const WordErrors errors = evaluation.total_errors();
  const Interval interval = bootstrap_interval(evaluation.errors, 0.95, 1000, Seed(static_cast<std::uint64_t>(o.seed)));
  if (!o.transcripts.empty()) write_transcripts(o.transcripts, data, evaluation);
  o.write({{"model", o.model},
           {"data", o.data},
           {"attention", to_name(recognizer.config.attention)},
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
           {"parameters", recognizer.count_parameters()}});
  std::printf("WER %.2f%% [%.2f, %.2f]  (%td substitutions, %td deletions, %td insertions in %td words; 95%% interval by utterance)\n",
              100 * errors.rate(), 100 * interval.low, 100 * interval.high, errors.substitutions, errors.deletions, errors.insertions,
              errors.reference_words);
  std::printf("%s, %td parameters, %.0f bytes of key-value cache a second of speech\n%.1f s of speech in %.2f s (%.0f times real time, %d threads)\n",
              std::string(to_name(recognizer.config.attention)).c_str(), recognizer.count_parameters(), recognizer.cache_bytes_per_second(),
              evaluation.audio_seconds, evaluation.compute_seconds, evaluation.audio_seconds / evaluation.compute_seconds, o.threads);
}

void transcribe(const EvalOptions& o) {
  const Recognizer recognizer = Recognizer::load(o.model);
  std::vector<Utterance> utterances;
  for (const std::string& file : o.files) utterances.push_back({file, 0, "", ""});
  const Dataset data = load_dataset(utterances, recognizer.config.features, nullptr, o.threads);
  say_notes(data.notes);
  Cpu<float> cpu(o.threads);
  const Evaluation evaluation = recognizer.evaluate(cpu, data);
  nlohmann::json result = nlohmann::json::array();
  for (std::size_t i = 0; i < o.files.size(); ++i) {
    std::printf("%s: %s\n", o.files[i].c_str(), evaluation.hypotheses[i].c_str());
    result.push_back({{"audio_filepath", o.files[i]}, {"text", evaluation.hypotheses[i]}, {"seconds", data.examples[i].seconds}});
  }
  o.write(result);
}

}  // namespace

void add_eval_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("eval", "word error rate of a model on a corpus, with its 95% interval");
  const auto o = std::make_shared<EvalOptions>();
  o->add_to(*command);
  command->add_option("--model", o->model, "model folder")->required()->type_name("DIR");
  command->add_option("--data", o->data, "manifest or LibriSpeech folder")->required()->type_name("PATH");
  command->add_option("--transcripts", o->transcripts, "write texts and hypotheses to this file, a JSON object a line")->type_name("FILE");
  command->footer("Example:\n  laconic eval --model runs/mha --data digits/test.jsonl");
  command->callback([=] { eval(*o); });
}

void add_transcribe_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("transcribe", "write down what is said in audio files");
  const auto o = std::make_shared<EvalOptions>();
  o->add_to(*command);
  command->add_option("--model", o->model, "model folder")->required()->type_name("DIR");
  command->add_option("files", o->files, "WAV, FLAC or Ogg files")->required()->type_name("FILE");
  command->footer("Example:\n  laconic transcribe --model runs/mha speech.wav");
  command->callback([=] { transcribe(*o); });
}
