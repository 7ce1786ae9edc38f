// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include "report.hpp"

#include "common/cli.hpp"
#include "common/gnuplot.hpp"
#include "common/table.hpp"

#include <laconic/speech/wer.hpp>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <numeric>
#include <set>
#include <vector>

using namespace laconic;

namespace {

/// The rows of one model, stage and test set, over all seeds.
struct Summary {
  std::string name, attention, method, stage, test_set;
  double cache_fraction = 0, cache_bytes_per_second = 0, key_value_error = 0, train_seconds = 0;
  double wer = 0, low = 0, high = 0, spread = 0;  ///< percent; pooled over seeds; sd of the seeds' WERs
  Index parameters = 0, changed = 0, utterances = 0, seeds = 0;
  std::vector<WordErrors> errors{};  ///< errors of each utterance, summed over seeds
};

/// WER of all seeds together. Its interval resamples utterances, each with its errors of all seeds, as the seeds are
/// tested on the same utterances.
Summary summarize(const std::vector<const nlohmann::json*>& rows) {
  const nlohmann::json& first = *rows.front();
  Summary s{.name = first["name"],
            .attention = first.value("attention", ""),
            .method = first.value("method", ""),
            .stage = first["stage"],
            .test_set = first["test_set"],
            .cache_fraction = first["cache_fraction"],
            .cache_bytes_per_second = first["cache_bytes_per_second"],
            .parameters = first["parameters"],
            .seeds = static_cast<Index>(rows.size())};
  const double n = static_cast<double>(rows.size());
  s.errors.resize(first["errors_by_utterance"].size());
  std::vector<double> wers;
  for (const nlohmann::json* row : rows) {
    wers.push_back((*row)["wer"]);
    s.wer += wers.back() / n;
    s.key_value_error += (*row)["key_value_error"].get<double>() / n;
    s.train_seconds += (*row)["train_seconds"].get<double>() / n;
    s.changed += (*row)["transcripts_changed"].get<Index>();
    s.utterances += (*row)["utterances"].get<Index>();
    for (std::size_t i = 0; i < s.errors.size(); ++i)
      s.errors[i] +=
          {.substitutions = (*row)["errors_by_utterance"].at(i), .reference_words = (*row)["words_by_utterance"].at(i)};
  }
  for (const double wer : wers) s.spread += (wer - s.wer) * (wer - s.wer) / std::max(1.0, n - 1);
  s.spread = std::sqrt(s.spread);
  const Interval interval = bootstrap_interval(s.errors);
  s.low = 100 * interval.low;
  s.high = 100 * interval.high;
  return s;
}

std::vector<Summary> summarize_all(const nlohmann::json& rows) {
  std::vector<std::vector<const nlohmann::json*>> groups;
  std::map<std::string, std::size_t> place;
  for (const auto& row : rows) {
    const std::string key = text(row["name"].get<std::string>(), '|', row["stage"].get<std::string>(), '|',
                                 row["test_set"].get<std::string>());
    const auto [at, fresh] = place.emplace(key, groups.size());
    if (fresh) groups.emplace_back();
    groups[at->second].push_back(&row);
  }
  std::vector<Summary> out;
  for (const auto& group : groups) out.push_back(summarize(group));
  return out;
}

/// "MHA", "MLA" or "GQA".
std::string family(const Summary& s) {
  return s.name == "mha" ? "MHA" : s.name.starts_with("gqa") || s.name.starts_with("mqa") ? "GQA" : "MLA";
}

std::string spelt_stage(const std::string& stage) { return stage == "finetuned" ? "fine-tuned" : stage; }

/// From a little below the smallest cache.
std::string cache_axis(const std::vector<Summary>& all) {
  double least = 1;
  for (const Summary& s : all) least = std::min(least, s.cache_fraction);
  return text(
      "set logscale x 2\nset xtics ('6.25%%' 6.25, '12.5%%' 12.5, '25%%' 25, '50%%' 50, '100%%' 100)\nset xrange [",
      fixed(75 * least, 4), ":130]\nset grid\nset xlabel 'key-value cache, of the MHA baseline'\nset bars small\n");
}

/// Lines of one family and method, before training or after it by one strategy.
struct Series {
  std::string title, style;
  std::vector<const Summary*> points;
};
std::vector<Series> series_of(const std::vector<Summary>& all, const std::string& set, bool is_trained) {
  static constexpr const char* blues[] = {"#0060ad", "#2ca02c", "#9467bd", "#17becf",
                                          "#8c564b", "#bcbd22", "#e377c2", "#003355"};
  static constexpr const char* oranges[] = {"#dd7711", "#d62728", "#ffaa44", "#8b0000"};
  std::vector<Series> out;
  std::size_t blue = 0, orange = 0;
  std::set<std::string> latents;
  for (const Summary& s : all)
    if (family(s) == "MLA") latents.insert(s.attention);
  for (const Summary& s : all) {
    const std::string kind = family(s);
    if (s.test_set != set || (kind != "MHA" && is_trained == (s.stage == "converted"))) continue;
    std::string title =
        (kind == "MLA" && latents.size() > 1 ? s.attention : kind) + (s.method.empty() ? "" : " by " + s.method);
    if (kind == "MHA" || is_trained) title += ", " + spelt_stage(s.stage);
    const auto found = std::ranges::find(out, title, &Series::title);
    if (found != out.end()) {
      found->points.push_back(&s);
      continue;
    }
    const std::string style = kind == "MHA" ? text("lc rgb '", s.stage == "baseline" ? "#999999" : "#222222", "' pt 7")
                              : kind == "GQA"
                                  ? text("lc rgb '", oranges[orange++ % std::size(oranges)], "' pt 5")
                                  : text("lc rgb '", blues[blue % std::size(blues)], "' pt ", 7 + 2 * (blue % 4));
    blue += kind == "MLA";
    out.push_back({title, style, {&s}});
  }
  for (Series& one : out)
    std::ranges::sort(one.points, std::greater(), [](const Summary* s) { return s->cache_fraction; });
  return out;
}

/// A column a test set; above what conversion alone gives, below what training makes of it. Series are set apart a
/// little so that intervals do not hide each other.
void plot_wer(const std::filesystem::path& folder, const std::vector<Summary>& all,
              const std::vector<std::string>& sets) {
  std::string data, body = text(cache_axis(all), "set ylabel 'word error rate, %'\n", "set multiplot layout 2,",
                                sets.size(), " margins screen 0.055,0.74,0.08,0.95 spacing screen 0.055,0.14\n");
  int index = 0;
  for (const bool is_trained : {false, true}) {
    body +=
        text("set key at screen 0.755,", is_trained ? 0.42 : 0.95, " left top Left reverse samplen 1.5 font ',11'\n");
    for (const std::string& set : sets) {
      const auto series = series_of(all, set, is_trained);
      std::string list;
      double most = 0.1;
      for (std::size_t i = 0; i < series.size(); ++i) {
        const double shift = std::pow(1.025, static_cast<double>(i) - 0.5 * static_cast<double>(series.size() - 1));
        for (const Summary* s : series[i].points) {
          most = std::max(most, s->high);
          data += text(fixed(100 * s->cache_fraction * shift, 4), ' ', fixed(s->wer, 4), ' ', fixed(s->low, 4), ' ',
                       fixed(s->high, 4), '\n');
        }
        data += "\n\n";
        list += text(list.empty() ? "" : ", \\\n  ", "$data index ", index++,
                     " using 1:2:3:4 with yerrorlines lw 1.2 ps 0.9 ", series[i].style, " title ",
                     gnuplot_quoted(series[i].title));
      }
      body += text("set title ", gnuplot_quoted(set + (is_trained ? ", trained on" : ", converted")),
                   "\nset yrange [0:", fixed(1.05 * most, 3), "]\nplot ", list, "\nunset key\n");  // once a row
    }
  }
  draw_with_script(folder, "wer_cache", text("$data << EOD\n", data, "EOD\n", body, "unset multiplot\n"), true);
}

/// Relative error of keys and values after conversion.
void plot_conversion(const std::filesystem::path& folder, const std::vector<Summary>& all, const std::string& set) {
  std::string data, list;
  int index = 0;
  for (const Series& one : series_of(all, set, false)) {
    if (family(*one.points.front()) == "MHA") continue;
    for (const Summary* s : one.points)
      data += text(fixed(100 * s->cache_fraction, 4), ' ', fixed(s->key_value_error, 6), '\n');
    data += "\n\n";
    list += text(list.empty() ? "" : ", \\\n  ", "$data index ", index++, " using 1:2 with linespoints lw 2 ",
                 one.style, " title ", gnuplot_quoted(one.title));
  }
  if (list.empty()) return;
  draw_with_script(
      folder, "conversion_error",
      text("$data << EOD\n", data, "EOD\n", cache_axis(all), "set yrange [0:1]\nset key below\n",
           "set ylabel 'relative error of keys and values'\nset title 'After conversion, on validation speech'\nplot ",
           list, '\n'));
}

std::string percent(double fraction) {
  return fixed(100 * fraction, 100 * fraction == std::round(100 * fraction) ? 0 : 2) + '%';
}

/// Each latent against the grouped queries of its cache, stage and test set that have the lowest WER.
std::string latents_against_groups(const std::vector<Summary>& all) {
  Table table = Table::of_titles({"test set", "cache", "stage", "latent", "against", "points", "95% interval"});
  for (const Summary& latent : all) {
    if (family(latent) != "MLA") continue;
    const Summary* best = nullptr;
    for (const Summary& s : all)
      if (family(s) == "GQA" && s.test_set == latent.test_set && s.stage == latent.stage && s.seeds == latent.seeds &&
          s.cache_bytes_per_second == latent.cache_bytes_per_second && (best == nullptr || s.wer < best->wer))
        best = &s;
    if (best == nullptr) continue;
    const Interval interval = bootstrap_difference(best->errors, latent.errors);
    table.add({latent.test_set, percent(latent.cache_fraction), latent.stage, latent.name, best->name,
               fixed(latent.wer - best->wer, 2),
               text(fixed(100 * interval.low, 2), " to ", fixed(100 * interval.high, 2))});
  }
  if (table.empty()) return "";
  return "\n## Latents against grouped queries\n\nWER of a latent less that of the grouped queries of its cache, stage "
         "and test set that have the lowest, in points: below 0\nthe latent is better. The 95% interval draws the same "
         "utterances for both.\n\n" +
         table.markdown();
}

}  // namespace

