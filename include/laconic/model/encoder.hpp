// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/context_check.hpp>
#include <laconic/model/encoder_config.hpp>
#include <laconic/model/stack.hpp>
#include <laconic/nn/norm.hpp>
#include <laconic/nn/subsampling.hpp>

#include <string_view>
#include <utility>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Holds unnormalised log probabilities of packed sequences.
template <class Tensor>
struct Logits {
  Tensor rows;          ///< (rows, vocab_size)
  Sequences sequences;  ///< the rows of each sequence
};

/// Describes what lies before the blocks of an encoder of log-mel features. The kinds of such encoders derive from it.
struct FeatureFront {
  /// Returns the convolutional subsampling. Throws Error where the configuration has convolutions over samples.
  template <class T>
  static Conv2dSubsampling<T> front(const EncoderConfig& c, Seed seed) {
    require(c.waveform.empty(), "encoder: convolutions over samples given, but this encoder takes features");
    return {c.num_mels, c.channels(), c.d_model, c.subsampling, seed / "subsampling"};
  }
  /// Returns the trained parameters before the blocks.
  static constexpr Index front_parameters(const EncoderConfig& c) {
    return Conv2dSubsampling<float>::parameter_count(c.num_mels, c.channels(), c.d_model, c.subsampling);
  }
  /// Returns the floating-point operations before the blocks, for `frames` encoder frames.
  static constexpr Index front_flops(const EncoderConfig& c, Index frames) {
    return Conv2dSubsampling<float>::flops(c.num_mels, c.channels(), c.d_model, c.subsampling, frames);
  }
  /// Returns the encoder frames that `rows` rows of features give.
  static constexpr Index out_length(const EncoderConfig& c, Index rows) {
    return Conv2dSubsampling<float>::out_length(rows, c.subsampling);
  }
  static constexpr const char* front_name = "subsampling";  ///< prefix of the parameters before the blocks
  static constexpr const char* layers_name = "layers";      ///< prefix of the blocks' parameters
  static constexpr const char* norm_name = "layer_norm";    ///< prefix of the parameters of the norm after the blocks
};

