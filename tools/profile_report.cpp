// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include "profile_report.hpp"

#include "common/cli.hpp"
#include "common/gnuplot.hpp"
#include "common/table.hpp"

#include <algorithm>

using namespace laconic;

namespace {

double mib(Index bytes) { return static_cast<double>(bytes) / (1024 * 1024); }
double percent(Index part, Index whole) { return 100 * static_cast<double>(part) / static_cast<double>(whole); }
double gflops_per_second(const Profile::Encoding& e) {
  return 1e-9 * static_cast<double>(e.flops) / e.latency.median();
}

nlohmann::json latency_json(const Latency& latency) {
  return {{"seconds_median", latency.median()},
          {"seconds_min", latency.min()},
          {"seconds_max", latency.max()},
          {"repeats", latency.seconds.size()}};
}

/// "24 layers of 1024, 16 heads, mla (kv_lora_rank 1024)"
std::string description(const EncoderConfig& c) {
  std::string numbers;
  const auto add = [&](const char* name, Index value) {
    if (value > 0) numbers += text(numbers.empty() ? " (" : ", ", name, ' ', value);
  };
  add("num_kv_heads", c.num_kv_heads == c.num_heads ? 0 : c.num_kv_heads);
  if (c.kv_lora_ranks.size() > 0)
    numbers += text(numbers.empty() ? " (" : ", ", "kv_lora_ranks ", std::ranges::min(c.kv_lora_ranks), " to ",
                    std::ranges::max(c.kv_lora_ranks));
  else
    add("kv_lora_rank", c.kv_lora_rank);
  add("v_lora_rank", c.v_lora_rank);
  add("qk_rope_head_dim", c.qk_rope_head_dim);
  if (!numbers.empty()) numbers += ')';
  return text(c.num_layers, " layers of ", c.d_model, ", ", c.num_heads, " heads, ", to_name(c.attention), numbers,
              ", kernel ", c.conv_kernel, c.waveform.empty() ? text(", ", c.num_mels, " mels") : ", over samples");
}

/// "left context 32" or "all kept"
std::string kept(const Profile& p, const Profile::Streaming& s) {
  return p.has_state()                       ? "state"
         : s.left_context == Mask::unlimited ? "all kept"
                                             : text("left context ", s.left_context);
}

std::string threads(const Profile& p) { return text(p.threads, p.threads == 1 ? " thread" : " threads"); }

/// A line of data: x, and milliseconds.
std::string point(Index x, const Latency& latency) {
  return text(x, ' ', fixed(1e3 * latency.median(), 4), ' ', fixed(1e3 * latency.min(), 4), ' ',
              fixed(1e3 * latency.max(), 4), '\n');
}

}  // namespace

nlohmann::json profile_json(const Profile& p) {
  nlohmann::json cache, encoding = nlohmann::json::array(), streaming = nlohmann::json::array();
  for (const auto& c : p.cache) {
    auto& one = cache[std::string(to_name(c.storage))] = {{"bytes", c.bytes}};
    if (!p.has_state()) one["bytes_per_frame"] = c.frame_bytes;
  }
  for (const auto& e : p.encoding) {
    auto& row = encoding.emplace_back(latency_json(e.latency));
    row["frames"] = e.frames;
    row["flops"] = e.flops;
    row["gflops_per_second"] = gflops_per_second(e);
    row["real_time_factor"] = e.latency.median() / p.speech_seconds(e.frames);
    row["activation_bytes"] = e.activation_bytes;
  }
  for (const auto& s : p.streaming) {
    nlohmann::json pushes = nlohmann::json::array();
    for (const auto& push : s.pushes) {
      auto& row = pushes.emplace_back(latency_json(push.latency));
      row["frames_before"] = push.before;
      row["cache_bytes"] = push.cache_bytes;
      row["real_time_factor"] = push.latency.median() / p.speech_seconds(p.chunk);
      if (!push.attention_path.empty()) row["attention_path"] = push.attention_path;
    }
    streaming.push_back({{"left_context", s.left_context},
                         {"convolution_bytes", s.convolution_bytes},
                         {"feature_bytes", s.feature_bytes},
                         {"pushes", pushes}});
  }
  nlohmann::json out{{"name", p.name},
                     {"model", to_name(p.config.model)},
                     {"encoder", to_json(p.config.encoder)},
                     {"machine", {{p.on_gpu ? "gpu" : "cpu", p.machine}, {"threads", p.threads}}},
                     {"frames", p.frames},
                     {"frames_per_second", p.config.frames_per_second()},
                     {"parameters",
                      {{"total", p.parameters},
                       {"attention", p.attention_parameters},
                       {"subsampling", p.subsampling_parameters},
                       {"other", p.parameters - p.attention_parameters - p.subsampling_parameters}}},
                     {"weights", to_name(p.weights)},
                     {"weight_bytes", p.weight_bytes},
                     {"flops", {{"total", p.flops}, {"attention", p.attention_flops}}},
                     {"cache", cache},
                     {"start_seconds", p.start_seconds},
                     {"encoding", encoding},
                     {"streaming", {{"chunk", p.chunk}, {"storage", to_name(p.storage)}, {"streams", streaming}}},
                     {"peak_resident_bytes", p.resident_bytes}};
  if (!p.attention_path.empty()) out["flops"]["attention_path"] = p.attention_path;
  if (!p.not_streamed.empty()) out["streaming"] = {{"not_streamed", p.not_streamed}};
  return out;
}

