// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include "recognizer.hpp"

#include <laconic/convert/convert.hpp>

namespace laconic::inline LACONIC_ABI {

namespace {

/// The numbers that an attention's name means, put into the configuration; throws where they contradict what was asked for.
void set_attention(EncoderConfig& encoder, const AttentionChoice& c) {
  using enum AttentionName;
  const auto name = to_name(c.attention);
  const auto none = [&](Index asked, const char* what) {
    require(asked == 0, what, ": ", asked, " given, but ", name, " has none");
  };
  const bool has_latent = c.attention == mla || c.attention == mla_simple || c.attention == mla_split || c.attention == mla_head ||
                          c.attention == mla_decoupled;
  if (has_latent) {
    const bool of_heads = c.attention == mla_head;
    const Index most = of_heads ? encoder.d_model / std::max<Index>(1, encoder.num_heads) : encoder.d_model;
    require(c.latent_dim > 0 && c.latent_dim <= most, "kv_lora_rank (--latent-dim): ", c.latent_dim, " given, 1 to ",
            of_heads ? "d_model / num_heads = " : "d_model = ", most, " expected for ", name);
  } else {
    none(c.latent_dim, "kv_lora_rank (--latent-dim)");
  }
  if (c.attention != mla_split) none(c.v_latent_dim, "v_lora_rank (--v-latent-dim)");
  if (c.attention != mla_decoupled) none(c.rope_dim, "qk_rope_head_dim (--rope-dim)");
  require(c.attention != gqa || c.kv_heads > 0, "num_kv_heads (--kv-heads): gqa needs a number of key-value heads, a divisor of ",
          encoder.num_heads);
  if (c.attention != gqa && c.attention != linear && c.attention != input_latent) {
    const Index meant = c.attention == mqa ? 1 : encoder.num_heads;
    require(c.kv_heads == 0 || c.kv_heads == meant, "num_kv_heads (--kv-heads): ", c.kv_heads, " given, but ", name, " has ", meant, " here");
  }
  encoder.attention = c.attention;
  encoder.num_kv_heads = c.kv_heads;
  encoder.kv_lora_rank = c.latent_dim;
  encoder.v_lora_rank = c.v_latent_dim;
  encoder.qk_rope_head_dim = c.attention == mla_decoupled && c.rope_dim == 0 ? std::max<Index>(2, encoder.d_model / encoder.num_heads / 4 * 2) : c.rope_dim;
}

nlohmann::json report_json(const ConversionReport& report) {
  nlohmann::json layers = nlohmann::json::array();
  for (const LayerReport& layer : report.layers)
    layers.push_back({{"layer", layer.layer},
                      {"num_kv_heads", layer.num_kv_heads},
                      {"kv_lora_rank", layer.kv_lora_rank},
                      {"predicted_error", layer.predicted_error},
                      {"key_value_error", layer.key_value_error},
                      {"output_error", layer.output_error}});
  return {{"measured_on", report.input},
          {"layers", layers},
          {"predicted_error", report.predicted_error},
          {"key_value_error", report.key_value_error},
          {"output_error", report.output_error},
          {"logits_error", report.logits_error}};
}

/// Throws where model, features and vocabulary do not go together.
void check(const RecognizerConfig& config, const Vocabulary& vocabulary) {
  require(vocabulary.size() == config.encoder.vocab_size, "vocab_size is ", config.encoder.vocab_size, ", the vocabulary has ", vocabulary.size(),
          " tokens");
  require(config.encoder.num_mels == config.features.fbank.num_mels, "num_mels: the encoder expects ", config.encoder.num_mels,
          ", the features have ", config.features.fbank.num_mels);
}

}  // namespace

AnyModel make_model(EncoderName name, const EncoderConfig& config, Seed seed) {
  return with_model(name, [&]<class M>(std::type_identity<M>) { return AnyModel(std::in_place_type<M>, config, seed); });
}

Tokens corpus_tokens(const std::filesystem::path& folder) {
  const auto path = folder / "corpus.json";
  return std::filesystem::exists(path) ? json_member<Tokens>(read_json(path), "tokens", path.string()) : Tokens::characters;
}

Recognizer Recognizer::create(RecognizerConfig config, const AttentionChoice& attention, Vocabulary vocabulary, Seed seed) {
  set_attention(config.encoder, attention);
  config.encoder.vocab_size = vocabulary.size();
  check(config, vocabulary);
  AnyModel model = make_model(config.model, config.encoder, seed);
  config.encoder = std::visit([](const auto& m) { return m.config(); }, model);
  return {config, std::move(vocabulary), std::move(model)};
}

Recognizer Recognizer::load(const std::filesystem::path& folder) {
  const bool is_run = !std::filesystem::exists(folder / "config.json") && std::filesystem::exists(folder / "model" / "config.json");
  const auto path = is_run ? folder / "model" : folder;
  const std::string where = (path / "config.json").string();
  auto config = json_value<RecognizerConfig>(read_model_config(path), where);
  auto vocabulary = Vocabulary::from_json(config.tokens, read_model_vocab(path), (path / "vocab.json").string());
  const SafetensorsFile tensors = open_model_tensors(path);
  try {
    check(config, vocabulary);
    // Before memory is taken for a model that the file cannot fill.
    const Index described = with_model(config.model, [&]<class M>(std::type_identity<M>) { return M::parameter_count(config.encoder); });
    require(described <= tensors.count_values(), "describes a model of at least ", described, " numbers, but model.safetensors holds ",
            tensors.count_values());
  } catch (const Error& error) {
    throw Error(text(where, ": ", error.what()));
  }
  Recognizer out{config, std::move(vocabulary), make_model(config.model, config.encoder, Seed())};
  std::visit([&](auto& m) { load_parameters(m, tensors); }, out.model);
  return out;
}

void Recognizer::save(const std::filesystem::path& folder) const {
  require(!std::filesystem::exists(folder / "model" / "config.json"), folder.string(),
          ": is the folder of a training run, which has a model in it; choose another for this one");
  std::visit([&](const auto& m) { save_model_folder(folder, m, to_json(config), vocabulary.to_json()); }, model);
}

Recognizer Recognizer::convert(const AttentionChoice& choice, const SpeechBatch* speech, nlohmann::json& report) const {
  EncoderConfig wanted = config.encoder;
  set_attention(wanted, choice);
  const ConversionConfig numbers{AnyAttention::named(wanted.attention_config()).num_kv_heads, wanted.kv_lora_rank, wanted.v_lora_rank,
                                 wanted.attention};
  require((choice.attention == AttentionName::linear) == (config.encoder.attention == AttentionName::linear) &&
              (choice.attention == AttentionName::mla_decoupled) == (config.encoder.attention == AttentionName::mla_decoupled),
          "convert: no conversion from ", to_name(config.encoder.attention), " to ", to_name(choice.attention), " is known");
  return std::visit(
      [&]<class Model>(const Model& source) {
        auto converted = speech != nullptr ? laconic::convert<Model>(source, JointSvd{}, numbers, speech->features, speech->sequences)
                                           : laconic::convert<Model>(source, JointSvd{}, numbers);
        report = report_json(converted.report);
        Recognizer out{config, vocabulary, std::move(converted.model)};
        out.config.encoder = std::get<Model>(out.model).config();
        return out;
      },
      model);
}

Evaluation Recognizer::evaluate(Cpu<float>& cpu, const Dataset& data) const {
  return std::visit([&](const auto& m) { return laconic::evaluate(m, cpu, data, vocabulary); }, model);
}

StreamedEvaluation Recognizer::evaluate_streamed(const Dataset& data, const StreamConfig& stream, Index block_frames) const {
  require(config.features.normalization == Normalization::global,
          "a stream cannot know the mean of an utterance that it has not heard: a model with global normalization expected");
  return std::visit([&](const auto& m) { return laconic::evaluate_streamed(m, data, vocabulary, stream, block_frames); }, model);
}

Index Recognizer::count_parameters() const {
  return std::visit([](const auto& m) { return m.count_parameters(); }, model);
}

double Recognizer::cache_bytes_per_second() const {
  const Index frame = std::visit([]<class M>(const M& m) { return M::cache_bytes(m.config(), frames(1)); }, model);
  return static_cast<double>(frame) * config.frames_per_second();
}

TrainState Recognizer::train(Cpu<float>& cpu, const Dataset& training, const Dataset& validation, const TrainConfig& settings, const Training& how) {
  return std::visit(
      [&](auto& m) {
        Trainer trainer(m, cpu, training, validation, vocabulary, settings, how.folder);
        trainer.run(how.progress, how.better, [](const TrainState&) { return false; }, how.checkpoint_steps);
        return trainer.state();
      },
      model);
}

}  // namespace laconic
