// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// The program `laconic-joint-study`: trains a Conformer with CTC alone and together with attention decoders of several
// kinds, and reports word error rates and what the decoders cache (Watanabe et al. 2017).
#include "common/cli.hpp"
#include "common/steps_line.hpp"
#include "common/table.hpp"
#include "setup.hpp"

#include <laconic/decode/beam_search.hpp>
#include <laconic/decode/ctc_prefix.hpp>
#include <laconic/decode/generate.hpp>
#include <laconic/decode/greedy_ctc.hpp>
#include <laconic/decode/source_decoder.hpp>
#include <laconic/model/conformer.hpp>
#include <laconic/model/encoder_decoder.hpp>
#include <laconic/recognition/dataset.hpp>
#include <laconic/speech/wer.hpp>
#include <laconic/train/encoder_decoder.hpp>

#include <array>
#include <functional>
#include <map>

namespace {

using namespace laconic;

constexpr int boundary = 0;  // the blank of CTC, and what begins and ends a text of the decoder

using Full = Mha<dyn, NoPosition>;
using Latent = MlaDecoupled<dyn, dyn, dyn>;
template <class Self, class Cross>
using Model = EncoderDecoder<Conformer<Mha<dyn>>, AttentionDecoder<Self, Cross>>;

struct JointStudyOptions : CommonOptions {
  std::string data, out, preset = "quick", holdout_speaker;
  Index seeds = 1, beams = 8, decoder_layers = 2, epochs = 24;
  double ctc_weight = 0.3;
};

class JointStudy {
 public:
  explicit JointStudy(const JointStudyOptions& o)
      : o_(o), out_(o.out), preset_(study_preset(o.preset)), cpu_(o.threads) {
    make_folder(out_);
    corpus_ = find_corpus({o.data, o.holdout_speaker, o.threads, o.seed}, out_ / "corpus", preset_);
    preset_.encoder.attention = AttentionName::by_type;
  }

  void run() {
    for (Index i = 0; i < o_.seeds; ++i) {
      const std::int64_t seed = o_.seed + i;
      load(seed);
      const LanguageModelConfig text{.vocab_size = vocabulary_->size(),
                                     .max_positions = 256,
                                     .d_model = preset_.encoder.d_model,
                                     .num_layers = o_.decoder_layers,
                                     .num_heads = 4,
                                     .hidden_act = Activation::gelu,
                                     .dropout = preset_.encoder.dropout};
      LanguageModelConfig latent = text;
      latent.kv_lora_rank = text.d_model / 4;
      latent.qk_rope_head_dim = text.d_model / 8 / 2 * 2;
      run_model<Model<Full, Full>>("ctc alone", seed, 1, {text, {.num_heads = 4}});
      run_model<Model<Full, Full>>("mha", seed, o_.ctc_weight, {text, {.num_heads = 4}});
      run_model<Model<Latent, Latent>>(
          "mla-decoupled", seed, o_.ctc_weight,
          {latent, {.num_heads = 4, .kv_lora_rank = latent.kv_lora_rank, .qk_rope_head_dim = latent.qk_rope_head_dim}});
    }
    Table table = Table::of_titles({"decoder", "seed", "decoding", "WER %", "95% interval", "cache bytes a token",
                                    "memory bytes a second of speech"});
    for (const auto& row : rows_)
      table.add({row.at("model").get<std::string>(), std::to_string(row.at("seed").get<std::int64_t>()),
                 row.at("decoding").get<std::string>(), fixed(100 * row.at("wer").get<double>(), 2),
                 text(fixed(100 * row.at("wer_low").get<double>(), 2), " to ",
                      fixed(100 * row.at("wer_high").get<double>(), 2)),
                 std::to_string(row.at("cache_bytes_per_token").get<Index>()),
                 std::to_string(row.at("memory_bytes_per_second").get<Index>())});
    write_file(out_ / "joint.md", table.markdown());
    print(Lines{table.markdown()}, "\ntable:   ", (out_ / "joint.md").string(),
          "\nresults: ", (out_ / "joint.json").string(), '\n');
    o_.write(rows_);
  }

 private:
  /// Loads the corpus once. The seed does not matter for it.
  void load(std::int64_t seed) {
    if (train_.size() > 0) return;
    const Recognizer model = new_recognizer(corpus_, EncoderName::conformer, with_mha(), seed, o_.threads);
    vocabulary_ = std::make_unique<Vocabulary>(model.vocabulary());
    preset_.encoder.vocab_size = vocabulary_->size();
    const auto read = [&](const char* file) {
      return load_dataset(read_corpus(corpus_ / file), model.config().features, vocabulary_.get(), o_.threads);
    };
    train_ = read("train.jsonl");
    valid_ = read("valid.jsonl");
    test_ = read("test.jsonl");
    say(train_.size(), " training utterances, ", fixed(train_.seconds() / 60, 1), " min of speech; ", test_.size(),
        " test utterances");
  }
  EncoderConfig with_mha() const {
    EncoderConfig out = preset_.encoder;
    out.attention = AttentionName::mha;
    return out;
  }

