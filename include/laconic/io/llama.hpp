// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/io/hugging_face.hpp>
#include <laconic/io/placed_parameters.hpp>
#include <laconic/model/language_model_config.hpp>

#include <filesystem>
#include <string>
#include <string_view>
#include <utility>

// Model folders of Hugging Face transformers: `LlamaForCausalLM`, and `MistralForCausalLM` without a sliding window.

namespace laconic {
inline namespace LACONIC_ABI {

namespace detail {

/// Returns the rates of rotary positions that a config.json describes, in `rope_parameters` as transformers 5 writes it
/// or in `rope_theta` and `rope_scaling`. Throws `Error` for other scalings.
inline RotaryRates rotary_rates(const nlohmann::json& config, Index max_positions, const std::string& where) {
  RotaryRates out;
  out.base = hugging_face_member<double>(config, "rope_theta", where, out.base);
  const auto part = hugging_face_member<double>(config, "partial_rotary_factor", where, 1);
  require(part == 1, where, ": 'partial_rotary_factor' is ", part, ", 1 expected");
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    if (!config.contains(key) || config[key].is_null()) continue;
    const nlohmann::json& rope = config[key];
    const std::string at = where + ": " + in_quotes(key);
    require(rope.is_object(), at, " is ", shown(rope), ", an object expected");
    const auto number = [&](std::string_view name, double otherwise) {
      return hugging_face_member<double>(rope, name, at, otherwise);
    };
    out.base = number("rope_theta", out.base);
    const auto old = hugging_face_member<std::string>(rope, "type", at, "default");
    const auto type = hugging_face_member<std::string>(rope, "rope_type", at, old);
    const auto found = from_name<RotaryScaling>(type == "default" ? "none" : type);
    require(found.has_value(), at, ": 'rope_type' is ", in_quotes(type),
            ", one of default, linear, llama3, yarn expected");
    out.scaling = *found;
    out.factor = number("factor", 1);
    out.low_freq_factor = number("low_freq_factor", out.low_freq_factor);
    out.high_freq_factor = number("high_freq_factor", out.high_freq_factor);
    out.beta_fast = number("beta_fast", out.beta_fast);
    out.beta_slow = number("beta_slow", out.beta_slow);
    require(!rope.contains("mscale") && !rope.contains("mscale_all_dim"), at,
            ": 'mscale' given, which laconic does not compute");
    require(hugging_face_member(rope, "truncate", at, true), at, ": 'truncate' is false, true expected");
    require(number("partial_rotary_factor", 1) == 1, at, ": 'partial_rotary_factor' is ",
            number("partial_rotary_factor", 1), ", 1 expected");
    out.attention_factor =
        rope.contains("attention_factor") && !rope["attention_factor"].is_null() ? number("attention_factor", 0) : 0;
    out.original_max_positions =
        hugging_face_member<Index>(rope, "original_max_position_embeddings", at, max_positions);
  }
  return checked_in(where, out);
}

/// Returns where Llama has the parameter of a Llama with full attention.
inline TensorPlace llama_place(std::string_view name) {
  constexpr std::pair<std::string_view, std::string_view> whole[] = {{"wte.", "model.embed_tokens."},
                                                                     {"layer_norm.", "model.norm."}};
  for (const auto& [ours, theirs] : whole)
    if (name.starts_with(ours)) return {text(theirs, name.substr(ours.size()))};
  if (!name.starts_with("layers.")) return {std::string(name)};  // lm_head
  constexpr std::pair<std::string_view, std::string_view> projections[] = {
      {"linear_q.", "q_proj."}, {"linear_k.", "k_proj."}, {"linear_v.", "v_proj."}, {"linear_out.", "o_proj."}};
  std::string out = text("model.", name);
  for (const auto& [ours, theirs] : projections)
    if (const auto at = out.find(ours); at != std::string::npos) out.replace(at, ours.size(), theirs);
  return {out};
}

}  // namespace detail

/// Returns the configuration of the Llama that a config.json describes. Throws `Error`, naming `where` and the member,
/// for what laconic does not compute: biases in the feed-forward modules, a sliding window, other rotary scalings.
inline LanguageModelConfig llama_config(const nlohmann::json& config, const std::string& where) {
  const auto number = [&](std::string_view key, Index otherwise) {
    return config.contains(key) && config[key].is_null()
               ? otherwise
               : detail::hugging_face_member<Index>(config, key, where, otherwise);
  };
  const auto type = json_member<std::string>(config, "model_type", where);
  require(type == "llama" || type == "mistral", where, ": 'model_type' is ", detail::in_quotes(type),
          ", 'llama' or 'mistral' expected");
  require(!detail::hugging_face_member(config, "mlp_bias", where, false), where,
          ": 'mlp_bias' is true, false expected");
  // transformers gives a Mistral a sliding window of 4096 unless its file says null.
  const bool slides = config.contains("sliding_window") ? !config["sliding_window"].is_null() : type == "mistral";
  require(!slides, where, ": 'sliding_window' is ", config.contains("sliding_window") ? "given" : "missing (4096)",
          ", null expected");
  LanguageModelConfig out;
  out.vocab_size = number("vocab_size", 32000);
  out.max_positions = number("max_position_embeddings", type == "llama" ? 2048 : 131072);
  out.d_model = number("hidden_size", 4096);
  out.num_layers = number("num_hidden_layers", 32);
  out.num_heads = number("num_attention_heads", 32);
  out.num_kv_heads = number("num_key_value_heads", type == "llama" ? out.num_heads : 8);
  out.attention = out.num_kv_heads == out.num_heads ? AttentionName::mha
                  : out.num_kv_heads == 1           ? AttentionName::mqa
                                                    : AttentionName::gqa;
  out.head_dim = number("head_dim", 0);
  out.position_embeddings_type = PositionEmbeddings::rotary;
  out.rope = detail::rotary_rates(config, out.max_positions, where);
  out.attention_bias = detail::hugging_face_member(config, "attention_bias", where, false);
  const auto activation = detail::hugging_face_member<std::string>(config, "hidden_act", where, "silu");
  out.hidden_act =
      activation == "silu" ? Activation::silu : detail::hugging_face_activation(config, "hidden_act", where);
  out.intermediate_size = number("intermediate_size", type == "llama" ? 11008 : 14336);
  out.layer_norm_eps = detail::hugging_face_member(config, "rms_norm_eps", where, 1e-6);
  out.tied_embeddings = detail::hugging_face_member(config, "tie_word_embeddings", where, false);
  return detail::checked_in(where, out);
}

/// Fills a Llama with full or grouped attention from the files of a Llama of transformers. Every parameter must be
/// there with the model's shape, all values finite, and no tensor may be unknown but the rates of old files. Otherwise
/// throws `Error` and leaves the model as it was. Allocates.
template <class Model>
void load_llama_parameters(Model& model, const Tensors& tensors) {
  if constexpr (requires { Model::Policy::Position::pairs; })
    static_assert(Model::Policy::Position::turns_keys && Model::Policy::Position::pairs == RotaryPairs::halves,
                  "laconic: a Llama of transformers has Rotary<RotaryPairs::halves> positions");
  const bool tied = model.config().tied_embeddings;
  detail::load_from_places(model, tensors, detail::llama_place, [&](std::string_view name) {
    return name.ends_with(".rotary_emb.inv_freq") || (tied && name == "lm_head.weight");
  });
}

/// Returns the Llama in a model folder of transformers: config.json and its tensors. Allocates. Throws `Error` for what
/// laconic does not compute, and for files that do not fit.
///
///     const auto model = load_llama<Llama<Gqa<dyn, dyn, Rotary<RotaryPairs::halves>>>>("llama");
template <class Model>
Model load_llama(const std::filesystem::path& folder) {
  return detail::model_in<Model>(folder, llama_config, load_llama_parameters<Model>);
}

}  // namespace LACONIC_ABI
}  // namespace laconic
