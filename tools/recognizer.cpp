// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include "recognizer.hpp"

#include <laconic/convert/convert.hpp>

namespace laconic::inline LACONIC_ABI {

namespace {

using FullRankModel = std::variant_alternative_t<0, AnyModel>;
using LatentModel = std::variant_alternative_t<1, AnyModel>;

/// The key-value heads that an attention's name means; throws where it contradicts what was asked for.
Index kv_heads_of(AttentionName attention, Index num_heads, Index asked) {
  const auto only = [&](Index heads) {
    require(asked == 0 || asked == heads, "num_kv_heads (--kv-heads): ", asked, " given, but ", to_name(attention), " has ", heads, " here");
    return heads;
  };
  if (attention == AttentionName::mqa) return only(1);
  if (attention != AttentionName::gqa) return only(num_heads);
  require(asked > 0, "num_kv_heads (--kv-heads): gqa needs a number of key-value heads, a divisor of ", num_heads);
  return asked;
}

/// The latent that an attention's name means: none, or one that must be asked for.
Index latent_of(AttentionName attention, Index d_model, Index asked) {
  if (attention != AttentionName::mla_simple) {
    require(asked == 0, "kv_lora_rank (--latent-dim): ", asked, " given, but ", to_name(attention), " has no latent");
    return 0;
  }
  require(asked > 0 && asked <= d_model, "kv_lora_rank (--latent-dim): ", asked, " given, 1 to d_model = ", d_model, " expected for ",
          to_name(attention));
  return asked;
}

AnyModel make_model(AttentionName attention, const ConformerConfig& config, Seed seed) {
  if (attention == AttentionName::mla_simple) return LatentModel(config, seed);
  return FullRankModel(config, seed);
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

/// With the numbers that follow from the attention's name; throws where they contradict it.
RecognizerConfig completed(RecognizerConfig config, const Vocabulary& vocabulary) {
  require(config.model == "conformer", "model: \"", config.model, "\" given, \"conformer\" expected");
  ConformerConfig& encoder = config.encoder;
  encoder.vocab_size = vocabulary.size();
  require(encoder.num_mels == config.features.fbank.num_mels, "num_mels: the encoder expects ", encoder.num_mels, ", the features have ",
          config.features.fbank.num_mels);
  encoder.num_kv_heads = kv_heads_of(config.attention, encoder.num_heads, encoder.num_kv_heads);
  encoder.kv_lora_rank = latent_of(config.attention, encoder.d_model, encoder.kv_lora_rank);
  return config;
}

Index parameter_count(AttentionName attention, const ConformerConfig& config) {
  return attention == AttentionName::mla_simple ? LatentModel::parameter_count(config) : FullRankModel::parameter_count(config);
}

}  // namespace

Tokens corpus_tokens(const std::filesystem::path& folder) {
  const auto path = folder / "corpus.json";
  return std::filesystem::exists(path) ? json_member<Tokens>(read_json(path), "tokens", path.string()) : Tokens::characters;
}

Recognizer Recognizer::create(RecognizerConfig config, Vocabulary vocabulary, Seed seed) {
  config = completed(std::move(config), vocabulary);
  return {config, std::move(vocabulary), make_model(config.attention, config.encoder, seed)};
}

Recognizer Recognizer::load(const std::filesystem::path& folder) {
  const bool is_run = !std::filesystem::exists(folder / "config.json") && std::filesystem::exists(folder / "model" / "config.json");
  const auto path = is_run ? folder / "model" : folder;
  const std::string where = (path / "config.json").string();
  auto config = json_value<RecognizerConfig>(read_model_config(path), where);
  auto vocabulary = Vocabulary::from_json(config.tokens, read_model_vocab(path), (path / "vocab.json").string());
  require(vocabulary.size() == config.encoder.vocab_size, where, ": vocab_size is ", config.encoder.vocab_size, ", vocab.json has ",
          vocabulary.size(), " tokens");
  const SafetensorsFile tensors = open_model_tensors(path);
  try {
    config = completed(std::move(config), vocabulary);
    // Before memory is taken for a model that the file cannot fill.
    const Index described = parameter_count(config.attention, config.encoder);
    require(described <= tensors.count_values(), "describes a model of at least ", described, " numbers, but model.safetensors holds ",
            tensors.count_values());
  } catch (const Error& error) {
    throw Error(text(where, ": ", error.what()));
  }
  Recognizer out{config, std::move(vocabulary), make_model(config.attention, config.encoder, Seed())};
  std::visit([&](auto& m) { load_parameters(m, tensors); }, out.model);
  return out;
}

void Recognizer::save(const std::filesystem::path& folder) const {
  require(!std::filesystem::exists(folder / "model" / "config.json"), folder.string(),
          ": is the folder of a training run, which has a model in it; choose another for this one");
  std::visit([&](const auto& m) { save_model_folder(folder, m, to_json(config), vocabulary.to_json()); }, model);
}

Recognizer Recognizer::convert(AttentionName attention, Index kv_heads, Index latent_dim, const SpeechBatch* speech,
                               nlohmann::json& report) const {
  Recognizer out{config, vocabulary, model};
  out.config.attention = attention;
  const ConversionConfig numbers{kv_heads_of(attention, config.encoder.num_heads, kv_heads),
                                 latent_of(attention, config.encoder.d_model, latent_dim)};
  out.config.encoder.num_kv_heads = numbers.num_kv_heads;
  out.config.encoder.kv_lora_rank = numbers.kv_lora_rank;
  const auto to = [&]<class Target>(const auto& source) {
    auto converted = speech != nullptr ? laconic::convert<Target>(source, JointSvd{}, numbers, speech->features, speech->sequences)
                                       : laconic::convert<Target>(source, JointSvd{}, numbers);
    report = report_json(converted.report);
    out.model = std::move(converted.model);
  };
  if (attention == AttentionName::mla_simple)
    std::visit([&](const auto& source) { to.template operator()<LatentModel>(source); }, model);
  else {
    const auto* source = std::get_if<FullRankModel>(&model);
    require(source != nullptr, "convert: no conversion from ", to_name(config.attention), " to ", to_name(attention), " is known");
    to.template operator()<FullRankModel>(*source);
  }
  return out;
}

Evaluation Recognizer::evaluate(Cpu<float>& cpu, const Dataset& data) const {
  return std::visit([&](const auto& m) { return laconic::evaluate(m, cpu, data, vocabulary); }, model);
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
