// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// laconic gpt convert: gives a trained language model another attention.
#include "conversion_report.hpp"
#include "gpt.hpp"

#include <laconic/convert/convert.hpp>
#include <laconic/train/language_model.hpp>

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <span>

namespace gpt_command {

using namespace laconic;

namespace {

struct ConvertOptions : CommonOptions {
  std::string model, out, method = "svd";
  TextOptions text;
  AttentionOptions attention{"mla-head"};
  bool hadamard = false;
};

/// Returns at most `count` windows, spread evenly over the tokens, each of as many as the model sees at a time.
CalibrationTokens windows_of(std::span<const int> tokens, Index positions, Index count) {
  const auto size = static_cast<Index>(tokens.size());
  const Index window = std::min(size, positions), taken = window > 0 ? std::min(count, size / window) : 0;
  CalibrationTokens out{{}, Sequences(std::vector<Index>(static_cast<std::size_t>(taken), window))};
  for (Index i = 0; i < taken; ++i) {
    const auto part = tokens.subspan(static_cast<std::size_t>(i * (size / taken)), static_cast<std::size_t>(window));
    out.ids.insert(out.ids.end(), part.begin(), part.end());
  }
  return out;
}

void convert(ConvertOptions& o) {
  output_folder(o.out);
  const auto name = from_name<ConversionMethod>(o.method).value();
  const bool has_text = !o.text.path.empty();
  require(has_text || name == ConversionMethod::svd || name == ConversionMethod::randomized, "--method ", o.method,
          " needs a text to calibrate on: --text");
  Loaded source = load(o.model);
  const LanguageModelConfig& before = source.model.config();
  LanguageModelConfig wanted = before;
  set_attention(wanted, o.attention);
  ConversionConfig numbers{wanted.num_kv_heads, wanted.kv_lora_rank, wanted.v_lora_rank, wanted.attention};
  numbers.hadamard = o.hadamard;

  Cpu cpu(o.threads);
  Text text;
  double loss_before = 0;
  if (has_text) {
    text = o.text.split(source.characters, o.text.read());
    loss_before = evaluate_language_model(cpu, source.model, text.valid);
  }
  const CalibrationTokens measured = windows_of(text.valid, before.max_positions, 32);
  const auto by = [&](const auto& method) {
    Recorder<Cpu<float>> recorder(o.threads);
    if (!has_text) return laconic::convert<Model>(recorder, source.model, method, numbers);
    return laconic::convert<Model>(recorder, source.model, method, numbers,
                                   TokenRows{measured.ids, measured.sequences});
  };
  const auto conversion = [&] {
    using enum ConversionMethod;
    if (name == svd) return by(JointSvd{});
    if (name == randomized) return by(RandomizedSvd{.seed = Seed(static_cast<std::uint64_t>(o.seed))});
    return by(ActivationPca<float, CalibrationTokens>{windows_of(text.train, before.max_positions, 256),
                                                      name == score_aware});
  }();
  const Model& model = conversion.model;
  const LanguageModelConfig& after = model.config();
  save(o.out, model, source.characters);

  const Index bytes_before = bytes_of_cache(before), bytes = bytes_of_cache(after);
  const double fraction = static_cast<double>(bytes) / static_cast<double>(bytes_before);
  nlohmann::json report = conversion_json(conversion.report);
  report["model"] = o.out;
  report["source"] = o.model;
  report["attention"] = to_name(after.attention);
  report["method"] = o.method;
  report["parameters"] = model.count_parameters();
  report["source_parameters"] = source.model.count_parameters();
  report["cache_bytes"] = bytes;
  report["source_cache_bytes"] = bytes_before;
  report["cache_fraction"] = fraction;
  double loss = 0;
  if (has_text) {
    loss = evaluate_language_model(cpu, model, text.valid);
    report["measured_on"] = o.text.path;
    report["valid_loss"] = loss;
    report["source_valid_loss"] = loss_before;
  }
  print_conversion(conversion.report, report["measured_on"].get<std::string>());
  if (has_text) print("validation loss: ", fixed(loss_before, 4), " to ", fixed(loss, 4), " nats a character\n");
  print("cache of ", before.max_positions, " characters: ", bytes_before, " to ", bytes, " bytes (",
        fixed(100 * fraction, 2), "%)\nmodel: ", o.out, '\n');
  o.write(report);
}

}  // namespace

void add_convert(CLI::App& gpt) {
  CLI::App* command = gpt.add_subcommand("convert", "give a trained model another attention");
  const auto o = std::make_shared<ConvertOptions>();
  o->add_to(*command);
  command->add_option("--model", o->model, "model folder")->required()->type_name("DIR");
  command->add_option("--out", o->out, "folder for the converted model")->required()->type_name("DIR");
  o->attention.add_to(*command);
  command
      ->add_option("--method", o->method,
                   "how to find latents: from the weights (svd, randomized) or for a text (activation, score-aware)")
      ->capture_default_str()
      ->check(CLI::IsMember(names_of<ConversionMethod>()));
  o->text.add_to(*command,
                 "text file: latents are found for up to 256 windows of its first part (activation, score-aware), and "
                 "errors are measured on its end; default: on noise");
  command->add_flag("--hadamard", o->hadamard,
                    "mix the channels of latents by a Hadamard matrix, so that a cache in 8 bits loses less; not of "
                    "mla-head");
  command->footer(
      "Example:\n  laconic gpt convert --model gpt --out small --attention mla-head --latent-dim 12 --v-latent-dim 8\n"
      "  laconic gpt convert --model gpt --out small --attention mla-split --latent-dim 64 --method activation --text "
      "input.txt\n"
      "  laconic gpt train --init small --text input.txt --out tuned");
  command->callback([o] { convert(*o); });
}

}  // namespace gpt_command
