// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// laconic-study conversion: trains an MHA baseline, converts it to smaller caches by one or several methods, trains on
// by one or several strategies, and reports WER against cache size.
#include "commands.hpp"
#include "common/cli.hpp"
#include "common/device_option.hpp"
#include "common/gnuplot.hpp"
#include "common/training_line.hpp"
#include "report.hpp"
#include "setup.hpp"

#include <laconic/recognition/dataset.hpp>
#include <laconic/recognition/fingerprint.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <map>
#include <numeric>
#include <optional>

namespace {

using namespace laconic;

struct StudyOptions : CommonOptions {
  std::string data, out, preset = "quick", holdout_speaker, encoder = "conformer";
  std::vector<std::string> attentions{"mla-simple", "gqa", "mqa"}, methods{"svd"}, strategies{"finetuned"};
  std::vector<double> caches{50, 25, 12.5, 6.25};
  Index seeds = 0;
  DeviceOption device;
};

/// How a latent is found: "activation", or with ranks of the layers' own "activation+water-filling".
struct Method {
  std::string name;
  ConversionMethod method;
  RankAllocation allocation = RankAllocation::uniform;

  static Method of(const std::string& name) {
    const auto plus = name.find('+');
    return {
        name, from_name<ConversionMethod>(name.substr(0, plus)).value(),
        plus == std::string::npos ? RankAllocation::uniform : from_name<RankAllocation>(name.substr(plus + 1)).value()};
  }
  static std::vector<std::string> names() {
    std::vector<std::string> out;
    for (const auto& one : enum_names(ConversionMethod()))
      for (const auto& shared : enum_names(RankAllocation()))
        if (one.value != ConversionMethod::score_aware || shared.value != RankAllocation::fisher)
          out.push_back(shared.value == RankAllocation::uniform ? std::string(one.name)
                                                                : text(one.name, '+', shared.name));
    return out;
  }
};

/// Says how a converted model is trained.
enum class Strategy { finetuned, attention_only, distilled, progressive };
constexpr auto enum_names(Strategy) {
  using enum Strategy;
  return std::to_array<EnumName<Strategy>>({{finetuned, "finetuned"},
                                            {attention_only, "attention-only"},
                                            {distilled, "distilled"},
                                            {progressive, "progressive"}});
}

std::string joined(const auto& list) {
  std::string out;
  for (const auto& one : list) out += text(out.empty() ? "" : ",", one);
  return out;
}

constexpr const char *known = "known speakers", *held_out = "held-out speaker";

/// A test set of the corpus.
struct TestSet {
  std::string name;
  Dataset data;
};

class Study {
 public:
  Study(const StudyOptions& options)
      : o_(options),
        out_(options.out),
        preset_(study_preset(options.preset)),
        workspace_(options.threads, options.device.chosen()),
        results_(out_ / "results.json") {
    if (o_.seeds > 0) preset_.seeds = o_.seeds;
    require_gnuplot();
    corpus_ = first_alone([&] {
      const bool begun = begin_or_go_on();
      try {
        return find_corpus({o_.data, o_.holdout_speaker, o_.threads, o_.seed}, out_ / "corpus", preset_);
      } catch (...) {
        std::error_code ignored;
        if (begun) std::filesystem::remove(out_ / "study.json", ignored);
        std::filesystem::remove(out_, ignored);  // only if nothing is in it
        throw;
      }
    });
  }

  void run() {
    const auto start = std::chrono::steady_clock::now();
    // Processes take the baselines in turn, then the variants of all seeds.
    const std::vector<Variant> all = variants();
    Index task = 0;
    const auto is_own = [&] { return task++ % processes().size() == processes().rank(); };
    for (Index i = 0; i < preset_.seeds; ++i)
      if (is_own()) run_baseline(o_.seed + i, all);
    processes().barrier();
    task = 0;
    for (Index i = 0; i < preset_.seeds; ++i) {
      std::vector<Variant> own;
      std::ranges::copy_if(all, std::back_inserter(own),
                           [&](const Variant& v) { return is_own() && !is_finished(v, o_.seed + i); });
      run_variants(o_.seed + i, own);
    }
    std::vector<std::string> names{"mha"};
    for (const Variant& v : all) names.push_back(v.name);
    results_.gather(names);
    if (processes().rank() > 0) return;
    write_report(out_, results_.rows(),
                 text("`laconic-study conversion", o_.data.empty() ? "" : " --data DIR", " --out DIR --preset ",
                      preset_.name, " --seeds ", preset_.seeds, " --seed ", o_.seed, " --encoder ", o_.encoder,
                      " --attentions ", joined(o_.attentions), " --methods ", joined(o_.methods), " --strategies ",
                      joined(o_.strategies), " --caches ", joined(o_.caches),
                      o_.holdout_speaker.empty() ? "" : text(" --holdout-speaker ", o_.holdout_speaker),
                      o_.device.chosen().gpu ? text(" --device ", o_.device.name) : "", "`"),
                 o_.threads);
    say("done in ", fixed(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / 60, 1),
        " min");
    print(Lines{read_file(out_ / "summary.txt", 1 << 20)}, "\ntable:   ", (out_ / "report.md").string(),
          "\nplots:   ", (out_ / "wer_cache.png").string(), ", ", (out_ / "conversion_error.png").string(),
          "\nresults: ", (out_ / "results.json").string(), "\nmodels:  ", (out_ / "models").string(), '\n');
    o_.write(results_.rows());
  }