/// Encodes speech for CTC: convolutional subsampling, a stack of blocks with a norm, and a linear head. `Conformer`,
/// `Branchformer`, `EBranchformer` and `Wav2Vec2Conformer` are encoders of their kinds of blocks. A kind has
///   Block<AttentionPolicy, T>, a Module constructed from (config, seed): see Stack
///   parameter_count(config), flops(config, frames)   of a block without its attention
///   require_streamable(config)                       throws where a block sees what a stream cannot have
///   front<T>(config, seed) and so on                 what lies before the blocks: see FeatureFront
///
///     Conformer<Mha<8>> model(config, Seed(1));
///     auto logits = model(cpu, features, sequences);   // features (frames, num_mels), sequences packed
///
/// Construction allocates, and throws Error where the sizes do not fit; the forward pass takes memory from the
/// context's pool only. A sequence too short for the subsampling gives no rows.
template <class Kind, class AttentionPolicy, class T = float>
class Encoder : public Module<Encoder<Kind, AttentionPolicy, T>>,
                public Stack<typename Kind::template Block<AttentionPolicy, T>, LayerNorm<T>> {
  using Blocks = Stack<typename Kind::template Block<AttentionPolicy, T>, LayerNorm<T>>;

 public:
  using Scalar = T;                ///< the type of its parameters
  using Policy = AttentionPolicy;  ///< the attention of its blocks
  using Config = EncoderConfig;    ///< the type of its configuration
  /// The type of what lies before the blocks.
  using Subsampling = decltype(Kind::template front<T>(std::declval<const EncoderConfig&>(), Seed()));
  using Blocks::layers, Blocks::layer_norm;
  using typename Blocks::Block;

  /// Makes an encoder with random parameters. Allocates. Throws Error for sizes that do not fit.
  Encoder(const EncoderConfig& config, Seed seed)
      : Blocks(LayerNorm<T>(config.checked().d_model, config.layer_norm_eps)),
        subsampling(Kind::template front<T>(config, seed)),
        lm_head(config.d_model, config.vocab_size, seed / "lm_head"),
        config_(config) {
    if (config.chunk > 0) Kind::require_streamable(config);
    const AttentionDims d = Policy::dims(config.for_layer(0).attention_config());
    config_.num_heads = d.num_heads;
    config_.num_kv_heads = d.num_kv_heads;
    config_.kv_lora_rank = d.kv_lora_rank;
    config_.v_lora_rank = d.v_lora_rank;
    config_.q_lora_rank = d.q_lora_rank;
    config_.qk_rope_head_dim = d.qk_rope_head_dim;
    layers.reserve(static_cast<std::size_t>(config.num_layers));
    for (Index i = 0; i < config.num_layers; ++i) layers.emplace_back(config_.for_layer(i), seed / "layers" / i);
    require(layers.front().attention().keeps_frames() || config.left_context < 0, "encoder: left_context ",
            config.left_context, " given, but the state of linear attention cannot forget; -1 expected");
  }

  /// Returns the configuration with every size resolved, also those that came from the type.
  const EncoderConfig& config() const { return config_; }
  /// Throws Error where a block sees what a stream cannot have.
  void require_streamable() const { Kind::require_streamable(config_); }

  /// Returns the logits of features (rows, num_mels): a Matrix, which must outlive the tape if there is one, any other
  /// Eigen expression, or a tensor of the context. `mask` says what encoder frames see. The output of each block,
  /// (rows, d_model), is appended to `outputs` where that is given.
  template <class Context, class Features>
  requires ContextOf<Context, T>
  auto operator()(Context& context, Features&& features, const Sequences& sequences, const Mask& mask,
                  std::vector<typename Context::Tensor>* outputs = nullptr) const {
    auto [x, out] = hidden(context, std::forward<Features>(features), sequences, mask, outputs);
    return Logits<decltype(x)>{lm_head(context, x), out};
  }
  /// Returns encoder frames (rows, d_model) of features, after the blocks and the norm, and their sequences: what
  /// `lm_head` and a decoder read. Arguments as above.
  template <class Context, class Features>
  auto hidden(Context& context, Features&& features, const Sequences& sequences, const Mask& mask,
              std::vector<typename Context::Tensor>* outputs = nullptr) const {
    auto [x, out] = subsampling(context, context.input(std::forward<Features>(features)), sequences);
    Pass<decltype(x)> pass{out, mask};
    pass.outputs = outputs;
    x = encode(context, context.dropout(std::move(x), config_.dropout), std::move(pass), nullptr);
    return std::pair(std::move(x), out);
  }
  /// Returns encoder frames of features under the configuration's mask.
  template <class Context, class Features>
  auto hidden(Context& context, Features&& features, const Sequences& sequences) const {
    return hidden(context, std::forward<Features>(features), sequences, config_.mask());
  }
  /// Returns the logits of features under the configuration's mask.
  template <class Context, class Features>
  requires ContextOf<Context, T>
  auto operator()(Context& context, Features&& features, const Sequences& sequences) const {
    return (*this)(context, std::forward<Features>(features), sequences, config_.mask());
  }
  /// Ends the compilation with a sentence where the context does not fit the model.
  template <class Context, class... Arguments>
  requires(!ContextOf<Context, T>) auto operator()(Context&, Arguments&&...) const {
    static_assert(detail::is_context_of<Context, T>());
  }

  /// Returns encoder frames (rows, d_model) after the blocks and the norm.
  template <class Context, class Tensor>
  Tensor encode(Context& context, Tensor x, const Sequences& sequences, const Mask& mask) const {
    return encode(context, std::move(x), Pass<Tensor>{sequences, mask}, nullptr);
  }
  /// Returns encoder frames (rows, d_model) after the blocks and the norm, under the configuration's mask.
  template <class Context, class Tensor>
  Tensor encode(Context& context, Tensor x, const Sequences& sequences) const {
    return encode(context, std::move(x), sequences, config_.mask());
  }
  /// Returns encoder frames (rows, d_model) after the blocks and the norm. With a pointer to a state, x holds whole
  /// chunks that follow what the state holds, or the last rows of their stream.
  template <class Context, class Tensor, class S>
  Tensor encode(Context& context, Tensor x, Pass<Tensor> pass, S state) const {
    static_assert(detail::is_context_of<Context, T>());
    require(x.rows() == pass.sequences.rows(), "encoder: ", x.rows(), " rows given, their sequences have ",
            pass.sequences.rows());
    if (pass.mask.chunk != Mask::unlimited) require_streamable();
    return this->run(context, std::move(x), std::move(pass), state);
  }

  /// Holds what streams keep, block by block. Takes memory at construction only.
  template <class Context>
  struct State : Blocks::template State<Context> {
    /// Makes states for `shape.slots` streams. Allocates. Throws Error where a block sees what a stream cannot have.
    State(Context& context, const Encoder& model, const StateShape& shape)
        : Blocks::template State<Context>(context, streamable(model), shape) {}

   private:
    static const Encoder& streamable(const Encoder& model) {
      model.require_streamable();
      return model;
    }
  };

  /// Returns the bytes of key-value cache for `n` encoder frames, all layers.
  static constexpr Index cache_bytes(const EncoderConfig& config, Frames n, Storage storage = Storage::full) {
    return config.over_layers([&](const AttentionConfig& c) { return Policy::cache_bytes(c, n, storage); });
  }

  /// Returns the encoder frames that `rows` rows of features give.
  static constexpr Index out_length(const EncoderConfig& config, Index rows) { return Kind::out_length(config, rows); }

  /// Returns the trained parameters before the blocks.
  static constexpr Index front_parameter_count(const EncoderConfig& config) {
    return Kind::front_parameters(config.checked());
  }
  /// Returns the trained parameters of the whole model.
  static constexpr Index parameter_count(const EncoderConfig& config) {
    const EncoderConfig& c = config.checked();
    return Kind::front_parameters(c) + c.num_layers * Kind::parameter_count(c) +
           c.over_layers([](const AttentionConfig& a) { return Policy::parameter_count(a); }) + 2 * c.d_model +
           (c.d_model + 1) * c.vocab_size;
  }

  /// Returns the floating-point operations (a multiply-add counts two) in matrix products and convolutions, for one
  /// utterance of `n` encoder frames.
  static constexpr Index flops(const EncoderConfig& config, Frames n) {
    const EncoderConfig& c = config.checked();
    return Kind::front_flops(c, n.count) + c.num_layers * Kind::flops(c, n.count) +
           c.over_layers([&](const AttentionConfig& a) { return Policy::flops(a, n, c.mask()); }) +
           2 * n.count * c.d_model * c.vocab_size;
  }

  /// Visits the parts with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    visit(Kind::front_name, self.subsampling);
    visit(Kind::layers_name, self.layers);
    visit(Kind::norm_name, self.layer_norm);
    visit("lm_head", self.lm_head);
  }
  /// Calls `visit(dotted_name, attention_layer)` for every layer.
  static void each_attention(auto& self, auto&& visit) {
    for (std::size_t i = 0; i < self.layers.size(); ++i)
      visit(std::string_view(text(Kind::layers_name, '.', i, '.', Kind::attention_name)), self.layers[i].attention());
  }

  Subsampling subsampling;  ///< the layers before the blocks
  Linear<T> lm_head;        ///< from d_model to vocab_size

 private:
  EncoderConfig config_;
};

}  // namespace LACONIC_ABI
}  // namespace laconic
