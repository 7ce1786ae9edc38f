// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// laconic convert: gives a trained model another attention.
#include "commands.hpp"
#include "common/cli.hpp"
#include "common/gnuplot.hpp"
#include "conversion_report.hpp"

#include <laconic/recognition/dataset.hpp>
#include <laconic/speech/corpus.hpp>

#include <algorithm>
#include <cmath>
#include <numeric>

namespace {

using namespace laconic;

struct ConvertOptions : CommonOptions {
  std::string input, output, speech, method = "svd", calibration, allocation = "uniform", plots;
  AttentionOptions attention{"mla-simple"};
  bool export_mha = false, hadamard = false;
};

/// The first utterances of a corpus; of none, nothing.
SpeechBatch first_utterances(const std::string& corpus, std::size_t most, const Recognizer& model, bool with_texts,
                             int threads) {
  if (corpus.empty()) return {};
  auto utterances = read_corpus(corpus);
  require(!utterances.empty(), corpus, ": no utterances in it");
  utterances.resize(std::min(utterances.size(), most));
  const Dataset data =
      load_dataset(utterances, model.config().features, with_texts ? &model.vocabulary() : nullptr, threads);
  say_notes(data.notes);
  std::vector<Index> all(utterances.size());
  std::iota(all.begin(), all.end(), Index{0});
  return make_batch(data, all, nullptr, Seed());
}

/// Pictures of what a latent has to hold in each layer, what each rank would lose, and the ranks that were taken.
void plot(const ConvertOptions& o, const std::vector<std::vector<double>>& spectra, const nlohmann::json& report) {
  std::string values = "$values << EOD\n", errors = "$errors << EOD\n", ranks = "$ranks << EOD\n", lines;
  for (std::size_t l = 0; l < spectra.size(); ++l) {
    double left = 0, all = 0;
    for (const double s : spectra[l]) all += s * s;
    left = all;
    for (std::size_t i = 0; i < spectra[l].size(); ++i) {
      const double s = spectra[l][i];
      values += text(i + 1, ' ', spectra[l].front() > 0 ? s / spectra[l].front() : 0.0, '\n');
      left = std::max(0.0, left - s * s);
      errors += text(i + 1, ' ', all > 0 ? std::sqrt(left / all) : 0.0, '\n');
    }
    values += "\n\n";
    errors += "\n\n";
    ranks += text(l, ' ', report["layers"][l]["kv_lora_rank"].get<Index>(), '\n');
  }
  const auto each_layer = [&](const char* name) {
    return text("plot for [i=0:", spectra.size() - 1, "] ", name,
                " index i using 1:2 with lines lw 1.5 lc palette frac (i/",
                std::max<std::size_t>(1, spectra.size() - 1), ".0) title 'layer '.i\n");
  };
  const std::string end = "EOD\n", title_end = text(", ", o.method, "'\n"),
                    common = end +
                             "set grid\nset key outside font ',10'\nunset colorbox\nset autoscale xfix\nset palette "
                             "defined (0 '#0060ad', 1 '#dd7711')\n"
                             "set xlabel 'rank'\n";
  make_folder(o.plots);
  const auto at = [&](const char* name) { return std::filesystem::path(o.plots) / name; };
  draw(at("spectra.png"),
       values + common +
           "set logscale y\nset format y '%g'\nset yrange [1e-6:1.2]\nset ylabel 'singular value, of the first'\n" +
           "set title 'Keys and values" + title_end + each_layer("$values"));
  draw(at("error_by_rank.png"),
       errors + common +
           "set yrange [0:1]\nset ylabel 'relative error of keys and values'\nset title 'What a rank loses" +
           title_end + each_layer("$errors"));
  draw(at("ranks.png"),
       ranks + end + "set grid y\nset xtics 1\nset style fill solid 0.8\nset boxwidth 0.8\nset xlabel 'layer'\n" +
           "set ylabel 'rank of the latent'\nset yrange [0:*]\nset title 'Ranks by layer, " + o.allocation +
           "'\nplot $ranks using 1:2 with boxes lc rgb '#0060ad' notitle\n");
}

void convert(ConvertOptions& o) {
  const auto method = from_name<ConversionMethod>(o.method).value();
  const bool is_calibrated = method == ConversionMethod::activation || method == ConversionMethod::score_aware;
  const auto allocation = from_name<RankAllocation>(o.allocation).value();
  const bool minds_texts = allocation == RankAllocation::fisher;
  require(!is_calibrated || !o.calibration.empty(), "--method ", o.method,
          " needs speech to calibrate on: --calibration");
  require(!minds_texts || !o.calibration.empty(), "--allocation ", o.allocation,
          " needs speech with its text: --calibration");
  require(is_calibrated || minds_texts || o.calibration.empty(), "--method ", o.method,
          " looks at the weights alone, so --calibration has no use");
  output_folder(o.output);
  if (o.export_mha) o.attention.attention = "mha";
  if (!o.plots.empty()) {
    const AttentionName attention = o.attention.chosen().attention;
    require(attention == AttentionName::mla || attention == AttentionName::mla_simple, "--plots: ", to_name(attention),
            " given, mla or mla-simple expected");
    require_gnuplot();
    output_folder(o.plots);
  }
  const Recognizer source = Recognizer::load(o.input);
  const SpeechBatch batch = first_utterances(o.speech, 32, source, false, o.threads);
  const SpeechBatch calibration = first_utterances(o.calibration, 256, source, minds_texts, o.threads);
  o.attention.applied_to(source.config().encoder);  // before anything is computed
  const ConversionChoice how{method,     o.calibration.empty() ? nullptr : &calibration,
                             allocation, Seed(static_cast<std::uint64_t>(o.seed)),
                             o.hadamard, o.threads};
  const auto [target, what] = source.convert(o.attention.chosen(), how, o.speech.empty() ? nullptr : &batch);
  nlohmann::json report = conversion_json(what);
  o.export_mha ? target.export_hugging_face(o.output) : target.save(o.output);
  report["model"] = o.output;
  report["method"] = o.method;
  if (!o.calibration.empty()) report["calibrated_on"] = o.calibration;
  report["allocation"] = o.allocation;
  if (!o.speech.empty()) report["measured_on"] = o.speech;
  report["cache_bytes_per_second"] = target.cache_bytes_per_second();
  report["source_cache_bytes_per_second"] = source.cache_bytes_per_second();
  report["cache_fraction"] = target.cache_bytes_per_second() / source.cache_bytes_per_second();
  print_conversion(what, report["measured_on"].get<std::string>());
  const double before = source.cache_bytes_per_second(), after = target.cache_bytes_per_second();
  print("cache: ", fixed(before, 0), " to ", fixed(after, 0), " bytes a second of speech (",
        fixed(100 * after / before, 2), "%)\nmodel: ", o.output, '\n');
  o.write(report);
  if (o.plots.empty()) return;
  plot(o, source.spectra(how), report);
  print("plots: ", o.plots, "/{spectra,error_by_rank,ranks}.png\n");
}

}  // namespace