void print_profile(const Profile& p) {
  const auto million = [](Index value) { return 1e-6 * static_cast<double>(value); };
  const std::string what = text(p.name, ": ", to_name(p.config.model), ", ", description(p.config.encoder));
  const auto right = [](const std::string& value, std::size_t width) {
    return std::string(width - std::min(width, value.size()), ' ') + value;
  };
  const auto left = [](const std::string& value, std::size_t width) {
    return value + std::string(width - std::min(width, value.size()), ' ');
  };
  print(what, '\n', p.machine, ", ", threads(p), "\n\n");
  print("parameters, M ", right(fixed(million(p.parameters), 2), 10), "   attention ",
        fixed(million(p.attention_parameters), 2), " (", fixed(percent(p.attention_parameters, p.parameters), 1),
        "%), subsampling ", fixed(million(p.subsampling_parameters), 2), ", other ",
        fixed(million(p.parameters - p.attention_parameters - p.subsampling_parameters), 2), '\n');
  print("weights, MiB  ", right(fixed(mib(p.weight_bytes), 2), 10), "   as ", to_name(p.weights),
        "; the process holds ", fixed(mib(p.resident_bytes), 2), " at most\n");
  print("GFLOP         ", right(fixed(1e-3 * million(p.flops), 2), 10), "   for ", p.frames, " frames (",
        fixed(p.speech_seconds(p.frames), 1), " s of speech); attention ", fixed(1e-3 * million(p.attention_flops), 2),
        " (", fixed(percent(p.attention_flops, p.flops), 1), "%)",
        p.attention_path.empty() ? "" : text(", ", p.attention_path, " path"), '\n');

  const auto name = [&](const std::string& title) { return left(title, 28); };
  if (p.has_state()) {
    print('\n', name("state of attention, MiB"), right(fixed(mib(p.cache.front().bytes), 3), 10), '\n');
  } else {
    std::string kinds = name("cache of keys and values"), frame = name("  a frame, bytes"),
                all = name(text("  ", p.frames, " frames, MiB"));
    for (const auto& c : p.cache) {
      kinds += right(std::string(to_name(c.storage)), 10);
      frame += right(text(c.frame_bytes), 10);
      all += right(fixed(mib(c.bytes), 3), 10);
    }
    print('\n', kinds, '\n', frame, '\n', all, '\n');
  }
  if (!p.streaming.empty())
    print(name("state of convolutions, MiB"), right(fixed(mib(p.streaming.front().convolution_bytes), 3), 10), '\n');

  const std::vector<Table::Column> times{{"median ms", 12, false, 0},
                                         {"min ms", 10, false, 0},
                                         {"max ms", 10, false, 0},
                                         {"repeats", 9, false, 0},
                                         {"real-time factor", 18, false, 0}};
  const auto cells = [&](const Latency& l, Index n) {
    return std::vector<std::string>{fixed(1e3 * l.median(), 2), fixed(1e3 * l.min(), 2), fixed(1e3 * l.max(), 2),
                                    text(l.seconds.size()), fixed(l.median() / p.speech_seconds(n), 4)};
  };
  const auto joined = [](auto first, const auto& middle, const auto& last) {
    first.insert(first.end(), middle.begin(), middle.end());
    first.insert(first.end(), last.begin(), last.end());
    return first;
  };
  using Columns = std::vector<Table::Column>;
  using Cells = std::vector<std::string>;
  Table encoding(joined(Columns{{"encoding", 17, true, 0}, {"frames", 13, false, 0}}, times,
                        Columns{{"GFLOP/s", 10, false, 0}, {"activations MiB", 17, false, 0}}));
  for (const auto& e : p.encoding)
    encoding.add(joined(Cells{"", text(e.frames)}, cells(e.latency, e.frames),
                        Cells{fixed(gflops_per_second(e), 1), fixed(mib(e.activation_bytes), 2)}));
  print('\n', Lines{encoding.lines()});
  if (!p.not_streamed.empty()) {
    print("\nstreaming: not measured. ", p.not_streamed, '\n');
    return;
  }
  const bool has_paths = !p.attention_path.empty();
  Table pushes(joined(
      Columns{{text("pushes of ", p.chunk), 17, true, 0}, {"frames before", 13, false, 0}}, times,
      has_paths ? Columns{{"cache MiB", 11, false, 0}, {"path", 0, true, 2}} : Columns{{"cache MiB", 11, false, 0}}));
  for (const auto& s : p.streaming)
    for (const auto& push : s.pushes)
      pushes.add(joined(Cells{kept(p, s), text(push.before)}, cells(push.latency, p.chunk),
                        has_paths ? Cells{fixed(mib(push.cache_bytes), 3), push.attention_path}
                                  : Cells{fixed(mib(push.cache_bytes), 3)}));
  print('\n', Lines{pushes.lines()});
}