StudyResults::StudyResults(std::filesystem::path path) : path_(std::move(path)), own_path_(path_) {
  if (const int rank = processes().rank(); rank > 0)
    own_path_.replace_filename(text(path_.stem().string(), "-of-", rank, ".json"));
  if (detail::is_there(path_)) read(path_);
  for (const auto& file : files_of_others()) read(file);
  processes().barrier();  // nobody writes before all have read
}

void StudyResults::read(const std::filesystem::path& path) {
  const nlohmann::json rows = read_json(path);
  require(rows.is_array(), path.string(), ": not the results of a study: a list of rows expected");
  for (const auto& row : rows) {
    for (const char* key : {"name", "stage", "test_set"}) json_member<std::string>(row, key, path.string());
    json_member<std::int64_t>(row, "seed", path.string());
    add(row);
  }
}

std::vector<std::filesystem::path> StudyResults::files_of_others() const {
  std::vector<std::filesystem::path> out;
  if (!detail::is_there(path_.parent_path())) return out;
  for (const auto& file : detail::files_in(path_.parent_path()))
    if (file.filename().string().starts_with(path_.stem().string() + "-of-") && file.extension() == ".json")
      out.push_back(file);
  return out;
}

void StudyResults::gather(const std::vector<std::string>& names) {
  processes().barrier();
  if (processes().rank() > 0) return;
  const auto others = files_of_others();
  for (const auto& file : others) read(file);
  const auto place = [&](const nlohmann::json& row) {
    return std::pair(row["seed"].get<std::int64_t>(),
                     std::ranges::find(names, row["name"].get<std::string>()) - names.begin());
  };
  std::stable_sort(rows_.begin(), rows_.end(),
                   [&](const nlohmann::json& a, const nlohmann::json& b) { return place(a) < place(b); });
  write_json(path_, rows_);
  for (const auto& file : others) ::unlink(file.c_str());
}

