// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// laconic compare: results of `laconic eval` in one table, and which of them are told apart from the first.
#include "commands.hpp"
#include "common/cli.hpp"
#include "common/gnuplot.hpp"
#include "common/table.hpp"

#include <laconic/speech/wer.hpp>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <optional>

namespace {

using namespace laconic;

struct CompareOptions : CommonOptions {
  std::vector<std::string> files, names;
  std::string plot;
};

/// Holds the contents of a file that `laconic eval --json` wrote.
struct Result {
  std::string file, name, attention, normalize;
  Index parameters = 0, utterances = 0, reference_words = 0;
  std::optional<Index> peak_memory_bytes;        ///< empty: an older file, which does not say
  double wer = 0, low = 0, high = 0;             ///< percent
  double cache_bytes_per_second = 0, speed = 0;  ///< the latter in times real time
  bool streamed = false;
  std::vector<std::string> utterance_names;  ///< this and the next empty: an older file
  std::vector<WordErrors> errors;
  std::vector<std::optional<double>> losses;  ///< by utterance, where it has one; empty: an older file

  bool has_utterances() const { return !errors.empty(); }
};

/// To the first result: the WER in points, of percent, and the mean CTC loss of the utterances for which both have one.
struct Difference {
  double wer = 0;
  Interval interval;
  std::optional<double> loss;
  Interval loss_interval;
};

/// Throws where the arrays contradict each other or the file's sums.
void read_utterances(const nlohmann::json& json, const std::string& where, Index all_errors, Result& r) {
  r.utterance_names = json_member<std::vector<std::string>>(json, "utterance_names", where);
  const auto errors = json_member<std::vector<Index>>(json, "utterance_errors", where);
  const auto words = json_member<std::vector<Index>>(json, "utterance_words", where);
  const auto require_size = [&](const char* key, std::size_t size) {
    require(size == static_cast<std::size_t>(r.utterances), where, ": '", key, "' is an array of ", size, ", ",
            r.utterances, " expected, as 'utterances' says");
  };
  require_size("utterance_names", r.utterance_names.size());
  require_size("utterance_errors", errors.size());
  require_size("utterance_words", words.size());
  for (std::size_t i = 0; i < errors.size(); ++i) {
    require(errors[i] >= 0 && words[i] >= 0, where, ": utterance ", i + 1, " has ", errors[i], " errors in ", words[i],
            " words, no number below 0 expected");
    r.errors.push_back(
        {.substitutions = errors[i], .reference_words = words[i]});  // of which kind they are is not told
  }
  if (json.contains("utterance_losses")) {
    const nlohmann::json& losses = json["utterance_losses"];
    require(losses.is_array(), where, ": 'utterance_losses' is no array");
    require_size("utterance_losses", losses.size());
    for (std::size_t i = 0; i < losses.size(); ++i) {
      require(losses[i].is_null() || (losses[i].is_number() && losses[i] >= 0), where, ": utterance ", i + 1,
              " has the loss ", losses[i].dump(), ", null or a number not below 0 expected");
      r.losses.push_back(losses[i].is_null() ? std::nullopt : std::optional(losses[i].get<double>()));
    }
  }
  const WordErrors sum = total(r.errors);
  require(sum.errors() == all_errors && sum.reference_words == r.reference_words, where, ": its utterances have ",
          sum.errors(), " errors in ", sum.reference_words, " words, ", all_errors, " in ", r.reference_words,
          " expected, as the file says of all");
}

Result read_result(const std::string& file) {
  const nlohmann::json json = read_json(file);
  const std::string where = file + ": not a result of `laconic eval --json`";
  const auto number = [&](const char* key, double least) {
    const double value = json_member<double>(json, key, where);
    require(value >= least, where, ": '", key, "' is ", value, ", at least ", least, " expected");
    return value;
  };
  const auto count = [&](const char* key, Index least) {
    const Index value = json_member<Index>(json, key, where);
    require(value >= least, where, ": '", key, "' is ", value, ", at least ", least, " expected");
    return value;
  };
  Result r;
  r.file = file;
  r.name = std::filesystem::path(file).stem().string();
  r.wer = number("wer", 0);
  r.low = number("wer_low", 0);
  r.high = number("wer_high", r.low);
  r.attention = json_member<std::string>(json, "attention", where);
  r.parameters = count("parameters", 0);
  r.utterances = count("utterances", 1);
  r.reference_words = count("reference_words", 0);
  r.cache_bytes_per_second = number("cache_bytes_per_second", 0);
  r.speed = number("audio_seconds", 0) / number("compute_seconds", 1e-9);
  r.streamed = json.contains("streaming");
  r.normalize = json.contains("normalize") ? json_member<std::string>(json, "normalize", where) : "none";
  if (json.contains("peak_memory_bytes")) r.peak_memory_bytes = count("peak_memory_bytes", 0);
  const Index errors = count("substitutions", 0) + count("deletions", 0) + count("insertions", 0);
  if (json.contains("utterance_errors")) read_utterances(json, where, errors, r);
  return r;
}

/// Rates of other utterances say nothing of the systems. Where a file holds no utterances only their number can be
/// compared.
void require_same_test(const Result& first, const Result& other) {
  require(first.normalize == other.normalize, other.file, ": texts compared with --normalize ", other.normalize, ", ",
          first.normalize, " expected, as in ", first.file);
  require(first.utterances == other.utterances && first.reference_words == other.reference_words, other.file,
          ": tested on ", other.utterances, " utterances of ", other.reference_words, " words, ", first.utterances,
          " of ", first.reference_words, " expected, as in ", first.file);
  if (!first.has_utterances() || !other.has_utterances()) return;
  for (std::size_t i = 0; i < first.errors.size(); ++i) {
    const auto what = [i](const Result& r) {
      return text("'", r.utterance_names[i], "' of ", r.errors[i].reference_words, " words");
    };
    require(what(first) == what(other), other.file, ": tested on other utterances: number ", i + 1, " is ", what(other),
            ", ", what(first), " expected, as in ", first.file);
  }
}

std::vector<Result> read_results(const CompareOptions& o) {
  require(o.files.size() >= 2, o.files.front(), ": the only file given, at least 2 expected to compare");
  require(o.names.empty() || o.names.size() == o.files.size(), "--names: ", o.names.size(), " given, ", o.files.size(),
          " expected, one for each file");
  std::map<std::filesystem::path, std::string> files;
  for (const std::string& file : o.files) {
    const auto [at, fresh] = files.emplace(detail::resolved(file), file);
    require(fresh, file, ": given twice", at->second == file ? "" : text(", as ", at->second, ", too"),
            "; different files expected");
  }
  require(o.json.empty() || !files.contains(detail::resolved(o.json)), "--json: ", o.json,
          " given, which is one of the files to compare; another file expected");
  std::vector<Result> out;
  std::map<std::string, std::string> names;
  for (std::size_t i = 0; i < o.files.size(); ++i) {
    Result& r = out.emplace_back(read_result(o.files[i]));
    if (!o.names.empty()) r.name = o.names[i];
    const auto [at, fresh] = names.emplace(r.name, r.file);
    require(fresh, r.file, ": its name is '", r.name, "', as that of ", at->second,
            "; different names expected, by --names");
    require_same_test(out.front(), r);
  }
  return out;
}

/// Empty where one of the two holds no utterances.
std::optional<Difference> difference(const Result& first, const Result& other, std::int64_t seed) {
  if (!first.has_utterances() || !other.has_utterances()) return std::nullopt;
  const Seed draws(static_cast<std::uint64_t>(seed));
  const Interval i = bootstrap_difference(first.errors, other.errors, 0.95, 1000, draws);
  Difference out{
      100 * (total(other.errors).rate() - total(first.errors).rate()), {100 * i.low, 100 * i.high}, std::nullopt, {}};
  std::vector<double> losses;
  for (std::size_t n = 0; n < std::min(first.losses.size(), other.losses.size()); ++n)
    if (first.losses[n] && other.losses[n]) losses.push_back(*other.losses[n] - *first.losses[n]);
  if (!losses.empty()) {
    out.loss = std::accumulate(losses.begin(), losses.end(), 0.0) / static_cast<double>(losses.size());
    out.loss_interval = bootstrap_mean(losses, 0.95, 1000, draws);
  }
  return out;
}

/// "-0.50 [-0.90, -0.10]"
std::string shown(double value, double low, double high, const char* unit = "") {
  return text(fixed(value, 2), unit, " [", fixed(low, 2), ", ", fixed(high, 2), ']');
}

std::string sentence(const Result& first, const Result& other, const std::optional<Difference>& d) {
  if (!d) {
    const bool both = !first.has_utterances() && !other.has_utterances();
    const std::string& one = first.has_utterances() ? other.file : first.file;
    return text("not compared with ", first.name,
                " by utterance: ", both ? text(one, " and ", other.file, " hold") : one + " holds",
                " no utterances, so only the intervals can be looked at, which ",
                first.low <= other.high && other.low <= first.high ? "overlap" : "do not overlap");
  }
  const auto& [low, high] = d->interval;
  const std::string loss =
      d->loss ? text("; CTC loss ", shown(*d->loss, d->loss_interval.low, d->loss_interval.high)) : "";
  if (high < 0) return text("fewer errors than ", first.name, ": ", shown(-d->wer, -high, -low, " points"), loss);
  return text(low > 0 ? "more errors than " : "not told apart from ", first.name, ": ",
              shown(d->wer, low, high, " points"), loss);
}

nlohmann::json result_json(const Result& r, const std::optional<Difference>& d) {
  nlohmann::json out{{"file", r.file},
                     {"name", r.name},
                     {"attention", r.attention},
                     {"parameters", r.parameters},
                     {"cache_bytes_per_second", r.cache_bytes_per_second},
                     {"wer", r.wer},
                     {"wer_low", r.low},
                     {"wer_high", r.high},
                     {"times_real_time", r.speed}};
  if (r.peak_memory_bytes) out["peak_memory_bytes"] = *r.peak_memory_bytes;
  if (d) out["difference"] = {{"wer", d->wer}, {"wer_low", d->interval.low}, {"wer_high", d->interval.high}};
  if (d && d->loss)
    out["difference"].update(
        {{"loss", *d->loss}, {"loss_low", d->loss_interval.low}, {"loss_high", d->loss_interval.high}});
  return out;
}

void print_table(const std::vector<Result>& results, const std::vector<std::optional<Difference>>& differences) {
  Table table({{"name", 0, true, 0},
               {"attention", 0, true, 2},
               {"parameters", 12},
               {"cache, bytes/s", 14},
               {"WER, %", 24, true, 2},
               {"x real time", 12},
               {"peak, MiB", 10},
               {"difference, points", 0, true, 2}});
  for (std::size_t i = 0; i < results.size(); ++i) {
    const Result& r = results[i];
    const auto& d = differences[i];
    table.add({r.name, r.attention, text(r.parameters), fixed(r.cache_bytes_per_second, 0), shown(r.wer, r.low, r.high),
               fixed(r.speed, 0),
               r.peak_memory_bytes ? fixed(static_cast<double>(*r.peak_memory_bytes) / (1024 * 1024), 1) : "-",
               d ? shown(d->wer, d->interval.low, d->interval.high) : "-"});
  }
  print(Lines{table.lines()}, '\n');
}

/// A point with its interval for each result. Those of equal caches are set apart a little so that intervals do not
/// hide each other, and their names go to one side and the other.
void plot_results(const std::string& path, const std::vector<Result>& results) {
  double least = results.front().cache_bytes_per_second, most = least, highest = 1;
  for (const Result& r : results) {
    least = std::min(least, r.cache_bytes_per_second);
    most = std::max(most, r.cache_bytes_per_second);
    highest = std::max(highest, r.high);
  }
  const bool logarithmic = least > 0;
  const double span = most > least ? most - least : std::max(most, 1000.0);
  std::map<double, int> seen;
  std::string points, labels;
  for (const Result& r : results) {
    const int before = seen[r.cache_bytes_per_second]++;
    const double step = before % 2 == 0 ? before / 2.0 : -(before + 1) / 2.0;  // 0, -1, 1, -2, 2, ...
    const double x = logarithmic ? r.cache_bytes_per_second * std::exp2(0.06 * step)
                                 : r.cache_bytes_per_second + 0.015 * span * step;
    points += text(fixed(x / 1000, 6), ' ', fixed(r.wer, 4), ' ', fixed(r.low, 4), ' ', fixed(r.high, 4), '\n');
    labels += text("set label ", gnuplot_quoted(r.name), " at ", fixed(x / 1000, 6), ", ", fixed(r.wer, 4),
                   before % 2 == 0 ? " left offset 1,0.4\n" : " right offset -1,0.4\n");
  }
  const std::string range =
      logarithmic ? text(fixed(least / 2000, 6), ':', fixed(most / 500, 6))
                  : text(fixed((least - 0.3 * span) / 1000, 6), ':', fixed((most + 0.4 * span) / 1000, 6));
  draw(path, text("$points << EOD\n", points, "EOD\n", labels, logarithmic ? "set logscale x 2\n" : "", "set xrange [",
                  range, "]\nset yrange [0:", fixed(1.1 * highest, 4),
                  "]\nset grid\nset bars small\nunset key\nset xlabel 'key-value cache, kB a second of speech'\n"
                  "set ylabel 'word error rate, %, with its 95% interval'\n"
                  "plot $points using 1:2:3:4 with yerrorbars lw 2 pt 7 lc rgb '#0060ad'\n"));
}

void compare(const CompareOptions& o) {
  if (!o.plot.empty()) require_picture(o.plot);
  const auto results = read_results(o);
  for (const Result& r : results)
    if (r.streamed)
      say("note: ", r.name,
          " was streamed: its cache is given as of whole utterances in single precision all the same");
  std::vector<std::optional<Difference>> differences(1);
  std::string sentences;
  nlohmann::json rows = nlohmann::json::array();
  rows.push_back(result_json(results[0], {}));
  for (std::size_t i = 1; i < results.size(); ++i) {
    const auto& d = differences.emplace_back(difference(results[0], results[i], o.seed));
    const std::string said = sentence(results[0], results[i], d);
    sentences += text(without_line_ends(results[i].name), ": ", without_line_ends(said), '\n');
    rows.push_back(result_json(results[i], d));
    rows.back()["sentence"] = said;
  }
  print_table(results, differences);
  print(Lines{sentences},
        "(95% intervals by utterance, the same ones drawn for both of a difference; of other trainings they know "
        "nothing)\n");
  o.write({{"first", results[0].name},
           {"utterances", results[0].utterances},
           {"reference_words", results[0].reference_words},
           {"results", rows}});
  if (!o.plot.empty()) plot_results(o.plot, results);
}

}  // namespace

void add_compare_command(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("compare", "results of eval in one table, and which are told apart from the first");
  const auto o = std::make_shared<CompareOptions>();
  o->add_to(*command);
  command
      ->add_option("results", o->files,
                   "files that `laconic eval --json` wrote, of the same utterances; the first is what others are "
                   "compared with")
      ->required()
      ->type_name("FILE");
  command->add_option("--names", o->names, "names of the results, in their order; default: the names of the files")
      ->type_name("A,B,...")
      ->delimiter(',')
      ->allow_extra_args(false);
  command->add_option("--plot", o->plot, "draw WER by cache into this .png or .svg, with gnuplot")->type_name("FILE");
  command->footer(
      "Example:\n  laconic eval --model runs/mha --data digits/test.jsonl --json mha.json\n"
      "  laconic eval --model runs/mla --data digits/test.jsonl --json mla.json\n"
      "  laconic compare mha.json mla.json --names before,after --plot wer_cache.png");
  command->callback([=] { compare(*o); });
}
