// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include "recognizer.hpp"

#include <laconic/convert/convert.hpp>

namespace laconic::inline LACONIC_ABI {

namespace {

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
    throw Error(text(to_name(c.attention), ": ", error.what(), " (--heads, --kv-heads, --latent-dim, --v-latent-dim, --rope-dim)"));
  }
  return encoder;
}

AnyModel make_model(EncoderName name, const EncoderConfig& config, Seed seed) {
  return with_model(name, [&]<class M>(std::type_identity<M>) { return AnyModel(std::in_place_type<M>, config, seed); });
}

Tokens corpus_tokens(const std::filesystem::path& folder) {
  const auto path = folder / "corpus.json";
  return std::filesystem::exists(path) ? json_member<Tokens>(read_json(path), "tokens", path.string()) : Tokens::characters;
}

Recognizer Recognizer::create(RecognizerConfig config, Vocabulary vocabulary, Seed seed) {
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
  const EncoderConfig wanted = with_attention(config.encoder, choice);
  const ConversionConfig numbers{wanted.num_kv_heads, wanted.kv_lora_rank, wanted.v_lora_rank, wanted.attention};
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
  config.features.require_streamable();
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
