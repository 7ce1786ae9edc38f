// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/io/json.hpp>
#include <laconic/io/tensors.hpp>
#include <laconic/model/encoder_config.hpp>

#include <initializer_list>
#include <string>
#include <string_view>

// Model folders of Hugging Face transformers: `Wav2Vec2ConformerForCTC`.

namespace laconic {
inline namespace LACONIC_ABI {

namespace detail {

/// Returns a member of config.json, or the default of transformers if it is missing.
template <class T>
T hugging_face_member(const nlohmann::json& config, std::string_view key, const std::string& where, T otherwise) {
  return config.contains(key) ? json_member<T>(config, key, where) : otherwise;
}

/// Returns the activation that a member names; "swish" is silu, and a missing one gelu. Throws `Error` for other names.
inline Activation hugging_face_activation(const nlohmann::json& config, std::string_view key,
                                          const std::string& where) {
  const auto name = hugging_face_member<std::string>(config, key, where, "gelu");
  if (name == "swish") return Activation::silu;
  const auto found = from_name<Activation>(name);
  require(found.has_value(), where, ": ", in_quotes(key), " is ", in_quotes(name), ", one of swish, ",
          all_names<Activation>(), " expected");
  return *found;
}

/// Returns a configuration if all of it makes sense. Throws `Error` in the name of `where` otherwise.
template <class Config>
Config checked_in(const std::string& where, const Config& config) {
  try {
    return config.checked();
  } catch (const Error& error) {
    throw Error(text(where, ": ", error.what()));
  }
}

/// Checks the members that laconic does not compute with: those of training, pre-training and other tasks. A wrong type
/// there says that the file is damaged, and transformers refuses it.
inline void check_other_members(const nlohmann::json& config, const std::string& where) {
  const auto check = [&]<class T>(T otherwise, std::initializer_list<std::string_view> keys) {
    for (const std::string_view key : keys) hugging_face_member(config, key, where, otherwise);
  };
  check(0.0, {"activation_dropout", "attention_dropout", "conformer_conv_dropout", "contrastive_logits_temperature",
              "diversity_loss_weight", "feat_proj_dropout", "feat_quantizer_dropout", "final_dropout",
              "initializer_range", "layerdrop", "mask_feature_prob", "mask_time_prob"});
  check(Index{0},
        {"adapter_kernel_size", "adapter_stride", "classifier_proj_size", "codevector_dim", "mask_feature_length",
         "mask_feature_min_masks", "mask_time_length", "mask_time_min_masks", "max_source_positions",
         "num_adapter_layers", "num_codevector_groups", "num_codevectors_per_group", "num_conv_pos_embedding_groups",
         "num_conv_pos_embeddings", "num_negatives", "proj_codevector_dim", "xvector_output_dim"});
  check(false, {"apply_spec_augment", "ctc_zero_infinity", "use_weighted_layer_sum"});
  check(std::string(), {"ctc_loss_reduction"});
}

}  // namespace detail

/// Says whether a config.json is one of transformers: an object with a member `model_type`.
inline bool is_hugging_face_config(const nlohmann::json& config) {
  return config.is_object() && config.contains("model_type");
}

/// Returns the configuration of the encoder that a config.json of `Wav2Vec2ConformerForCTC` describes. Throws `Error`,
/// naming `where` and the member, for what laconic does not compute (other model types, an adapter, rotary bases other
/// than 10000, other activations), and for members of another type than transformers takes.
inline EncoderConfig wav2vec2_conformer_config(const nlohmann::json& config, const std::string& where) {
  const auto number = [&](std::string_view key, Index otherwise) {
    return detail::hugging_face_member<Index>(config, key, where, otherwise);
  };
  const auto type = json_member<std::string>(config, "model_type", where);
  require(type == "wav2vec2-conformer", where, ": 'model_type' is ", detail::in_quotes(type),
          ", 'wav2vec2-conformer' expected");
  require(!detail::hugging_face_member(config, "add_adapter", where, false), where,
          ": 'add_adapter' is true: a model with an adapter is not known");
  const auto base = detail::hugging_face_member<double>(config, "rotary_embedding_base", where, 10000);
  require(base == 10000, where, ": 'rotary_embedding_base' is ", base, ", 10000 expected");
  detail::check_other_members(config, where);
  const Index hidden = number("hidden_size", 768), intermediate = number("intermediate_size", 3072);
  require(intermediate > 0, where, ": 'intermediate_size' is ", intermediate, ", at least 1 expected");

  EncoderConfig out;
  out.num_mels = 1;
  out.d_model = hidden;
  out.num_layers = number("num_hidden_layers", 12);
  out.vocab_size = number("vocab_size", 32);
  out.attention = AttentionName::mha;
  out.num_heads = number("num_attention_heads", 12);
  out.position_embeddings_type =
      config.contains("position_embeddings_type") && config["position_embeddings_type"].is_null()
          ? PositionEmbeddings::none
          : detail::hugging_face_member(config, "position_embeddings_type", where, PositionEmbeddings::relative);
  out.hidden_act = detail::hugging_face_activation(config, "hidden_act", where);
  out.layer_norm_eps = detail::hugging_face_member(config, "layer_norm_eps", where, 1e-5);
  out.intermediate_size = intermediate;
  out.conv_kernel = number("conv_depthwise_kernel_size", 31);
  out.dropout = detail::hugging_face_member(config, "hidden_dropout", where, 0.1);
  WaveformConfig& w = out.waveform;
  w.conv_dim = detail::hugging_face_member<IndexList>(config, "conv_dim", where, {512, 512, 512, 512, 512, 512, 512});
  w.conv_kernel = detail::hugging_face_member<IndexList>(config, "conv_kernel", where, {10, 3, 3, 3, 3, 2, 2});
  w.conv_stride = detail::hugging_face_member<IndexList>(config, "conv_stride", where, {5, 2, 2, 2, 2, 2, 2});
  w.conv_bias = detail::hugging_face_member(config, "conv_bias", where, false);
  w.feat_extract_norm = detail::hugging_face_member(config, "feat_extract_norm", where, WaveformNorm::group);
  w.feat_extract_activation = detail::hugging_face_activation(config, "feat_extract_activation", where);
  out.subsampling = w.stride();
  return detail::checked_in(where, out);
}

/// Returns the config.json with which transformers makes the same model, with this class for the CTC blank. Throws
/// `Error` unless the model reads waveforms and has full attention (mha).
inline nlohmann::json hugging_face_config(const EncoderConfig& c, int blank = 0) {
  require(!c.waveform.empty() && c.attention == AttentionName::mha,
          "hugging face: a wav2vec2-conformer with mha expected; ", to_name(c.attention),
          c.waveform.empty() ? " over features" : "", " given");
  const auto activation = [](Activation kind) {
    return kind == Activation::silu ? std::string("swish") : std::string(to_name(kind));
  };
  return {{"architectures", {"Wav2Vec2ConformerForCTC"}},
          {"model_type", "wav2vec2-conformer"},
          {"hidden_size", c.d_model},
          {"num_hidden_layers", c.num_layers},
          {"num_attention_heads", c.num_heads},
          {"intermediate_size", c.feed_forward_width()},
          {"hidden_act", activation(c.hidden_act)},
          {"position_embeddings_type", c.position_embeddings_type == PositionEmbeddings::none
                                           ? nlohmann::json()
                                           : nlohmann::json(to_name(c.position_embeddings_type))},
          {"rotary_embedding_base", 10000},
          {"conv_depthwise_kernel_size", c.conv_kernel},
          {"layer_norm_eps", c.layer_norm_eps},
          {"hidden_dropout", c.dropout},
          {"activation_dropout", c.dropout},
          {"attention_dropout", c.dropout},
          {"conformer_conv_dropout", c.dropout},
          {"vocab_size", c.vocab_size},
          {"pad_token_id", blank},
          {"conv_dim", to_json(c.waveform.conv_dim)},
          {"conv_kernel", to_json(c.waveform.conv_kernel)},
          {"conv_stride", to_json(c.waveform.conv_stride)},
          {"num_feat_extract_layers", c.waveform.conv_dim.size()},
          {"conv_bias", c.waveform.conv_bias},
          {"feat_extract_norm", to_name(c.waveform.feat_extract_norm)},
          {"feat_extract_activation", activation(c.waveform.feat_extract_activation)},
          {"add_adapter", false},
          {"torch_dtype", "float32"}};
}

/// Returns what a checkpoint has before all names of its tensors: "module." of DataParallel, "_orig_mod." of a compiled
/// model. Empty if it has no tensor that ends in the name of the encoder's first weight, or more than one.
inline std::string hugging_face_prefix(const Tensors& tensors) {
  constexpr std::string_view first = "wav2vec2_conformer.feature_projection.projection.weight";
  std::string out;
  Index found = 0;
  for (const std::string& name : tensors.names())
    if (name == first || name.ends_with(text('.', first))) {
      ++found;
      out = name.substr(0, name.size() - first.size());
    }
  return found == 1 ? out : "";
}

/// Says whether a checkpoint may lack a parameter, which the model does not compute with: transformers has none for
/// masked frames where a configuration masks none.
inline bool may_lack_hugging_face_tensor(std::string_view name) {
  return name == "wav2vec2_conformer.masked_spec_embed";
}

/// Says whether a tensor of a checkpoint takes no part in the model: a convolution that transformers makes and never
/// calls, the frequencies of rotary positions, and the counter of batch norm.
inline bool is_unused_hugging_face_tensor(std::string_view name) {
  return name.starts_with("wav2vec2_conformer.encoder.pos_conv_embed.") ||
         name == "wav2vec2_conformer.encoder.embed_positions.inv_freq" ||
         name.ends_with(".batch_norm.num_batches_tracked");
}

/// Says whether a tensor of a checkpoint served pretraining only: the quantizer of `Wav2Vec2ConformerForPreTraining`
/// and its projections.
inline bool is_pretraining_hugging_face_tensor(std::string_view name) {
  return name.starts_with("quantizer.") || name.starts_with("project_hid.") || name.starts_with("project_q.");
}

}  // namespace LACONIC_ABI
}  // namespace laconic
