// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/model/gpt.hpp>

#include <cstddef>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Holds the sizes of the cross-attention of a decoder. They may stay 0 where its type gives them.
struct CrossAttentionConfig {
  Index num_heads = 0;         ///< query heads
  Index num_kv_heads = 0;      ///< key-value heads, a divisor of num_heads
  Index kv_lora_rank = 0;      ///< rank of the latent: see AttentionConfig
  Index v_lora_rank = 0;       ///< rank of the values' latent: see AttentionConfig
  Index q_lora_rank = 0;       ///< rank of the queries
  Index qk_rope_head_dim = 0;  ///< width of the decoupled rotary key

  /// Visits each member with its name, for files and command lines.
  static constexpr void fields(auto& self, auto&& visit) {
    visit("num_heads", self.num_heads);
    visit("num_kv_heads", self.num_kv_heads);
    visit("kv_lora_rank", self.kv_lora_rank);
    visit("v_lora_rank", self.v_lora_rank);
    visit("q_lora_rank", self.q_lora_rank);
    visit("qk_rope_head_dim", self.qk_rope_head_dim);
  }
};

/// Holds all sizes of a decoder that reads an encoder's output.
struct AttentionDecoderConfig {
  LanguageModelConfig text;      ///< everything but the cross-attention
  CrossAttentionConfig cross{};  ///< the cross-attention; its width and biases are those of `text`

  /// Returns the sizes of the cross-attention.
  constexpr AttentionConfig cross_config() const {
    return {.d_model = text.d_model,
            .num_heads = cross.num_heads,
            .num_kv_heads = cross.num_kv_heads,
            .kv_lora_rank = cross.kv_lora_rank,
            .v_lora_rank = cross.v_lora_rank,
            .q_lora_rank = cross.q_lora_rank,
            .qk_rope_head_dim = cross.qk_rope_head_dim,
            .attention_bias = text.attention_bias};
  }
  /// Returns this configuration if every size is in its range. Throws Error otherwise. The upper ends exceed any use
  /// and keep products from overflowing.
  constexpr const AttentionDecoderConfig& checked() const {
    text.checked();
    CrossAttentionConfig::fields(cross, [](const char* name, const Index& value) {
      require(value >= 0 && value <= 1 << 16, "attention decoder: ", name, ' ', value,
              " given for the cross-attention, 0 to ", 1 << 16, " expected");
    });
    return *this;
  }
  /// Visits each member with its name, for files and command lines.
  static constexpr void fields(auto& self, auto&& visit) {
    visit("text", self.text);
    visit("cross", self.cross);
  }
};

/// Computes x + attention(norm(x)) over the rows of a source: the cross-attention of a decoder's block.
template <class Policy, class T>
class CrossAttention : public Module<CrossAttention<Policy, T>> {
 public:
  using AttentionType = typename Policy::template Layer<T>;  ///< the layer of the attention policy

  /// Makes the layer with its initial parameters. Allocates.
  CrossAttention(const AttentionDecoderConfig& c, Seed seed)
      : norm(c.text.d_model, c.text.layer_norm_eps),
        attention(c.cross_config(), c.text.dropout, seed / "attention"),
        dropout_(c.text.dropout) {}

  /// Returns x (rows, d_model) with what its rows, in `queries`, read from the memory of the sources.
  template <class Context, class Tensor, class Memory>
  Tensor operator()(Context& context, Tensor x, const Sequences& queries, const Memory& memory,
                    const Sequences& sources, const Tensor& table) const {
    Tensor y = attention.cross(context, norm(context, x), queries, memory, sources, table);
    return context.add(std::move(x), context.dropout(std::move(y), dropout_));
  }
  /// Visits the parameters with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    visit("norm", self.norm);
    visit("attention", self.attention);
  }

  LayerNorm<T> norm;        ///< the norm before it
  AttentionType attention;  ///< the attention

 private:
  double dropout_;
};

/// Predicts tokens from the tokens before them and from the output of an encoder (Vaswani et al. 2017, section 3.1,
/// with a norm before each part): a GPT with a cross-attention between self-attention and feed-forward of each block.
///
///     AttentionDecoder<Mha<4, NoPosition>, MlaSimple<4, 32, NoPosition>> decoder(config, Seed(1));
///     const auto memory = decoder.remember(cpu, encoded, sources);
///     auto logits = decoder(cpu, {ids, Sequences{5, 9}}, memory, sources);   // sequence n reads source n
///
/// The memory of the sources is computed once for all tokens. With `CachedInput` it is the encoder's output itself, and
/// all layers share it. Construction allocates, and throws Error where the sizes do not fit; the forward pass takes
/// memory from the context's pool only. `SourceDecoder` (decode/source_decoder.hpp) runs it token by token.
template <class SelfPolicy, class CrossPolicy, class T = float>
class AttentionDecoder : public Module<AttentionDecoder<SelfPolicy, CrossPolicy, T>> {
 public:
  using Scalar = T;                              ///< the type of its parameters
  using Config = AttentionDecoderConfig;         ///< the type of its configuration
  using Text = Gpt<SelfPolicy, T>;               ///< the part that knows no source
  using Cross = CrossAttention<CrossPolicy, T>;  ///< the part that reads it
  /// Holds what sequences keep of earlier tokens, block by block.
  template <class Context>
  using State = typename Text::template State<Context>;

