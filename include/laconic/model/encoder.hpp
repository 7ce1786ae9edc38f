// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/context_check.hpp>
#include <laconic/model/encoder_config.hpp>
#include <laconic/nn/norm.hpp>
#include <laconic/nn/subsampling.hpp>

#include <string_view>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Unnormalised log probabilities (rows, vocab_size) and where their sequences lie.
template <class Tensor>
struct Logits {
  Tensor rows;
  Sequences sequences;
};

/// What encoders of log-mel features have before their blocks; a base of their kinds.
struct FeatureFront {
  template <class T>
  static Conv2dSubsampling<T> front(const EncoderConfig& c, Seed seed) {
    require(c.waveform.empty(), "encoder: convolutions over samples given, but this encoder takes features");
    return {c.num_mels, c.channels(), c.d_model, c.subsampling, seed / "subsampling"};
  }
  static constexpr Index front_parameters(const EncoderConfig& c) {
    return Conv2dSubsampling<float>::parameter_count(c.num_mels, c.channels(), c.d_model, c.subsampling);
  }
  static constexpr Index front_flops(const EncoderConfig& c, Index frames) {
    return Conv2dSubsampling<float>::flops(c.num_mels, c.channels(), c.d_model, c.subsampling, frames);
  }
  /// Frames of so many rows.
  static constexpr Index out_length(const EncoderConfig& c, Index rows) {
    return Conv2dSubsampling<float>::out_length(rows, c.subsampling);
  }
  static constexpr const char *front_name = "subsampling", *layers_name = "layers", *norm_name = "layer_norm";
};

/// A stack of blocks behind convolutional subsampling, with a norm and a CTC head: `Conformer`, `Branchformer`,
/// `EBranchformer` and `Wav2Vec2Conformer` are this with their blocks. A kind has
///   Block<AttentionPolicy, T>, a Module made from (config, seed), with the attention `attention()` in it
///   parameter_count(config), flops(config, frames)   of a block without its attention
///   require_streamable(config)                       throws where a block sees what a stream cannot have
///   front<T>(config, seed) and so on                 what lies before the blocks: see FeatureFront
///
///     Conformer<Mha<8>> model(config, Seed(1));
///     auto logits = model(cpu, features, sequences);   // features (frames, num_mels), sequences packed
///
/// Construction allocates and throws `Error` where the numbers do not fit; the forward pass takes memory from the
/// context's arena only. A sequence too short for the subsampling gives no rows.
template <class Kind, class AttentionPolicy, class T = float>
class Encoder : public Module<Encoder<Kind, AttentionPolicy, T>> {
 public:
  using Scalar = T;
  using Policy = AttentionPolicy;
  using Config = EncoderConfig;
  using Subsampling = decltype(Kind::template front<T>(std::declval<const EncoderConfig&>(), Seed()));
  using Block = typename Kind::template Block<AttentionPolicy, T>;

  Encoder(const EncoderConfig& config, Seed seed)
      : subsampling(Kind::template front<T>(config.checked(), seed)),
        layer_norm(config.d_model, config.layer_norm_eps),
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

  /// With every number said, also those that came from the type.
  const EncoderConfig& config() const { return config_; }
  /// Throws where a block sees what a stream cannot have.
  void require_streamable() const { Kind::require_streamable(config_); }

  /// features (rows, num_mels): a Matrix, which must live as long as the tape if there is one, any other Eigen
  /// expression or a tensor of the context. `mask` says what encoder frames see, by default what the configuration
  /// says. To `outputs`, if given, what each block gives is added, (rows, d_model).
  template <class Context, class Features>
  requires ContextOf<Context, T>
  auto operator()(Context& context, Features&& features, const Sequences& sequences, const Mask& mask,
                  std::vector<typename Context::Tensor>* outputs = nullptr) const {
    auto [x, out] = subsampling(context, context.input(std::forward<Features>(features)), sequences);
    Pass<decltype(x)> pass{out, mask};
    pass.outputs = outputs;
    x = encode(context, context.dropout(std::move(x), config_.dropout), std::move(pass), nullptr);
    return Logits<decltype(x)>{lm_head(context, x), out};
  }
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

