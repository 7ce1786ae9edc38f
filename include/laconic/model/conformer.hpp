// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/attention.hpp>
#include <laconic/nn/depthwise_conv.hpp>
#include <laconic/nn/feed_forward.hpp>
#include <laconic/nn/norm.hpp>
#include <laconic/nn/subsampling.hpp>

namespace laconic::inline LACONIC_ABI {

/// All numbers of a Conformer with a CTC head. Those of the attention may be left 0 where its type says them.
struct ConformerConfig {
  Index num_mels = 80;
  Index d_model = 256;
  Index num_layers = 12;
  Index vocab_size = 29;
  Index num_heads = 0;
  Index num_kv_heads = 0;
  Index kv_lora_rank = 0;
  Index ffn_expansion = 4;          ///< width of the feed-forward modules over d_model
  Index conv_kernel = 31;           ///< frames, odd
  Index subsampling = 4;            ///< 2 or 4
  Index subsampling_channels = 0;   ///< 0: d_model
  double dropout = 0.1;

  constexpr AttentionConfig attention() const { return {d_model, num_heads, num_kv_heads, kv_lora_rank}; }

  static constexpr void fields(auto& self, auto&& visit) {
    visit("num_mels", self.num_mels);
    visit("d_model", self.d_model);
    visit("num_layers", self.num_layers);
    visit("vocab_size", self.vocab_size);
    visit("num_heads", self.num_heads);
    visit("num_kv_heads", self.num_kv_heads);
    visit("kv_lora_rank", self.kv_lora_rank);
    visit("ffn_expansion", self.ffn_expansion);
    visit("conv_kernel", self.conv_kernel);
    visit("subsampling", self.subsampling);
    visit("subsampling_channels", self.subsampling_channels);
    visit("dropout", self.dropout);
  }
};

/// The Conformer's convolution module (Gulati et al. 2020, section 2.2), with its norm: pointwise, GLU, depthwise, batch
/// norm, SiLU, pointwise, dropout.
template <class T>
class ConvolutionModule : public Module<ConvolutionModule<T>> {
 public:
  ConvolutionModule(Index d_model, Index kernel, double dropout, Seed seed)
      : layer_norm(d_model), pointwise_conv1(Linear<T>::pointwise_conv(d_model, 2 * d_model, seed / "pointwise_conv1")),
        depthwise_conv(d_model, kernel, seed / "depthwise_conv"), batch_norm(d_model),
        pointwise_conv2(Linear<T>::pointwise_conv(d_model, d_model, seed / "pointwise_conv2")), dropout_(dropout) {}

  template <class Context, class Tensor>
  Tensor operator()(Context& context, const Tensor& x, const Sequences& sequences) const {
    auto y = context.glu(pointwise_conv1(context, layer_norm(context, x)));
    y = batch_norm(context, depthwise_conv(context, y, sequences));
    y = pointwise_conv2(context, context.activation(Activation::silu, std::move(y)));
    return context.dropout(std::move(y), dropout_);
  }

  static void each_parameter(auto& self, auto&& visit) {
    visit("layer_norm", self.layer_norm);
    visit("pointwise_conv1", self.pointwise_conv1);
    visit("depthwise_conv", self.depthwise_conv);
    visit("batch_norm", self.batch_norm);
    visit("pointwise_conv2", self.pointwise_conv2);
  }

  LayerNorm<T> layer_norm;
  Linear<T> pointwise_conv1;
  DepthwiseConv<T> depthwise_conv;
  BatchNorm<T> batch_norm;
  Linear<T> pointwise_conv2;

 private:
  double dropout_;
};

/// One block (Gulati et al. 2020, equation 1): half a feed-forward, attention, convolution, half a feed-forward, norm.
template <class AttentionPolicy, class T>
class ConformerBlock : public Module<ConformerBlock<AttentionPolicy, T>> {
 public:
  ConformerBlock(const ConformerConfig& c, Seed seed)
      : ffn1_layer_norm(c.d_model), ffn1(c.d_model, c.ffn_expansion * c.d_model, c.dropout, seed / "ffn1"), self_attn_layer_norm(c.d_model),
        self_attn(c.attention(), c.dropout, seed / "self_attn"), conv_module(c.d_model, c.conv_kernel, c.dropout, seed / "conv_module"),
        ffn2_layer_norm(c.d_model), ffn2(c.d_model, c.ffn_expansion * c.d_model, c.dropout, seed / "ffn2"), final_layer_norm(c.d_model),
        dropout_(c.dropout) {}

