// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// laconic gpt profile: language models of several attentions by their size, cache, loss and speed.
#include "common/gnuplot.hpp"
#include "common/latency.hpp"
#include "common/table.hpp"
#include "gpt.hpp"
#include "on_device.hpp"

#include <laconic/decode/token_decoder.hpp>
#include <laconic/train/language_model.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <set>
#include <span>

namespace gpt_command {

using namespace laconic;

namespace {

struct ProfileOptions : CommonOptions {
  std::vector<std::string> models;
  TextOptions text;
  Index tokens = 0, repeats = 31;
  std::string plot;
  DeviceOption device;
};

/// Holds a model and what was measured of it.
struct Profiled {
  std::string folder;
  Model model;
  std::vector<int> text;  ///< the tokens of the text's end
  Index parameters, cache_bytes;
  double loss = 0;
  Latency decoding{};

  double tokens_per_second(Index tokens) const { return static_cast<double>(tokens) / decoding.median(); }
};

/// Returns the attention's name with its sizes: "mla-head RK=16 RV=8".
std::string attention_of(const LanguageModelConfig& c) {
  std::string out(to_name(c.attention));
  if (c.attention == AttentionName::gqa) out += text(" G=", c.num_kv_heads);
  if (c.v_lora_rank > 0 && c.v_lora_rank != c.kv_lora_rank)
    out += text(" RK=", c.kv_lora_rank, " RV=", c.v_lora_rank);
  else if (c.kv_lora_rank > 0)
    out += text(" R=", c.kv_lora_rank);
  return out;
}

/// Returns the seconds in which one stream takes so many characters of the text, one at a time, and finds the most
/// probable next one, for which it waits. A text that is shorter is repeated.
double seconds_to_decode(auto& context, const Profiled& p, Index tokens) {
  TokenDecoder decoder(context, p.model);
  const auto start = std::chrono::steady_clock::now();
  for (Index i = 0; i < tokens; ++i) {
    const std::array one{p.text[static_cast<std::size_t>(i) % p.text.size()]};
    std::array<Index, 1> next{};
    context.argmax(decoder.append({one, Sequences{1}}, std::array{Index{0}}), next);
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::vector<Profiled> load_all(const ProfileOptions& o) {
  const std::string characters = o.text.read();
  std::vector<Profiled> out;
  for (const std::string& folder : o.models) {
    Loaded loaded = load(folder);
    std::vector<int> valid = o.text.split(loaded.characters, characters).valid;
    const Index parameters = loaded.model.count_parameters();
    out.push_back({folder, std::move(loaded.model), std::move(valid), parameters, 0});
  }
  return out;
}

/// Draws the cache against the loss. Points are labelled with the names of the folders, or with their paths where two
/// have the same name.
void plot(const ProfileOptions& o, std::vector<const Profiled*> models, Index tokens) {
  std::ranges::stable_sort(models, {}, &Profiled::cache_bytes);
  const auto name_of = [](const Profiled* p) { return std::filesystem::path(p->folder).filename().string(); };
  std::set<std::string> names;
  for (const Profiled* p : models) names.insert(name_of(p));
  const bool has_names = names.size() == models.size() && !names.contains("");
  std::string points = "$models << EOD\n", labels;
  for (std::size_t i = 0; i < models.size(); ++i) {
    const Profiled& p = *models[i];
    const std::string at = text(general(static_cast<double>(p.cache_bytes) / 1024, 6), ", ", fixed(p.loss, 5));
    points += text(general(static_cast<double>(p.cache_bytes) / 1024, 6), ' ', fixed(p.loss, 5), '\n');
    labels += text("set label ", i + 1, ' ', gnuplot_quoted(has_names ? name_of(&p) : p.folder), " at ", at,
                   " center offset 0, ", i % 2 == 0 ? "0.9" : "-0.9", '\n');
  }
  draw(o.plot, text(points, "EOD\n", labels,
                    "set grid\nset offsets graph 0.1, graph 0.1, graph 0.12, graph 0.12\nset xrange [*:*]\nset format "
                    "y '%.3f'\nset xlabel 'cache of ",
                    tokens,
                    " characters, KiB'\nset ylabel 'validation loss, nats a character'\nset title 'Cache against "
                    "loss'\nplot $models using 1:2 with points pt 7 ps 1.4 lc rgb '#0060ad' notitle\n"));
}

void profile(const ProfileOptions& o) {
  if (!o.plot.empty()) require_picture(o.plot);
  std::vector<Profiled> models = load_all(o);
  Index context = models.front().model.config().max_positions;
  for (const Profiled& p : models) context = std::min(context, p.model.config().max_positions);
  const Index tokens = o.tokens > 0 ? o.tokens : context;
  for (const Profiled& p : models)
    require(tokens <= p.model.config().max_positions, "--tokens: ", tokens, " given, at most ",
            p.model.config().max_positions, " expected, which ", p.folder, " sees at a time");

  on_device(o.device, o.threads, [&](auto& backend) {
    for (Profiled& p : models) {
      say("measuring the loss of ", p.folder, " ...");
      p.cache_bytes = Model::cache_bytes(p.model.config(), frames(tokens));
      backend.prepare(p.model);
      p.loss = evaluate_language_model(backend, p.model, p.text);
      seconds_to_decode(backend, p, tokens);  // takes memory
    }
    say("decoding ", tokens, " characters, ", o.repeats, " times each ...");
    for (Index i = 0; i < o.repeats; ++i)
      for (Profiled& p : models) p.decoding.seconds.push_back(seconds_to_decode(backend, p, tokens));
  });

  const Profiled& first = models.front();
  Table table({{"model", 0, true, 0},
               {"attention", 0, true, 2},
               {"parameters", 0, false, 2},
               {"compression", 0, false, 2},
               {"cache, bytes", 0, false, 2},
               {"saving", 0, false, 2},
               {"loss", 0, false, 2},
               {"characters/s", 0, false, 2}});
  nlohmann::json rows = nlohmann::json::array();
  std::vector<const Profiled*> points;
  for (Profiled& p : models) {
    std::ranges::sort(p.decoding.seconds);
    const LanguageModelConfig& c = p.model.config();
    const double compression = static_cast<double>(first.parameters) / static_cast<double>(p.parameters),
                 saving = 1 - static_cast<double>(p.cache_bytes) / static_cast<double>(first.cache_bytes);
    table.add({p.folder, attention_of(c), text(p.parameters), fixed(compression, 3) + "x", text(p.cache_bytes),
               fixed(100 * saving, 1) + "%", fixed(p.loss, 4), fixed(p.tokens_per_second(tokens), 0)});
    rows.push_back({{"model", p.folder},
                    {"attention", to_name(c.attention)},
                    {"num_kv_heads", c.num_kv_heads},
                    {"kv_lora_rank", c.kv_lora_rank},
                    {"v_lora_rank", c.v_lora_rank},
                    {"parameters", p.parameters},
                    {"parameter_compression", compression},
                    {"cache_bytes", p.cache_bytes},
                    {"cache_saving", saving},
                    {"valid_loss", p.loss},
                    {"characters_per_second", p.tokens_per_second(tokens)},
                    {"seconds_median", p.decoding.median()},
                    {"seconds_min", p.decoding.min()},
                    {"seconds_max", p.decoding.max()}});
    points.push_back(&p);
  }
  const Device device = o.device.chosen();
  print("cache and decoding: one stream of ", tokens, " characters, ",
        device.gpu ? device.name() : threads_text(o.threads), ", median of ", o.repeats,
        "; loss: nats a character on the last ", first.text.size(), " of ", o.text.path,
        ";\ncompression and saving: relative to the first model\n\n", Lines{table.lines()});
  o.write({{"text", o.text.path},
           {"valid_characters", first.text.size()},
           {"tokens", tokens},
           {"repeats", o.repeats},
           {"threads", o.threads},
           {"device", o.device.chosen().name()},
           {"models", rows}});
  if (!o.plot.empty()) plot(o, points, tokens);
}

}  // namespace

void add_profile(CLI::App& gpt) {
  CLI::App* command =
      gpt.add_subcommand("profile", "what models of several attentions cost: parameters, cache, loss, speed");
  const auto o = std::make_shared<ProfileOptions>();
  o->add_to(*command);
  command->add_option("--model", o->models, "model folders; the others are compared with the first")
      ->required()
      ->type_name("DIR...");
  o->text.add_to(*command)->required();
  o->device.add_to(*command);
  command
      ->add_option("--tokens", o->tokens,
                   "characters in the cache, and of a stream; default: as many as every model sees at a time")
      ->check(whole_number(1));
  command->add_option("--repeats", o->repeats, "streams that are timed for each model, in turns")
      ->capture_default_str()
      ->check(whole_number(1, 1000));
  command->add_option("--plot", o->plot, "draw the cache against the loss into this .png or .svg, with gnuplot")
      ->type_name("FILE");
  command->footer("Example:\n  laconic gpt profile --model mha small tuned --text input.txt --plot cache.png");
  command->callback([o] { profile(*o); });
}

}  // namespace gpt_command
