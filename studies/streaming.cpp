// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// laconic-study streaming: trains a streaming encoder with every attention and reports what its streams cost and get
// wrong.
#include "commands.hpp"
#include "common/cli.hpp"
#include "common/device_option.hpp"
#include "common/table.hpp"
#include "common/training_line.hpp"
#include "setup.hpp"

#include <laconic/convert/deviation.hpp>
#include <laconic/model/published.hpp>
#include <laconic/recognition/dataset.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>

namespace {

using namespace laconic;

struct StreamStudyOptions : CommonOptions {
  std::string data, out, preset = "full", holdout_speaker, encoder = "conformer", convolution = "chunk";
  Index seeds = 1, chunk = 8, left_context = 32, streams = 16;
  double block_ms = 100;
  DeviceOption device;
};

class StreamStudy {
 public:
  explicit StreamStudy(const StreamStudyOptions& o)
      : o_(o), out_(o.out), preset_(study_preset(o.preset)), workspace_(o.threads, o.device.chosen()) {
    preset_.encoder.convolution = from_name<ConvolutionContext>(o.convolution).value();
    preset_.encoder.chunk = o.chunk;
    preset_.encoder.left_context = o.left_context;
    make_folder(out_);
    begin_or_go_on();
    corpus_ = find_corpus({o.data, o.holdout_speaker, o.threads, o.seed}, out_ / "corpus", preset_);
  }

  void run() {
    for (Index i = 0; i < o_.seeds; ++i)
      for (const EncoderConfig& config : quarter_caches(preset_.encoder)) run_variant(o_.seed + i, config);
    write_report();
    print("table:   ", (out_ / "streaming.md").string(), "\nresults: ", (out_ / "streaming.json").string(),
          "\nmodels:  ", (out_ / "models").string(), '\n');
    o_.write(rows_);
  }

 private:
  void begin_or_go_on() {
    nlohmann::json now{{"data", o_.data.empty() ? "" : detail::resolved(o_.data).string()},
                       {"encoder", to_json(preset_.encoder)},
                       {"model", o_.encoder},
                       {"training", to_json(preset_.baseline)},
                       {"utterances", preset_.train_utterances},
                       {"seed", o_.seed},
                       {"holdout_speaker", o_.holdout_speaker}};
    if (const Device device = o_.device.chosen(); device.gpu) now["device"] = device.name();
    const auto path = out_ / "stream-study.json";
    if (detail::is_there(path)) {
      require(read_json(path) == now, path.string(),
              ": this folder belongs to a study of other data or settings; choose another folder, or delete it");
      if (detail::is_there(out_ / "streaming.json")) rows_ = read_json(out_ / "streaming.json");
    } else {
      write_json(path, now);
    }
  }

  void run_variant(std::int64_t seed, const EncoderConfig& config) {
    const std::string name(to_name(config.attention));
    for (const auto& row : rows_)
      if (row.at("name") == name && row.at("seed") == seed) return;
    Recognizer model = new_recognizer(corpus_, from_name<EncoderName>(o_.encoder).value(), config, seed, o_.threads);
    if (train_.size() == 0) {
      const auto load = [&](const char* file) {
        return load_dataset(read_corpus(corpus_ / file), model.config().features, &model.vocabulary(), o_.threads);
      };
      train_ = load("train.jsonl");
      valid_ = load("valid.jsonl");
      test_ = load("test.jsonl");
      say(train_.size(), " training utterances, ", fixed(train_.seconds() / 60, 1), " min of speech");
    }
    const double seconds = train(model, out_ / "models" / text("seed", seed) / name, seed, name);
    rows_.push_back(measure(ready(model, o_.device.chosen(), o_.threads), name, seed, seconds));
    write_json(out_ / "streaming.json", rows_);
  }

  /// Trains, or takes the model that an earlier run of this study finished. Gives the seconds of training.
  double train(Recognizer& model, const std::filesystem::path& folder, std::int64_t seed, const std::string& name) {
    if (detail::is_there(folder / "finished.json")) {
      model = Recognizer::load(folder / "model");
      return read_json(folder / "finished.json").at("seconds").get<double>();
    }
    TrainConfig training = preset_.baseline;
    training.seed = seed;
    TrainingLine line(text("seed ", seed, "  ", name));
    const TrainState state =
        model.train(train_, valid_, training, {.progress = std::ref(line), .folder = folder}, workspace_);
    model.save(folder / "model");
    write_json(folder / "finished.json",
               {{"seconds", state.seconds}, {"best_epoch", state.best_epoch}, {"valid_wer", 100 * state.best_wer}});
    ::unlink((folder / "checkpoint.safetensors").c_str());
    return state.seconds;
  }