  template <class Context, class Tensor>
  Tensor operator()(Context& context, Tensor x, const Sequences& sequences, const Tensor& table) const {
    // Each result before `x` is moved from: arguments are evaluated in any order.
    Tensor y = ffn1(context, ffn1_layer_norm(context, x));
    x = context.add(std::move(x), y, 0.5);
    y = self_attn(context, self_attn_layer_norm(context, x), sequences, table);
    x = context.add(std::move(x), context.dropout(std::move(y), dropout_));
    y = conv_module(context, x, sequences);
    x = context.add(std::move(x), y);
    y = ffn2(context, ffn2_layer_norm(context, x));
    x = context.add(std::move(x), y, 0.5);
    return final_layer_norm(context, x);
  }

  static void each_parameter(auto& self, auto&& visit) {
    visit("ffn1_layer_norm", self.ffn1_layer_norm);
    visit("ffn1", self.ffn1);
    visit("self_attn_layer_norm", self.self_attn_layer_norm);
    visit("self_attn", self.self_attn);
    visit("conv_module", self.conv_module);
    visit("ffn2_layer_norm", self.ffn2_layer_norm);
    visit("ffn2", self.ffn2);
    visit("final_layer_norm", self.final_layer_norm);
  }

  LayerNorm<T> ffn1_layer_norm;
  FeedForward<T> ffn1;
  LayerNorm<T> self_attn_layer_norm;
  AttentionLayer<AttentionPolicy, T> self_attn;
  ConvolutionModule<T> conv_module;
  LayerNorm<T> ffn2_layer_norm;
  FeedForward<T> ffn2;
  LayerNorm<T> final_layer_norm;

 private:
  double dropout_;
};

/// Unnormalised log probabilities (rows, vocab_size) and where their sequences lie.
template <class Tensor>
struct Logits {
  Tensor rows;
  Sequences sequences;
};

/// A Conformer encoder (Gulati et al. 2020) with convolutional subsampling and a CTC head. Parameter names and layout
/// are those of the Hugging Face Conformer.
///
///     Conformer<Mha<8>> model(config, Seed(1));
///     auto logits = model(cpu, features, sequences);   // features (frames, num_mels), sequences packed
///
/// Construction allocates and throws `Error` where the numbers do not fit; the forward pass takes memory from the
/// context's arena only. A sequence too short for the subsampling gives no rows.
template <class AttentionPolicy, class T = float>
class Conformer : public Module<Conformer<AttentionPolicy, T>> {
 public:
  using Scalar = T;
  using Policy = AttentionPolicy;
  using Config = ConformerConfig;

  Conformer(const ConformerConfig& config, Seed seed)
      : subsampling(checked(config).num_mels, channels(config), config.d_model, config.subsampling, seed / "subsampling"),
        layer_norm(config.d_model), lm_head(config.d_model, config.vocab_size, seed / "lm_head"), config_(config) {
    const AttentionDims d = Policy::dims(config.attention());
    config_.num_heads = d.num_heads;
    config_.num_kv_heads = d.num_kv_heads;
    config_.kv_lora_rank = d.kv_lora_rank;
    layers.reserve(static_cast<std::size_t>(config.num_layers));
    for (Index i = 0; i < config.num_layers; ++i) layers.emplace_back(config_, seed / "layers" / i);
  }

  /// With every number said, also those that came from the type.
  const ConformerConfig& config() const { return config_; }

  /// features (rows, num_mels): a Matrix, which must live as long as the tape if there is one, any other Eigen expression
  /// or a tensor of the context.
  template <class Context, class Features>
  auto operator()(Context& context, Features&& features, const Sequences& sequences) const {
    auto [x, out] = subsampling(context, context.input(std::forward<Features>(features)), sequences);
    x = encode(context, context.dropout(std::move(x), config_.dropout), out);
    return Logits<decltype(x)>{lm_head(context, x), out};
  }

