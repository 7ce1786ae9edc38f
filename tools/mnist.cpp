// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// laconic mnist: reads handwritten digits, one or a grid of them, by an encoder of patches and a decoder of tokens.
#include "commands.hpp"
#include "common/latency.hpp"
#include "common/steps_line.hpp"
#include "common/table.hpp"
#include "mnist_model.hpp"
#include "on_device.hpp"

#include <laconic/decode/beam_search.hpp>

#include <array>
#include <chrono>
#include <cmath>
#include <functional>

// Named, since sources are compiled in groups.
namespace mnist_command {
namespace {

/// Returns f(context, model) with the context of a device.
template <class F>
auto on_model(const DeviceOption& device, int threads, AnyModel& any, F&& f) {
  return on_device(device, threads,
                   [&](auto& context) { return std::visit([&](auto& model) { return f(context, model); }, any); });
}

struct TrainOptions : CommonOptions {
  std::string data, out, attention = "mla-decoupled";
  Index grid = 1, patch = 7, d_model = 96, heads = 4, encoder_layers = 4, decoder_layers = 2, max_tokens = 64;
  Index shift = 2;
  double dropout = 0.1;
  EncoderDecoderTraining training{.steps = 4000, .batch = 64, .learning_rate = 2e-3, .valid_steps = 500};
  DeviceOption device;
};

/// Returns the sizes that the options describe. Latents have ranks of d/2 in the encoder, d/3 in the decoder and d/4
/// between them; queries have d/2, and rotary keys are half as wide as a head.
FolderConfig config_of(const TrainOptions& o) {
  FolderConfig c;
  c.grid = o.grid;
  c.patch = o.patch;
  c.attention = from_name<AttentionName>(o.attention).value();
  require(side % c.patch == 0, "--patch: ", c.patch, " given, a divisor of ", side, " expected");
  require(o.d_model % (4 * o.heads) == 0, "--d-model: ", o.d_model, " given, a multiple of 4 * heads = ", 4 * o.heads,
          " expected");
  require(o.max_tokens > c.tokens(), "--max-tokens: ", o.max_tokens, " given, more than the ", c.tokens(),
          " digits of an image expected");
  const bool latent = c.attention != AttentionName::mha;
  const Index rope = latent ? o.d_model / o.heads / 2 : 0, queries = latent ? o.d_model / 2 : 0;
  LanguageModelConfig blocks{.vocab_size = vocab_size,
                             .max_positions = c.patches(),
                             .d_model = o.d_model,
                             .num_layers = o.encoder_layers,
                             .num_heads = o.heads,
                             .kv_lora_rank = latent ? o.d_model / 2 : 0,
                             .q_lora_rank = queries,
                             .qk_rope_head_dim = rope,
                             .hidden_act = Activation::gelu,
                             .dropout = o.dropout};
  c.model.encoder = {c.patch * c.patch, blocks};
  blocks.max_positions = o.max_tokens;
  blocks.num_layers = o.decoder_layers;
  if (latent) blocks.kv_lora_rank = o.d_model / 3;
  c.model.decoder = {blocks,
                     {.num_heads = o.heads,
                      .kv_lora_rank = latent ? o.d_model / 4 : 0,
                      .q_lora_rank = queries,
                      .qk_rope_head_dim = rope}};
  return c;
}

void train(TrainOptions& o) {
  output_folder(o.out);
  o.training.seed = Seed(static_cast<std::uint64_t>(o.seed));
  o.training.loss.boundary = boundary;
  Loaded loaded{config_of(o), make_model(config_of(o), o.training.seed)};
  const FolderConfig& c = loaded.config;
  const Digits digits = read_digits(o.data, "train");
  const Index cells = c.tokens(), last = digits.count / 12, room = digits.count - last;  // 5000 of 60000
  require(last >= cells, o.data, ": ", digits.count, " digits to train on given, at least ", 12 * cells, " expected");
  const Digits kept{last,
                    {digits.pixels.end() - last * side * side, digits.pixels.end()},
                    {digits.labels.end() - last, digits.labels.end()}};
  const Index valid_images = last / cells;
  const Grids grids(c, digits), valid_grids(c, kept);
  const Random draw(o.training.seed, "digits"), move(o.training.seed, "shifts");
  say(to_name(c.attention), ", ", parameter_count(c), " parameters; images of ", c.patches(), " patches with ", cells,
      " digits; ", room, " digits to train on, ", valid_images, " images to choose a model by, ", o.threads,
      " threads");
  StepsLine line(o.training.steps, "images",
                 [](double wrong) { return text("images read wrong ", fixed(100 * wrong, 2), '%'); });
  const TrainingResult result = on_model(o.device, o.threads, loaded.model, [&](auto& context, auto& model) {
    return train_encoder_decoder(
        context, model, o.training,
        [&](std::int64_t step) {
          const auto first = static_cast<std::uint64_t>((step - 1) * o.training.batch);
          return grids(
              o.training.batch,
              [&](Index n, Index i) {
                return draw.below(room, (first + static_cast<std::uint64_t>(n)) * static_cast<std::uint64_t>(cells) +
                                            static_cast<std::uint64_t>(i));
              },
              o.shift, move, first);
        },
        [&] {
          const auto written = read_images(context, model, valid_grids, valid_images, cells, 100);
          Index wrong = 0;
          for (Index n = 0; n < valid_images; ++n)
            wrong += written[static_cast<std::size_t>(n)] != expected(kept, n, cells);
          return static_cast<double>(wrong) / static_cast<double>(valid_images);
        },
        std::ref(line));
  });
  save(o.out, loaded);
  print(fixed(100 - 100 * result.valid_loss, 2), "% of the images kept aside read right (step ", result.best_step,
        " of ", o.training.steps, ", ", fixed(result.seconds, 0), " s of training)\nmodel: ", o.out, '\n');
  o.write({{"model", o.out},
           {"attention", to_name(c.attention)},
           {"grid", c.grid},
           {"parameters", parameter_count(c)},
           {"valid_error", result.valid_loss},
           {"best_step", result.best_step},
           {"steps", o.training.steps},
           {"seconds", result.seconds},
           {"images_per_second", result.items_per_second}});
}

struct EvalOptions : CommonOptions {
  std::string model, data;
  Index beams = 1;
  DeviceOption device;
};

/// Returns the ends of the 95% interval of a proportion (Wilson 1927).
std::pair<double, double> wilson(double right, double count) {
  constexpr double z = 1.96;
  const double p = right / count, middle = p + z * z / (2 * count),
               half = z * std::sqrt(p * (1 - p) / count + z * z / (4 * count * count)), scale = 1 + z * z / count;
  return {(middle - half) / scale, (middle + half) / scale};
}

/// Reads the images by beam search, one after the other; the beams of an image share its memory.
template <class M>
std::vector<std::vector<int>> read_by_beams(auto& context, const M& model, const Grids& grids, Index images,
                                            Index cells, Index beams) {
  SourceDecoder decoder(context, model.decoder, {.slots = beams, .max_tokens = cells + 1});
  std::vector<std::vector<int>> out;
  for (Index n = 0; n < images; ++n) {
    const auto batch = grids.in_order(1, n * cells);
    const auto [rows, sources] = model.encoder.hidden(context, batch.input, batch.sequences);
    decoder.listen(rows, sources);
    out.push_back(
        beam_search(decoder, std::array{boundary}, {.beams = beams, .max_new_tokens = cells + 1, .end_token = boundary})
            .front()
            .tokens);
  }
  return out;
}

void evaluate(const EvalOptions& o) {
  Loaded loaded = load(o.model);
  const FolderConfig& c = loaded.config;
  const Digits digits = read_digits(o.data, "t10k");
  const Index cells = c.tokens(), images = digits.count / cells;
  require(images > 0, o.data, ": ", digits.count, " test digits given, at least ", cells, " expected");
  const Grids grids(c, digits);
  const auto written = on_model(o.device, o.threads, loaded.model, [&](auto& context, auto& model) {
    context.prepare(model);
    return o.beams > 1 ? read_by_beams(context, model, grids, images, cells, o.beams)
                       : read_images(context, model, grids, images, cells, 100);
  });
  Index right = 0, right_digits = 0;
  for (Index n = 0; n < images; ++n) {
    const std::vector<int>&got = written[static_cast<std::size_t>(n)], wanted = expected(digits, n, cells);
    right += got == wanted;
    for (std::size_t i = 0; i < static_cast<std::size_t>(cells); ++i)
      right_digits += i < got.size() && got[i] == wanted[i];
  }
  const auto count = static_cast<double>(images);
  const auto [low, high] = wilson(static_cast<double>(right), count);
  const double accuracy = static_cast<double>(right) / count,
               digit_accuracy = static_cast<double>(right_digits) / (count * static_cast<double>(cells));
  print(images, " test images of ", cells, " digits: ", fixed(100 * accuracy, 2), "% read right (95% interval ",
        fixed(100 * low, 2), " to ", fixed(100 * high, 2), "%), ", fixed(100 * digit_accuracy, 2), "% of the digits\n");
  o.write({{"model", o.model},
           {"attention", to_name(c.attention)},
           {"grid", c.grid},
           {"images", images},
           {"beams", o.beams},
           {"sequence_accuracy", accuracy},
           {"sequence_accuracy_low", low},
           {"sequence_accuracy_high", high},
           {"digit_accuracy", digit_accuracy}});
}

struct ProfileOptions : CommonOptions {
  std::vector<std::string> models;
  std::string data;
  std::vector<Index> lengths{10, 20, 30, 50};
  Index images = 16, beams = 4, repetitions = 5;
  DeviceOption device;
};

/// One way of decoding: how long it takes, and what it wrote.
struct Way {
  const char* name;
  Index beams, cache_bytes;
  Latency latency{};
  std::vector<std::vector<int>> tokens{};