void add_convert_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "convert", "give a trained model another attention: a latent (by SVD), grouped queries, or back");
  const auto o = std::make_shared<ConvertOptions>();
  o->add_to(*command);
  command->add_option("--input", o->input, "model folder")->required()->type_name("DIR");
  command->add_option("--output", o->output, "model folder to write")->required()->type_name("DIR");
  CLI::Option* attention = o->attention.add_to(*command).front();
  command
      ->add_flag(
          "--export-mha", o->export_mha,
          "convert back to full attention and write a folder that Hugging Face transformers loads (wav2vec2-conformer)")
      ->excludes(attention);
  command
      ->add_option("--speech", o->speech,
                   "measure the error on the first 32 utterances of this corpus; default: on white noise")
      ->type_name("PATH");
  command
      ->add_option("--method", o->method,
                   "how to find latents: from the weights (svd, randomized) or for speech (activation, score-aware)")
      ->capture_default_str()
      ->check(CLI::IsMember(names_of<ConversionMethod>()));
  command
      ->add_option("--calibration", o->calibration,
                   "speech for which latents are found and heads merged (activation, score-aware) or layers weighed "
                   "(fisher): the first 256 utterances of this corpus")
      ->type_name("PATH");
  command
      ->add_option("--allocation", o->allocation,
                   "how layers share --latent-dim times their number of cached floats, in multiples of 8")
      ->capture_default_str()
      ->check(CLI::IsMember(names_of<RankAllocation>()));
  command->add_flag(
      "--hadamard", o->hadamard,
      "mix the channels of latents by a Hadamard matrix, so that a cache in 8 bits loses less; not of mla-head");
  command
      ->add_option("--plots", o->plots,
                   "draw singular values, errors by rank and the layers' ranks into this folder, with gnuplot")
      ->type_name("DIR");
  command->footer(
      "Example:\n  laconic convert --input runs/mha --output runs/mla --attention mla-simple --latent-dim 64 "
      "--speech digits/valid.jsonl\n"
      "  laconic convert --input runs/mha --output runs/mla --latent-dim 32 --method activation --calibration "
      "digits/train.jsonl "
      "--allocation water-filling --plots plots\n"
      "  laconic convert --input w2v-mla --output w2v-mha --export-mha");
  command->callback([=] { convert(*o); });
}