  /// Makes a decoder with random parameters. Allocates. Throws Error for sizes that do not fit.
  AttentionDecoder(const AttentionDecoderConfig& config, Seed seed) : text(config.checked().text, seed / "text") {
    cross.reserve(text.layers.size());
    for (Index i = 0; i < config.text.num_layers; ++i) cross.emplace_back(config, seed / "cross" / i);
    const AttentionDims& d = cross.front().attention.dims();
    cross_config_ = {d.num_heads, d.num_kv_heads, d.kv_lora_rank, d.v_lora_rank, d.q_lora_rank, d.qk_rope_head_dim};
  }

  /// Returns the configuration with every size resolved, also those that came from the types.
  AttentionDecoderConfig config() const { return {text.config(), cross_config_}; }

  /// Returns what the cross-attention of each block needs of the rows (rows, d_model) of sources. Allocates a list of
  /// as many entries as there are blocks. Throws Error for rows of another width.
  template <class Context, class Tensor>
  auto remember(Context& context, const Tensor& source, const Sequences& sources) const {
    std::vector<decltype(cross.front().attention.remember(context, source, sources))> memory;
    memory.reserve(cross.size());
    for (const Cross& layer : cross) memory.push_back(layer.attention.remember(context, source, sources));
    return memory;
  }

  /// Returns the logits (rows, vocab_size) of the token after each token; sequence n of the tokens reads source n.
  /// Throws Error for an id that is no token and for a sequence longer than max_positions.
  template <class Context, class Memory>
  requires ContextOf<Context, T>
  auto operator()(Context& context, const TokenRows& tokens, const Memory& memory, const Sequences& sources) const {
    Pass<typename Context::Tensor> pass{tokens.sequences, Mask::causal()};
    return text.logits(context,
                       hidden(context, tokens.ids, std::move(pass), tokens.sequences, memory, sources, nullptr));
  }

  /// Returns the rows (rows, d_model) from which `text.logits` predicts. With a pointer to a state, the tokens follow
  /// those that the state holds. `queries` says which of the rows read which source. Throws Error for sizes that do not
  /// fit.
  template <class Context, class Tensor, class Memory, class S>
  Tensor hidden(Context& context, std::span<const int> ids, Pass<Tensor> pass, const Sequences& queries,
                const Memory& memory, const Sequences& sources, S state) const {
    require(memory.size() == cross.size(), "attention decoder: memory of ", memory.size(), " blocks given, ",
            cross.size(), " expected");
    require(queries.size() == sources.size() && queries.rows() == pass.sequences.rows(),
            "attention decoder: ", queries.rows(), " rows for ", queries.size(), " sources given, ",
            pass.sequences.rows(), " rows for ", sources.size(), " sources expected");
    Tensor x = text.embedded(context, ids, pass);
    const auto& attention = text.layers.front().attention();
    x = attention.enter(context, std::move(x), pass);
    pass.table = attention.table(context, pass);
    const Tensor table = cross.front().attention.table(context, pass);
    for (std::size_t i = 0; i < cross.size(); ++i) {
      if constexpr (has_state<S>)
        x = text.layers[i].attend(context, std::move(x), pass, &state->layers[i]);
      else
        x = text.layers[i].attend(context, std::move(x), pass, nullptr);
      x = cross[i](context, std::move(x), queries, memory[i], sources, table);
      x = text.layers[i].feed_forward(context, std::move(x));
    }
    return text.layer_norm(context, x);
  }

  /// Returns the bytes that one sequence of `n` tokens caches, all layers.
  static constexpr Index cache_bytes(const AttentionDecoderConfig& config, Frames n, Storage storage = Storage::full) {
    return Text::cache_bytes(config.text, n, storage);
  }
  /// Returns the bytes of memory of one source of `n` rows, all layers. What all layers share counts once.
  static constexpr Index memory_bytes(const AttentionDecoderConfig& config, Frames n) {
    const Index layers = std::is_same_v<typename CrossPolicy::KeyValue, InputLatent> ? 1 : config.text.num_layers;
    return layers * CrossPolicy::cache_bytes(config.checked().cross_config(), n);
  }
  /// Returns the trained parameters of the whole decoder.
  static constexpr Index parameter_count(const AttentionDecoderConfig& config) {
    return Text::parameter_count(config.checked().text) +
           config.text.num_layers * (2 * config.text.d_model + CrossPolicy::parameter_count(config.cross_config()));
  }

  /// Visits the parts with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    visit("text", self.text);
    visit("cross", self.cross);
  }

  Text text;                 ///< embeddings, self-attention, feed-forward and logits
  std::vector<Cross> cross;  ///< the cross-attention of each block

 private:
  CrossAttentionConfig cross_config_;
};

}  // namespace LACONIC_ABI
}  // namespace laconic