 private:
  /// A folder can go on only with the study that began it, described in study.json. Whether it begins here.
  bool begin_or_go_on() const {
    nlohmann::json now{{"data", o_.data.empty() ? "" : detail::resolved(o_.data).string()},
                       {"preset", preset_.name},
                       {"model", o_.encoder},
                       {"utterances", {preset_.train_utterances, preset_.valid_utterances, preset_.test_utterances}},
                       {"encoder", to_json(preset_.encoder)},
                       {"baseline", to_json(preset_.baseline)},
                       {"finetune", to_json(preset_.finetune)},
                       {"seed", o_.seed},
                       {"holdout_speaker", o_.holdout_speaker}};
    if (const Device device = o_.device.chosen(); device.gpu) now["device"] = device.name();
    const auto path = out_ / "study.json";
    if (detail::is_there(path)) {
      require_same_run(read_json(path), now, path.string(), "folder");
      say("going on with the study in ", out_.string());
      return false;
    }
    make_folder(out_);
    write_json(path, now);
    return true;
  }

  /// Reads the corpus when something has to be computed, not before.
  void load_data(const RecognizerConfig& config, const Vocabulary& vocabulary) {
    if (train_.size() > 0) return;
    const auto load = [&](const char* name, const Vocabulary* v) {
      Dataset data = load_dataset(read_corpus(corpus_ / name), config.features, v, o_.threads);
      say_notes(data.notes);
      return data;
    };
    train_ = load("train.jsonl", &vocabulary);
    valid_ = load("valid.jsonl", &vocabulary);
    tests_.push_back({known, load("test.jsonl", nullptr)});
    if (detail::is_there(corpus_ / "holdout.jsonl")) tests_.push_back({held_out, load("holdout.jsonl", nullptr)});
    say(train_.size(), " training utterances, ", fixed(train_.seconds() / 60, 1), " min of speech");
  }