  nlohmann::json measure(const Recognizer& model, const std::string& name, std::int64_t seed, double train_seconds) {
    Index longest = 0;
    for (const Example& e : test_.examples) longest = std::max(longest, e.features.rows());
    const auto config = [&](Index capacity, Storage storage) {
      return StreamConfig{.capacity = capacity,
                          .chunk = {},
                          .left_context = {},
                          .max_frames = longest / model.config().encoder.subsampling + 1,
                          .storage = storage,
                          .threads = o_.threads};
    };
    const Index block = std::lround(o_.block_ms / model.config().features.fbank.frame_shift_ms);
    const Evaluation masked = model.evaluate(test_, workspace_);
    const auto changed = [&](const Evaluation& e) {
      Index count = 0;
      for (std::size_t i = 0; i < masked.hypotheses.size(); ++i) count += e.hypotheses[i] != masked.hypotheses[i];
      return count;
    };
    const StreamedEvaluation many = model.evaluate_streamed(test_, config(o_.streams, Storage::full), block);
    const StreamedEvaluation single = model.evaluate_streamed(test_, config(1, Storage::full), block);
    const Interval interval = many.interval();
    nlohmann::json row{{"name", name},
                       {"seed", seed},
                       {"parameters", model.count_parameters()},
                       {"wer", 100 * many.wer()},
                       {"wer_low", 100 * interval.low},
                       {"wer_high", 100 * interval.high},
                       {"masked_wer", 100 * masked.wer()},
                       {"transcripts_changed", changed(many)},
                       {"utterances", test_.size()},
                       {"attention_bytes", many.attention_bytes},
                       {"convolution_bytes", many.convolution_bytes},
                       {"feature_bytes", many.feature_bytes},
                       {"push_seconds_median", single.push_quantile(0.5)},
                       {"push_seconds_95", single.push_quantile(0.95)},
                       {"real_time_factor", single.compute_seconds / single.audio_seconds},
                       {"real_time_factor_many", many.compute_seconds / many.audio_seconds},
                       {"train_seconds", train_seconds}};
    for (const Storage storage : {Storage::bf16, Storage::int8}) {
      const std::string prefix(to_name(storage));
      const StreamedEvaluation e = model.evaluate_streamed(test_, config(o_.streams, storage), block);
      row[prefix + "_bytes"] = e.attention_bytes;
      row[prefix + "_wer"] = 100 * e.wer();
      row[prefix + "_changed"] = changed(e);
      row[prefix + "_logits_error"] = logits_error(model, config(1, storage));
    }
    say(name, ": WER ", fixed(100 * many.wer(), 2), "%, ", many.attention_bytes, " bytes a stream, ", changed(many),
        " transcripts changed by streaming");
    return row;
  }

  /// Returns how far the logits of the first test utterances move when the cache is stored so: relative (Frobenius).
  double logits_error(const Recognizer& recognizer, const StreamConfig& stored) {
    StreamConfig exact = stored;
    exact.storage = Storage::full;
    FeatureStreams a = recognizer.feature_streams(stored), b = recognizer.feature_streams(exact);
    Deviation sum;
    for (Index i = 0; i < std::min<Index>(50, test_.size()); ++i) {
      const auto& features = test_.examples[static_cast<std::size_t>(i)].features;
      const std::array<Index, 1> in_a{a.open()}, in_b{b.open()};
      const Sequences one{features.rows()};
      sum += deviation(a.push(in_a, features, one).rows, b.push(in_b, features, one).rows);
      sum += deviation(a.finish(in_a).rows, b.finish(in_b).rows);
    }
    return sum.relative();
  }

