// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// laconic study: trains an MHA baseline, converts it to smaller caches, fine-tunes, and reports WER against cache size.
#include "gnuplot.hpp"
#include "progress.hpp"
#include "study_report.hpp"
#include "study_setup.hpp"

#include <algorithm>
#include <map>

namespace {

using namespace laconic;

struct StudyOptions : CommonOptions {
  std::string data, out, preset = "quick", holdout_speaker, encoder = "conformer";
  std::vector<std::string> attentions{"mla-simple", "gqa", "mqa"};
  Index seeds = 0;
};

constexpr const char *known = "known speakers", *held_out = "held-out speaker";

/// A test set of the corpus.
struct TestSet {
  std::string name;
  Dataset data;
};

class Study {
 public:
  Study(const StudyOptions& options)
      : o_(options), out_(options.out), preset_(study_preset(options.preset)), cpu_(options.threads), results_(out_ / "results.json") {
    if (o_.seeds > 0) preset_.seeds = o_.seeds;
    require_gnuplot();
    const bool begun = begin_or_go_on();
    try {
      corpus_ = find_corpus({o_.data, o_.holdout_speaker, o_.threads, o_.seed}, out_ / "corpus", preset_);
    } catch (...) {
      std::error_code ignored;
      if (begun) std::filesystem::remove(out_ / "study.json", ignored);
      std::filesystem::remove(out_, ignored);  // only if nothing is in it
      throw;
    }
  }

  void run() {
    const auto start = std::chrono::steady_clock::now();
    for (Index i = 0; i < preset_.seeds; ++i) run_seed(o_.seed + i);
    write_report(out_, results_.rows(), text("`laconic study", o_.data.empty() ? "" : " --data DIR", " --out DIR --preset ", preset_.name, " --seeds ",
                                             preset_.seeds, " --seed ", o_.seed,
                                             o_.holdout_speaker.empty() ? "" : text(" --holdout-speaker ", o_.holdout_speaker), "`"), o_.threads);
    o_.write(results_.rows());
    say("done in ", fixed(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / 60, 1), " min");
    std::printf("%s\ntable:   %s\nplots:   %s, %s\nresults: %s\nmodels:  %s\n", read_file(out_ / "summary.txt", 1 << 20).c_str(),
                (out_ / "report.md").c_str(), (out_ / "wer_cache.png").c_str(), (out_ / "conversion_error.png").c_str(),
                (out_ / "results.json").c_str(), (out_ / "models").c_str());
  }

