// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include "study_report.hpp"

#include "cli.hpp"
#include "gnuplot.hpp"

#include <laconic/speech/wer.hpp>

#include <algorithm>
#include <cmath>
#include <map>
#include <tuple>
#include <numeric>
#include <vector>

using namespace laconic;

namespace {

/// The rows of one model, stage and test set, over all seeds.
struct Summary {
  std::string name, stage, test_set;
  double cache_fraction = 0, cache_bytes_per_second = 0, key_value_error = 0, train_seconds = 0;
  double wer = 0, low = 0, high = 0, spread = 0;  ///< percent; pooled over seeds; sd of the seeds' WERs
  Index parameters = 0, changed = 0, utterances = 0, seeds = 0;
};

/// WER of all seeds together. Its interval resamples utterances, each with its errors of all seeds, as the seeds are
/// tested on the same utterances.
Summary summarize(const std::vector<const nlohmann::json*>& rows) {
  const nlohmann::json& first = *rows.front();
  Summary s{.name = first["name"], .stage = first["stage"], .test_set = first["test_set"], .cache_fraction = first["cache_fraction"],
            .cache_bytes_per_second = first["cache_bytes_per_second"], .parameters = first["parameters"],
            .seeds = static_cast<Index>(rows.size())};
  const double n = static_cast<double>(rows.size());
  std::vector<WordErrors> errors(first["errors_by_utterance"].size());
  std::vector<double> wers;
  for (const nlohmann::json* row : rows) {
    wers.push_back((*row)["wer"]);
    s.wer += wers.back() / n;
    s.key_value_error += (*row)["key_value_error"].get<double>() / n;
    s.train_seconds += (*row)["train_seconds"].get<double>() / n;
    s.changed += (*row)["transcripts_changed"].get<Index>();
    s.utterances += (*row)["utterances"].get<Index>();
    for (std::size_t i = 0; i < errors.size(); ++i)
      errors[i] += {.substitutions = (*row)["errors_by_utterance"].at(i), .reference_words = (*row)["words_by_utterance"].at(i)};
  }
  for (const double wer : wers) s.spread += (wer - s.wer) * (wer - s.wer) / std::max(1.0, n - 1);
  s.spread = std::sqrt(s.spread);
  const Interval interval = bootstrap_interval(errors);
  s.low = 100 * interval.low;
  s.high = 100 * interval.high;
  return s;
}

std::vector<Summary> summarize_all(const nlohmann::json& rows) {
  std::vector<std::vector<const nlohmann::json*>> groups;
  std::map<std::string, std::size_t> place;
  for (const auto& row : rows) {
    const std::string key = text(row["name"].get<std::string>(), '|', row["stage"].get<std::string>(), '|', row["test_set"].get<std::string>());
    const auto [at, fresh] = place.emplace(key, groups.size());
    if (fresh) groups.emplace_back();
    groups[at->second].push_back(&row);
  }
  std::vector<Summary> out;
  for (const auto& group : groups) out.push_back(summarize(group));
  return out;
}

void plot(const std::filesystem::path& folder, const std::string& name, const std::string& body) {
  for (const std::string format : {"png", "svg"}) {
    const auto script = folder / (name + ".gp"), image = folder / (name + '.' + format);
    write_file(script, gnuplot_output(image) + body);
    run_gnuplot(script);
  }
}

/// "mha", "mla" or "gqa".
std::string family(const Summary& s) { return s.name == "mha" ? "mha" : s.name.starts_with("mla") ? "mla" : "gqa"; }

constexpr const char* cache_axis =
    "set logscale x 2\nset xtics ('6.25%%' 6.25, '12.5%%' 12.5, '25%%' 25, '50%%' 50, '100%%' 100)\nset xrange [5:130]\nset grid\n"
    "set xlabel 'key-value cache, of the MHA baseline'\nset bars small\nset key below maxrows 3 samplen 1.5 width 1 font ',11'\nset bmargin 7\n";

/// One panel a test set; a series for each family and stage, set apart a little so that intervals do not hide each other.
void plot_wer(const std::filesystem::path& folder, const std::vector<Summary>& all, const std::vector<std::string>& sets) {
  struct Series {
    const char *family, *stage, *title, *style;
    double shift;
  };
  static constexpr Series series[] = {
      {"mha", "baseline", "MHA", "lc rgb '#999999' pt 6", 0.985},
      {"mha", "finetuned", "MHA, fine-tuned alike", "lc rgb '#222222' pt 7", 1.015},
      {"mla", "converted", "MLA, converted", "lc rgb '#7fb2e5' pt 6", 0.95},
      {"mla", "finetuned", "MLA, fine-tuned", "lc rgb '#0060ad' pt 7", 0.985},
      {"gqa", "converted", "GQA, converted", "lc rgb '#f0bb88' pt 4", 1.015},
      {"gqa", "finetuned", "GQA, fine-tuned", "lc rgb '#dd7711' pt 5", 1.05},
  };
  std::string data, body = text(cache_axis, "DATA = ", gnuplot_quoted(folder / "wer_cache.dat"), "\nset ylabel 'word error rate, %'\n",
                                "set multiplot layout 1,", sets.size(), "\n");
  int index = 0;
  for (const std::string& set : sets) {
    std::string list;
    double most = 1;
    for (const Series& one : series) {
      std::string block;
      for (const Summary& s : all)
        if (s.test_set == set && family(s) == one.family && s.stage == one.stage) {
          most = std::max(most, s.high);
          block += text(fixed(100 * s.cache_fraction * one.shift, 4), ' ', fixed(s.wer, 4), ' ', fixed(s.low, 4), ' ', fixed(s.high, 4), '\n');
        }
      if (block.empty()) continue;
      data += block + "\n\n";
      list += text(list.empty() ? "" : ", \\\n  ", "DATA index ", index++, " using 1:2:3:4 with yerrorlines lw 2 ", one.style, " title '", one.title, "'");
    }
    body += text("set title '", set, "'\nset yrange [0:", fixed(1.05 * most, 3), "]\nplot ", list, '\n');
  }
  write_file(folder / "wer_cache.dat", data);
  plot(folder, "wer_cache", body + "unset multiplot\n");
}

/// Relative error of keys and values after conversion.
void plot_conversion(const std::filesystem::path& folder, const std::vector<Summary>& all, const std::string& set) {
  std::string data, list;
  int index = 0;
  for (const auto& [kind, title, style] : {std::tuple{"mla", "MLA (joint SVD)", "lc rgb '#0060ad' pt 7"}, std::tuple{"gqa", "GQA (mean of heads)", "lc rgb '#dd7711' pt 5"}}) {
    std::string block;
    for (const Summary& s : all)
      if (s.test_set == set && family(s) == kind && s.stage == "converted")
        block += text(fixed(100 * s.cache_fraction, 4), ' ', fixed(s.key_value_error, 6), '\n');
    if (block.empty()) continue;
    data += block + "\n\n";
    list += text(list.empty() ? "" : ", \\\n  ", "DATA index ", index++, " using 1:2 with linespoints lw 2 ", style, " title '", title, "'");
  }
  write_file(folder / "conversion_error.dat", data);
  plot(folder, "conversion_error",
       text(cache_axis, "DATA = ", gnuplot_quoted(folder / "conversion_error.dat"), "\nset yrange [0:1]\n",
            "set ylabel 'relative error of keys and values'\nset title 'After conversion, on validation speech'\nplot ", list, '\n'));
}

}  // namespace

