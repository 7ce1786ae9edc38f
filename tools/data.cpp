// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// laconic data: makes corpora.
#include "commands.hpp"
#include "common/cli.hpp"
#include "common/digits.hpp"
#include "common/speak.hpp"
#include "common/status_line.hpp"
#include "common/table.hpp"

#include <memory>
#include <string>

namespace {

using namespace laconic;

/// Holds the options that both subcommands have.
struct DataOptions {
  CommonOptions common;
  std::string out, tokens = "word";
};

void add_options(CLI::App& command, DataOptions& options, ConnectedDigitsConfig& config) {
  command.add_option("--out", options.out, "folder to make; must not exist or be empty")->required()->type_name("DIR");
  command.add_option("--tokens", options.tokens, "tokens of a recogniser trained on it: whole words or characters")
      ->check(CLI::IsMember({"word", "char"}))
      ->capture_default_str();
  command.add_option("--train", config.train_utterances, "utterances to train on")->capture_default_str();
  command.add_option("--valid", config.valid_utterances, "utterances to choose a model by")->capture_default_str();
  command.add_option("--test", config.test_utterances, "utterances to test on; held-out speakers get as many")
      ->capture_default_str();
  command.add_option("--sample-rate", config.sample_rate, "sample rate of the files written, in Hz")
      ->capture_default_str();
  options.common.add_to(command);
}

void apply(const DataOptions& options, ConnectedDigitsConfig& config) {
  output_folder(options.out);
  config.out = options.out;
  config.seed = Seed(static_cast<std::uint64_t>(options.common.seed));
  config.threads = options.common.threads;
  config.tokens = options.tokens == "char" ? Tokens::characters : Tokens::words;
}

/// Shows how far the making of a corpus is.
Progress progress_line() {
  return [line = std::make_shared<StatusLine>()](std::string_view stage, Index done, Index total) {
    if (done == total || line->due()) line->show(text(stage, ": ", done, " of ", total));
    if (done == total) line->end();
  };
}

/// Says what was made, from the corpus' own description.
void report(const DataOptions& options) {
  const std::filesystem::path out = options.out;
  const nlohmann::json made = read_json(out / "corpus.json");
  print(options.out, ": connected digits, made from ", made.at("made_from").get<std::string>(),
        "; tokens: ", made.at("tokens").get<std::string>(), '\n');
  Table table({{"", 40, true, 2}, {"", 6}, {"", 0, true, 1}, {"", 7, false, 1}, {"", 0, true, 1}});
  for (const char* name : {"train", "valid", "test", "holdout"}) {
    if (!made.at("splits").contains(name)) continue;
    const nlohmann::json& split = made.at("splits").at(name);
    const std::string file = (out / (std::string(name) + ".jsonl")).string();
    table.add({file, text(split.at("utterances").get<Index>()), "utterances",
               fixed(split.at("seconds").get<double>() / 60, 1), text("min  speakers: ", split.at("speakers").size())});
  }
  print(Lines{table.lines()}, "  ", (out / "corpus.json").string(), " says how it was made\n");
  options.common.write(made);
}

void add_digits(CLI::App& data) {
  CLI::App* command = data.add_subcommand("digits", "connected digits, joined from recordings of single digits");
  const auto options = std::make_shared<DataOptions>();
  const auto config = std::make_shared<DigitsConfig>();
  const auto recordings = std::make_shared<std::string>();
  command->add_option("--recordings", *recordings, "folder of {digit}_{speaker}_{index}.wav; indices 0-4 are for tests")
      ->required()
      ->type_name("DIR");
  add_options(*command, *options, *config);
  command
      ->add_option("--holdout-speaker", config->holdout_speaker,
                   "speaker who is used only for testing, in holdout.jsonl")
      ->type_name("NAME");
  command->footer(
      "An utterance is 3 to 7 digits of one speaker with gaps of 0 to 200 ms.\n"
      "Recordings with index 0-4 are for tests, 5-7 for validation, the others for training.\n\n"
      "Example:\n"
      "  laconic data digits --recordings free-spoken-digit-dataset/recordings --out digits --seed 1 "
      "--holdout-speaker jackson");
  command->callback([=] {
    apply(*options, *config);
    config->recordings = *recordings;
    say_notes(make_digits_corpus(*config, progress_line()));
    report(*options);
  });
}

void add_speak(CLI::App& data) {
  CLI::App* command = data.add_subcommand("speak", "connected digits, spoken by the program espeak-ng in many voices");
  const auto options = std::make_shared<DataOptions>();
  const auto config = std::make_shared<SpeakConfig>();
  add_options(*command, *options, *config);
  command->footer(
      "An utterance is 3 to 7 digits of one voice at one speed and pitch with gaps of 0 to 200 ms.\n"
      "Three voices are only tested on, in holdout.jsonl.\n\n"
      "Example:\n"
      "  laconic data speak --out spoken --seed 1 --train 1500");
  command->callback([=] {
    apply(*options, *config);
    make_spoken_corpus(*config, progress_line());
    report(*options);
  });
}

}  // namespace

/// Adds `laconic data digits` and `laconic data speak`.
void add_data_command(CLI::App& app) {
  CLI::App* data = app.add_subcommand("data", "make a corpus to train and test on");
  data->require_subcommand(1);
  data->footer("Example:\n  laconic data speak --out spoken --seed 1");
  add_digits(*data);
  add_speak(*data);
}