  /// The blocks and the norm after them: (rows, d_model) to (rows, d_model).
  template <class Context, class Tensor>
  Tensor encode(Context& context, Tensor x, const Sequences& sequences, const Mask& mask) const {
    return encode(context, std::move(x), Pass<Tensor>{sequences, mask}, nullptr);
  }
  template <class Context, class Tensor>
  Tensor encode(Context& context, Tensor x, const Sequences& sequences) const {
    return encode(context, std::move(x), sequences, config_.mask());
  }
  /// The same with what came before in the state: rows are those of whole chunks, or the last of their stream.
  template <class Context, class Tensor, class S>
  Tensor encode(Context& context, Tensor x, Pass<Tensor> pass, S state) const {
    static_assert(detail::is_context_of<Context, T>());
    require(x.rows() == pass.sequences.rows(), "encoder: ", x.rows(), " rows given, their sequences have ",
            pass.sequences.rows());
    if (pass.mask.chunk != Mask::unlimited) require_streamable();
    const auto& attention = layers.front().attention();
    x = attention.enter(context, std::move(x), pass);
    pass.table = attention.table(context, pass);
    for (std::size_t i = 0; i < layers.size(); ++i) {
      if constexpr (has_state<S>)
        x = layers[i](context, std::move(x), pass, &state->layers[i]);
      else
        x = whole_block(context, layers[i], std::move(x), pass);
      if (pass.outputs != nullptr) pass.outputs->push_back(x);
    }
    return layer_norm(context, x);
  }

  /// What streams keep, layer by layer.
  template <class Context>
  struct State {
    State(Context& context, const Encoder& model, const StateShape& shape) {
      model.require_streamable();
      layers.reserve(model.layers.size());
      for (const Block& block : model.layers) layers.emplace_back(context, block, shape);
    }
    void clear(Context& context, Index slot) {
      for (auto& layer : layers) layer.clear(context, slot);
    }
    void fill_zeros(Context& context, Index slot) {
      for (auto& layer : layers) layer.fill_zeros(context, slot);
    }
    /// Of attention, all slots; and of the convolutions.
    Index attention_bytes() const {
      Index sum = 0;
      for (const auto& layer : layers) sum += layer.attention.cache_bytes();
      return sum;
    }
    Index convolution_bytes() const {
      Index sum = 0;
      for (const auto& layer : layers) sum += layer.convolution_bytes();
      return sum;
    }

    std::vector<typename Block::template State<Context>> layers;
  };

  /// Bytes of key-value cache for this many encoder frames, all layers.
  static constexpr Index cache_bytes(const EncoderConfig& config, Frames n, Storage storage = Storage::full) {
    return config.over_layers([&](const AttentionConfig& c) { return Policy::cache_bytes(c, n, storage); });
  }

  /// Frames that so many rows of features give.
  static constexpr Index out_length(const EncoderConfig& config, Index rows) { return Kind::out_length(config, rows); }

  /// Trained numbers before the blocks.
  static constexpr Index front_parameter_count(const EncoderConfig& config) {
    return Kind::front_parameters(config.checked());
  }
  /// Trained numbers of the whole model.
  static constexpr Index parameter_count(const EncoderConfig& config) {
    const EncoderConfig& c = config.checked();
    return Kind::front_parameters(c) + c.num_layers * Kind::parameter_count(c) +
           c.over_layers([](const AttentionConfig& a) { return Policy::parameter_count(a); }) + 2 * c.d_model +
           (c.d_model + 1) * c.vocab_size;
  }

  /// Floating-point operations (a multiply-add counts two) in matrix products and convolutions, for one utterance of so
  /// many encoder frames.
  static constexpr Index flops(const EncoderConfig& config, Frames n) {
    const EncoderConfig& c = config.checked();
    return Kind::front_flops(c, n.count) + c.num_layers * Kind::flops(c, n.count) +
           c.over_layers([&](const AttentionConfig& a) { return Policy::flops(a, n, c.mask()); }) +
           2 * n.count * c.d_model * c.vocab_size;
  }

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

  Subsampling subsampling;
  std::vector<Block> layers;
  LayerNorm<T> layer_norm;
  Linear<T> lm_head;

 private:
  /// A block over whole sequences.
  template <class Context, class Tensor>
  static Tensor whole_block(Context& context, const Block& block, Tensor x, const Pass<Tensor>& pass) {
    if constexpr (requires { context.recompute_blocks; })
      if (context.recompute_blocks)
        return context.recompute(
            x, [&context, &block, sequences = pass.sequences, mask = pass.mask, table = pass.table](const Tensor& in) {
              return block(context, in, Pass<Tensor>{sequences, mask, table}, nullptr);
            });
    return block(context, std::move(x), pass, nullptr);
  }

  EncoderConfig config_;
};

}  // namespace LACONIC_ABI
}  // namespace laconic