bool StudyResults::has(const std::string& name, const std::string& stage, const std::string& test_set,
                       std::int64_t seed) const {
  return std::ranges::any_of(rows_, [&](const nlohmann::json& row) {
    return row["name"] == name && row["stage"] == stage && row["test_set"] == test_set && row["seed"] == seed;
  });
}

void StudyResults::put(nlohmann::json row) {
  add(std::move(row));
  write_json(own_path_, rows_);
}

void StudyResults::add(nlohmann::json row) {
  const auto old = std::ranges::find_if(rows_, [&](const nlohmann::json& one) {
    return one["name"] == row["name"] && one["stage"] == row["stage"] && one["test_set"] == row["test_set"] &&
           one["seed"] == row["seed"];
  });
  if (old != rows_.end())
    *old = std::move(row);
  else
    rows_.push_back(std::move(row));
}

void write_report(const std::filesystem::path& folder, const nlohmann::json& rows, const std::string& command,
                  int threads) {
  const auto all = summarize_all(rows);
  std::vector<std::string> sets;
  for (const Summary& s : all)
    if (std::find(sets.begin(), sets.end(), s.test_set) == sets.end()) sets.push_back(s.test_set);

  std::string report =
                  text("# Word error rate against key-value cache\n\nMade by ", command, " on ", threads, " threads, ",
                       all.front().seeds,
                       " seed(s); a study that was widened has rows of earlier commands, too.\n\nWER in percent over "
                       "all seeds; the 95% interval resamples utterances, sd is that of the seeds' WERs. Cache: "
                       "bytes of\nkeys and values (or latents) for each second of speech, in single precision, and its "
                       "part of the baseline's. "
                       "Error: of keys and\nvalues after conversion, relative, measured on validation speech. Changed: "
                       "transcripts that differ "
                       "from the baseline's.\n"),
              summary;
  for (const std::string& set : sets) {
    Table full = Table::of_titles({"attention", "stage", "cache", "bytes/s", "parameters", "WER %", "95% interval",
                                   "sd", "error", "changed", "training s"});
    Table brief({{"", 36, true, 2}, {"", 14, true}, {"", 13}, {"", 13, false, 3}, {"", 0, true, 2}});
    for (const Summary& s : all) {
      if (s.test_set != set) continue;
      const std::string cache = percent(s.cache_fraction);
      const bool is_baseline = s.stage == "baseline";
      full.add({s.name, s.stage, cache, fixed(s.cache_bytes_per_second, 0), text(s.parameters), fixed(s.wer, 2),
                text(fixed(s.low, 2), " to ", fixed(s.high, 2)), s.seeds > 1 ? fixed(s.spread, 2) : "",
                is_baseline ? "" : fixed(s.key_value_error, 4),
                is_baseline ? "" : text(s.changed, " of ", s.utterances),
                s.train_seconds > 0 ? fixed(s.train_seconds, 0) : ""});
      brief.add({s.name, s.stage, "cache " + cache, text("WER ", fixed(s.wer, 2), '%'),
                 text('[', fixed(s.low, 2), ", ", fixed(s.high, 2), ']')});
    }
    report += text("\n## Test set: ", set, "\n\n", full.markdown());
    summary += text(set, '\n', brief.lines());
  }
  report += latents_against_groups(all) +
            "\n![WER against cache](wer_cache.png)\n\n![Conversion error against cache](conversion_error.png)\n";
  write_file(folder / "report.md", report);
  write_file(folder / "summary.txt", summary);

  plot_wer(folder, all, sets);
  plot_conversion(folder, all, sets.front());
}
