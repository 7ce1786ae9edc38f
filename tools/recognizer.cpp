// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include "recognizer.hpp"

#include <laconic/convert/convert.hpp>
#include <laconic/io/hugging_face.hpp>
#include <laconic/train/fisher.hpp>
#include <laconic/train/progressive.hpp>

#include <limits>
#include <optional>

namespace laconic {
inline namespace LACONIC_ABI {

namespace {

nlohmann::json report_json(const ConversionReport& report) {
  nlohmann::json layers = nlohmann::json::array();
  for (const LayerReport& layer : report.layers)
    layers.push_back({{"layer", layer.layer},
                      {"num_kv_heads", layer.num_kv_heads},
                      {"kv_lora_rank", layer.kv_lora_rank},
                      {"k_factor_error", layer.k_factor_error},
                      {"v_factor_error", layer.v_factor_error},
                      {"predicted_error", layer.predicted_error},
                      {"key_value_error", layer.key_value_error},
                      {"output_error", layer.output_error},
                      {"output_mse", layer.output_mse},
                      {"output_mae", layer.output_mae},
                      {"output_cosine", layer.output_cosine}});
  return {{"measured_on", report.input},
          {"layers", layers},
          {"predicted_error", report.predicted_error},
          {"key_value_error", report.key_value_error},
          {"output_error", report.output_error},
          {"output_mse", report.output_mse},
          {"output_mae", report.output_mae},
          {"output_cosine", report.output_cosine},
          {"logits_error", report.logits_error}};
}

/// f(method) for the one that is named.
template <class F>
auto with_method(const ConversionChoice& how, F&& f) {
  using enum ConversionMethod;
  if (how.method == svd) return f(JointSvd{});
  if (how.method == randomized) return f(RandomizedSvd{.seed = how.seed});
  require(how.calibration != nullptr, "convert: ", to_name(how.method), " given without speech to calibrate on");
  return f(ActivationPca<float>{{how.calibration->features, how.calibration->sequences}, how.method == score_aware});
}

/// What the loss of the calibration speech minds errors in each layer. The calibrated method's spectra are those of
/// outputs, so the weights' information is divided by the energy of inputs; score-aware ones are in units of each
/// layer's own.
template <class Model>
std::vector<double> layer_weights(const Model& model, const ConversionChoice& how) {
  require(
      how.method != ConversionMethod::score_aware,
      "--allocation fisher: score-aware given, a method expected that counts errors of keys and values as they are");
  require(how.calibration != nullptr && !how.calibration->labels.tokens.empty(),
          "--allocation fisher: needs speech with its text (--calibration)");
  const SpeechBatch& speech = *how.calibration;
  Cpu<float> cpu(how.threads);
  std::vector<double> out = fisher_information(model, cpu, speech.features, speech.sequences, speech.labels);
  if (how.method == ConversionMethod::svd || how.method == ConversionMethod::randomized) return out;
  const auto statistics = detail::calibrate(model, Calibration<float>{speech.features, speech.sequences}, false);
  for (std::size_t l = 0; l < out.size(); ++l)
    out[l] *= static_cast<double>(statistics[l].value_input.rows()) / statistics[l].value_input.trace();
  return out;
}

/// Throws where model, features and vocabulary do not go together.
void check(const RecognizerConfig& config, const Vocabulary& vocabulary) {
  require(vocabulary.size() == config.encoder.vocab_size, "vocab_size is ", config.encoder.vocab_size,
          ", the vocabulary has ", vocabulary.size(), " tokens");
  require(config.encoder.num_mels == config.features.fbank.num_mels, "num_mels: the encoder expects ",
          config.encoder.num_mels, ", the features have ", config.features.fbank.num_mels);
}

/// What a folder of Hugging Face says of its model.
RecognizerConfig hugging_face_recognizer(const std::filesystem::path& folder, const nlohmann::json& config,
                                         const std::string& where) {
  RecognizerConfig out;
  out.model = EncoderName::wav2vec2_conformer;
  out.encoder = wav2vec2_conformer_config(config, where);
  out.tokens = Tokens::characters;
  const auto path = folder / "preprocessor_config.json";
  const nlohmann::json features = std::filesystem::exists(path) ? read_json(path) : nlohmann::json::object();
  const int rate =
      features.contains("sampling_rate") ? json_member<int>(features, "sampling_rate", path.string()) : 16000;
  const bool normalize =
      !features.contains("do_normalize") || json_member<bool>(features, "do_normalize", path.string());
  require(rate > 0, path.string(), ": 'sampling_rate' is ", rate, ", more than 0 expected");
  out.features = FeatureConfig::samples(rate, normalize ? Normalization::utterance : Normalization::none);
  return out;
}

}  // namespace

EncoderConfig with_attention(EncoderConfig encoder, const AttentionChoice& c) {
  encoder.attention = c.attention;
  encoder.num_kv_heads = c.kv_heads;
  encoder.kv_lora_rank = c.latent_dim;
  encoder.v_lora_rank = c.v_latent_dim;
  encoder.qk_rope_head_dim = c.rope_dim;
  if (c.attention == AttentionName::mla_decoupled && c.rope_dim == 0)
    encoder.qk_rope_head_dim = std::max<Index>(2, encoder.d_model / std::max<Index>(1, encoder.num_heads) / 4 * 2);
  try {
    AnyAttention::dims(encoder.attention_config());
  } catch (const Error& error) {
    throw Error(text(to_name(c.attention), ": ", error.what(),
                     " (--heads, --kv-heads, --latent-dim, --v-latent-dim, --rope-dim)"));
  }
  return encoder;
}

AnyModel make_model(EncoderName name, const EncoderConfig& config, Seed seed) {
  return with_model(name,
                    [&]<class M>(std::type_identity<M>) { return AnyModel(std::in_place_type<M>, config, seed); });
}

Tokens corpus_tokens(const std::filesystem::path& folder) {
  const auto path = folder / "corpus.json";
  return std::filesystem::exists(path) ? json_member<Tokens>(read_json(path), "tokens", path.string())
                                       : Tokens::characters;
}

Recognizer Recognizer::create(RecognizerConfig config, Vocabulary vocabulary, Seed seed) {
  config.encoder.vocab_size = vocabulary.size();
  check(config, vocabulary);
  AnyModel model = make_model(config.model, config.encoder, seed);
  config.encoder = std::visit([](const auto& m) { return m.config(); }, model);
  return {config, std::move(vocabulary), std::move(model)};
}

Recognizer Recognizer::load(const std::filesystem::path& folder) {
  const bool is_run =
      !std::filesystem::exists(folder / "config.json") && std::filesystem::exists(folder / "model" / "config.json");
  const auto path = is_run ? folder / "model" : folder;
  const std::string where = (path / "config.json").string();
  const nlohmann::json json = read_model_config(path);
  const bool foreign = is_hugging_face_config(json);
  const auto config = foreign ? hugging_face_recognizer(path, json, where) : json_value<RecognizerConfig>(json, where);
  auto vocabulary = Vocabulary::from_json(config.tokens, read_model_vocab(path), (path / "vocab.json").string());
  const Tensors tensors = open_model_tensors(path);
  try {
    check(config, vocabulary);
    // Before memory is taken for a model that the file cannot fill.
    const Index described =
        with_model(config.model, [&]<class M>(std::type_identity<M>) { return M::parameter_count(config.encoder); });
    require(described <= tensors.count_values(), "describes a model of at least ", described, " numbers, but ",
            tensors.path(), " holds ", tensors.count_values());
  } catch (const Error& error) {
    throw Error(text(where, ": ", error.what()));
  }
  Recognizer out{config, std::move(vocabulary), make_model(config.model, config.encoder, Seed())};
  const auto ignored = [&](std::string_view name) { return foreign && is_unused_hugging_face_tensor(name); };
  std::visit([&](auto& m) { load_parameters(m, tensors, "", ignored); }, out.model);
  out.storage = std::visit([&](const auto& m) { return stored_weights(m, tensors); }, out.model);
  return out;
}

void Recognizer::pack(int threads) {
  std::visit([&](auto& m) { Cpu<float>(threads).prepare(m, storage); }, model);
}

void Recognizer::save(const std::filesystem::path& folder, Storage rounded) const {
  require(!std::filesystem::exists(folder / "model" / "config.json"), folder.string(),
          ": is the folder of a training run, which has a model in it; choose another for this one");
  std::visit([&](const auto& m) { save_model_folder(folder, m, to_json(config), vocabulary.to_json(), {}, rounded); },
             model);
}

void Recognizer::export_hugging_face(const std::filesystem::path& folder) const {
  const nlohmann::json features{{"feature_extractor_type", "Wav2Vec2FeatureExtractor"},
                                {"feature_size", 1},
                                {"sampling_rate", config.features.fbank.sample_rate},
                                {"padding_value", 0},
                                {"do_normalize", config.features.normalization == Normalization::utterance},
                                {"return_attention_mask", true}};
  std::visit(
      [&](const auto& m) {
        save_model_folder(folder, m, hugging_face_config(config.encoder), vocabulary.to_json(),
                          {{"preprocessor_config.json", features}});
      },
      model);
}

Recognizer Recognizer::convert(const AttentionChoice& choice, const SpeechBatch* speech, nlohmann::json& report,
                               const ConversionChoice& how) const {
  const EncoderConfig wanted = with_attention(config.encoder, choice);
  ConversionConfig numbers{wanted.num_kv_heads, wanted.kv_lora_rank, wanted.v_lora_rank, wanted.attention};
  numbers.hadamard = how.hadamard;
  const bool allocates = how.allocation != RankAllocation::uniform;
  require(!allocates || choice.attention == AttentionName::mla || choice.attention == AttentionName::mla_simple,
          "--allocation ", to_name(how.allocation), ": ", to_name(choice.attention),
          " given, mla or mla-simple expected");
  return std::visit(
      [&]<class Model>(const Model& source) {
        auto converted = with_method(how, [&](const auto& method) {
          if (allocates) {
            const auto weights =
                how.allocation == RankAllocation::fisher ? layer_weights(source, how) : std::vector<double>();
            for (const Index rank :
                 allocate_ranks(key_value_spectra(source, method), numbers.kv_lora_rank * wanted.num_layers, 8,
                                how.allocation, weights))
              numbers.kv_lora_ranks.push_back(rank);
          }
          return speech != nullptr
                     ? laconic::convert<Model>(source, method, numbers, speech->features, speech->sequences)
                     : laconic::convert<Model>(source, method, numbers);
        });
        report = report_json(converted.report);
        Recognizer out{config, vocabulary, std::move(converted.model)};
        out.config.encoder = std::get<Model>(out.model).config();
        return out;
      },
      model);
}

std::vector<std::vector<double>> Recognizer::spectra(const ConversionChoice& how) const {
  return std::visit(
      [&](const auto& m) { return with_method(how, [&](const auto& method) { return key_value_spectra(m, method); }); },
      model);
}

Evaluation Recognizer::evaluate(Cpu<float>& cpu, const Dataset& data) const {
  const auto rows = static_cast<Index>(80e3 / config.features.fbank.frame_shift_ms);  // 80 s of speech at once
  return std::visit([&](const auto& m) { return laconic::evaluate(m, cpu, data, vocabulary, rows); }, model);
}

StreamedEvaluation Recognizer::evaluate_streamed(const Dataset& data, const StreamConfig& stream,
                                                 Index block_frames) const {
  config.features.require_streamable();
  return std::visit(
      [&](const auto& m) { return laconic::evaluate_streamed(m, data, vocabulary, stream, block_frames); }, model);
}

Index Recognizer::count_parameters() const {
  return std::visit([](const auto& m) { return m.count_parameters(); }, model);
}

std::string Recognizer::fingerprint() const {
  return std::visit([](const auto& m) { return Fingerprint::of_parameters(m); }, model);
}

double Recognizer::cache_bytes_per_second() const {
  const Index frame = std::visit([]<class M>(const M& m) { return M::cache_bytes(m.config(), frames(1)); }, model);
  return static_cast<double>(frame) * config.frames_per_second();
}

void Recognizer::check_ranks(const std::vector<Index>& ranks) const {
  Index before = std::numeric_limits<Index>::max();
  for (const Index rank : ranks) {
    require(rank > 0 && rank < before, "ranks: ", rank, " given",
            before == std::numeric_limits<Index>::max() ? "" : text(" after ", before),
            ", falling numbers of at least 1 expected");
    before = rank;
  }
  for (Index i = 0; i < config.encoder.num_layers && !ranks.empty(); ++i) {
    const EncoderConfig of_layer = config.encoder.for_layer(i);
    require(of_layer.kv_lora_rank > 0, "ranks: a model with ", to_name(config.encoder.attention),
            " given, which has no latent to cut");
    const Index least =
        of_layer.v_lora_rank > 0 ? std::min(of_layer.kv_lora_rank, of_layer.v_lora_rank) : of_layer.kv_lora_rank;
    require(ranks.front() <= least, "ranks: ", ranks.front(), " given, but layer ", i, " has a latent of ", least);
  }
}

void Recognizer::check_teacher(const Recognizer& teacher, bool chunks) const {
  require(teacher.config.model == config.model, "teacher: a ", to_name(teacher.config.model), " given, a ",
          to_name(config.model), " expected");
  require(teacher.vocabulary.to_json() == vocabulary.to_json(), "teacher: has ", teacher.vocabulary.size(),
          " tokens, and not the ", vocabulary.size(), " that the model to train has");
  require(to_json(teacher.config.features) == to_json(config.features),
          "teacher: hears other features than the model to train (see 'features' in their config.json)");
  require(teacher.config.encoder.num_layers == config.encoder.num_layers, "teacher: has ",
          teacher.config.encoder.num_layers, " blocks, ", config.encoder.num_layers, " expected");
  try {
    if (chunks) std::visit([](const auto& m) { m.require_streamable(); }, teacher.model);
  } catch (const Error& error) {
    throw Error(text("teacher: ", error.what()));
  }
}

TrainState Recognizer::train(Cpu<float>& cpu, const Dataset& training, const Dataset& validation,
                             const TrainConfig& settings, const Training& how) {
  TrainConfig used = settings;
  if (config.features.kind ==
      FeatureKind::samples) {  // rows are samples: masks of time and frequency have no meaning there
    used.batch_frames *= std::max<Index>(1, std::lround(10 / config.features.fbank.frame_shift_ms));
    used.spec_augment.num_time_masks = used.spec_augment.num_freq_masks = 0;
  }
  check_ranks(how.ranks);
  if (how.teacher != nullptr) check_teacher(*how.teacher, settings.dynamic_chunks || config.encoder.chunk > 0);
  // A run in steps has its checkpoints elsewhere than one without, and both must know of each other.
  if (const auto plan = how.folder / "ranks.json"; !how.folder.empty()) {
    if (how.ranks.empty()) {
      require(!std::filesystem::exists(plan), how.folder.string(),
              ": belongs to a run with --ranks; choose another folder, or delete it to start anew");
    } else {
      require(!std::filesystem::exists(how.folder / "losses.csv"), how.folder.string(),
              ": belongs to a run without --ranks; choose another folder, or delete it to start anew");
      const nlohmann::json now{{"ranks", how.ranks}, {"initial_parameters", fingerprint()}};
      if (std::filesystem::exists(plan)) require_same_run(read_json(plan), now, plan.string(), "folder");
      make_folder(how.folder);
      write_json(plan, now);
    }
  }
  return std::visit(
      [&]<class M>(M& m) {
        Teacher<Cpu<float>> teacher;
        if (how.teacher != nullptr) teacher = teacher_of(std::get<M>(how.teacher->model));
        const auto once = [&](const std::filesystem::path& folder, const std::function<void()>& better,
                              OptimizerState<float>& learnt) {
          Trainer trainer(m, cpu, training, validation, vocabulary, used, folder, teacher, std::move(learnt));
          trainer.run(
              how.progress, better, [](const TrainState&) { return false; }, how.checkpoint_steps);
          learnt = trainer.optimizer();
          return trainer.state();
        };
        OptimizerState<float> learnt;
        if (how.ranks.empty()) return once(how.folder, how.better, learnt);
        std::optional<Calibration<float>> speech;
        if (how.calibration != nullptr)
          speech = Calibration<float>{how.calibration->features, how.calibration->sequences};
        TrainState last;
        double seconds = 0;
        for (const Index rank : how.ranks) {
          auto cut = truncate<M>(m, {.kv_lora_rank = rank}, learnt, speech ? &*speech : nullptr);
          m = std::move(cut.model);
          config.encoder = m.config();
          learnt = std::move(cut.optimizer);
          how.cut(rank, cut.predicted_error);
          last = once(
              how.folder.empty() ? how.folder : how.folder / text("rank-", rank),
              rank == how.ranks.back() ? how.better : [] {}, learnt);
          seconds += last.seconds;
        }
        last.seconds = seconds;
        return last;
      },
      model);
}

}  // namespace LACONIC_ABI
}  // namespace laconic
