// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// laconic convert: gives a trained model another attention.
#include "cli.hpp"

namespace {

using namespace laconic;

struct ConvertOptions : CommonOptions {
  std::string input, output, speech, method = "svd", calibration, variant, allocation = "uniform";
  AttentionOptions attention{"mla-simple"};
  bool export_mha = false;
};

/// The first utterances of a corpus; of none, nothing.
SpeechBatch first_utterances(const std::string& corpus, std::size_t most, const FeatureConfig& features, int threads) {
  if (corpus.empty()) return {};
  auto utterances = read_corpus(corpus);
  require(!utterances.empty(), corpus, ": no utterances in it");
  utterances.resize(std::min(utterances.size(), most));
  const Dataset data = load_dataset(utterances, features, nullptr, threads);
  say_notes(data.notes);
  std::vector<Index> all(utterances.size());
  std::iota(all.begin(), all.end(), Index{0});
  return make_batch(data, all, nullptr, Seed());
}

void convert(ConvertOptions& o) {
  const auto method = from_name<ConversionMethod>(o.method).value();
  const bool is_calibrated = method == ConversionMethod::activation || method == ConversionMethod::score_aware;
  require(is_calibrated == !o.calibration.empty(), "--method ", o.method,
          is_calibrated ? " needs speech to calibrate on: --calibration" : " looks at the weights alone, so --calibration has no use");
  if (o.export_mha) o.attention.attention = "mha";
  if (!o.variant.empty()) o.attention.attention = o.variant == "full" ? "mla" : "mla-" + o.variant;
  const Recognizer source = Recognizer::load(o.input);
  const SpeechBatch batch = first_utterances(o.speech, 32, source.config.features, o.threads);
  const SpeechBatch calibration = first_utterances(o.calibration, 256, source.config.features, o.threads);
  nlohmann::json report;
  const Recognizer target = source.convert(o.attention.chosen(), o.speech.empty() ? nullptr : &batch, report,
                                           {method, is_calibrated ? &calibration : nullptr, from_name<RankAllocation>(o.allocation).value(), Seed(static_cast<std::uint64_t>(o.seed))});
  o.export_mha ? target.export_hugging_face(o.output) : target.save(o.output);
  report["model"] = o.output;
  report["method"] = o.method;
  if (is_calibrated) report["calibrated_on"] = o.calibration;
  if (!o.speech.empty()) report["measured_on"] = o.speech;
  report["cache_bytes_per_second"] = target.cache_bytes_per_second();
  report["source_cache_bytes_per_second"] = source.cache_bytes_per_second();
  o.write(report);

  std::printf("relative errors, measured on %s; of outputs also mean squared and absolute errors, and the cosine\n",
              report["measured_on"].get<std::string>().c_str());
  int width = 0;
  for (const auto& layer : report["layers"]) width = std::max(width, static_cast<int>(layer["layer"].get_ref<const std::string&>().size()));
  std::printf("%-*s %5s %10s %11s %10s %10s %10s %8s\n", width, "layer", "rank", "predicted", "keys+values", "output", "squared", "absolute", "cosine");
  const auto row = [&](const std::string& name, const std::string& rank, const nlohmann::json& r) {
    std::printf("%-*s %5s %10.4f %11.4f %10.4f %10.3g %10.3g %8.5f\n", width, name.c_str(), rank.c_str(), r["predicted_error"].get<double>(),
                r["key_value_error"].get<double>(), r["output_error"].get<double>(), r["output_mse"].get<double>(),
                r["output_mae"].get<double>(), r["output_cosine"].get<double>());
  };
  for (const auto& layer : report["layers"]) {
    const Index rank = layer["kv_lora_rank"];
    row(layer["layer"], rank > 0 ? text(rank) : "", layer);
  }
  row("all layers", "", report);
  std::printf("logits %*.4f\ncache: %.0f to %.0f bytes a second of speech (%.2f%%)\nmodel: %s\n", width + 33, report["logits_error"].get<double>(),
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
  CLI::Option* attention = o->attention.add_to(*command).front();
  CLI::Option* variant = command->add_option("--variant", o->variant, "short for --attention mla-simple, mla (full), mla-split or mla-head")
                             ->check(CLI::IsMember({"simple", "full", "split", "head"}))->excludes(attention);
  command->add_flag("--export-mha", o->export_mha, "with full attention again, as a folder that Hugging Face transformers loads (wav2vec2-conformer)")
      ->excludes(attention)->excludes(variant);
  command->add_option("--speech", o->speech, "measure the error on the first 32 utterances of this corpus; default: on white noise")
      ->type_name("PATH");
  std::vector<std::string> methods;
  for (const auto& entry : enum_names(ConversionMethod())) methods.emplace_back(entry.name);
  command
      ->add_option("--method", o->method, "how to find latents: from the weights (svd, randomized) or for speech (activation, score-aware)")
      ->capture_default_str()
      ->check(CLI::IsMember(methods));
  command->add_option("--allocation", o->allocation, "how layers share --latent-dim times their number of cached floats, in multiples of 8")
      ->capture_default_str()
      ->check(CLI::IsMember({"uniform", "energy", "water-filling"}));
  command->add_option("--calibration", o->calibration, "the speech for which they are found: the first 256 utterances of this corpus")
      ->type_name("PATH");
  command->footer("Example:\n  laconic convert --input runs/mha --output runs/mla --attention mla-simple --latent-dim 64 "
                  "--speech digits/valid.jsonl\n"
                  "  laconic convert --input w2v-mla --output w2v-mha --export-mha");
  command->callback([=] { convert(*o); });
}
