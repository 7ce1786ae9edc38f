// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// laconic profile: what a model costs, in parameters, cache, operations, memory and time, whole utterances and
// streamed.
#include "commands.hpp"
#include "common/cli.hpp"
#include "common/device_option.hpp"
#include "common/gnuplot.hpp"
#include "common/table.hpp"
#include "profile_report.hpp"

#include <laconic/core/white_noise.hpp>
#include <laconic/model/published.hpp>
#include <laconic/recognition/encoder_costs.hpp>
#include <laconic/speech/vocabulary.hpp>

#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <optional>

namespace {

using namespace laconic;

constexpr Index default_chunk = 8, default_left_context = 32;
constexpr double enough_seconds = 10;  // that one length is measured for, where passes are slow

struct ProfileOptions : CommonOptions {
  DeviceOption device;
  std::string name, model, plot, cache = "float", weights = "float";
  Index frames = 1000, repeats = 5;
  std::optional<Index> chunk, left_context;  // as the model says; a left context of -1 is all
  bool list = false;
};

using Clock = std::chrono::steady_clock;
double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// Returns the text after the colon in the first line of a system file that begins with `key`; empty without such a
/// line.
std::string system_value(const char* path, const std::string& key) {
  if (!detail::is_there(path)) return "";  // not Linux
  const std::string file = '\n' + read_file(path, std::size_t{1} << 24);
  const std::size_t line = file.find('\n' + key), colon = line == std::string::npos ? line : file.find(':', line);
  if (colon == std::string::npos) return "";
  const std::size_t begin = file.find_first_not_of(" \t", colon + 1);
  return begin == std::string::npos ? "" : file.substr(begin, file.find('\n', begin) - begin);
}
std::string cpu_name() {
  const std::string name = system_value("/proc/cpuinfo", "model name");
  return name.empty() ? "unknown processor" : name;
}
Index available_bytes() {
  const std::string kib = system_value("/proc/meminfo", "MemAvailable");
  if (!kib.empty()) return 1024 * static_cast<Index>(std::stoll(kib));
  return static_cast<Index>(::sysconf(_SC_PHYS_PAGES)) * static_cast<Index>(::sysconf(_SC_PAGESIZE));
}

/// Refuses a model that would be killed for its memory half way.
void require_memory(const std::string& name, const EncoderCosts& costs, Index weight_bytes, Index n) {
  const auto gib = [](Index bytes) { return fixed(static_cast<double>(bytes) / (1 << 30), 1); };
  const Index needed = weight_bytes + costs.working_bytes(n), available = available_bytes();
  const std::string weights =
      weight_bytes > 0 ? text(" (", gib(weight_bytes), " for its weights)") : " beside its weights";
  require(needed < available, name, " with ", n, " frames needs about ", gib(needed), " GiB of memory", weights, "; ",
          gib(available), " GiB are available");
}

EncoderCosts costs_of(const RecognizerConfig& config) { return {config.model, config.encoder}; }

/// Fills in what follows from the numbers of a model.
void count_costs(Profile& p) {
  const EncoderCosts costs = costs_of(p.config);
  p.parameters = costs.parameters();
  p.subsampling_parameters = costs.subsampling_parameters();
  p.attention_parameters = costs.attention_parameters();
  p.flops = costs.flops(p.frames);
  p.attention_flops = costs.attention_flops(p.frames);
  for (const auto& entry : enum_names(Storage()))
    p.cache.push_back({entry.value, costs.cache_bytes(1, entry.value), costs.cache_bytes(p.frames, entry.value)});
  if (p.has_state()) p.cache.resize(1);
  p.attention_path = costs.attention_path(p.config.encoder.mask());
}

/// `once` gives seconds. Repeated until that is enough.
template <class F>
Latency measure(Index repeats, F&& once) {
  Latency out;
  for (double sum = 0; static_cast<Index>(out.seconds.size()) < repeats && sum < enough_seconds;
       sum += out.seconds.back())
    out.seconds.push_back(once());
  std::ranges::sort(out.seconds);
  return out;
}

void measure_encoding(const Recognizer& recognizer, const ProfileOptions& o, Profile& p) {
  const EncoderCosts costs = costs_of(p.config);
  for (const Index part : {8, 4, 2, 1}) {
    const Index n = p.frames / part;
    say("encoding ", n, " frames ...");
    const auto features = white_noise<float>(costs.rows_of(n), p.config.encoder.num_mels, "features");
    Workspace workspace(o.threads, recognizer.device());
    const auto once = [&] {
      const auto start = Clock::now();
      const auto logits = recognizer.logits(features, workspace);
      return since(start);
    };
    const double first = once();  // takes memory, which is nothing to a pass that is slow
    const Latency latency = first < enough_seconds ? measure(o.repeats, once) : Latency{{first}};
    p.encoding.push_back({n, latency, costs.flops(n), static_cast<Index>(workspace.peak_bytes())});
  }
}

Profile::Streaming measure_streaming(const Recognizer& recognizer, const ProfileOptions& o, const Profile& p,
                                     Index left_context) {
  say("streaming ", p.frames, " frames, ",
      left_context == Mask::unlimited ? "all kept" : text("left context ", left_context), " ...");
  FeatureStreams streams = recognizer.feature_streams({.chunk = p.chunk,
                                                       .left_context = left_context,
                                                       .max_frames = p.frames + p.chunk * (4 * o.repeats + 4),
                                                       .storage = p.storage,
                                                       .threads = o.threads});
  const EncoderCosts costs = costs_of(p.config);
  Profile::Streaming out{left_context, streams.convolution_bytes(), streams.feature_bytes(), {}};
  const auto features = white_noise<float>(streams.first_rows(), p.config.encoder.num_mels, "features");
  const Matrix<float> later = features.topRows(streams.chunk_rows());
  const auto push = [&](Index stream, const Matrix<float>& rows) {
    const std::array<Index, 1> one{stream};
    const Sequences block{rows.rows()};
    const auto start = Clock::now();
    const auto logits = streams.push(one, rows, block);
    const double seconds = since(start);
    require(logits.rows.rows() == p.chunk, "profile: a push gave ", logits.rows.rows(), " frames, ", p.chunk,
            " expected");
    return seconds;
  };
  const auto add = [&](Index before, auto&& once) {
    const Index seen = left_context == Mask::unlimited ? before : std::min(before, left_context);
    out.pushes.push_back({before, costs.cache_bytes(seen, p.storage), measure(o.repeats, once),
                          costs.attention_path(streams.mask(), streams.kept_frames())});
  };
  add(0, [&] {
    const Index fresh = streams.open();
    const double seconds = push(fresh, features);
    streams.close(fresh);
    return seconds;
  });
  const Index stream = streams.open();
  push(stream, features);
  Index given = p.chunk;
  for (const Index part : {4, 2, 1}) {
    for (; given < p.frames / part; given += p.chunk) push(stream, later);
    const Index before = given;
    add(before, [&] {
      given += p.chunk;
      return push(stream, later);
    });
  }
  return out;
}

void list_models() {
  Table table({{"name", 28, true, 0}, {"parameters, M", 14, false, 0}, {"cache a frame, bytes", 26, false, 0}});
  for (const PublishedModel& m : published_models) {
    const EncoderCosts costs{m.encoder, m.config};
    const Index bytes = costs.cache_bytes(1);
    table.add({std::string(m.name), fixed(1e-6 * static_cast<double>(costs.parameters()), 2),
               m.config.attention == AttentionName::linear ? text("a state of ", bytes) : text(bytes)});
  }
  print(Lines{table.lines()});
}

/// Loads or makes the model to profile, and says what it is.
Recognizer load(const ProfileOptions& o, Profile& p) {
  const auto start = Clock::now();
  if (o.name.empty()) {
    Recognizer recognizer = Recognizer::load(o.model);
    p.name = o.model;
    p.config = recognizer.config();
    p.weights = recognizer.storage();
    count_costs(p);
    require_memory(p.name, costs_of(p.config), 0, o.frames);
    p.start_seconds = since(start);
    return recognizer;
  }
  const PublishedModel& published = published_model(o.name);
  p.name = o.name;
  p.config.model = published.encoder;
  p.config.encoder = published.config;
  p.config.encoder.convolution =
      ConvolutionContext::chunk;  // which streams, and is the centred one for whole utterances
  p.config.features.fbank.num_mels = static_cast<int>(published.config.num_mels);
  count_costs(p);
  require_memory(p.name, costs_of(p.config), 4 * p.parameters, o.frames);
  say("making ", p.parameters, " random weights ...");
  std::vector<std::string> tokens;
  for (Index i = 1; i < published.config.vocab_size; ++i) tokens.push_back(text(i));
  Recognizer recognizer =
      Recognizer::create(p.config, Vocabulary::words(tokens), Seed(static_cast<std::uint64_t>(o.seed)));
  p.config.encoder = recognizer.config().encoder;
  p.start_seconds = since(start);
  say("made in ", fixed(p.start_seconds, 1), " s");
  return recognizer;
}

void profile(const ProfileOptions& o) {
  if (o.list) return list_models();
  if (!o.plot.empty()) require_picture(o.plot);
  Profile p;
  p.frames = o.frames;
  const Device device = o.device.chosen();
  p.machine = device.gpu ? devices()[static_cast<std::size_t>(*device.gpu) + 1].description : cpu_name();
  p.on_gpu = device.gpu.has_value();
  p.threads = o.threads;
  p.storage = from_name<Storage>(o.cache).value();
  p.weights = from_name<Storage>(o.weights).value();
  Recognizer recognizer = load(o, p);
  recognizer.prepare(p.weights, o.threads, device);
  p.weight_bytes = recognizer.weight_bytes();
  const EncoderConfig& c = p.config.encoder;
  p.chunk = o.chunk.value_or(c.chunk > 0 ? c.chunk : default_chunk);
  Index left = o.left_context.value_or(c.chunk > 0 ? c.left_context : default_left_context);
  if (p.has_state()) left = Mask::unlimited;  // which cannot forget
  measure_encoding(recognizer, o, p);
  try {
    recognizer.require_streamable();
    p.streaming.push_back(measure_streaming(recognizer, o, p, left));
    if (left != Mask::unlimited) p.streaming.push_back(measure_streaming(recognizer, o, p, Mask::unlimited));
  } catch (const Error& e) {
    if (!p.streaming.empty()) throw;
    p.not_streamed = text(e.what(), " (`laconic train --convolution chunk` makes one).");
  }
  p.resident_bytes = peak_resident_bytes();
  print_profile(p);
  o.write(profile_json(p));
  if (!o.plot.empty()) plot_profile(o.plot, p);
}

}  // namespace