StudyResults::StudyResults(std::filesystem::path path) : path_(std::move(path)) {
  if (!std::filesystem::exists(path_)) return;
  rows_ = read_json(path_);
  require(rows_.is_array(), path_.string(), ": not the results of a study: a list of rows expected");
  for (const auto& row : rows_) {
    for (const char* key : {"name", "stage", "test_set"}) json_member<std::string>(row, key, path_.string());
    json_member<std::int64_t>(row, "seed", path_.string());
  }
}

bool StudyResults::has(const std::string& name, const std::string& stage, const std::string& test_set, std::int64_t seed) const {
  return std::ranges::any_of(rows_, [&](const nlohmann::json& row) {
    return row["name"] == name && row["stage"] == stage && row["test_set"] == test_set && row["seed"] == seed;
  });
}

void StudyResults::put(nlohmann::json row) {
  const auto old = std::ranges::find_if(rows_, [&](const nlohmann::json& one) {
    return one["name"] == row["name"] && one["stage"] == row["stage"] && one["test_set"] == row["test_set"] && one["seed"] == row["seed"];
  });
  if (old != rows_.end())
    *old = std::move(row);
  else
    rows_.push_back(std::move(row));
  write_json(path_, rows_);
}

void write_report(const std::filesystem::path& folder, const nlohmann::json& rows, const std::string& command, int threads) {
  const auto all = summarize_all(rows);
  std::vector<std::string> sets;
  for (const Summary& s : all)
    if (std::find(sets.begin(), sets.end(), s.test_set) == sets.end()) sets.push_back(s.test_set);

  std::string report = text("# Word error rate against key-value cache\n\nMade by ", command, " on ", threads, " threads, ", all.front().seeds,
                            " seed(s).\n\nWER in percent over all seeds; the 95% interval resamples utterances, sd is that of the seeds' WERs. Cache: "
                            "bytes of\nkeys and values (or latents) for each second of speech, in single precision, and its part of the baseline's. "
                            "Error: of keys and\nvalues after conversion, relative, measured on validation speech. Changed: transcripts that differ "
                            "from the baseline's.\n"),
              summary;
  for (const std::string& set : sets) {
    report += text("\n## Test set: ", set, "\n\n| attention | stage | cache | bytes/s | parameters | WER % | 95% interval | sd | error | changed | training s |\n"
                   "|---|---|---|---|---|---|---|---|---|---|---|\n");
    summary += text(set, '\n');
    for (const Summary& s : all) {
      if (s.test_set != set) continue;
      const std::string cache = fixed(100 * s.cache_fraction, s.cache_fraction * 100 == std::round(s.cache_fraction * 100) ? 0 : 2) + '%';
      report += text("| ", s.name, " | ", s.stage, " | ", cache, " | ", fixed(s.cache_bytes_per_second, 0), " | ", s.parameters, " | ", fixed(s.wer, 2),
                     " | ", fixed(s.low, 2), " to ", fixed(s.high, 2), " | ", s.seeds > 1 ? fixed(s.spread, 2) : "", " | ",
                     s.stage == "baseline" ? "" : fixed(s.key_value_error, 4), " | ", s.stage == "baseline" ? "" : text(s.changed, " of ", s.utterances),
                     " | ", s.train_seconds > 0 ? fixed(s.train_seconds, 0) : "", " |\n");
      char line[160];
      std::snprintf(line, sizeof line, "  %-18s %-10s cache %7s   WER %6.2f%%  [%.2f, %.2f]\n", s.name.c_str(), s.stage.c_str(), cache.c_str(), s.wer, s.low, s.high);
      summary += line;
    }
  }
  report += "\n![WER against cache](wer_cache.png)\n\n![Conversion error against cache](conversion_error.png)\n";
  write_file(folder / "report.md", report);
  write_file(folder / "summary.txt", summary);

  plot_wer(folder, all, sets);
  plot_conversion(folder, all, sets.front());
}