  /// Names one row of the comparison: an attention, and the method that finds it.
  struct Variant {
    std::string name, folder;
    AttentionChoice choice;
    Method method;
  };
  /// Returns each attention by each method at each cache size of the options, a fraction of MHA's.
  std::vector<Variant> variants() const {
    using enum AttentionName;
    std::vector<Variant> out;
    const Index d = preset_.encoder.d_model, head = d / study_heads;
    for (const std::string& name : o_.attentions) {
      const AttentionName attention = from_name<AttentionName>(name).value();
      const bool can_allocate = attention == mla || attention == mla_simple,
                 is_split = attention == mla_split || attention == mla_head;
      const bool has_latent = can_allocate || is_split;
      const Index widest = attention == mla_head ? head : d;
      for (const double cache : o_.caches) {
        const auto of = [&](Index all) {
          return static_cast<Index>(std::lround(2 * static_cast<double>(all) * cache / 100));
        };
        const Index rank = of(widest) / (is_split ? 2 : 1), kv_heads = of(study_heads) / 2;
        bool is_lossless = false;
        for (const std::string& method : o_.methods) {
          const Method how = Method::of(method);
          const bool is_uniform = how.allocation == RankAllocation::uniform;
          const std::string suffix = method == "svd" ? "" : ", " + method, folder = method == "svd" ? "" : "-" + method;
          const auto add = [&](const std::string& numbers, const std::string& number, const AttentionChoice& choice) {
            const std::string full = text(name, numbers, suffix);
            if (std::ranges::find(out, full, &Variant::name) == out.end())
              out.push_back({full, text(name, number, folder), choice, how});
          };
          // What holds all is the same by any method, and ranks shared between layers are multiples of 8.
          if (has_latent && rank >= 1 && !is_lossless && (is_uniform || (can_allocate && rank >= 8 && rank < widest))) {
            is_lossless = rank == widest;
            add(text(is_split && attention != mla_head ? " RK=RV=" : " R=", rank), text('-', rank),
                {attention, 0, rank});
          }
          if (!is_uniform || (how.method != ConversionMethod::svd && how.method != ConversionMethod::activation))
            continue;
          if (attention == gqa && kv_heads > 1 && kv_heads < study_heads)
            add(text(" G=", kv_heads), text('-', kv_heads), {gqa, kv_heads});
          if (attention == mqa && kv_heads == 1) add("", "", {attention});
        }
      }
      if (attention == input_latent) out.push_back({name, name, {attention}, Method::of("svd")});
      if (std::ranges::none_of(out, [&](const Variant& v) { return v.choice.attention == attention; }))
        say("note: ", name, " has none of these caches by any of these methods, and is left out");
    }
    return out;
  }
  /// Ranks fall to one between (geometrically) and to the last, half of the epochs each.
  static bool can_progress(const Variant& v, Index d) {
    return v.method.method != ConversionMethod::score_aware && v.method.allocation == RankAllocation::uniform &&
           v.choice.attention != AttentionName::mla_head && v.choice.latent_dim > 0 && v.choice.latent_dim < d;
  }
  std::vector<Strategy> strategies(const Variant& v) const {
    std::vector<Strategy> out;
    for (const std::string& name : o_.strategies) {
      const Strategy one = from_name<Strategy>(name).value();
      if (one != Strategy::progressive || can_progress(v, preset_.encoder.d_model)) out.push_back(one);
    }
    return out;
  }

  bool is_measured(const std::string& name, const std::string& stage, std::int64_t seed) const {
    return results_.has(name, stage, known, seed) &&
           (!detail::is_there(corpus_ / "holdout.jsonl") || results_.has(name, stage, held_out, seed));
  }
  bool is_finished(const Variant& v, std::int64_t seed) const {
    return is_measured(v.name, "converted", seed) && std::ranges::all_of(strategies(v), [&](Strategy s) {
             return is_measured(v.name, std::string(to_name(s)), seed);
           });
  }

  std::filesystem::path models_of(std::int64_t seed) const { return out_ / "models" / text("seed", seed); }
  /// Returns the baseline of a seed, trained and measured. The variants are compared with its transcripts.
  const Recognizer& baseline_of(std::int64_t seed) {
    if (baseline_ && baseline_seed_ == seed) return *baseline_;
    Recognizer baseline =
        new_recognizer(corpus_, from_name<EncoderName>(o_.encoder).value(), preset_.encoder, seed, o_.threads);
    load_data(baseline.config(), baseline.vocabulary());
    full_bytes_ = baseline.cache_bytes_per_second();
    train(baseline, models_of(seed) / "mha", preset_.baseline, seed, "mha");
    measure(baseline, seed, {"mha", "", {}, {"", {}}}, "baseline", {}, seconds_);
    baseline_seed_ = seed;
    return baseline_.emplace(std::move(baseline));
  }
  /// Trains the baseline and the control: what the same fine-tuning does where nothing was converted.
  void run_baseline(std::int64_t seed, const std::vector<Variant>& all) {
    const bool measured = is_measured("mha", "baseline", seed) && is_measured("mha", "finetuned", seed);
    if (measured && std::ranges::all_of(all, [&](const Variant& v) { return is_finished(v, seed); }))
      return say_in_all("seed ", seed, " is finished");
    Recognizer control = baseline_of(seed);  // also for the processes that convert it
    if (measured) return;
    train(control, models_of(seed) / "mha-tuned", preset_.finetune, seed, "mha, fine-tuned");
    measure(control, seed, {"mha", "", {}, {"", {}}}, "finetuned", {}, seconds_);
  }
  void run_variants(std::int64_t seed, const std::vector<Variant>& variants) {
    if (variants.empty()) return;
    const Recognizer& baseline = baseline_of(seed);
    for (const Variant& v : variants) run_variant(baseline, models_of(seed), seed, v);
  }

