// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include "study_report.hpp"

#include "cli.hpp"

#include <laconic/core/random.hpp>

#include <spawn.h>
#include <sys/wait.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <numeric>
#include <vector>

extern char** environ;

using namespace laconic;

namespace {

/// Runs a program and waits; gives its exit code, 127 if it cannot be started.
int run_program(const std::vector<std::string>& arguments) {
  std::vector<char*> argv;
  for (const std::string& a : arguments) argv.push_back(const_cast<char*>(a.c_str()));
  argv.push_back(nullptr);
  pid_t child = 0;
  if (::posix_spawnp(&child, argv[0], nullptr, nullptr, argv.data(), environ) != 0) return 127;
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 127;
}

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
  std::vector<double> errors(first["errors_by_utterance"].size(), 0.0);
  std::vector<double> wers;
  for (const nlohmann::json* row : rows) {
    wers.push_back((*row)["wer"]);
    s.wer += wers.back() / n;
    s.key_value_error += (*row)["key_value_error"].get<double>() / n;
    s.train_seconds += (*row)["train_seconds"].get<double>() / n;
    s.changed += (*row)["transcripts_changed"].get<Index>();
    s.utterances += (*row)["utterances"].get<Index>();
    for (std::size_t i = 0; i < errors.size(); ++i) errors[i] += (*row)["errors_by_utterance"].at(i).get<double>() / n;
  }
  for (const double wer : wers) s.spread += (wer - s.wer) * (wer - s.wer) / std::max(1.0, n - 1);
  s.spread = std::sqrt(s.spread);

  const double words = first["reference_words"];
  const Random random(Seed(1), "study");
  std::vector<double> resampled(1000, 0.0);
  for (std::size_t r = 0; r < resampled.size(); ++r)
    for (std::size_t i = 0; i < errors.size(); ++i)
      resampled[r] += 100 * errors[static_cast<std::size_t>(random.below(static_cast<Index>(errors.size()), r * errors.size() + i))] / words;
  std::sort(resampled.begin(), resampled.end());
  s.low = resampled[25];
  s.high = resampled[974];
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
    const std::string terminal = format == "png" ? "set terminal pngcairo size 1100,700 font 'sans,13'" : "set terminal svg size 900,560 font 'sans,13'";
    const auto script = folder / (name + ".gp"), image = folder / (name + '.' + format);
    write_file(script, text(terminal, "\nset output '", image.string(), "'\n", body));
    require(run_program({"gnuplot", script.string()}) == 0, "gnuplot failed on ", script.string());
  }
}

}  // namespace

void StudyResults::put(nlohmann::json row) {
  for (auto& old : rows_)
    if (old["name"] == row["name"] && old["stage"] == row["stage"] && old["test_set"] == row["test_set"] && old["seed"] == row["seed"]) {
      old = std::move(row);
      return write_json(path_, rows_);
    }
  rows_.push_back(std::move(row));
  write_json(path_, rows_);
}

void require_gnuplot() {
  require(run_program({"gnuplot", "-e", "set terminal pngcairo"}) == 0, "the program gnuplot (with pngcairo) is needed for the plots: apt-get install gnuplot-nox");
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

  // One block of data a series, for gnuplot's `index`.
  const auto family = [](const Summary& s) { return s.name == "mha" ? "mha" : s.name.starts_with("mla") ? "mla" : "gqa"; };
  std::string data, errors, body = text(
      "set datafile missing '?'\nset logscale x 2\nset xtics ('6.25%%' 6.25, '12.5%%' 12.5, '25%%' 25, '50%%' 50, '100%%' 100)\n"
      "set xrange [5:125]\nset yrange [0:*]\nset grid\nset key top right\nset xlabel 'key-value cache, of the MHA baseline'\n"
      "set ylabel 'word error rate, %'\nset bars small\n");
  std::string series;
  int index = 0;
  for (std::size_t k = 0; k < sets.size(); ++k)
    for (const auto& [kind, stage, title, colour] : std::vector<std::tuple<std::string, std::string, std::string, std::string>>{
             {"mha", "baseline", "MHA", "#222222"}, {"mla", "finetuned", "MLA, fine-tuned", "#0060ad"}, {"gqa", "finetuned", "GQA, fine-tuned", "#dd7711"}}) {
      std::string block;
      for (const Summary& s : all)
        if (s.test_set == sets[k] && family(s) == kind && s.stage == stage)
          block += text(fixed(100 * s.cache_fraction * (1 + 0.02 * static_cast<double>(k)), 4), ' ', fixed(s.wer, 4), ' ', fixed(s.low, 4), ' ', fixed(s.high, 4), '\n');
      if (block.empty()) continue;
      data += block + "\n\n";
      series += text(series.empty() ? "" : ", \\\n  ", "DATA index ", index++, " using 1:2:3:4 with yerrorlines lc rgb '", colour, "' lw 2 pt ", k == 0 ? 7 : 6,
                     " dt ", k + 1, " title '", title, sets.size() > 1 ? text(" (", sets[k], ")") : "", "'");
    }
  write_file(folder / "wer_cache.dat", data);
  const std::string source = text("DATA = '", (folder / "wer_cache.dat").string(), "'\n");
  plot(folder, "wer_cache", text(source, body, "set title 'Word error rate against cache: one model, trained with MHA, converted and fine-tuned'\nplot ", series, '\n'));

  series.clear();
  index = 0;
  for (const auto& [kind, title, colour] : std::vector<std::tuple<std::string, std::string, std::string>>{{"mla", "MLA (joint SVD)", "#0060ad"}, {"gqa", "GQA (mean of heads)", "#dd7711"}}) {
    std::string block;
    for (const Summary& s : all)
      if (s.test_set == sets[0] && family(s) == kind && s.stage == "converted")
        block += text(fixed(100 * s.cache_fraction, 4), ' ', fixed(s.key_value_error, 6), ' ', fixed(s.wer, 4), '\n');
    errors += block + "\n\n";
    series += text(series.empty() ? "" : ", \\\n  ", "DATA index ", index, " using 1:2 with linespoints lc rgb '", colour, "' lw 2 pt 7 title '", title,
                   ": error of keys and values', \\\n  DATA index ", index, " using 1:($3/100) with linespoints lc rgb '", colour, "' lw 2 dt 2 pt 6 title '", title, ": WER'");
    ++index;
  }
  write_file(folder / "conversion_error.dat", errors);
  plot(folder, "conversion_error",
       text("DATA = '", (folder / "conversion_error.dat").string(), "'\n", body,
            "set ylabel 'relative error; word error rate as a fraction'\nset title 'After conversion, before fine-tuning'\nplot ", series, '\n'));
}