  template <class Run>
  void time(Run&& run) {
    const auto begin = std::chrono::steady_clock::now();
    tokens = run();
    latency.seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
};

/// Returns what was written by passes over all tokens so far, one for each token, with the memory of the sources kept.
template <class M, class Tensor>
std::vector<std::vector<int>> without_cache(auto& context, const M& model, const Tensor& rows, const Sequences& sources,
                                            Index length) {
  const auto memory = model.decoder.remember(context, rows, sources);
  std::vector<std::vector<int>> tokens(static_cast<std::size_t>(sources.size()), std::vector<int>{boundary});
  for (Index step = 0; step < length; ++step) {
    std::vector<int> ids;
    for (const auto& one : tokens) ids.insert(ids.end(), one.begin(), one.end());
    const Sequences sequences(std::vector<Index>(tokens.size(), step + 1));
    const auto logits = context.output(model.decoder(context, TokenRows{ids, sequences}, memory, sources));
    for (Index n = 0; n < sources.size(); ++n) {
      Index best = 0;
      logits.row(sequences.end(n) - 1).maxCoeff(&best);
      tokens[static_cast<std::size_t>(n)].push_back(static_cast<int>(best));
    }
  }
  for (auto& one : tokens) one.erase(one.begin());
  return tokens;
}

void profile(const ProfileOptions& o) {
  std::vector<Loaded> models;
  for (const std::string& folder : o.models) models.push_back(load(folder));
  const Digits digits = read_digits(o.data, "t10k");
  for (std::size_t m = 0; m < models.size(); ++m) {
    const FolderConfig& c = models[m].config;
    const Index positions = c.model.decoder.text.max_positions;
    require(digits.count >= o.images * c.tokens(), "--images: ", o.images, " given, at most ",
            digits.count / c.tokens(), " expected");
    for (const Index length : o.lengths)
      require(length < positions, "--lengths: ", length, " given, less than ", positions, " expected by ", o.models[m]);
  }
  Table table({{"model", 0, true},
               {"decoding", 0, true},
               {"tokens"},
               {"cache bytes"},
               {"memory bytes"},
               {"images/s"},
               {"tokens/s"},
               {"as without cache"}});
  nlohmann::json results = nlohmann::json::array();
  for (std::size_t m = 0; m < models.size(); ++m) {
    const FolderConfig& c = models[m].config;
    const auto batch = Grids(c, digits).in_order(o.images, 0);
    on_model(o.device, o.threads, models[m].model, [&](auto& context, auto& model) {
      using Decoder = typename std::remove_cvref_t<decltype(model)>::Decoder;
      context.prepare(model);
      const auto heard = model.encoder.hidden(context, batch.input, batch.sequences);
      const auto& rows = heard.first;  // a lambda cannot capture a structured binding (clang 14)
      const auto& sources = heard.second;
      for (const Index length : o.lengths) {
        SourceDecoder greedy(context, model.decoder, {.slots = o.images, .max_tokens = length + 1}),
            searching(context, model.decoder, {.slots = o.beams, .max_tokens = length + 1});
        const std::vector<std::vector<int>> prompts(static_cast<std::size_t>(o.images), std::vector<int>{boundary});
        // The ways take turns, so that a busy moment of the machine meets all of them.
        std::array<Way, 3> ways{{{"greedy, no cache", 1, 0},
                                 {"greedy, cache", 1, greedy.cache_bytes()},
                                 {"beams, cache", o.beams, searching.cache_bytes()}}};
        for (Index r = 0; r < o.repetitions; ++r) {
          ways[0].time([&] { return without_cache(context, model, rows, sources, length); });
          ways[1].time([&] {
            greedy.listen(rows, sources);
            return generate(greedy, std::span(prompts), {.max_new_tokens = length});
          });
          ways[2].time([&] {
            searching.listen(rows, sources);
            std::vector<std::vector<int>> tokens;
            for (Index n = 0; n < o.images; ++n)
              tokens.push_back(
                  beam_search(searching, std::array{boundary}, {.beams = o.beams, .max_new_tokens = length}, n)
                      .front()
                      .tokens);
            return tokens;
          });
        }
        const Index memory = o.images * Decoder::memory_bytes(model.decoder.config(), frames(sources.length(0)));
        for (Way& way : ways) {
          std::sort(way.latency.seconds.begin(), way.latency.seconds.end());
          const double images_per_second = static_cast<double>(o.images) / way.latency.median(),
                       tokens_per_second = images_per_second * static_cast<double>(length);
          Index same = 0;
          for (std::size_t n = 0; n < way.tokens.size(); ++n) same += way.tokens[n] == ways[0].tokens[n];
          table.add({o.models[m], way.name, std::to_string(length), std::to_string(way.cache_bytes),
                     std::to_string(memory), fixed(images_per_second, 1), fixed(tokens_per_second, 0),
                     text(same, " of ", way.tokens.size())});
          results.push_back({{"model", o.models[m]},
                             {"attention", to_name(c.attention)},
                             {"decoding", way.name},
                             {"beams", way.beams},
                             {"tokens", length},
                             {"images", o.images},
                             {"cache_bytes", way.cache_bytes},
                             {"memory_bytes", memory},
                             {"seconds", way.latency.seconds},
                             {"tokens_per_second", tokens_per_second},
                             {"same_as_without_cache", same}});
        }
      }
    });
  }
  print(Lines{table.lines()});
  o.write({{"threads", o.threads}, {"device", o.device.chosen().name()}, {"results", results}});
}

void add_data(CLI::App& command, std::string& data) {
  command.add_option("--data", data, "folder with the four IDX files of MNIST, gzipped or not")
      ->required()
      ->type_name("DIR");
}

void add_train(CLI::App& mnist) {
  CLI::App* command = mnist.add_subcommand("train", "train an encoder-decoder on images of digits");
  const auto o = std::make_shared<TrainOptions>();
  o->add_to(*command);
  add_data(*command, o->data);
  o->device.add_to(*command);
  command->add_option("--out", o->out, "folder for the model")->required()->type_name("DIR");
  command->add_option("--grid", o->grid, "digits of an image's side: 2 for images of 2 x 2 digits")
      ->capture_default_str()
      ->check(whole_number(1, 6));
  command->add_option("--attention", o->attention, "attention of encoder, decoder and between them")
      ->capture_default_str()
      ->check(CLI::IsMember({"mha", "mla-decoupled"}));
  command->add_option("--patch", o->patch, "pixels of a patch's side")
      ->capture_default_str()
      ->check(whole_number(1, 28));
  command->add_option("--d-model", o->d_model, "width of the model")
      ->capture_default_str()
      ->check(whole_number(8, 4096));
  command->add_option("--heads", o->heads, "query heads")->capture_default_str()->check(whole_number(1, 64));
  command->add_option("--encoder-layers", o->encoder_layers, "blocks of the encoder")->capture_default_str();
  command->add_option("--decoder-layers", o->decoder_layers, "blocks of the decoder")->capture_default_str();
  command->add_option("--max-tokens", o->max_tokens, "tokens that the decoder can write")->capture_default_str();
  command->add_option("--dropout", o->dropout, "dropout probability")->capture_default_str()->check(between(0.0, 0.9));
  command->add_option("--shift", o->shift, "pixels by which a digit is moved at most, each way, in training")
      ->capture_default_str()
      ->check(whole_number(0, 14));
  command->add_option("--steps", o->training.steps, "updates")->capture_default_str();
  command->add_option("--batch", o->training.batch, "images of an update")->capture_default_str();
  command->add_option("--lr", o->training.learning_rate, "peak learning rate")->capture_default_str();
  command->add_option("--valid-steps", o->training.valid_steps, "updates between two validations")
      ->capture_default_str();
  command->footer("Example:\n  laconic mnist train --data mnist --grid 2 --attention mla-decoupled --out model");
  command->callback([o] { train(*o); });
}

void add_all(CLI::App& app) {
  CLI::App* mnist = app.add_subcommand("mnist", "train and evaluate an encoder-decoder that reads handwritten digits");
  mnist->require_subcommand(1);
  mnist->footer(
      "Example:\n  laconic mnist train --data mnist --grid 2 --out model\n"
      "  laconic mnist eval --model model --data mnist\n  laconic mnist profile --model model --data mnist");
  add_train(*mnist);

  CLI::App* command = mnist->add_subcommand("eval", "measure how many test images are read right");
  const auto e = std::make_shared<EvalOptions>();
  e->add_to(*command);
  command->add_option("--model", e->model, "model folder")->required()->type_name("DIR");
  add_data(*command, e->data);
  e->device.add_to(*command);
  command->add_option("--beams", e->beams, "beams of a beam search; 1: greedy")
      ->capture_default_str()
      ->check(whole_number(1, 64));
  command->footer("Example:\n  laconic mnist eval --model model --data mnist --beams 4");
  command->callback([e] { evaluate(*e); });

  command = mnist->add_subcommand("profile", "measure decoding with a cache, without one, and by beams");
  const auto p = std::make_shared<ProfileOptions>();
  p->add_to(*command);
  command->add_option("--model", p->models, "model folders")->required()->type_name("DIR");
  add_data(*command, p->data);
  p->device.add_to(*command);
  command->add_option("--lengths", p->lengths, "tokens that are written of each image, with commas between")
      ->delimiter(',')
      ->capture_default_str()
      ->check(whole_number(1, 1 << 20));
  command->add_option("--images", p->images, "images at a time")->capture_default_str()->check(whole_number(1, 1024));
  command->add_option("--beams", p->beams, "beams of the beam search")
      ->capture_default_str()
      ->check(whole_number(1, 10));
  command->add_option("--repetitions", p->repetitions, "measurements of each, of which the median counts")
      ->capture_default_str()
      ->check(whole_number(1, 1000));
  command->footer("Example:\n  laconic mnist profile --model mha latent --data mnist --lengths 10,50");
  command->callback([p] { profile(*p); });
}

}  // namespace
}  // namespace mnist_command

void add_mnist_command(CLI::App& app) { mnist_command::add_all(app); }
