// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// laconic quantize: a model with its weights rounded, and what that changes.
#include "commands.hpp"
#include "common/cli.hpp"
#include "common/device_option.hpp"

#include <laconic/convert/deviation.hpp>
#include <laconic/recognition/dataset.hpp>
#include <laconic/speech/corpus.hpp>

namespace {

using namespace laconic;

struct QuantizeOptions : CommonOptions {
  DeviceOption device;
  std::string input, output, data, weights = "int8";
};

std::uintmax_t weight_bytes(const std::filesystem::path& folder) {
  std::uintmax_t sum = 0;
  for (const std::filesystem::path& file : detail::files_in(folder))
    if (file.extension() == ".safetensors" || file.extension() == ".bin")
      sum += static_cast<std::uintmax_t>(detail::open_to_read(file).size);
  return sum;
}

/// Returns the relative error of all logits.
double logits_error(Workspace& workspace, const Recognizer& rounded, const Recognizer& exact, const Dataset& data) {
  Deviation sum;
  for (const Example& e : data.examples) {
    const Matrix<float> of_rounded = rounded.logits(e.features, workspace);
    sum += deviation(of_rounded, exact.logits(e.features, workspace));
  }
  return sum.relative();
}

void quantize(const QuantizeOptions& o) {
  const Storage weights = from_name<Storage>(o.weights).value();
  const std::filesystem::path run = std::filesystem::path(o.input) / "model";
  for (const std::filesystem::path& source : {std::filesystem::path(o.input), run})
    require(detail::resolved(o.output) != detail::resolved(source), o.output,
            ": is the model to be rounded, another folder expected");
  output_folder(o.output);
  require(!detail::is_there(std::filesystem::path(o.output) / "model" / "config.json"), o.output,
          ": is the folder of a training run, which has a model in it; choose another for this one");
  Recognizer exact = Recognizer::load(o.input);
  FolderWriter output(o.output);  // in place only when all has been measured
  exact.save(output.path(), weights);
  Recognizer rounded = Recognizer::load(output.path());
  std::error_code ignored;
  const auto before = weight_bytes(std::filesystem::is_directory(run, ignored) ? run : std::filesystem::path(o.input)),
             after = weight_bytes(output.path());
  nlohmann::json result{{"model", o.output},    {"weights", o.weights},
                        {"bytes", after},       {"source_bytes", before},
                        {"threads", o.threads}, {"attention", to_name(exact.config().encoder.attention)}};
  print("weights: ", o.weights, ", ", fixed(static_cast<double>(before) / 1e6, 2), " to ",
        fixed(static_cast<double>(after) / 1e6, 2), " MB (",
        fixed(100 * static_cast<double>(after) / static_cast<double>(before), 1), "%)\n");
  if (!o.data.empty()) {
    say("reading ", o.data, " ...");
    const Dataset data = load_dataset(read_corpus(o.data), exact.config().features, nullptr, o.threads);
    say_notes(data.notes);
    Workspace workspace(o.threads, o.device.chosen());
    exact.prepare(o.threads, o.device.chosen());
    rounded.prepare(o.threads, o.device.chosen());
    const double error = logits_error(workspace, rounded, exact, data);  // and both are warm
    const Evaluation of_exact = exact.evaluate(data, workspace), of_rounded = rounded.evaluate(data, workspace);
    Index changed = 0;
    for (std::size_t i = 0; i < data.examples.size(); ++i)
      changed += of_exact.hypotheses[i] != of_rounded.hypotheses[i];
    const double wer = 100 * of_rounded.total_errors().rate(), source_wer = 100 * of_exact.total_errors().rate();
    result.update({{"data", o.data},
                   {"utterances", data.examples.size()},
                   {"logits_error", error},
                   {"wer", wer},
                   {"source_wer", source_wer},
                   {"transcripts_changed", changed},
                   {"compute_seconds", of_rounded.compute_seconds},
                   {"source_compute_seconds", of_exact.compute_seconds}});
    print(
        "logits: relative error ", fixed(error, 4), "\nWER: ", fixed(wer, 2), "%, ", fixed(source_wer, 2), "% before; ",
        changed, " of ", data.examples.size(), " transcripts changed\nspeed: ", fixed(of_rounded.compute_seconds, 2),
        " s, ", fixed(of_exact.compute_seconds, 2), " s before (",
        fixed(of_exact.compute_seconds / of_rounded.compute_seconds, 2), " times as fast; ", o.threads, " threads)\n");
  }
  output.commit();
  print("model: ", o.output, '\n');
  o.write(result);
}

}  // namespace

void add_quantize_command(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("quantize", "round a model's weights to 8 or 16 bits: smaller, and with 8 faster");
  const auto o = std::make_shared<QuantizeOptions>();
  o->add_to(*command);
  o->device.add_to(*command);
  command->add_option("--input", o->input, "model folder")->required()->type_name("DIR");
  command->add_option("--output", o->output, "model folder to write")->required()->type_name("DIR");
  command
      ->add_option("--weights", o->weights, "int8 (a scale for each output, activations rounded as they come) or bf16")
      ->capture_default_str()
      ->check(CLI::IsMember({"int8", "bf16"}));
  command
      ->add_option("--data", o->data,
                   "manifest or LibriSpeech folder: say what rounding does to logits, to WER and to speed")
      ->type_name("PATH");
  command->footer(
      "Example:\n  laconic quantize --input runs/mha --output runs/mha-int8 --data digits/test.jsonl\n"
      "eval, transcribe and the rest take the folder as any other; train --init goes on from the rounded weights as "
      "floats.");
  command->callback([=] { quantize(*o); });
}
