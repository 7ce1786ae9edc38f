// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/io/hugging_face.hpp>
#include <laconic/io/placed_parameters.hpp>
#include <laconic/model/language_model_config.hpp>

#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>

// Model folders of Hugging Face transformers: `GPT2LMHeadModel` and `GPT2Model`.

namespace laconic {
inline namespace LACONIC_ABI {

/// Returns the configuration of the GPT that a config.json of GPT-2 describes. Throws `Error`, naming `where` and the
/// member, for what laconic does not compute.
inline LanguageModelConfig gpt2_config(const nlohmann::json& config, const std::string& where) {
  const auto number = [&](std::string_view key, Index otherwise) {
    return detail::hugging_face_member<Index>(config, key, where, otherwise);
  };
  const auto is = [&](std::string_view key, bool otherwise, bool expected) {
    const bool given = detail::hugging_face_member(config, key, where, otherwise);
    require(given == expected, where, ": ", detail::in_quotes(key), " is ", given ? "true" : "false", ", ",
            expected ? "true" : "false", " expected");
  };
  const auto type = json_member<std::string>(config, "model_type", where);
  require(type == "gpt2", where, ": 'model_type' is ", detail::in_quotes(type), ", 'gpt2' expected");
  is("scale_attn_weights", true, true);
  is("scale_attn_by_inverse_layer_idx", false, false);
  is("add_cross_attention", false, false);

  LanguageModelConfig out;
  out.vocab_size = number("vocab_size", 50257);
  out.max_positions = number("n_positions", 1024);
  out.d_model = number("n_embd", 768);
  out.num_layers = number("n_layer", 12);
  out.attention = AttentionName::mha;
  out.num_heads = number("n_head", 12);
  const bool has_width = config.contains("n_inner") && !config["n_inner"].is_null();
  out.intermediate_size = has_width ? number("n_inner", 0) : 0;
  out.hidden_act = config.contains("activation_function")
                       ? detail::hugging_face_activation(config, "activation_function", where)
                       : Activation::gelu_new;
  out.layer_norm_eps = detail::hugging_face_member(config, "layer_norm_epsilon", where, 1e-5);
  out.tied_embeddings = detail::hugging_face_member(config, "tie_word_embeddings", where, true);
  out.dropout = detail::hugging_face_member(config, "resid_pdrop", where, 0.1);
  return detail::checked_in(where, out);
}

namespace detail {

/// Returns where GPT-2 has the parameter of a Gpt with learned positions and full attention.
inline TensorPlace gpt2_place(std::string_view name) {
  constexpr std::pair<std::string_view, std::string_view> same[] = {
      {"wte.", "wte."}, {"wpe.", "wpe."}, {"layer_norm.", "ln_f."}};
  for (const auto& [ours, theirs] : same)
    if (name.starts_with(ours)) return {text(theirs, name.substr(ours.size()))};
  if (!name.starts_with("layers.")) return {std::string(name)};  // lm_head
  const std::size_t dot = name.find('.', 7);
  const std::string block = text("h.", name.substr(7, dot - 7), '.');
  const std::string_view rest = name.substr(dot + 1), last = rest.substr(rest.rfind('.') + 1);
  constexpr std::string_view projections[] = {"attn.linear_q.", "attn.linear_k.", "attn.linear_v."};
  for (Index i = 0; i < 3; ++i)
    if (rest.starts_with(projections[i])) return {text(block, "attn.c_attn.", last), 3, i, true};
  constexpr std::pair<std::string_view, std::string_view> linear[] = {{"attn.linear_out.", "attn.c_proj."},
                                                                      {"mlp.intermediate_dense.", "mlp.c_fc."},
                                                                      {"mlp.output_dense.", "mlp.c_proj."}};
  for (const auto& [ours, theirs] : linear)
    if (rest.starts_with(ours)) return {text(block, theirs, last), 1, 0, true};
  return {text(block, rest)};
}

}  // namespace detail

/// Fills a Gpt with learned positions and full attention from the files of a GPT-2 of transformers. Every parameter
/// must be there with the model's shape, all values finite, and no tensor may be unknown but the masks of old files.
/// Otherwise throws `Error` and leaves the model as it was. Allocates.
template <class Model>
void load_gpt2_parameters(Model& model, const Tensors& tensors) {
  const std::string prefix = tensors.contains("transformer.wte.weight") ? "transformer." : "";
  const bool tied = model.config().tied_embeddings;
  detail::load_from_places(
      model, tensors,
      [&](std::string_view name) {
        detail::TensorPlace place = detail::gpt2_place(name);
        if (!name.starts_with("lm_head")) place.name = prefix + place.name;
        return place;
      },
      [&](std::string_view name) {
        return name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias") ||
               (tied && name == "lm_head.weight");
      });
}

/// Returns the GPT-2 in a model folder of transformers: config.json and its tensors. Allocates. Throws `Error` for what
/// laconic does not compute, and for files that do not fit.
///
///     const auto model = load_gpt2<Gpt<Mha<dyn, NoPosition>>>("gpt2");
template <class Model>
Model load_gpt2(const std::filesystem::path& folder) {
  return detail::model_in<Model>(folder, gpt2_config, load_gpt2_parameters<Model>);
}

}  // namespace LACONIC_ABI
}  // namespace laconic