void plot_profile(const std::string& path, const Profile& p) {
  std::string script = "$encoding << EOD\n";
  for (const auto& e : p.encoding) script += point(e.frames, e.latency);
  script += "EOD\n";
  for (std::size_t i = 0; i < p.streaming.size(); ++i) {
    script += text("$streaming", i, " << EOD\n");
    for (const auto& push : p.streaming[i].pushes) script += point(push.before, push.latency);
    script += "EOD\n";
  }
  script +=
      "set grid\nset bars small\nset key top left\nset offsets graph 0.04, graph 0.04, graph 0.1, 0\nset yrange "
      "[0:*]\n";
  script += text("set ylabel 'latency, ms'\nset multiplot layout 1,", p.streaming.empty() ? 1 : 2, " title ",
                 gnuplot_quoted(text(p.name, ", ", p.machine, ", ", threads(p), ": median, least and most")), '\n');
  const auto panel = [&](const std::string& title, const char* axis, const std::string& tics) {
    script += text("set title ", gnuplot_quoted(title), "\nset xlabel ", gnuplot_quoted(axis), "\nset xtics (", tics,
                   ")\nplot ");
  };
  const std::string style = " using 1:2:3:4 with yerrorlines lw 2 ";
  std::string tics;
  for (const auto& e : p.encoding) tics += text(tics.empty() ? "" : ", ", e.frames);
  panel("a whole utterance", "encoder frames", tics);
  script += text("$encoding", style, "lc rgb '#0060ad' pt 7 notitle\n");
  if (!p.streaming.empty()) {
    tics.clear();
    for (const auto& push : p.streaming.front().pushes) tics += text(tics.empty() ? "" : ", ", push.before);
    panel(text("a chunk of ", p.chunk, " frames, streamed"), "encoder frames before it", tics);
    for (std::size_t i = 0; i < p.streaming.size(); ++i)
      script +=
          text(i == 0 ? "" : ", ", "$streaming", i, style, i == 0 ? "lc rgb '#0060ad' pt 7" : "lc rgb '#dd7711' pt 5",
               " title ", gnuplot_quoted(kept(p, p.streaming[i])));
    script += '\n';
  }
  script += "unset multiplot\n";
  draw(path, script);
}