void add_profile_command(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("profile", "what a model costs: parameters, cache, operations, memory, latency by length");
  const auto o = std::make_shared<ProfileOptions>();
  o->add_to(*command);
  o->device.add_to(*command);
  CLI::Option* name =
      command->add_option("--name", o->name, "a published model by its name, as --list prints it, with random weights");
  CLI::Option* model =
      command->add_option("--model", o->model, "model folder to profile instead")->type_name("DIR")->excludes(name);
  command->add_flag("--list", o->list, "list the published models, and measure nothing")
      ->excludes(name)
      ->excludes(model);
  command
      ->add_option(
          "--frames", o->frames,
          "length in encoder frames (40 ms each in most models); an eighth, a quarter and half of it are measured, too")
      ->capture_default_str()
      ->check(whole_number(8, 1'000'000));
  command
      ->add_option("--repeats", o->repeats,
                   text("measurements of each length; fewer once they have taken ", enough_seconds, " s"))
      ->capture_default_str()
      ->check(whole_number(1, 1000));
  command
      ->add_option("--chunk", o->chunk,
                   text("encoder frames of a push; default: the model's chunk, else ", default_chunk))
      ->check(whole_number(1, 1 << 20));
  command
      ->add_option("--left-context", o->left_context,
                   text("encoder frames kept, measured in addition to all; -1: only all; default: the model's, else ",
                        default_left_context))
      ->check(whole_number(-1, 1 << 20));
  command
      ->add_option("--weights", o->weights,
                   "how the weights of --name are stored; those of --model are stored as in its folder")
      ->capture_default_str()
      ->check(CLI::IsMember(names_of<Storage>()))
      ->excludes(model);
  command->add_option("--cache", o->cache, "how streams store keys and values")
      ->capture_default_str()
      ->check(CLI::IsMember({"float", "bf16", "int8"}));
  command->add_option("--plot", o->plot, "draw latency by length into this .png or .svg, with gnuplot")
      ->type_name("FILE");
  command->footer(
      "Example:\n  laconic profile --name conformer_mla_small --plot latency.png\n"
      "  laconic profile --model runs/live --frames 500 --cache int8 --json profile.json");
  command->callback([=] {
    if (!o->list && name->empty() && model->empty()) throw CLI::RequiredError("--name or --model");
    profile(*o);
  });
}
