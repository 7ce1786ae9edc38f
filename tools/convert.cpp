// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// laconic convert: gives a trained model another attention.
#include "cli.hpp"

namespace {

using namespace laconic;

struct ConvertOptions : CommonOptions {
  std::string input, output, speech;
  AttentionOptions attention{"mla-simple"};
};

void convert(ConvertOptions& o) {
  const Recognizer source = Recognizer::load(o.input);
  SpeechBatch batch;
  if (!o.speech.empty()) {
    auto utterances = read_corpus(o.speech);
    require(!utterances.empty(), o.speech, ": no utterances to measure on");
    utterances.resize(std::min<std::size_t>(utterances.size(), 32));
    const Dataset data = load_dataset(utterances, source.config.features, nullptr, o.threads);
    say_notes(data.notes);
    std::vector<Index> all(utterances.size());
    std::iota(all.begin(), all.end(), Index{0});
    batch = make_batch(data, all, nullptr, Seed());
  }
  nlohmann::json report;
  const Recognizer target =
      source.convert(o.attention.chosen(), o.speech.empty() ? nullptr : &batch, report);
  target.save(o.output);
  report["model"] = o.output;
  if (!o.speech.empty()) report["measured_on"] = o.speech;
  report["cache_bytes_per_second"] = target.cache_bytes_per_second();
  report["source_cache_bytes_per_second"] = source.cache_bytes_per_second();
  o.write(report);

  std::printf("relative errors, measured on %s\n%-24s %10s %10s %10s\n", report["measured_on"].get<std::string>().c_str(), "layer", "predicted",
              "keys+values", "output");
  const auto row = [](const std::string& name, const nlohmann::json& r) {
    std::printf("%-24s %10.4f %10.4f %10.4f\n", name.c_str(), r["predicted_error"].get<double>(), r["key_value_error"].get<double>(),
                r["output_error"].get<double>());
  };
  for (const auto& layer : report["layers"]) row(layer["layer"], layer);
  row("all layers", report);
  std::printf("logits %41.4f\ncache: %.0f to %.0f bytes a second of speech (%.2f%%)\nmodel: %s\n", report["logits_error"].get<double>(),
              source.cache_bytes_per_second(), target.cache_bytes_per_second(),
              100 * target.cache_bytes_per_second() / source.cache_bytes_per_second(), o.output.c_str());
}

}  // namespace

void add_convert_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("convert", "give a trained model another attention: a latent (by SVD), grouped queries, or back");
  const auto o = std::make_shared<ConvertOptions>();
  o->add_to(*command);
  command->add_option("--input", o->input, "model folder")->required()->type_name("DIR");
  command->add_option("--output", o->output, "model folder to write")->required()->type_name("DIR");
  o->attention.add_to(*command);
  command->add_option("--speech", o->speech, "measure the error on the first 32 utterances of this corpus; default: on white noise")
      ->type_name("PATH");
  command->footer("Example:\n  laconic convert --input runs/mha --output runs/mla --attention mla-simple --latent-dim 64 "
                  "--speech digits/valid.jsonl");
  command->callback([=] { convert(*o); });
}