  /// Converts, measures, trains, measures.
  void run_variant(const Recognizer& baseline, const std::filesystem::path& folder, std::int64_t seed,
                   const Variant& v) {
    const SpeechBatch speech = some_of(valid_, 32), calibration = some_of(train_, 128);
    const ConversionChoice how{
        v.method.method, &calibration, v.method.allocation, Seed(static_cast<std::uint64_t>(seed)), false, o_.threads};
    const auto [model, report] = baseline.convert(v.choice, how, &speech);
    measure(model, seed, v, "converted", report, 0);
    for (const Strategy strategy : strategies(v)) {
      const std::string stage(to_name(strategy));
      Recognizer tuned = model;
      TrainConfig config = preset_.finetune;
      RecognizerTraining with;
      if (strategy == Strategy::attention_only) config.train_only = {"attn."};
      if (strategy == Strategy::distilled) {
        config.distillation.weight = 0.5;
        with.teacher = &baseline;
      }
      if (strategy == Strategy::progressive) {
        const Index d = preset_.encoder.d_model, last = v.choice.latent_dim;
        AttentionChoice all = v.choice;
        all.latent_dim = d;
        tuned = baseline.convert(all, how).recognizer;
        const Index middle = static_cast<Index>(std::lround(std::sqrt(static_cast<double>(d * last)) / 8)) * 8;
        if (middle > last && middle < d) with.ranks.push_back(middle);
        with.ranks.push_back(last);
        if (v.method.method == ConversionMethod::activation) with.calibration = &calibration;
        config.epochs = std::max<Index>(1, config.epochs / static_cast<Index>(with.ranks.size()));
      }
      train(tuned, folder / (strategy == Strategy::finetuned ? v.folder : text(v.folder, '-', stage)), config, seed,
            text(v.name, ' ', stage), with);
      measure(tuned, seed, v, stage, report, seconds_);
    }
  }
  static SpeechBatch some_of(const Dataset& data, Index count) {
    std::vector<Index> some(static_cast<std::size_t>(std::min(data.size(), count)));
    std::iota(some.begin(), some.end(), Index{0});
    return make_batch(data, some, nullptr, Seed());
  }

  /// Trains, or takes the model that an earlier run of this study finished.
  void train(Recognizer& model, const std::filesystem::path& folder, TrainConfig config, std::int64_t seed,
             const std::string& name, RecognizerTraining with = {}) {
    config.seed = seed;
    if (detail::is_there(folder / "finished.json")) {
      model = Recognizer::load(folder / "model");
      seconds_ = read_json(folder / "finished.json").at("seconds").get<double>();
      return;
    }
    TrainingLine line(text("seed ", seed, "  ", name));
    with.progress = std::ref(line);
    with.folder = folder;
    const TrainState state = model.train(train_, valid_, config, with, workspace_);
    model.save(folder / "model");
    seconds_ = state.seconds;
    write_json(folder / "finished.json",
               {{"seconds", state.seconds}, {"best_epoch", state.best_epoch}, {"valid_wer", 100 * state.best_wer}});
    ::unlink((folder / "checkpoint.safetensors").c_str());
    for (const Index rank : with.ranks) ::unlink((folder / text("rank-", rank) / "checkpoint.safetensors").c_str());
  }

  /// A row for each test set.
  void measure(const Recognizer& given, std::int64_t seed, const Variant& v, const std::string& stage,
               const ConversionReport& report, double train_seconds) {
    const Recognizer model = ready(given, o_.device.chosen(), o_.threads);
    const std::string& name = v.name;
    const bool has_groups = v.choice.attention == AttentionName::gqa || v.choice.attention == AttentionName::mqa;
    const EncoderConfig& encoder = model.config().encoder;
    for (const TestSet& test : tests_) {
      const Evaluation evaluation = model.evaluate(test.data, workspace_);
      if (stage == "baseline") baseline_hypotheses_[test.name] = evaluation.hypotheses;
      Index changed = 0;
      for (std::size_t i = 0; i < evaluation.hypotheses.size(); ++i)
        changed += evaluation.hypotheses[i] != baseline_hypotheses_[test.name][i];
      const WordErrors errors = evaluation.total_errors();
      const Interval interval = evaluation.interval();
      std::vector<Index> by_utterance, words_by_utterance;
      for (const WordErrors& e : evaluation.errors) {
        by_utterance.push_back(e.errors());
        words_by_utterance.push_back(e.reference_words);
      }
      const bool is_new = !results_.has(name, stage, test.name, seed);
      results_.put({{"name", name},
                    {"attention", to_name(model.config().encoder.attention)},
                    {"method", has_groups && v.method.name == "svd" ? "mean" : v.method.name},
                    {"stage", stage},
                    {"rank", encoder.kv_lora_rank},
                    {"ranks", encoder.kv_lora_ranks},
                    {"kv_heads", encoder.num_kv_heads},
                    {"cache_fraction", model.cache_bytes_per_second() / full_bytes_},
                    {"cache_bytes_per_second", model.cache_bytes_per_second()},
                    {"parameters", model.count_parameters()},
                    {"wer", 100 * errors.rate()},
                    {"wer_low", 100 * interval.low},
                    {"wer_high", 100 * interval.high},
                    {"substitutions", errors.substitutions},
                    {"deletions", errors.deletions},
                    {"insertions", errors.insertions},
                    {"reference_words", errors.reference_words},
                    {"transcripts_changed", changed},
                    {"utterances", test.data.size()},
                    {"errors_by_utterance", by_utterance},
                    {"words_by_utterance", words_by_utterance},
                    {"predicted_error", report.predicted_error},
                    {"key_value_error", report.key_value_error},
                    {"output_error", report.output_error},
                    {"logits_error", report.logits_error},
                    {"train_seconds", train_seconds},
                    {"test_set", test.name},
                    {"seed", seed}});
      if (is_new)
        say_in_all("seed ", seed, "  ", name, "  ", stage, "  ", test.name, ": WER ", fixed(100 * errors.rate(), 2),
                   "% [", fixed(100 * interval.low, 2), ", ", fixed(100 * interval.high, 2), "]",
                   stage == "baseline" ? "" : text(", ", changed, " of ", test.data.size(), " transcripts changed"));
    }
  }