 private:
  /// A folder can go on only with the study that began it, described in study.json. Whether it begins here.
  bool begin_or_go_on() const {
    const nlohmann::json now{{"data", o_.data.empty() ? "" : std::filesystem::weakly_canonical(o_.data).string()},
                       {"preset", preset_.name},
                       {"model", o_.encoder},
                       {"attentions", o_.attentions},
                       {"utterances", {preset_.train_utterances, preset_.valid_utterances, preset_.test_utterances}},
                       {"encoder", to_json(preset_.encoder)},
                       {"baseline", to_json(preset_.baseline)},
                       {"finetune", to_json(preset_.finetune)},
                       {"seed", o_.seed},
                       {"holdout_speaker", o_.holdout_speaker}};
    const auto path = out_ / "study.json";
    if (std::filesystem::exists(path)) {
      const auto before = read_json(path);
      require(before == now, path.string(), ": this folder belongs to a study of other data or settings; choose another folder, or delete it");
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
    if (std::filesystem::exists(corpus_ / "holdout.jsonl")) tests_.push_back({held_out, load("holdout.jsonl", nullptr)});
    say(train_.size(), " training utterances, ", fixed(train_.seconds() / 60, 1), " min of speech");
  }

  /// What is compared: name, folder, and the attention.
  struct Variant {
    std::string name, folder;
    AttentionChoice choice;
  };
  /// Each attention with caches of a half, a quarter and an eighth of MHA's, and where it can, one that loses nothing.
  std::vector<Variant> variants() const {
    using enum AttentionName;
    std::vector<Variant> out;
    const Index d = preset_.encoder.d_model, head = d / study_heads;
    for (const std::string& name : o_.attentions) {
      const AttentionName attention = from_name<AttentionName>(name).value();
      const auto latents = [&](std::initializer_list<Index> ranks, const char* what) {
        for (const Index rank : ranks) out.push_back({text(name, ' ', what, '=', rank), text(name, '-', rank), {attention, 0, rank}});
      };
      if (attention == mla || attention == mla_simple) latents({d, d / 2, d / 4, d / 8}, "R");
      if (attention == mla_split) latents({d, d / 2, d / 4, d / 8}, "RK=RV");
      if (attention == mla_head) latents({head, head / 2, head / 4, head / 8}, "R");
      if (attention == gqa)
        for (const Index kv_heads : {study_heads / 2, study_heads / 4})
          out.push_back({text("gqa G=", kv_heads), text("gqa-", kv_heads), {gqa, kv_heads}});
      if (attention == mqa || attention == input_latent) out.push_back({name, name, {attention}});
    }
    return out;
  }

  /// Every row of the seed is there.
  bool is_finished(std::int64_t seed) const {
    std::vector<std::string> sets{known};
    if (std::filesystem::exists(corpus_ / "holdout.jsonl")) sets.emplace_back(held_out);
    for (const std::string& set : sets) {
      if (!results_.has("mha", "baseline", set, seed) || !results_.has("mha", "finetuned", set, seed)) return false;
      for (const Variant& v : variants())
        if (!results_.has(v.name, "converted", set, seed) || !results_.has(v.name, "finetuned", set, seed)) return false;
    }
    return true;
  }

  void run_seed(std::int64_t seed) {
    if (is_finished(seed)) return say("seed ", seed, " is finished");
    const auto folder = out_ / "models" / text("seed", seed);
    Recognizer baseline = new_recognizer(corpus_, from_name<EncoderName>(o_.encoder).value(), preset_.encoder, seed, o_.threads);
    load_data(baseline.config, baseline.vocabulary);
    full_bytes_ = baseline.cache_bytes_per_second();
    train(baseline, folder / "mha", preset_.baseline, seed, "mha");
    measure(baseline, seed, "mha", "baseline", nlohmann::json::object(), seconds_);
    // The control: what the same fine-tuning does where nothing was converted.
    Recognizer control = baseline;
    train(control, folder / "mha-tuned", preset_.finetune, seed, "mha, fine-tuned");
    measure(control, seed, "mha", "finetuned", nlohmann::json::object(), seconds_);

    for (const Variant& v : variants()) run_variant(baseline, folder, seed, v);
  }

  /// Converts, measures, fine-tunes, measures.
  void run_variant(const Recognizer& baseline, const std::filesystem::path& folder, std::int64_t seed, const Variant& v) {
    nlohmann::json report;
    std::vector<Index> some(static_cast<std::size_t>(std::min<Index>(valid_.size(), 32)));
    std::iota(some.begin(), some.end(), Index{0});
    const SpeechBatch speech = make_batch(valid_, some, nullptr, Seed());
    Recognizer model = baseline.convert(v.choice, &speech, report);
    measure(model, seed, v.name, "converted", report, 0);
    train(model, folder / v.folder, preset_.finetune, seed, v.name);
    measure(model, seed, v.name, "finetuned", report, seconds_);
  }

  /// Trains, or takes the model that an earlier run of this study finished.
  void train(Recognizer& model, const std::filesystem::path& folder, TrainConfig config, std::int64_t seed, const std::string& name) {
    config.seed = seed;
    if (std::filesystem::exists(folder / "finished.json")) {
      model = Recognizer::load(folder / "model");
      seconds_ = read_json(folder / "finished.json").at("seconds").get<double>();
      return;
    }
    ProgressLine line(text("seed ", seed, "  ", name));
    const TrainState state = model.train(cpu_, train_, valid_, config, {std::ref(line), [] {}, folder, 0});
    model.save(folder / "model");
    seconds_ = state.seconds;
    write_json(folder / "finished.json", {{"seconds", state.seconds}, {"best_epoch", state.best_epoch}, {"valid_wer", 100 * state.best_wer}});
    std::filesystem::remove(folder / "checkpoint.safetensors");
  }

  /// A row for each test set.
  void measure(const Recognizer& model, std::int64_t seed, const std::string& name, const std::string& stage, const nlohmann::json& report,
               double train_seconds) {
    const EncoderConfig& encoder = model.config.encoder;
    for (const TestSet& test : tests_) {
      const Evaluation evaluation = model.evaluate(cpu_, test.data);
      if (stage == "baseline") baseline_hypotheses_[test.name] = evaluation.hypotheses;
      Index changed = 0;
      for (std::size_t i = 0; i < evaluation.hypotheses.size(); ++i) changed += evaluation.hypotheses[i] != baseline_hypotheses_[test.name][i];
      const WordErrors errors = evaluation.total_errors();
      const Interval interval = evaluation.interval();
      std::vector<Index> by_utterance, words_by_utterance;
      for (const WordErrors& e : evaluation.errors) {
        by_utterance.push_back(e.errors());
        words_by_utterance.push_back(e.reference_words);
      }
      results_.put({{"name", name},
                    {"attention", to_name(model.config.encoder.attention)},
                    {"stage", stage},
                    {"rank", encoder.kv_lora_rank},
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
                    {"predicted_error", report.value("predicted_error", 0.0)},
                    {"key_value_error", report.value("key_value_error", 0.0)},
                    {"output_error", report.value("output_error", 0.0)},
                    {"logits_error", report.value("logits_error", 0.0)},
                    {"train_seconds", train_seconds},
                    {"test_set", test.name},
                    {"seed", seed}});
      say("seed ", seed, "  ", name, "  ", stage, "  ", test.name, ": WER ", fixed(100 * errors.rate(), 2), "% [", fixed(100 * interval.low, 2), ", ",
          fixed(100 * interval.high, 2), "]", stage == "baseline" ? "" : text(", ", changed, " of ", test.data.size(), " transcripts changed"));
    }
  }

  StudyOptions o_;
  std::filesystem::path out_, corpus_;
  Preset preset_;
  Cpu<float> cpu_;
  StudyResults results_;
  Dataset train_, valid_;
  std::vector<TestSet> tests_;
  std::map<std::string, std::vector<std::string>> baseline_hypotheses_;
  double full_bytes_ = 0, seconds_ = 0;
};

}  // namespace

void add_study_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("study", "word error rate against cache size: MHA, converted to MLA and GQA, before and after fine-tuning");
  const auto o = std::make_shared<StudyOptions>();
  o->add_to(*command);
  command->add_option("--data", o->data, "corpus made by `laconic data`, or a folder of {digit}_{speaker}_{index}.wav; default: espeak-ng speaks one")
      ->type_name("DIR");
  command->add_option("--out", o->out, "folder for results; an unfinished study goes on")->required()->type_name("DIR");
  command->add_option("--preset", o->preset, "quick: one seed, a small model; full: three seeds")->capture_default_str()->check(CLI::IsMember({"quick", "full"}));
  command->add_option("--encoder", o->encoder, "encoder")->capture_default_str()->check(CLI::IsMember({"conformer", "branchformer", "e-branchformer"}));
  command->add_option("--attentions", o->attentions, "what MHA is converted to, with commas between")
      ->capture_default_str()
      ->delimiter(',')
      ->check(CLI::IsMember({"mla", "mla-simple", "mla-split", "mla-head", "input-latent", "gqa", "mqa"}));
  command->add_option("--seeds", o->seeds, "number of seeds; default: as the preset says")->check(CLI::PositiveNumber);
  command->add_option("--holdout-speaker", o->holdout_speaker, "speaker of the recordings who is only tested on")->type_name("NAME");
  command->footer("Example:\n  laconic study --out study --preset quick\n"
                  "  laconic study --data free-spoken-digit-dataset/recordings --holdout-speaker jackson --out study --preset full");
  command->callback([=] { Study(*o).run(); });
}
