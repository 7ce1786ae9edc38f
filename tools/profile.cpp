// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// laconic profile: what a model costs, in parameters, cache, operations, memory and time, whole utterances and
// streamed.
#include "cli.hpp"
#include "gnuplot.hpp"
#include "profile_report.hpp"

#include <laconic/convert/report.hpp>
#include <laconic/model/published.hpp>
#include <laconic/model/stream.hpp>

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <fstream>

namespace {

using namespace laconic;

constexpr Index default_chunk = 8, default_left_context = 32;
constexpr double enough_seconds = 10;  // that one length is measured for, where passes are slow

struct ProfileOptions : CommonOptions {
  std::string name, model, plot, cache = "float", weights = "float";
  Index frames = 1000, repeats = 5;
  std::optional<Index> chunk, left_context;
  bool list = false;
};

using Clock = std::chrono::steady_clock;
double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// What follows the colon in the first such line of a file of the system; empty if there is none.
std::string system_value(const char* path, const std::string& key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    const auto colon = line.find(':');
    if (!line.starts_with(key) || colon == std::string::npos) continue;
    const auto begin = line.find_first_not_of(" \t", colon + 1);
    return begin == std::string::npos ? "" : line.substr(begin);
  }
  return "";
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

/// Roughly what encoding or streaming takes beside the weights: the widest of the subsampling and of a block; or what a
/// stream keeps that keeps all, with its tables of positions.
Index working_bytes(const EncoderConfig& c, Index n) {
  const WaveformConfig& w = c.waveform;
  const Index half = w.empty() ? c.subsampling / 2 * n * Conv2dShape{1, c.channels(), c.num_mels, 2}.out_cols()
                               : 2 * n * c.subsampling / w.conv_stride[0] * w.conv_dim[0];
  const Index quarter =
      w.empty() ? n * Conv2dSubsampling<float>::out_length(c.num_mels, c.subsampling) * c.channels() : 0;
  const Index block = n * (10 * c.d_model + 2 * std::max(c.feed_forward_width(), c.cgmlp_expansion * c.d_model));
  const Index kept = c.over_layers(
      [&](const AttentionConfig& a) { return AnyAttention::cache_bytes(a, frames(n)) / 4 + 2 * n * c.d_model; });
  return 6 * std::max({half + quarter, block, kept});  // blocks of the arena are up to a quarter larger
}

/// Refuses a model that would be killed for its memory half way.
void require_memory(const std::string& name, const EncoderConfig& config, Index weight_bytes, Index n) {
  const auto gib = [](Index bytes) { return fixed(static_cast<double>(bytes) / (1 << 30), 1); };
  const Index needed = weight_bytes + working_bytes(config, n), available = available_bytes();
  const std::string weights =
      weight_bytes > 0 ? text(" (", gib(weight_bytes), " for its weights)") : " beside its weights";
  require(needed < available, name, " with ", n, " frames needs about ", gib(needed), " GiB of memory", weights, "; ",
          gib(available), " GiB are available");
}

/// The path that attention takes by its costs, over whole utterances or with so many frames kept; empty where it has
/// one only.
std::string attention_path(const EncoderConfig& c, const Mask& mask, Index kept = -1) {
  const AttentionConfig config = AnyAttention::named(c.attention_config());
  return AnyAttention::with_policy(config, [&]<class P>(std::type_identity<P>) -> std::string {
    if (!P::KeyValue::is_latent) return "";
    const auto work = kept < 0 ? P::whole_work(mask) : P::stream_work(mask.chunk, kept);
    return P::absorbing_is_cheaper(P::dims(config), work) ? "absorbed" : "expanded";
  });
}

/// What follows from the numbers of a model.
void count_costs(Profile& p) {
  const EncoderConfig& c = p.config.encoder;
  with_model(p.config.model, [&]<class M>(std::type_identity<M>) {
    p.parameters = M::parameter_count(c);
    p.subsampling_parameters = M::front_parameter_count(c);
    p.flops = M::flops(c, frames(p.frames));
    for (const auto& entry : enum_names(Storage()))
      p.cache.push_back(
          {entry.value, M::cache_bytes(c, frames(1), entry.value), M::cache_bytes(c, frames(p.frames), entry.value)});
  });
  if (p.has_state()) p.cache.resize(1);
  p.attention_parameters = c.over_layers([](const AttentionConfig& a) { return AnyAttention::parameter_count(a); });
  p.attention_flops =
      c.over_layers([&](const AttentionConfig& a) { return AnyAttention::flops(a, frames(p.frames), c.mask()); });
  p.attention_path = attention_path(c, c.mask());
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

template <class Model>
void measure_encoding(const Model& model, const ProfileOptions& o, Profile& p) {
  for (const Index part : {8, 4, 2, 1}) {
    const Index n = p.frames / part, rows = model.subsampling.window() + (n - 1) * model.subsampling.factor();
    say("encoding ", n, " frames ...");
    const auto features = white_noise<float>(rows, model.config().num_mels, "features");
    const Sequences one{rows};
    Cpu<float> cpu(o.threads);
    const auto once = [&] {
      const auto start = Clock::now();
      const auto logits = model(cpu, features, one);
      return since(start);
    };
    const double first = once();  // takes memory, which is nothing to a pass that is slow
    const Latency latency = first < enough_seconds ? measure(o.repeats, once) : Latency{{first}};
    p.encoding.push_back(
        {n, latency, Model::flops(model.config(), frames(n)), static_cast<Index>(cpu.arena().peak_bytes())});
  }
}

template <class Model>
Profile::Streaming measure_streaming(const Model& model, const ProfileOptions& o, const Profile& p,
                                     Index left_context) {
  say("streaming ", p.frames, " frames, ", left_context < 0 ? "all kept" : text("left context ", left_context), " ...");
  Streams streams(model, {.chunk = p.chunk,
                          .left_context = left_context,
                          .max_frames = p.frames + p.chunk * (4 * o.repeats + 4),
                          .storage = p.storage,
                          .threads = o.threads});
  Profile::Streaming out{left_context, streams.convolution_bytes(), streams.feature_bytes(), {}};
  const auto features = white_noise<float>(streams.first_rows(), model.config().num_mels, "features");
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
    const Index seen = left_context < 0 ? before : std::min(before, left_context);
    out.pushes.push_back({before, Model::cache_bytes(model.config(), frames(seen), p.storage), measure(o.repeats, once),
                          attention_path(model.config(), streams.mask(), streams.kept_frames())});
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
  std::printf("%-28s%14s%26s\n", "name", "parameters, M", "cache a frame, bytes");
  for (const PublishedModel& m : published_models)
    with_model(m.encoder, [&]<class M>(std::type_identity<M>) {
      const Index bytes = M::cache_bytes(m.config, frames(1));
      std::printf(
          "%-28s%14.2f%26s\n", std::string(m.name).c_str(), 1e-6 * static_cast<double>(M::parameter_count(m.config)),
          m.config.attention == AttentionName::linear ? text("a state of ", bytes).c_str() : text(bytes).c_str());
    });
}

/// The model that was asked for, and what it is.
AnyModel load(const ProfileOptions& o, Profile& p) {
  const auto start = Clock::now();
  if (o.name.empty()) {
    Recognizer recognizer = Recognizer::load(o.model);
    p.name = o.model;
    p.config = recognizer.config;
    p.weights = recognizer.storage;
    count_costs(p);
    require_memory(p.name, p.config.encoder, 0, o.frames);
    p.start_seconds = since(start);
    return std::move(recognizer.model);
  }
  const PublishedModel& published = published_model(o.name);
  p.name = o.name;
  p.config.model = published.encoder;
  p.config.encoder = published.config;
  p.config.encoder.convolution =
      ConvolutionContext::chunk;  // which streams, and is the centred one for whole utterances
  p.config.features.fbank.num_mels = static_cast<int>(published.config.num_mels);
  count_costs(p);
  require_memory(p.name, published.config, 4 * p.parameters, o.frames);
  say("making ", p.parameters, " random weights ...");
  AnyModel model = make_model(published.encoder, p.config.encoder, Seed(static_cast<std::uint64_t>(o.seed)));
  p.config.encoder = std::visit([](const auto& m) { return m.config(); }, model);
  p.start_seconds = since(start);
  say("made in ", fixed(p.start_seconds, 1), " s");
  return model;
}

void profile(const ProfileOptions& o) {
  if (o.list) return list_models();
  if (!o.plot.empty()) require_picture(o.plot);
  Profile p;
  p.frames = o.frames;
  p.cpu = cpu_name();
  p.threads = o.threads;
  p.storage = from_name<Storage>(o.cache).value();
  p.weights = from_name<Storage>(o.weights).value();
  AnyModel any = load(o, p);
  std::visit(
      [&](auto& model) {
        Cpu<float>(o.threads).prepare(model, p.weights);
        model.parameters([&](std::string_view, const auto& one) {
          if (one.role() != Role::weight) return;
          const Storage storage = one.is_resident() ? one.resident()->storage() : Storage::full;
          p.weight_bytes += cache_row_bytes(storage, one.size()) - (storage == Storage::int8 ? 4 : 0);
        });
      },
      any);
  const EncoderConfig& c = p.config.encoder;
  p.chunk = o.chunk.value_or(c.chunk > 0 ? c.chunk : default_chunk);
  Index left = o.left_context.value_or(c.chunk > 0 ? c.left_context : default_left_context);
  if (p.has_state()) left = -1;  // which cannot forget
  std::visit(
      [&](const auto& model) {
        measure_encoding(model, o, p);
        try {
          model.require_streamable();
        } catch (const Error& e) {
          p.not_streamed = text(e.what(), " (`laconic train --convolution chunk` makes one).");
          return;
        }
        p.streaming.push_back(measure_streaming(model, o, p, left));
        if (left >= 0) p.streaming.push_back(measure_streaming(model, o, p, -1));
      },
      any);
  p.resident_bytes = peak_resident_bytes();
  o.write(profile_json(p));
  if (!o.plot.empty()) plot_profile(o.plot, p);
  print_profile(p);
}

}  // namespace

void add_profile_command(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("profile", "what a model costs: parameters, cache, operations, memory, latency by length");
  const auto o = std::make_shared<ProfileOptions>();
  o->add_to(*command);
  CLI::Option* name =
      command->add_option("--name", o->name, "a published model, with random weights, as --list names them");
  CLI::Option* model =
      command->add_option("--model", o->model, "model folder, instead")->type_name("DIR")->excludes(name);
  command->add_flag("--list", o->list, "list the published models, and measure nothing")
      ->excludes(name)
      ->excludes(model);
  command
      ->add_option("--frames", o->frames,
                   "encoder frames, of 40 ms as a rule; an eighth, a quarter and half as many are measured, too")
      ->capture_default_str()
      ->check(CLI::Range(8, 1'000'000));
  command
      ->add_option("--repeats", o->repeats,
                   text("measurements of each length; fewer where they take ", enough_seconds, " s"))
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  command
      ->add_option("--chunk", o->chunk,
                   text("encoder frames of a push; default: as the model says, else ", default_chunk))
      ->check(CLI::Range(1, 1 << 20));
  command
      ->add_option(
          "--left-context", o->left_context,
          text("encoder frames kept, beside all; -1: all only; default: as --chunk, else ", default_left_context))
      ->check(CLI::Range(-1, 1 << 20));
  command->add_option("--weights", o->weights, "how weights are stored, of --name; a --model's are as it has them")
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