  StudyOptions o_;
  std::filesystem::path out_, corpus_;
  Preset preset_;
  Workspace workspace_;
  StudyResults results_;
  Dataset train_, valid_;
  std::vector<TestSet> tests_;
  std::map<std::string, std::vector<std::string>> baseline_hypotheses_;
  std::optional<Recognizer> baseline_;
  std::int64_t baseline_seed_ = 0;
  double full_bytes_ = 0, seconds_ = 0;
};

}  // namespace

void add_conversion_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "conversion", "word error rate against cache size: MHA, converted to MLA and GQA, before and after fine-tuning");
  const auto o = std::make_shared<StudyOptions>();
  o->add_to(*command);
  command
      ->add_option(
          "--data", o->data,
          "corpus made by `laconic data`, or a folder of {digit}_{speaker}_{index}.wav; default: espeak-ng speaks one")
      ->type_name("DIR");
  command->add_option("--out", o->out, "folder for results; an unfinished study goes on, a finished one may be widened")
      ->required()
      ->type_name("DIR");
  command->add_option("--preset", o->preset, "quick: one seed, a small model; full: three seeds")
      ->capture_default_str()
      ->check(CLI::IsMember({"quick", "full"}));
  command->add_option("--encoder", o->encoder, "kind of encoder")
      ->capture_default_str()
      ->check(CLI::IsMember({"conformer", "branchformer", "e-branchformer"}));
  command->add_option("--attentions", o->attentions, "what MHA is converted to, with commas between")
      ->capture_default_str()
      ->delimiter(',')
      ->check(CLI::IsMember({"mla", "mla-simple", "mla-split", "mla-head", "input-latent", "gqa", "mqa"}));
  command->add_option("--methods", o->methods, "how latents are found, with commas between")
      ->capture_default_str()
      ->delimiter(',')
      ->check(CLI::IsMember(Method::names()));
  command
      ->add_option("--strategies", o->strategies,
                   "what happens to converted models, with commas between; all with the same number of epochs")
      ->capture_default_str()
      ->delimiter(',')
      ->check(CLI::IsMember(names_of<Strategy>()));
  command->add_option("--caches", o->caches, "cache sizes, percent of MHA's, with commas between")
      ->capture_default_str()
      ->delimiter(',')
      ->check(between(0.1, 50.0));
  command->add_option("--seeds", o->seeds, "number of seeds; default: as the preset says")->check(whole_number(1));
  command->add_option("--holdout-speaker", o->holdout_speaker, "speaker of the recordings who is used only for testing")
      ->type_name("NAME");
  o->device.add_to(*command);
  share_among_processes(command);
  command->footer(
      "Example:\n  laconic-study conversion --out study --preset quick\n"
      "  mpirun --bind-to none -n 4 laconic-study conversion --out study --preset full\n"
      "  laconic-study conversion --data free-spoken-digit-dataset/recordings --holdout-speaker jackson --out study "
      "--preset "
      "full\n"
      "  laconic-study conversion --out study --methods svd,activation+water-filling --strategies "
      "finetuned,distilled,progressive");
  command->callback([=] { Study(*o).run(); });
}
