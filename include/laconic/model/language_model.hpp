// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/any.hpp>
#include <laconic/backend/context_check.hpp>
#include <laconic/model/language_model_config.hpp>
#include <laconic/model/stack.hpp>
#include <laconic/nn/embedding.hpp>
#include <laconic/nn/linear.hpp>

#include <algorithm>
#include <cstddef>
#include <span>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Computes a block with a norm before each of its parts, (rows, d_model) to (rows, d_model): x + attention(norm(x)),
/// then x + feed-forward(norm(x)) (GPT-2, Radford et al. 2019, section 2.3; Llama, Touvron et al. 2023, section 2.2).
/// The kind of model says which norm and which feed-forward module: see LanguageModel.
template <class Kind, class AttentionPolicy, class T>
class PreNormBlock : public Module<PreNormBlock<Kind, AttentionPolicy, T>> {
 public:
  using AttentionType = typename AttentionPolicy::template Layer<T>;  ///< the layer of the attention policy
  using Norm = typename Kind::template Norm<T>;                       ///< the layer of both norms

  /// Makes the layer with its initial parameters. Allocates.
  PreNormBlock(const LanguageModelConfig& c, Seed seed)
      : attention_norm(c.d_model, c.layer_norm_eps),
        self_attn(c.attention_config(), c.dropout, seed / Kind::attention_name),
        feed_forward_norm(c.d_model, c.layer_norm_eps),
        mlp(c.d_model, c.feed_forward_width(), c.hidden_act, c.dropout, seed / "mlp"),
        dropout_(c.dropout) {}

  /// Returns the self-attention.
  auto& attention() { return self_attn; }
  /// Returns the self-attention.
  const auto& attention() const { return self_attn; }

  /// Holds what sequences keep of earlier tokens.
  template <class Context>
  struct State {
    /// Makes the state of `shape.slots` sequences. Allocates.
    State(Context& context, const PreNormBlock& block, const StateShape& shape)
        : attention(context, block.self_attn, shape) {}
    /// Empties a slot for a new sequence.
    void clear(Context& context, Index slot) { attention.clear(context, slot); }
    /// Fills a slot as if tokens of zeros had come before, as many as are kept.
    void fill_zeros(Context& context, Index slot) { attention.fill_zeros(context, slot); }
    /// Makes slot `to` hold what slot `from` holds.
    void fork(Context& context, Index from, Index to) { attention.fork(context, from, to); }
    /// Returns 0, since there are no convolutions.
    Index convolution_bytes() const { return 0; }

    typename AttentionType::template State<Context> attention;  ///< the past of attention
  };

  /// Returns the output of the block. `state` is a pointer to a State, or `nullptr` for whole sequences.
  template <class Context, class Tensor, class S>
  Tensor operator()(Context& context, Tensor x, const Pass<Tensor>& pass, S state) const {
    return feed_forward(context, attend(context, std::move(x), pass, state));
  }
  /// Returns x + attention(norm(x)), the first half of the block.
  template <class Context, class Tensor, class S>
  Tensor attend(Context& context, Tensor x, const Pass<Tensor>& pass, S state) const {
    Tensor y;
    if constexpr (has_state<S>)
      y = self_attn(context, attention_norm(context, x), pass, &state->attention);
    else
      y = self_attn(context, attention_norm(context, x), pass);
    return context.add(std::move(x), context.dropout(std::move(y), dropout_));
  }
  /// Returns x + feed-forward(norm(x)), the second half of the block.
  template <class Context, class Tensor>
  Tensor feed_forward(Context& context, Tensor x) const {
    const Tensor y = mlp(context, feed_forward_norm(context, x));
    return context.add(std::move(x), y);
  }

  /// Returns the trained parameters.
  static constexpr Index parameter_count(const LanguageModelConfig& c) {
    return 2 * Norm::parameter_count(c.d_model) + AttentionPolicy::parameter_count(c.attention_config()) +
           Kind::template FeedForward<T>::parameter_count(c.d_model, c.feed_forward_width());
  }

