// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/attention.hpp>
#include <laconic/io/llama.hpp>
#include <laconic/model/language_model.hpp>

#include <filesystem>
#include <string>
#include <string_view>
#include <utility>

// Model folders of Hugging Face transformers: `DeepseekV3ForCausalLM` without experts. A Llama that `decouple_rotary`
// has converted is saved as one.

namespace laconic {
inline namespace LACONIC_ABI {

/// Returns the configuration of the Llama with decoupled latents (MlaDecoupled) that a config.json of DeepSeek-V3
/// describes. Throws `Error`, naming `where` and the member, for what laconic does not compute: experts, heads of
/// values of another width.
inline LanguageModelConfig deepseek_config(const nlohmann::json& config, const std::string& where) {
  const auto type = json_member<std::string>(config, "model_type", where);
  require(type == "deepseek_v3", where, ": 'model_type' is ", detail::in_quotes(type), ", 'deepseek_v3' expected");
  const auto number = [&](std::string_view key) { return json_member<Index>(config, key, where); };
  require(config.contains("q_lora_rank"), where, ": no 'q_lora_rank', a number or null expected");
  require(number("first_k_dense_replace") >= number("num_hidden_layers"), where, ": 'first_k_dense_replace' is ",
          number("first_k_dense_replace"), ", at least all ", number("num_hidden_layers"),
          " layers expected: experts are not known");
  require(number("v_head_dim") == number("qk_nope_head_dim"), where, ": 'v_head_dim' is ", number("v_head_dim"),
          ", qk_nope_head_dim = ", number("qk_nope_head_dim"), " expected");
  require(detail::hugging_face_member(config, "rope_interleave", where, true), where,
          ": 'rope_interleave' is false, true expected");
  require(!detail::hugging_face_member(config, "attention_bias", where, false), where,
          ": 'attention_bias' is true, false expected");
  nlohmann::json as_llama = config;
  as_llama["model_type"] = "llama";
  as_llama.erase("head_dim");
  LanguageModelConfig out = llama_config(as_llama, where);
  out.attention = AttentionName::mla_decoupled;
  out.num_kv_heads = 0;
  out.head_dim = number("qk_nope_head_dim");
  out.q_lora_rank = config["q_lora_rank"].is_null() ? 0 : number("q_lora_rank");
  out.kv_lora_rank = number("kv_lora_rank");
  out.qk_rope_head_dim = number("qk_rope_head_dim");
  require(out.rope.scaling == RotaryScaling::none, where, ": 'rope_parameters' has the type ",
          to_name(out.rope.scaling), ", default expected");
  return detail::checked_in(where, out);
}

namespace detail {

/// Returns where DeepSeek-V3 has the parameter of a Llama with decoupled latents.
inline TensorPlace deepseek_place(const LanguageModelConfig& c, std::string_view name) {
  TensorPlace out = llama_place(name);
  const auto at = out.name.find("self_attn.");
  if (at == std::string::npos) return out;
  const Index heads = c.num_heads, nope = c.head_dim, rope = c.qk_rope_head_dim, rank = c.kv_lora_rank;
  const std::string_view rest = std::string_view(name).substr(name.find("self_attn.") + 10);
  const auto place = [&](std::string_view tensor, Index blocks, Index rows, Index first) {
    return TensorPlace{
        out.name.substr(0, at) + "self_attn." + std::string(tensor) + ".weight", 1, 0, false, blocks, rows, first};
  };
  const std::string_view q = c.q_lora_rank > 0 ? "q_b_proj" : "q_proj";
  if (rest == "linear_q_down.weight") return place("q_a_proj", 0, 0, 0);
  if (rest == "q_norm.weight") return place("q_a_layernorm", 0, 0, 0);
  if (rest == "linear_q.weight") return place(q, heads, nope + rope, 0);
  if (rest == "linear_q_rope.weight") return place(q, heads, nope + rope, nope);
  if (rest == "linear_kv_down.weight") return place("kv_a_proj_with_mqa", 1, rank + rope, 0);
  if (rest == "linear_k_rope.weight") return place("kv_a_proj_with_mqa", 1, rank + rope, rank);
  if (rest == "kv_norm.weight") return place("kv_a_layernorm", 0, 0, 0);
  if (rest == "linear_k_up.weight") return place("kv_b_proj", heads, 2 * nope, 0);
  if (rest == "linear_v_up.weight") return place("kv_b_proj", heads, 2 * nope, nope);
  return out;
}

/// Returns the configuration with its head_dim, which may be left to d_model / num_heads.
inline LanguageModelConfig with_head_dim(LanguageModelConfig c) {
  if (c.head_dim == 0) c.head_dim = c.d_model / c.num_heads;
  return c;
}

template <class Model>
inline constexpr bool is_deepseek = false;
template <class Model>
inline constexpr bool has_low_rank_queries = false;
template <class Kind, class Heads, Index R, Index RopeDim, class Query, class T>
inline constexpr bool
    is_deepseek<LanguageModel<Kind, Attention<Heads, DecoupledLatent<R, RopeDim, RmsNorm>, Rotary<>, Query>, T>> = true;
template <class Kind, class Heads, class Latent, Index R, class T>
inline constexpr bool
    has_low_rank_queries<LanguageModel<Kind, Attention<Heads, Latent, Rotary<>, LowRankQuery<R>>, T>> = true;

}  // namespace detail

/// Returns the DeepSeek-V3 in a model folder of transformers, as Llama<MlaDecoupled<dyn, dyn, dyn>>, where its
/// configuration gives a q_lora_rank as Llama<MlaDecoupled<dyn, dyn, dyn, LowRankQuery<dyn>>>, or with sizes in the
/// type. Allocates. Throws `Error` for what laconic does not compute, and for files that do not fit.
template <class Model>
Model load_deepseek(const std::filesystem::path& folder) {
  static_assert(detail::is_deepseek<Model>, "laconic: load_deepseek makes a Llama with MlaDecoupled and its RmsNorm");
  const auto config_in = [](const nlohmann::json& config, const std::string& where) {
    const LanguageModelConfig out = deepseek_config(config, where);
    constexpr bool low_rank = detail::has_low_rank_queries<Model>;
    require(
        (out.q_lora_rank > 0) == low_rank, where, ": 'q_lora_rank' is ", config["q_lora_rank"].dump(),
        low_rank ? ", a number expected by a model with LowRankQuery" : ", null expected by a model with FullQuery");
    return out;
  };
  return detail::model_in<Model>(folder, config_in, [](Model& model, const Tensors& tensors) {
    const LanguageModelConfig& c = model.config();
    detail::load_from_places(
        model, tensors, [&](std::string_view name) { return detail::deepseek_place(c, name); },
        [&](std::string_view name) { return c.tied_embeddings && name == "lm_head.weight"; });
  });
}

/// Writes a Llama with decoupled latents as a folder of DeepSeek-V3, which transformers runs; whole or not at all.
/// Throws `Error` where DeepSeek-V3 computes something else: rotary keys whose pairs are not at equal distances
/// (RotaryChoice::uniform, with a head_dim that is a multiple of qk_rope_head_dim), scaled rates, or biases.
template <class Model>
void save_deepseek(const std::filesystem::path& folder, const Model& model) {
  static_assert(detail::is_deepseek<Model>, "laconic: save_deepseek takes a Llama with MlaDecoupled and its RmsNorm");
  const LanguageModelConfig c = detail::with_head_dim(model.config());
  const Index pairs = c.qk_rope_head_dim / 2, step = c.head_dim / std::max<Index>(1, c.qk_rope_head_dim);
  for (Index i = 0; i < c.rope_pairs.size(); ++i)
    require(c.head_dim % c.qk_rope_head_dim == 0 && c.rope_pairs.size() == pairs && c.rope_pairs[i] == i * step,
            "save_deepseek: pair ", c.rope_pairs[i], " given as number ", i, ", ", i * step,
            " expected, as RotaryChoice::uniform takes them for a head_dim that is a multiple of qk_rope_head_dim");
  require(c.rope.scaling == RotaryScaling::none, "save_deepseek: rates scaled as ", to_name(c.rope.scaling),
          " given, none expected");
  require(!c.attention_bias, "save_deepseek: attention with biases given, without expected");
  const nlohmann::json config = {{"architectures", {"DeepseekV3ForCausalLM"}},
                                 {"model_type", "deepseek_v3"},
                                 {"vocab_size", c.vocab_size},
                                 {"max_position_embeddings", c.max_positions},
                                 {"hidden_size", c.d_model},
                                 {"intermediate_size", c.feed_forward_width()},
                                 {"num_hidden_layers", c.num_layers},
                                 {"num_attention_heads", c.num_heads},
                                 {"num_key_value_heads", c.num_heads},
                                 {"q_lora_rank", c.q_lora_rank > 0 ? nlohmann::json(c.q_lora_rank) : nlohmann::json()},
                                 {"kv_lora_rank", c.kv_lora_rank},
                                 {"qk_nope_head_dim", c.head_dim},
                                 {"qk_rope_head_dim", c.qk_rope_head_dim},
                                 {"v_head_dim", c.head_dim},
                                 {"first_k_dense_replace", c.num_layers},
                                 {"rms_norm_eps", c.layer_norm_eps},
                                 {"hidden_act", to_name(c.hidden_act)},
                                 {"attention_bias", false},
                                 {"rope_parameters", {{"rope_type", "default"}, {"rope_theta", c.rope.base}}},
                                 {"rope_interleave", true},
                                 {"tie_word_embeddings", c.tied_embeddings},
                                 {"torch_dtype", "float32"}};
  const auto tensors =
      detail::tensors_of_places(model, [&](std::string_view name) { return detail::deepseek_place(c, name); });
  SafetensorsWriter writer;
  writer.metadata = {{"format", "pt"}};
  for (const auto& [name, tensor] : tensors)
    writer.add(
        name, tensor.first,
        std::span<const typename Model::Scalar>(tensor.second.data(), static_cast<std::size_t>(tensor.second.size())));
  FolderWriter out(folder);
  write_json(out.path() / "config.json", config);
  writer.write(out.path() / "model.safetensors");
  out.commit();
}

}  // namespace LACONIC_ABI
}  // namespace laconic