  template <class M>
  void run_model(const std::string& name, std::int64_t seed, double ctc_weight,
                 const typename M::Decoder::Config& decoder) {
    M model({preset_.encoder, decoder}, Seed(static_cast<std::uint64_t>(seed)));
    EncoderDecoderTraining training{.loss = {.boundary = boundary, .ctc_weight = ctc_weight, .label_smoothing = 0.1},
                                    .seed = Seed(static_cast<std::uint64_t>(seed))};
    std::vector<std::vector<Index>> plan;
    for (Index epoch = 0; epoch < o_.epochs; ++epoch)
      for (auto& batch : length_buckets(train_, preset_.baseline.batch_frames, training.seed / "epoch" / epoch))
        plan.push_back(std::move(batch));
    training.steps = static_cast<std::int64_t>(plan.size());
    training.batch = train_.size() * o_.epochs / training.steps;
    training.valid_steps = std::max<std::int64_t>(1, training.steps / o_.epochs);
    training.learning_rate = preset_.baseline.learning_rate;
    const auto next = [&](std::int64_t step) {
      const std::vector<Index>& indices = plan[static_cast<std::size_t>(step - 1)];
      SpeechBatch batch = make_batch(train_, indices, &preset_.baseline.spec_augment, training.seed / "augment" / step);
      EncoderDecoderBatch<float> out{std::move(batch.features), batch.sequences, {}};
      for (const Index i : indices) out.tokens.push_back(train_.examples[static_cast<std::size_t>(i)].labels);
      return out;
    };
    StepsLine line(
        training.steps, "utterances", [](double wer) { return text("validation WER ", fixed(100 * wer, 2), '%'); },
        text("seed ", seed, "  ", name));
    const TrainingResult result = train_encoder_decoder(
        cpu_, model, training, next,
        [&] { return total(errors(model, valid_, ctc_weight == 1 ? Way::ctc : Way::greedy)).rate(); }, std::ref(line));
    if (ctc_weight == 1) return report(model, name, seed, result.seconds, {Way::ctc});
    if constexpr (std::is_same_v<M, Model<Full, Full>>) {  // the same weights over one memory for all layers
      Model<Full, CachedInput<dyn, dyn, NoPosition>> shared(
          {model.encoder.config(), {model.decoder.config().text, {.num_heads = 4}}}, Seed());
      std::map<std::string, const Parameter<float>*, std::less<>> from;
      model.parameters([&](std::string_view key, const auto& p) { from.emplace(key, &p); });
      shared.parameters([&](std::string_view key, auto& p) {
        const auto found = from.find(key);
        require(found != from.end() && found->second->shape() == p.shape(), "joint study: no parameter ", key);
        p.host() = found->second->host();
      });
      report(shared, name + ", shared memory", seed, result.seconds, {Way::joint});
    }
    report(model, name, seed, result.seconds, {Way::ctc, Way::greedy, Way::beams, Way::joint});
  }

  enum class Way { ctc, greedy, beams, joint };

  /// Measures a trained model by some ways of decoding.
  template <class M>
  void report(M& model, const std::string& name, std::int64_t seed, double train_seconds,
              std::initializer_list<Way> ways) {
    cpu_.prepare(model);
    for (const Way way : ways) {
      const std::vector<WordErrors> all = errors(model, test_, way);
      const Interval interval = bootstrap_interval(all);
      const double frames_per_second =
          100.0 / static_cast<double>(preset_.encoder.subsampling);  // features have 100 rows a second
      const bool has_decoder = way != Way::ctc;
      rows_.push_back(
          {{"model", name},
           {"seed", seed},
           {"decoding", name_of(way)},
           {"beams", way == Way::beams || way == Way::joint ? o_.beams : 1},
           {"wer", total(all).rate()},
           {"wer_low", interval.low},
           {"wer_high", interval.high},
           {"cache_bytes_per_token", has_decoder ? M::Decoder::cache_bytes(model.decoder.config(), frames(1)) : 0},
           {"memory_bytes_per_second",
            has_decoder ? static_cast<Index>(frames_per_second * static_cast<double>(M::Decoder::memory_bytes(
                                                                     model.decoder.config(), frames(1))))
                        : 0},
           {"parameters", model.count_parameters()},
           {"train_seconds", train_seconds}});
      write_json(out_ / "joint.json", rows_);
      say("seed ", seed, "  ", name, ", ", name_of(way), ": WER ", fixed(100 * total(all).rate(), 2), "%");
    }
  }

