// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/any.hpp>
#include <laconic/io/folder.hpp>
#include <laconic/io/hugging_face.hpp>
#include <laconic/recognition/dataset.hpp>
#include <laconic/recognition/encoder_costs.hpp>
#include <laconic/recognition/fingerprint.hpp>
#include <laconic/recognition/recognizer/align.hpp>
#include <laconic/recognition/recognizer/devices.hpp>
#include <laconic/recognition/recognizer/hugging_face.hpp>
#include <laconic/recognition/recognizer/inline.hpp>
#include <laconic/recognition/recognizer/model.hpp>
#include <laconic/recognition/recognizer/transcriber.hpp>
#include <laconic/speech/audio.hpp>
#include <laconic/speech/vocabulary.hpp>
#include <laconic/speech/words.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <optional>
#include <string_view>

// The members of Recognizer and of Workspace. Nothing here sees a model.

namespace laconic {
inline namespace LACONIC_ABI {

namespace detail {

inline std::unique_ptr<RecognizerModel> make_recognizer_model(EncoderName name, const EncoderConfig& config,
                                                              Seed seed) {
  using enum EncoderName;
  switch (name) {
    case branchformer:
      return make_recognizer_model<branchformer>(config, seed);
    case e_branchformer:
      return make_recognizer_model<e_branchformer>(config, seed);
    case wav2vec2_conformer:
      return make_recognizer_model<wav2vec2_conformer>(config, seed);
    default:
      return make_recognizer_model<conformer>(config, seed);
  }
}

/// Throws `Error` unless the vocabulary fits the model.
inline void check_vocabulary(const RecognizerConfig& config, const Vocabulary& vocabulary) {
  require(vocabulary.size() == config.encoder.vocab_size, "vocab_size is ", config.encoder.vocab_size,
          ", the vocabulary has ", vocabulary.size(), " tokens");
}
/// Throws `Error` unless the features fit the model.
inline void check_features(const RecognizerConfig& config) {
  require(config.encoder.num_mels == config.features.fbank.num_mels, "num_mels: the encoder expects ",
          config.encoder.num_mels, ", the features have ", config.features.fbank.num_mels);
}

/// Reads the config.json of a model folder, or of the one in the folder of a training run.
struct ModelFolder {
  std::filesystem::path path;
  std::string where;  ///< path of config.json
  nlohmann::json json;
  bool is_foreign = false;  ///< as Hugging Face has it

  explicit ModelFolder(const std::filesystem::path& folder) {
    const bool is_run = !is_listed(folder / "config.json") && is_there(folder / "model" / "config.json");
    path = is_run ? folder / "model" : folder;
    where = (path / "config.json").string();
    json = read_model_config(path);
    is_foreign = is_hugging_face_config(json);
  }
  /// Calls check(), and throws its `Error` in the name of config.json.
  template <class Check>
  void checked(Check&& check) const {
    try {
      check();
    } catch (const Error& error) {
      throw Error(text(where, ": ", error.what()));
    }
  }
};
/// Throws `Error`, before memory is taken, for a model that the files cannot fill.
inline void check_filled(const Tensors& tensors, Index described) {
  require(described <= tensors.count_values(), "describes a model of at least ", described, " numbers, but ",
          tensors.path(), " holds ", tensors.count_values());
}

}  // namespace detail

LACONIC_RECOGNIZER_INLINE EncoderConfig with_attention(EncoderConfig encoder, const AttentionChoice& c) {
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
    throw Error(text(to_name(c.attention), ": ", error.what()));
  }
  return encoder;
}

LACONIC_RECOGNIZER_INLINE Tokens corpus_tokens(const std::filesystem::path& folder) {
  const auto path = folder / "corpus.json";
  return detail::is_there(path) ? json_member<Tokens>(read_json(path), "tokens", path.string()) : Tokens::characters;
}

LACONIC_RECOGNIZER_INLINE Workspace::Workspace(int threads, const Device& device)
    : context_(new Context(device, threads)) {}
LACONIC_RECOGNIZER_INLINE Workspace::Workspace(Workspace&&) noexcept = default;
LACONIC_RECOGNIZER_INLINE Workspace& Workspace::operator=(Workspace&&) noexcept = default;
LACONIC_RECOGNIZER_INLINE Workspace::~Workspace() = default;
LACONIC_RECOGNIZER_INLINE int Workspace::threads() const { return context_->cpu.threads(); }
LACONIC_RECOGNIZER_INLINE std::size_t Workspace::peak_bytes() const { return context_->peak_bytes(); }

/// Holds the members of a Recognizer, out of the sight of its header.
struct Recognizer::Parts {
  RecognizerConfig config;                         ///< settings, as in config.json
  Vocabulary vocabulary;                           ///< tokens of the logits
  std::unique_ptr<detail::RecognizerModel> model;  ///< the model behind virtual functions
  Storage storage = Storage::full;                 ///< rounding of the weights in the file that was loaded