  /// The blocks and the norm after them: (rows, d_model) to (rows, d_model).
  template <class Context, class Tensor>
  Tensor encode(Context& context, Tensor x, const Sequences& sequences) const {
    require(x.rows() == sequences.rows(), "conformer: ", x.rows(), " rows given, their sequences have ", sequences.rows());
    auto entered = Policy::Position::enter(context, x, sequences);
    x = std::move(entered.x);
    entered.x = Tensor();
    for (const auto& layer : layers) x = layer(context, std::move(x), sequences, entered.table);
    return layer_norm(context, x);
  }

  /// Bytes of key-value cache for this many encoder frames, all layers.
  static constexpr Index cache_bytes(const ConformerConfig& config, Frames n, Index bytes_per_number = 4) {
    return config.num_layers * Policy::cache_bytes(config.attention(), n, bytes_per_number);
  }

  /// Trained numbers of the whole model.
  static constexpr Index parameter_count(const ConformerConfig& config) {
    const ConformerConfig& c = checked(config);
    const Index d = c.d_model, hidden = c.ffn_expansion * d;
    const Index norms = 5 * 2 * d, feed_forwards = 2 * (2 * d * hidden + hidden + d);
    const Index convolution = 2 * d * d + c.conv_kernel * d + 2 * d + d * d;
    const Index block = norms + feed_forwards + convolution + Policy::parameter_count(c.attention());
    return Conv2dSubsampling<T>::parameter_count(c.num_mels, channels(c), d, c.subsampling) + c.num_layers * block + 2 * d +
           (d + 1) * c.vocab_size;
  }

  static void each_parameter(auto& self, auto&& visit) {
    visit("subsampling", self.subsampling);
    visit("layers", self.layers);
    visit("layer_norm", self.layer_norm);
    visit("lm_head", self.lm_head);
  }
  /// Calls `visit(dotted_name, attention_layer)` for every layer.
  static void each_attention(auto& self, auto&& visit) {
    for (std::size_t i = 0; i < self.layers.size(); ++i) visit(std::string_view(text("layers.", i, ".self_attn")), self.layers[i].self_attn);
  }

  Conv2dSubsampling<T> subsampling;
  std::vector<ConformerBlock<AttentionPolicy, T>> layers;
  LayerNorm<T> layer_norm;
  Linear<T> lm_head;

 private:
  static constexpr Index channels(const ConformerConfig& config) {
    return config.subsampling_channels > 0 ? config.subsampling_channels : config.d_model;
  }

  /// Looks at every number before anything is built from it. The upper ends are far from any use and keep products small.
  static constexpr const ConformerConfig& checked(const ConformerConfig& config) {
    const auto within = [](Index value, Index least, Index most, const char* name) {
      require(value >= least && value <= most, "conformer: ", name, ' ', value, " given, ", least, " to ", most, " expected");
    };
    within(config.num_mels, 7, 1 << 12, "num_mels");
    within(config.d_model, 1, 1 << 16, "d_model");
    within(config.num_layers, 1, 1 << 12, "num_layers");
    within(config.vocab_size, 2, 1 << 24, "vocab_size");
    within(config.ffn_expansion, 1, 1 << 6, "ffn_expansion");
    within(config.conv_kernel, 1, 1 << 12, "conv_kernel");
    within(config.subsampling_channels, 0, 1 << 16, "subsampling_channels");
    require(config.conv_kernel % 2 == 1, "conformer: conv_kernel ", config.conv_kernel, " given, an odd number expected");
    require(config.subsampling == 2 || config.subsampling == 4, "conformer: subsampling ", config.subsampling, " given, 2 or 4 expected");
    require(config.dropout >= 0 && config.dropout < 1, "conformer: dropout ", config.dropout, " given, expected from 0 to less than 1");
    Policy::dims(config.attention());
    return config;
  }

  ConformerConfig config_;
};

}  // namespace laconic