  void write_report() const {
    Table costs = Table::of_titles({"attention", "seed", "parameters", "WER %", "95% interval", "changed",
                                    "keys and values, bytes", "convolutions, bytes", "push, ms", "95%",
                                    "real-time factor", text("of ", o_.streams, " streams")});
    Table stored = Table::of_titles({"attention", "seed", "bf16, bytes", "WER %", "changed", "logits error",
                                     "int8, bytes", "WER %", "changed", "logits error"});
    for (const auto& r : rows_) {
      const auto name = r.at("name").get<std::string>(), seed = text(r.at("seed").get<std::int64_t>());
      const auto count = [&](const std::string& key) { return text(static_cast<Index>(r.at(key).get<double>())); };
      const auto number = [&](const std::string& key, double unit, int digits) {
        return fixed(unit * r.at(key).get<double>(), digits);
      };
      costs.add({name, seed, count("parameters"), number("wer", 1, 2),
                 text(number("wer_low", 1, 2), " to ", number("wer_high", 1, 2)),
                 text(count("transcripts_changed"), " of ", count("utterances")), count("attention_bytes"),
                 count("convolution_bytes"), number("push_seconds_median", 1e3, 2), number("push_seconds_95", 1e3, 2),
                 number("real_time_factor", 1, 4), number("real_time_factor_many", 1, 4)});
      std::vector<std::string> cells{name, seed};
      for (const std::string storage : {"bf16", "int8"}) {
        char error[32];
        std::snprintf(error, sizeof error, "%.1e", r.at(storage + "_logits_error").get<double>());
        cells.insert(cells.end(),
                     {count(storage + "_bytes"), number(storage + "_wer", 1, 2), count(storage + "_changed"), error});
      }
      stored.add(cells);
    }
    const std::string out = text(
        "`laconic-study streaming --encoder ", o_.encoder, o_.data.empty() ? "" : " --data DIR", " --out DIR --preset ",
        o_.preset, " --chunk ", o_.chunk, " --left-context ", o_.left_context, " --seeds ", o_.seeds, " --seed ",
        o_.seed, " --threads ", o_.threads, o_.device.chosen().gpu ? text(" --device ", o_.device.name) : "", "`\n\n",
        costs.markdown(), '\n', stored.markdown());
    write_file(out_ / "streaming.md", out);
    print(Lines{out}, '\n');
  }

  StreamStudyOptions o_;
  std::filesystem::path out_, corpus_;
  Preset preset_;
  Workspace workspace_;
  nlohmann::json rows_ = nlohmann::json::array();
  Dataset train_, valid_, test_;
};

}  // namespace

void add_streaming_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "streaming", "a streaming encoder with every attention: word errors, cache, latency, real-time factor");
  const auto o = std::make_shared<StreamStudyOptions>();
  o->add_to(*command);
  command
      ->add_option(
          "--data", o->data,
          "corpus made by `laconic data`, or a folder of {digit}_{speaker}_{index}.wav; default: espeak-ng speaks one")
      ->type_name("DIR");
  command->add_option("--out", o->out, "folder for results; an unfinished study goes on")->required()->type_name("DIR");
  command->add_option("--preset", o->preset, "quick: a small model; full: a larger one")
      ->capture_default_str()
      ->check(CLI::IsMember({"quick", "full"}));
  command->add_option("--encoder", o->encoder, "kind of encoder")
      ->capture_default_str()
      ->check(CLI::IsMember({"conformer", "branchformer", "e-branchformer"}));
  command->add_option("--convolution", o->convolution, "context of the convolutions")
      ->capture_default_str()
      ->check(CLI::IsMember({"causal", "chunk"}));
  command->add_option("--chunk", o->chunk, "encoder frames of 40 ms that become final together")
      ->capture_default_str()
      ->check(whole_number(1));
  command->add_option("--left-context", o->left_context, "encoder frames kept")
      ->capture_default_str()
      ->check(whole_number(0));
  command->add_option("--streams", o->streams, "number of streams at once, measured in addition to a single stream")
      ->capture_default_str()
      ->check(whole_number(1));
  command->add_option("--block-ms", o->block_ms, "milliseconds of speech that come with each push")
      ->capture_default_str()
      ->check(between(10.0, 1e4));
  command->add_option("--seeds", o->seeds, "number of seeds")->capture_default_str()->check(whole_number(1));
  command->add_option("--holdout-speaker", o->holdout_speaker, "speaker of the recordings who is left out")
      ->type_name("NAME");
  o->device.add_to(*command);
  command->footer("Example:\n  laconic-study streaming --data free-spoken-digit-dataset/recordings --out live");
  command->callback([=] { StreamStudy(*o).run(); });
}
