// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include "recognizer.hpp"

#include <laconic/convert/convert.hpp>

namespace laconic::inline v0 {

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

}  // namespace

Recognizer Recognizer::create(RecognizerConfig config, Vocabulary vocabulary, Seed seed) {
  require(config.model == "conformer", "model: \"", config.model, "\" given, \"conformer\" expected");
  ConformerConfig& encoder = config.encoder;
  encoder.vocab_size = vocabulary.size();
  require(encoder.num_mels == config.features.fbank.num_mels, "num_mels: the encoder expects ", encoder.num_mels, ", the features have ",
          config.features.fbank.num_mels);
  encoder.num_kv_heads = kv_heads_of(config.attention, encoder.num_heads, encoder.num_kv_heads);
  require(config.attention != AttentionName::mla_simple || encoder.kv_lora_rank > 0, "kv_lora_rank (--latent-dim): mla-simple needs one, at most d_model = ",
          encoder.d_model);
  return {config, std::move(vocabulary), make_model(config.attention, encoder, seed)};
}

Recognizer Recognizer::load(const std::filesystem::path& folder) {
  const auto path = std::filesystem::exists(folder / "model" / "config.json") ? folder / "model" : folder;  // a run's folder will do
  const std::string where = (path / "config.json").string();
  const auto config = from_json<RecognizerConfig>(read_model_config(path), where);
  auto vocabulary = Vocabulary::from_json(config.tokens, read_model_vocab(path), (path / "vocab.json").string());
  require(vocabulary.size() == config.encoder.vocab_size, where, ": vocab_size is ", config.encoder.vocab_size, ", vocab.json has ",
          vocabulary.size(), " tokens");
  Recognizer out = [&] {
    try {
      return create(config, std::move(vocabulary), Seed());
    } catch (const Error& error) {
      throw Error(text(where, ": ", error.what()));
    }
  }();
  std::visit([&](auto& model) { load_parameters(model, open_model_tensors(path)); }, out.model);
  return out;
}

void Recognizer::save(const std::filesystem::path& folder) const {
  std::visit([&](const auto& m) { save_model_folder(folder, m, to_json(config), vocabulary.to_json()); }, model);
}

Recognizer Recognizer::convert(AttentionName attention, Index kv_heads, Index latent_dim, const SpeechBatch* speech,
                               nlohmann::json& report) const {
  Recognizer out{config, vocabulary, model};
  out.config.attention = attention;
  ConversionConfig numbers{kv_heads_of(attention, config.encoder.num_heads, kv_heads), 0};
  if (attention == AttentionName::mla_simple) {
    require(latent_dim > 0 && latent_dim <= config.encoder.d_model, "kv_lora_rank (--latent-dim): ", latent_dim, " given, 1 to d_model = ",
            config.encoder.d_model, " expected");
    numbers.kv_lora_rank = latent_dim;
  }
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

}  // namespace laconic::inline v0