  /// Visits the parameters with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    visit(Kind::attention_norm_name, self.attention_norm);
    visit(Kind::attention_name, self.self_attn);
    visit(Kind::feed_forward_norm_name, self.feed_forward_norm);
    visit("mlp", self.mlp);
  }

  Norm attention_norm;                         ///< the norm before attention
  AttentionType self_attn;                     ///< the attention
  Norm feed_forward_norm;                      ///< the norm before the feed-forward module
  typename Kind::template FeedForward<T> mlp;  ///< the feed-forward module

 private:
  double dropout_;
};

/// Predicts the next token of each token (GPT-2, Radford et al. 2019): embeddings, a stack of causal blocks with a
/// norm, and logits of all tokens.
///
///     Gpt<Mha<12, NoPosition>> model(config, Seed(1));
///     auto logits = model(cpu, {ids, Sequences{5, 9}});   // ids of 14 tokens; logits (14, vocab_size)
///
/// A token never sees a later one. With `learned` positions a vector for each position is added to the embeddings,
/// unless the attention has a rotary key of its own; an attention with rotary positions goes with `rotary` only.
/// Construction allocates, and throws Error where the sizes do not fit; the forward pass takes memory from the
/// context's pool only. `TokenDecoder` (decode/token_decoder.hpp) runs it token by token.
template <class Kind, class AttentionPolicy, class T = float>
class LanguageModel : public Module<LanguageModel<Kind, AttentionPolicy, T>>,
                      public Stack<PreNormBlock<Kind, AttentionPolicy, T>, typename Kind::template Norm<T>> {
  using Norm = typename Kind::template Norm<T>;
  using Blocks = Stack<PreNormBlock<Kind, AttentionPolicy, T>, Norm>;

 public:
  using Scalar = T;                    ///< the type of its parameters
  using Policy = AttentionPolicy;      ///< the attention of its blocks
  using Config = LanguageModelConfig;  ///< the type of its configuration
  using Blocks::layers, Blocks::layer_norm;
  using typename Blocks::Block;
  /// Holds what sequences keep, block by block. Takes memory at construction only.
  template <class Context>
  using State = typename Blocks::template State<Context>;

  /// Makes a model with random parameters. Allocates. Throws Error for sizes that do not fit.
  LanguageModel(const LanguageModelConfig& config, Seed seed)
      : Blocks(Norm(config.checked().d_model, config.layer_norm_eps)),
        wte(config.vocab_size, config.d_model, seed / "wte",
            config.tied_embeddings ? WeightUse::linear : WeightUse::elementwise),
        config_(config) {
    detail::with_policy<Policy>(config.attention_config(), [&]<class P>(std::type_identity<P>) {
      const bool rotary = config.position_embeddings_type == PositionEmbeddings::rotary;
      require(rotary ? P::Position::turns_keys : !detail::NamedPolicy<P>::rotates,
              "language model: position_embeddings_type ", to_name(config.position_embeddings_type), " given, ",
              detail::NamedPolicy<P>::rotates ? "rotary" : "learned", " expected for this attention");
    });
    const AttentionDims d = Policy::dims(config.attention_config());
    config_.num_heads = d.num_heads;
    config_.num_kv_heads = d.num_kv_heads;
    config_.kv_lora_rank = d.kv_lora_rank;
    config_.v_lora_rank = d.v_lora_rank;
    config_.q_lora_rank = d.q_lora_rank;
    config_.qk_rope_head_dim = d.qk_rope_head_dim;
    layers.reserve(static_cast<std::size_t>(config.num_layers));
    for (Index i = 0; i < config.num_layers; ++i) layers.emplace_back(config_, seed / "layers" / i);
    if (learns_positions(config)) wpe = Embedding<T>(config.max_positions, config.d_model, seed / "wpe");
    if (!config.tied_embeddings) lm_head = Linear<T>(config.d_model, config.vocab_size, seed / "lm_head", Bias::no);
  }

  /// Returns the configuration with every size resolved, also those that came from the type.
  const LanguageModelConfig& config() const { return config_; }
  /// Says whether the order of tokens is known by learned vectors: unless it is rotary, or the attention has a rotary
  /// key of its own (a decoupled latent).
  static constexpr bool learns_positions(const LanguageModelConfig& config) {
    return config.position_embeddings_type == PositionEmbeddings::learned &&
           detail::with_policy<Policy>(config.attention_config(),
                                       []<class P>(std::type_identity<P>) { return !P::Position::turns_keys; });
  }

  /// Returns the logits (rows, vocab_size) of the token after each token. Throws Error for an id that is no token and
  /// for a sequence longer than max_positions.
  template <class Context>
  requires ContextOf<Context, T>
  auto operator()(Context& context, const TokenRows& tokens) const {
    Pass<typename Context::Tensor> pass{tokens.sequences, Mask::causal()};
    return logits(context, hidden(context, tokens.ids, std::move(pass), nullptr));
  }
  /// Ends the compilation with a sentence where the context does not fit the model.
  template <class Context, class... Arguments>
  requires(!ContextOf<Context, T>) auto operator()(Context&, Arguments&&...) const {
    static_assert(detail::is_context_of<Context, T>());
  }

  /// Returns the rows (rows, d_model) from which `logits` predicts. With a pointer to a state, the tokens follow those
  /// that the state holds, and the pass says where.
  template <class Context, class Tensor, class S>
  Tensor hidden(Context& context, std::span<const int> ids, Pass<Tensor> pass, S state) const {
    Tensor x = embedded(context, ids, pass);
    return this->run(context, std::move(x), std::move(pass), state);
  }
  /// Returns the rows (rows, d_model) of tokens before the first block: embeddings and positions.
  template <class Context, class Tensor>
  Tensor embedded(Context& context, std::span<const int> ids, const Pass<Tensor>& pass) const {
    require(static_cast<Index>(ids.size()) == pass.sequences.rows(), "language model: ", ids.size(),
            " tokens given, their sequences have ", pass.sequences.rows());
    for (Index n = 0; n < pass.sequences.size(); ++n)
      require(pass.first(n) + pass.sequences.length(n) <= config_.max_positions, "language model: sequence ", n, " of ",
              pass.first(n) + pass.sequences.length(n),
              " tokens given, at most max_positions = ", config_.max_positions, " expected");
    Tensor x = wte(context, ids);
    if (wpe.count() > 0) x = context.add(std::move(x), wpe.of_positions(context, pass));
    return context.dropout(std::move(x), config_.dropout);
  }
  /// Returns the logits (rows, vocab_size) of rows that `hidden` gave.
  template <class Context, class Tensor>
  Tensor logits(Context& context, const Tensor& rows) const {
    return config_.tied_embeddings ? wte.linear(context, rows) : lm_head(context, rows);
  }

  /// Returns the bytes of key-value cache for `n` tokens of one sequence, all layers.
  static constexpr Index cache_bytes(const LanguageModelConfig& config, Frames n, Storage storage = Storage::full) {
    return config.num_layers * Policy::cache_bytes(config.attention_config(), n, storage);
  }
  /// Returns the trained parameters of the whole model. Tied embeddings count once.
  static constexpr Index parameter_count(const LanguageModelConfig& config) {
    const LanguageModelConfig& c = config.checked();
    const Index d = c.d_model;
    return c.vocab_size * d * (c.tied_embeddings ? 1 : 2) + c.num_layers * Block::parameter_count(c) +
           Norm::parameter_count(d) + (learns_positions(c) ? c.max_positions * d : 0);
  }

  /// Visits the parts with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    visit("wte", self.wte);
    if (self.wpe.count() > 0) visit("wpe", self.wpe);
    visit("layers", self.layers);
    visit("layer_norm", self.layer_norm);
    if (!self.config_.tied_embeddings) visit("lm_head", self.lm_head);
  }
  /// Calls `visit(dotted_name, attention_layer)` for every layer.
  static void each_attention(auto& self, auto&& visit) {
    for (std::size_t i = 0; i < self.layers.size(); ++i)
      visit(std::string_view(text("layers.", i, '.', Kind::attention_name)), self.layers[i].attention());
  }

  Embedding<T> wte;   ///< the embedding of each token, (vocab_size, d_model)
  Embedding<T> wpe;   ///< the vector of each position, (max_positions, d_model), or empty
  Linear<T> lm_head;  ///< from d_model to vocab_size, or empty where embeddings are tied

 private:
  LanguageModelConfig config_;
};

}  // namespace LACONIC_ABI
}  // namespace laconic