  static const char* name_of(Way way) {
    switch (way) {
      case Way::ctc:
        return "CTC, greedy";
      case Way::greedy:
        return "attention, greedy";
      case Way::beams:
        return "attention, beams";
      default:
        return "joint, beams";
    }
  }

  /// Transcribes a dataset and counts word errors.
  template <class M>
  std::vector<WordErrors> errors(const M& model, const Dataset& data, Way way) {
    std::vector<WordErrors> out(data.examples.size());
    const bool greedy = way == Way::greedy;
    for (const auto& indices : length_buckets(data, greedy ? 8000 : 2000, std::nullopt)) {
      const SpeechBatch batch = make_batch(data, indices, nullptr, Seed());
      const auto [rows, sources] = model.encoder.hidden(cpu_, batch.features, batch.sequences);
      std::vector<std::vector<int>> texts;
      const auto logits = model.encoder.lm_head(cpu_, rows);
      if (way == Way::ctc) {
        texts = greedy_ctc(cpu_, logits, sources);
      } else {
        SourceDecoder decoder(cpu_, model.decoder, {.slots = greedy ? sources.size() : o_.beams});
        decoder.listen(rows, sources);
        if (greedy) {
          const std::vector<std::vector<int>> prompts(indices.size(), std::vector<int>{boundary});
          texts = generate(decoder, std::span(prompts), {.max_new_tokens = 200, .end_token = boundary});
        } else {
          const Matrix<float> log_probs = cpu_.output(cpu_.log_softmax(logits));
          for (Index n = 0; n < sources.size(); ++n) {
            const Matrix<float> own = log_probs.middleRows(sources.begin(n), sources.length(n));
            const BeamConfig config{.beams = o_.beams,
                                    .max_new_tokens = std::min<Index>(200, own.rows() + 1),
                                    .end_token = boundary,
                                    .length_penalty = way == Way::joint ? 0.0 : 1.0};
            const auto found = way == Way::joint ? beam_search(decoder, std::array{boundary}, config, n,
                                                               CtcPrefixScorer(own, o_.ctc_weight, boundary))
                                                 : beam_search(decoder, std::array{boundary}, config, n);
            texts.push_back(found.empty() ? std::vector<int>() : found.front().tokens);
          }
        }
      }
      for (std::size_t n = 0; n < indices.size(); ++n) {
        const auto i = static_cast<std::size_t>(indices[n]);
        std::erase(texts[n], boundary);
        out[i] = word_errors(vocabulary_->written(data.examples[i].text), vocabulary_->decode(texts[n]));
      }
    }
    return out;
  }

  JointStudyOptions o_;
  std::filesystem::path out_, corpus_;
  Preset preset_;
  Cpu<float> cpu_;
  std::unique_ptr<Vocabulary> vocabulary_;
  Dataset train_, valid_, test_;
  nlohmann::json rows_ = nlohmann::json::array();
};

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{
      "laconic-joint-study: word error rate of CTC alone and together with attention decoders of several kinds, on "
      "connected digits",
      "laconic-joint-study"};
  const auto o = std::make_shared<JointStudyOptions>();
  o->add_to(app);
  app.add_option("--data", o->data,
                 "corpus made by `laconic data`, or a folder of {digit}_{speaker}_{index}.wav; default: espeak-ng "
                 "speaks one")
      ->type_name("DIR");
  app.add_option("--out", o->out, "folder for results")->required()->type_name("DIR");
  app.add_option("--preset", o->preset, "quick: a small model; full: a larger one, and more speech")
      ->capture_default_str()
      ->check(CLI::IsMember({"quick", "full"}));
  app.add_option("--epochs", o->epochs, "epochs of training")->capture_default_str()->check(whole_number(1, 10000));
  app.add_option("--seeds", o->seeds, "number of seeds")->capture_default_str()->check(whole_number(1, 100));
  app.add_option("--ctc-weight", o->ctc_weight, "weight of CTC, in training and in joint decoding")
      ->capture_default_str()
      ->check(between(0.0, 0.99));
  app.add_option("--beams", o->beams, "beams")->capture_default_str()->check(whole_number(1, 100));
  app.add_option("--decoder-layers", o->decoder_layers, "blocks of the decoder")
      ->capture_default_str()
      ->check(whole_number(1, 48));
  app.add_option("--holdout-speaker", o->holdout_speaker, "speaker of the recordings who is used only for testing")
      ->type_name("NAME");
  app.footer("Example:\n  laconic-joint-study --out study --data free-spoken-digit-dataset/recordings");
  app.callback([o] { JointStudy(*o).run(); });
  return run_app(app, argc, argv);
}