  /// Takes these parts.
  Parts(RecognizerConfig c, Vocabulary v, std::unique_ptr<detail::RecognizerModel> m)
      : config(std::move(c)), vocabulary(std::move(v)), model(std::move(m)) {}
  /// Copies the parts, the model by `clone`.
  Parts(const Parts& other)
      : config(other.config), vocabulary(other.vocabulary), model(other.model->clone()), storage(other.storage) {}
};
LACONIC_RECOGNIZER_INLINE Recognizer::Recognizer(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
LACONIC_RECOGNIZER_INLINE Recognizer::Recognizer(const Recognizer& other) : parts_(new Parts(*other.parts_)) {}
LACONIC_RECOGNIZER_INLINE Recognizer::Recognizer(Recognizer&&) noexcept = default;
LACONIC_RECOGNIZER_INLINE Recognizer& Recognizer::operator=(const Recognizer& other) {
  return *this = Recognizer(other);
}
LACONIC_RECOGNIZER_INLINE Recognizer& Recognizer::operator=(Recognizer&&) noexcept = default;
LACONIC_RECOGNIZER_INLINE Recognizer::~Recognizer() = default;

LACONIC_RECOGNIZER_INLINE Recognizer Recognizer::create(RecognizerConfig config, const Vocabulary& vocabulary,
                                                        Seed seed) {
  config.encoder.vocab_size = vocabulary.size();
  detail::check_vocabulary(config, vocabulary);
  detail::check_features(config);
  auto model = detail::make_recognizer_model(config.model, config.encoder, seed);
  config.encoder = model->config();
  return Recognizer(std::make_unique<Parts>(std::move(config), vocabulary, std::move(model)));
}

LACONIC_RECOGNIZER_INLINE Recognizer Recognizer::load(const std::filesystem::path& folder) {
  const detail::ModelFolder from(folder);
  const auto read = from.is_foreign ? detail::hugging_face_recognizer : detail::own_recognizer;
  const auto [config, vocabulary] = read(from.path, from.json, from.where);
  const Tensors tensors = open_model_tensors(from.path);
  from.checked([&, &config = config, &vocabulary = vocabulary] {
    detail::check_vocabulary(config, vocabulary);
    detail::check_features(config);
    detail::check_filled(tensors, EncoderCosts{config.model, config.encoder}.parameters());
  });
  auto parts =
      std::make_unique<Parts>(config, vocabulary, detail::make_recognizer_model(config.model, config.encoder, Seed()));
  parts->storage = parts->model->load(tensors, from.is_foreign);
  return Recognizer(std::move(parts));
}

LACONIC_RECOGNIZER_INLINE Recognizer Recognizer::load_encoder(const std::filesystem::path& folder,
                                                              const Vocabulary& vocabulary, Seed seed) {
  const detail::ModelFolder from(folder);
  auto config = from.is_foreign ? detail::hugging_face_encoder(from.path, from.json, from.where)
                                : json_value<RecognizerConfig>(from.json, from.where);
  const Tensors tensors = open_model_tensors(from.path);
  from.checked([&] {
    detail::check_features(config);
    const Index head = (config.encoder.d_model + 1) * config.encoder.vocab_size;
    detail::check_filled(tensors, EncoderCosts{config.model, config.encoder}.parameters() - head);
  });
  config.encoder.vocab_size = vocabulary.size();
  config.tokens = vocabulary.kind();
  auto model = detail::make_recognizer_model(config.model, config.encoder, seed);
  model->load_encoder(tensors, from.is_foreign);
  return Recognizer(std::make_unique<Parts>(std::move(config), vocabulary, std::move(model)));
}

LACONIC_RECOGNIZER_INLINE const RecognizerConfig& Recognizer::config() const { return parts_->config; }
LACONIC_RECOGNIZER_INLINE const Vocabulary& Recognizer::vocabulary() const { return parts_->vocabulary; }
LACONIC_RECOGNIZER_INLINE Storage Recognizer::storage() const { return parts_->storage; }

LACONIC_RECOGNIZER_INLINE void Recognizer::save(const std::filesystem::path& folder, Storage weights) const {
  require(!detail::is_there(folder / "model" / "config.json"), folder.string(),
          ": is the folder of a training run, which has a model in it; choose another for this one");
  const Vocabulary& vocabulary = parts_->vocabulary;
  parts_->model->save(folder, to_json(parts_->config), vocabulary.to_json(),
                      {{"tokenizer_config.json", vocabulary.is_own() ? vocabulary.tokenizer().to_json()
                                                                     : detail::hugging_face_tokenizer(vocabulary)}},
                      weights);
}

LACONIC_RECOGNIZER_INLINE void Recognizer::export_hugging_face(const std::filesystem::path& folder) const {
  const nlohmann::json features{{"feature_extractor_type", "Wav2Vec2FeatureExtractor"},
                                {"feature_size", 1},
                                {"sampling_rate", config().features.fbank.sample_rate},
                                {"padding_value", 0},
                                {"do_normalize", config().features.normalization == Normalization::utterance},
                                {"return_attention_mask", true}};
  parts_->model->save(folder, hugging_face_config(config().encoder, parts_->vocabulary.blank()),
                      parts_->vocabulary.to_json(),
                      {{"preprocessor_config.json", features},
                       {"tokenizer_config.json", detail::hugging_face_tokenizer(parts_->vocabulary)}},
                      Storage::full);
}

LACONIC_RECOGNIZER_INLINE void Recognizer::prepare(int threads, const Device& device) {
  prepare(parts_->storage, threads, device);
}
LACONIC_RECOGNIZER_INLINE void Recognizer::prepare(Storage weights, int threads, const Device& device) {
  parts_->model->prepare(weights, device, threads);
}
LACONIC_RECOGNIZER_INLINE const Device& Recognizer::device() const { return parts_->model->device(); }

LACONIC_RECOGNIZER_INLINE Transcript Recognizer::transcribe(std::span<const float> samples, int sample_rate,
                                                            Workspace& workspace,
                                                            const TranscriptionConfig& how) const {
  const int rate = config().features.fbank.sample_rate;
  std::vector<float> resampled;
  if (sample_rate != rate) resampled = resample(samples, sample_rate, rate);
  detail::Transcriber out(*this, workspace, how);
  for (std::span<const float> left = sample_rate != rate ? std::span<const float>(resampled) : samples;
       !left.empty();) {
    const std::size_t second = std::min(left.size(), static_cast<std::size_t>(rate));
    out.push(left.first(second));
    left = left.subspan(second);
  }
  return out.finish();
}
LACONIC_RECOGNIZER_INLINE Transcript Recognizer::transcribe(std::span<const float> samples, int sample_rate,
                                                            const TranscriptionConfig& how) const {
  Workspace workspace(0, device());
  return transcribe(samples, sample_rate, workspace, how);
}
LACONIC_RECOGNIZER_INLINE Transcript Recognizer::transcribe(AudioReader& audio, Workspace& workspace,
                                                            const TranscriptionConfig& how) const {
  detail::Transcriber out(*this, workspace, how);
  detail::read_all(audio, *this, [&](std::span<const float> samples) { out.push(samples); });
  return out.finish();
}
LACONIC_RECOGNIZER_INLINE Transcript Recognizer::transcribe(const std::filesystem::path& path, Workspace& workspace,
                                                            const TranscriptionConfig& how) const {
  AudioReader audio(path, config().features.fbank.sample_rate);
  return transcribe(audio, workspace, how);
}
LACONIC_RECOGNIZER_INLINE Transcript Recognizer::transcribe(const std::filesystem::path& path,
                                                            const TranscriptionConfig& how) const {
  Workspace workspace(0, device());
  return transcribe(path, workspace, how);
}
LACONIC_RECOGNIZER_INLINE FrameTimes Recognizer::frame_times() const {
  const FeatureConfig& features = config().features;
  // Whole samples, as features are computed.
  const double row = static_cast<double>(FeatureExtractor(features).frame_shift()) / features.fbank.sample_rate;
  const double seen = static_cast<double>(parts_->model->window() - 1) * row + features.fbank.frame_length_ms / 1000;
  const double shift = row * static_cast<double>(config().encoder.subsampling);
  return {shift, (seen - shift) / 2};
}
LACONIC_RECOGNIZER_INLINE Matrix<float> Recognizer::logits(const Matrix<float>& features, Workspace& workspace) const {
  return parts_->model->logits(workspace.context(), features);
}

LACONIC_RECOGNIZER_INLINE SpeechStream Recognizer::stream(const StreamConfig& streaming,
                                                          const TranscriptionConfig& how) const {
  config().features.require_streamable();
  return SpeechStream(feature_streams(streaming), *this, how);
}
LACONIC_RECOGNIZER_INLINE FeatureStreams Recognizer::feature_streams(const StreamConfig& streaming) const {
  return FeatureStreams(parts_->model->streams(streaming));
}
LACONIC_RECOGNIZER_INLINE void Recognizer::require_streamable() const { parts_->model->require_streamable(); }

LACONIC_RECOGNIZER_INLINE Evaluation Recognizer::evaluate(const Dataset& data, Workspace& workspace,
                                                          const TranscriptionConfig& how) const {
  const auto rows = static_cast<Index>(80e3 / config().features.fbank.frame_shift_ms);  // 80 s of speech at once
  return parts_->model->evaluate(workspace.context(), data, vocabulary(), rows,
                                 detail::text_decoders(vocabulary(), how.beam));
}
LACONIC_RECOGNIZER_INLINE StreamedEvaluation Recognizer::evaluate_streamed(const Dataset& data,
                                                                           const StreamConfig& streaming,
                                                                           Index block_frames,
                                                                           const TranscriptionConfig& how) const {
  config().features.require_streamable();
  return parts_->model->evaluate_streamed(data, vocabulary(), streaming, block_frames,
                                          detail::text_decoders(vocabulary(), how.beam));
}

LACONIC_RECOGNIZER_INLINE Index Recognizer::count_parameters() const { return parts_->model->count_parameters(); }
LACONIC_RECOGNIZER_INLINE Index Recognizer::weight_bytes() const { return parts_->model->weight_bytes(); }
LACONIC_RECOGNIZER_INLINE std::string Recognizer::fingerprint() const { return parts_->model->fingerprint(); }
LACONIC_RECOGNIZER_INLINE double Recognizer::cache_bytes_per_second() const {
  const Index frame = EncoderCosts{config().model, parts_->model->config()}.cache_bytes(1);
  return static_cast<double>(frame) * config().frames_per_second();
}

LACONIC_RECOGNIZER_INLINE RecognizerConversion Recognizer::convert(const AttentionChoice& choice,
                                                                   const ConversionChoice& how,
                                                                   const SpeechBatch* speech) const {
  auto [model, report] = parts_->model->convert(choice, how, speech);
  auto parts = std::make_unique<Parts>(config(), vocabulary(), std::move(model));
  parts->config.encoder = parts->model->config();
  return {Recognizer(std::move(parts)), std::move(report)};
}
LACONIC_RECOGNIZER_INLINE std::vector<std::vector<double>> Recognizer::spectra(const ConversionChoice& how) const {
  return parts_->model->spectra(how);
}

LACONIC_RECOGNIZER_INLINE void Recognizer::check_ranks(const std::vector<Index>& ranks) const {
  const EncoderConfig& encoder = config().encoder;
  Index before = std::numeric_limits<Index>::max();
  for (const Index rank : ranks) {
    require(rank > 0 && rank < before, "ranks: ", rank, " given",
            before == std::numeric_limits<Index>::max() ? "" : text(" after ", before),
            ", falling numbers of at least 1 expected");
    before = rank;
  }
  for (Index i = 0; i < encoder.num_layers && !ranks.empty(); ++i) {
    const EncoderConfig of_layer = encoder.for_layer(i);
    require(of_layer.kv_lora_rank > 0, "ranks: a model with ", to_name(encoder.attention),
            " given, which has no latent to cut");
    const Index least =
        of_layer.v_lora_rank > 0 ? std::min(of_layer.kv_lora_rank, of_layer.v_lora_rank) : of_layer.kv_lora_rank;
    require(ranks.front() <= least, "ranks: ", ranks.front(), " given, but layer ", i, " has a latent of ", least);
  }
}

LACONIC_RECOGNIZER_INLINE void Recognizer::check_teacher(const Recognizer& teacher, bool chunks) const {
  require(teacher.config().model == config().model, "teacher: a ", to_name(teacher.config().model), " given, a ",
          to_name(config().model), " expected");
  require(
      teacher.vocabulary().to_json() == vocabulary().to_json() && teacher.vocabulary().blank() == vocabulary().blank(),
      "teacher: has ", teacher.vocabulary().size(), " tokens, and not the ", vocabulary().size(),
      " that the model to train has");
  require(to_json(teacher.config().features) == to_json(config().features),
          "teacher: hears other features than the model to train (see 'features' in their config.json)");
  require(teacher.config().encoder.num_layers == config().encoder.num_layers, "teacher: has ",
          teacher.config().encoder.num_layers, " blocks, ", config().encoder.num_layers, " expected");
  try {
    if (chunks) teacher.require_streamable();
  } catch (const Error& error) {
    throw Error(text("teacher: ", error.what()));
  }
}

LACONIC_RECOGNIZER_INLINE TrainState Recognizer::train(const Dataset& training, const Dataset& validation,
                                                       const TrainConfig& settings, const RecognizerTraining& how,
                                                       Workspace& workspace) {
  TrainConfig used = settings;
  if (config().features.kind ==
      FeatureKind::samples) {  // rows are samples: masks of time and frequency have no meaning there
    used.batch_frames *= std::max<Index>(1, std::lround(10 / config().features.fbank.frame_shift_ms));
    used.spec_augment.num_time_masks = used.spec_augment.num_freq_masks = 0;
  }
  check_ranks(how.ranks);
  if (how.teacher != nullptr) check_teacher(*how.teacher, settings.dynamic_chunks || config().encoder.chunk > 0);
  // A run in steps has its checkpoints elsewhere than one without, and both must know of each other.
  if (const auto plan = how.folder / "ranks.json"; !how.folder.empty()) {
    if (how.ranks.empty()) {
      require(!detail::is_there(plan), how.folder.string(),
              ": belongs to a run with ranks; choose another folder, or delete it to start anew");
    } else {
      require(!detail::is_there(how.folder / "losses.csv"), how.folder.string(),
              ": belongs to a run without ranks; choose another folder, or delete it to start anew");
      const nlohmann::json now{{"ranks", how.ranks}, {"initial_parameters", fingerprint()}};
      if (detail::is_there(plan)) require_same_run(read_json(plan), now, plan.string(), "folder");
      if (how.communicator.rank() == 0) {
        make_folder(how.folder);
        write_json(plan, now);
      }
    }
  }
  RecognizerTraining shown = how;
  shown.cut = [&](Index rank, double error) {
    parts_->config.encoder = parts_->model->config();  // before anyone saves the smaller model
    if (how.communicator.rank() == 0) how.cut(rank, error);
  };
  return parts_->model->train(workspace.context(), training, validation, vocabulary(), used, shown,
                              how.teacher != nullptr ? how.teacher->parts_->model.get() : nullptr);
}

}  // namespace LACONIC_ABI
}  // namespace laconic
