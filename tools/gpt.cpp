// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// laconic gpt: a language model over the characters of a text. Trains, evaluates and samples it.
#include "gpt.hpp"

#include "commands.hpp"
#include "common/steps_line.hpp"
#include "on_device.hpp"

#include <laconic/decode/generate.hpp>
#include <laconic/train/language_model.hpp>

#include <cmath>
#include <numbers>

namespace gpt_command {

using namespace laconic;

namespace {

struct TrainOptions : CommonOptions {
  TextOptions text;
  std::string out, init;
  AttentionOptions attention{"mha"};
  bool rotary = false;
  LanguageModelConfig gpt{.max_positions = 128, .d_model = 192, .num_layers = 6, .num_heads = 6, .dropout = 0.1};
  LanguageModelTraining training;
  DeviceOption device;
};

/// Returns the configuration that the options describe.
LanguageModelConfig config_of(TrainOptions& o, Index vocab_size) {
  LanguageModelConfig c = o.gpt;
  c.vocab_size = vocab_size;
  if (o.rotary) c.position_embeddings_type = PositionEmbeddings::rotary;
  set_attention(c, o.attention, ", --heads");
  return c;
}

void train(TrainOptions& o) {
  output_folder(o.out);
  const std::string text_file = o.text.read();
  o.training.seed = Seed(static_cast<std::uint64_t>(o.seed));
  Loaded loaded = [&]() -> Loaded {
    if (!o.init.empty()) return load(o.init);
    Characters characters = Characters::of(text_file);
    return {Model(config_of(o, characters.size()), o.training.seed), std::move(characters)};
  }();
  const Text text = o.text.split(loaded.characters, text_file);
  const LanguageModelConfig& c = loaded.model.config();
  say(to_name(c.attention), ", ", loaded.model.count_parameters(), " parameters, ", loaded.characters.size(),
      " characters; cache of ", c.max_positions, " characters: ", bytes_of_cache(c), " bytes; ", text.train.size(),
      " characters to train on, ", text.valid.size(), " to choose a model by, ", o.threads, " threads");
  StepsLine line(o.training.steps, "characters", [](double loss) { return "validation " + fixed(loss, 4); });
  const TrainingResult result = on_device(o.device, o.threads, [&](auto& context) {
    return train_language_model(context, loaded.model, text.train, text.valid, o.training, std::ref(line));
  });
  save(o.out, loaded.model, loaded.characters);
  print("validation loss ", fixed(result.valid_loss, 4), " nats a character (step ", result.best_step, " of ",
        o.training.steps, ", ", fixed(result.seconds, 0), " s of training, ", fixed(result.items_per_second, 0),
        " characters/s)\nmodel: ", o.out, '\n');
  o.write({{"model", o.out},
           {"attention", to_name(c.attention)},
           {"parameters", loaded.model.count_parameters()},
           {"cache_bytes", bytes_of_cache(c)},
           {"valid_loss", result.valid_loss},
           {"best_step", result.best_step},
           {"steps", o.training.steps},
           {"seconds", result.seconds},
           {"characters_per_second", result.items_per_second}});
}

struct EvalOptions : CommonOptions {
  std::string model;
  TextOptions text;
  DeviceOption device;
};

void evaluate(const EvalOptions& o) {
  Loaded loaded = load(o.model);
  const Text text = o.text.split(loaded.characters, o.text.read());
  const double loss = on_device(o.device, o.threads, [&](auto& context) {
    context.prepare(loaded.model);
    return evaluate_language_model(context, loaded.model, text.valid);
  });
  print(text.valid.size(), " characters: ", fixed(loss, 4), " nats a character, ", fixed(loss / std::numbers::ln2, 4),
        " bits, perplexity ", fixed(std::exp(loss), 3), '\n');
  o.write({{"model", o.model},
           {"characters", text.valid.size()},
           {"loss", loss},
           {"bits", loss / std::numbers::ln2},
           {"perplexity", std::exp(loss)}});
}

struct SampleOptions : CommonOptions {
  std::string model, prompt = "\n";
  Index length = 500, count = 1;
  SamplingConfig sampling{.temperature = 0.8};
  DeviceOption device;
};

/// Returns continuations of a prompt. The model sees no more than max_positions: at the end of these, it goes on from
/// the last half.
std::vector<std::vector<int>> continuations(auto& context, Model& model, const std::vector<int>& prompt,
                                            const SampleOptions& o) {
  const auto positions = static_cast<std::size_t>(model.config().max_positions);
  context.prepare(model);
  TokenDecoder decoder(context, model, {.slots = o.count});
  std::vector<std::vector<int>> texts(static_cast<std::size_t>(o.count), prompt);
  const std::size_t end = prompt.size() + static_cast<std::size_t>(o.length);
  for (Index part = 0; texts.front().size() < end; ++part) {
    std::vector<std::vector<int>> prompts;
    for (const auto& one : texts) {
      const std::size_t kept = one.size() < positions ? one.size() : positions / 2 + 1;
      prompts.emplace_back(one.end() - static_cast<std::ptrdiff_t>(kept), one.end());
    }
    const GenerationConfig config{.max_new_tokens = static_cast<Index>(end - texts.front().size()),
                                  .sampling = o.sampling,
                                  .seed = Seed(static_cast<std::uint64_t>(o.seed)) / part};
    const auto more = generate(decoder, std::span<const std::vector<int>>(prompts), config);
    for (std::size_t n = 0; n < texts.size(); ++n) texts[n].insert(texts[n].end(), more[n].begin(), more[n].end());
  }
  return texts;
}

void sample(const SampleOptions& o) {
  Loaded loaded = load(o.model);
  const std::vector<int> prompt = loaded.characters.encode(o.prompt);
  require(!prompt.empty(), "--prompt: an empty text given, at least one character expected");
  const auto texts =
      on_device(o.device, o.threads, [&](auto& context) { return continuations(context, loaded.model, prompt, o); });
  nlohmann::json all = nlohmann::json::array();
  for (const auto& one : texts) all.push_back(loaded.characters.decode(one));
  for (const auto& one : texts)
    print(Lines{loaded.characters.decode(one)}, '\n', Lines{texts.size() > 1 ? "---\n" : ""});
  o.write({{"model", o.model}, {"texts", all}});
}

void add_train(CLI::App& gpt) {
  CLI::App* command = gpt.add_subcommand("train", "train a language model on the characters of a text");
  const auto o = std::make_shared<TrainOptions>();
  o->add_to(*command);
  o->text.add_to(*command)->required();
  o->device.add_to(*command);
  command->add_option("--out", o->out, "folder for the model")->required()->type_name("DIR");
  CLI::Option* init =
      command->add_option("--init", o->init, "model folder to go on from (fine-tune)")->type_name("DIR");
  std::vector<CLI::Option*> of_new_models = o->attention.add_to(*command);
  for (CLI::Option* option : {
           command->add_flag("--rotary", o->rotary, "rotary positions in place of learned ones (mha, gqa, mqa)"),
           command->add_option("--heads", o->gpt.num_heads, "query heads")->capture_default_str(),
           command->add_option("--d-model", o->gpt.d_model, "width of the model")->capture_default_str(),
           command->add_option("--layers", o->gpt.num_layers, "blocks")->capture_default_str(),
           command->add_option("--context", o->gpt.max_positions, "characters that the model sees at a time")
               ->capture_default_str(),
           command->add_option("--dropout", o->gpt.dropout, "dropout probability")
               ->capture_default_str()
               ->check(between(0.0, 0.9)),
       })
    of_new_models.push_back(option);
  for (CLI::Option* option : of_new_models) option->excludes(init);
  command->add_option("--steps", o->training.steps, "updates")->capture_default_str();
  command->add_option("--batch", o->training.batch, "windows of an update")->capture_default_str();
  command->add_option("--lr", o->training.learning_rate, "peak learning rate")->capture_default_str();
  command->add_option("--warmup", o->training.warmup, "fraction of all steps in which the learning rate rises")
      ->capture_default_str()
      ->check(between(0.0, 1.0));
  command->add_option("--weight-decay", o->training.adamw.weight_decay, "weight decay of AdamW")->capture_default_str();
  command->add_option("--valid-steps", o->training.valid_steps, "updates between two validations")
      ->capture_default_str();
  command->callback([o] { train(*o); });
}

void add_all(CLI::App& app) {
  CLI::App* gpt = app.add_subcommand("gpt", "train, convert, measure and sample a language model over characters");
  gpt->require_subcommand(1);
  gpt->footer(
      "Example:\n  laconic gpt train --text input.txt --out gpt --attention mla-head\n"
      "  laconic gpt convert --model gpt --out small --attention mla-head --latent-dim 12 --v-latent-dim 8 --text "
      "input.txt\n"
      "  laconic gpt profile --model gpt small --text input.txt\n  laconic gpt sample --model gpt --prompt 'ROMEO:'");
  add_train(*gpt);
  add_convert(*gpt);

  CLI::App* command = gpt->add_subcommand("eval", "measure the loss of a model on the end of a text");
  const auto e = std::make_shared<EvalOptions>();
  e->add_to(*command);
  command->add_option("--model", e->model, "model folder")->required()->type_name("DIR");
  e->text.add_to(*command)->required();
  e->device.add_to(*command);
  command->callback([e] { evaluate(*e); });
  add_profile(*gpt);

  command = gpt->add_subcommand("sample", "continue a text");
  const auto s = std::make_shared<SampleOptions>();
  s->add_to(*command);
  s->device.add_to(*command);
  command->add_option("--model", s->model, "model folder")->required()->type_name("DIR");
  command->add_option("--prompt", s->prompt, "text to continue; default: a line end");
  command->add_option("--length", s->length, "characters to add")
      ->capture_default_str()
      ->check(whole_number(1, 10'000'000));
  command->add_option("--count", s->count, "texts")->capture_default_str()->check(whole_number(1, 1024));
  command->add_option("--temperature", s->sampling.temperature, "divides the logits; 0: the most probable character")
      ->capture_default_str();
  command->add_option("--top-k", s->sampling.top_k, "draw from the k most probable characters; 0: from all")
      ->capture_default_str();
  command->add_option("--top-p", s->sampling.top_p, "draw from the most probable characters of this total probability")
      ->capture_default_str();
  command->callback([s] { sample(*s); });
}

}  // namespace
}  // namespace gpt_command

void add_gpt_command(CLI::App& app) { gpt_command::add_all(app); }
