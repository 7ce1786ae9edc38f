// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/model/encoder.hpp>
#include <laconic/nn/feed_forward.hpp>

namespace laconic {
inline namespace LACONIC_ABI {

/// A convolution that gates (Sakuma et al. 2022; Peng et al. 2022, section 3.3): half the channels, normed and
/// convolved over time, multiply the other half. (rows, channels) to (rows, channels / 2).
template <class T>
class ConvolutionalSpatialGatingUnit : public Module<ConvolutionalSpatialGatingUnit<T>> {
 public:
  /// The gate starts near 1.
  ConvolutionalSpatialGatingUnit(Index channels, Index kernel, ConvolutionContext sees, double dropout, Seed seed)
      : norm(channels / 2), conv(channels / 2, kernel, sees, seed / "conv", Bias::yes), dropout_(dropout) {
    const Random random(seed / "conv", "weight");
    for (Index i = 0; i < conv.weight.size(); ++i)
      conv.weight.host().data()[i] = static_cast<T>(1e-6 * random.normal(static_cast<std::uint64_t>(i)));
    conv.bias.host().setOnes();
  }

  template <class Context, class Tensor, class S = std::nullptr_t>
  Tensor operator()(Context& context, const Tensor& x, const Pass<Tensor>& pass, S state = nullptr) const {
    const Index half = x.cols() / 2;
    const Tensor gate = conv(context, norm(context, context.columns(x, half, half)), pass, state);
    return context.dropout(context.multiply(context.columns(x, 0, half), gate), dropout_);
  }

  static void each_parameter(auto& self, auto&& visit) {
    visit("norm", self.norm);
    visit("conv", self.conv);
  }

  LayerNorm<T> norm;
  DepthwiseConv<T> conv;

 private:
  double dropout_;
};

/// The cgMLP: linear, GELU, gating, linear.
template <class T>
class ConvolutionalGatingMlp : public Module<ConvolutionalGatingMlp<T>> {
 public:
  ConvolutionalGatingMlp(const EncoderConfig& c, Seed seed)
      : channel_proj1(c.d_model, units(c), seed / "channel_proj1"),
        csgu(units(c), c.conv_kernel, c.convolution, c.dropout, seed / "csgu"),
        channel_proj2(units(c) / 2, c.d_model, seed / "channel_proj2") {}

  static constexpr Index units(const EncoderConfig& c) { return c.cgmlp_expansion * c.d_model; }
  static constexpr Index parameter_count(const EncoderConfig& c) {
    const Index d = c.d_model, u = units(c);
    return (d + 1) * u + u + DepthwiseConv<T>::parameter_count(u / 2, c.conv_kernel, Bias::yes) + (u / 2 + 1) * d;
  }
  static constexpr Index flops(const EncoderConfig& c, Index frames) {
    return 2 * frames * units(c) * (c.d_model + c.conv_kernel / 2 + c.d_model / 2);
  }

  template <class Context, class Tensor, class S = std::nullptr_t>
  Tensor operator()(Context& context, const Tensor& x, const Pass<Tensor>& pass, S state = nullptr) const {
    const Tensor hidden = channel_proj1(context, x, Activation::gelu);
    return channel_proj2(context, csgu(context, hidden, pass, state));
  }

  static void each_parameter(auto& self, auto&& visit) {
    visit("channel_proj1", self.channel_proj1);
    visit("csgu", self.csgu);
    visit("channel_proj2", self.channel_proj2);
  }

  Linear<T> channel_proj1;
  ConvolutionalSpatialGatingUnit<T> csgu;
  Linear<T> channel_proj2;
};

/// Both branches of a block on the same rows, each with its norm.
template <class AttentionPolicy, class T>
class Branches : public Module<Branches<AttentionPolicy, T>> {
 public:
  using AttentionType = typename AttentionPolicy::template Layer<T>;

  Branches(const EncoderConfig& c, Seed seed)
      : norm_mha(c.d_model),
        attn(c.attention_config(), c.dropout, seed / "attn"),
        norm_mlp(c.d_model),
        cgmlp(c, seed / "cgmlp"),
        dropout_(c.dropout) {}

  static constexpr Index parameter_count(const EncoderConfig& c) {
    return 2 * 2 * c.d_model + ConvolutionalGatingMlp<T>::parameter_count(c);
  }

  template <class Tensor>
  struct Output {
    Tensor attention, cgmlp;
  };
  template <class Context, class Tensor, class S>
  Output<Tensor> operator()(Context& context, const Tensor& x, const Pass<Tensor>& pass, S state) const {
    const Tensor a = norm_mha(context, x), b = norm_mlp(context, x);
    Output<Tensor> out;
    if constexpr (has_state<S>)
      out = {attn(context, a, pass, &state->attention), cgmlp(context, b, pass, &state->conv)};
    else
      out = {attn(context, a, pass), cgmlp(context, b, pass)};
    out.attention = context.dropout(std::move(out.attention), dropout_);
    out.cgmlp = context.dropout(std::move(out.cgmlp), dropout_);
    return out;
  }

  static void each_parameter(auto& self, auto&& visit) {
    visit("norm_mha", self.norm_mha);
    visit("attn", self.attn);
    visit("norm_mlp", self.norm_mlp);
    visit("cgmlp", self.cgmlp);
  }

  LayerNorm<T> norm_mha;
  AttentionType attn;
  LayerNorm<T> norm_mlp;
  ConvolutionalGatingMlp<T> cgmlp;

 private:
  double dropout_;
};

/// One block of a Branchformer (Peng et al. 2022, section 3): attention and cgMLP beside each other, merged, and a
/// norm. Parameter names are ESPnet's.
template <class AttentionPolicy, class T>
class BranchformerBlock : public Module<BranchformerBlock<AttentionPolicy, T>> {
 public:
  BranchformerBlock(const EncoderConfig& c, Seed seed)
      : branches(c, seed),
        merge_proj((c.merge == BranchMerge::concat ? 2 : 1) * c.d_model, c.d_model, seed / "merge_proj"),
        norm_final(c.d_model),
        merge_(c.merge),
        cgmlp_weight_(c.cgmlp_weight),
        dropout_(c.dropout) {
    if (merge_ != BranchMerge::learned_average) return;
    pooling_proj1 = Linear<T>(c.d_model, 1, seed / "pooling_proj1");
    pooling_proj2 = Linear<T>(c.d_model, 1, seed / "pooling_proj2");
    weight_proj1 = Linear<T>(c.d_model, 1, seed / "weight_proj1");
    weight_proj2 = Linear<T>(c.d_model, 1, seed / "weight_proj2");
  }

  auto& attention() { return branches.attn; }
  const auto& attention() const { return branches.attn; }

  template <class Context>
  struct State {
    State(Context& context, const BranchformerBlock& block, const StateShape& shape)
        : attention(context, block.branches.attn, shape), conv(context, block.branches.cgmlp.csgu.conv, shape) {}
    void clear(Context& context, Index slot) {
      attention.clear(context, slot);
      conv.clear(context, slot);
    }
    void fill_zeros(Context& context, Index slot) { attention.fill_zeros(context, slot); }
    Index convolution_bytes() const { return conv.cache_bytes(); }

    typename Branches<AttentionPolicy, T>::AttentionType::template State<Context> attention;
    typename DepthwiseConv<T>::template State<Context> conv;
  };

  template <class Context, class Tensor, class S>
  Tensor operator()(Context& context, Tensor x, const Pass<Tensor>& pass, S state) const {
    auto [attention, cgmlp] = branches(context, x, pass, state);
    const Tensor y = merge_proj(context, merged(context, std::move(attention), cgmlp, pass));
    return norm_final(context, context.add(std::move(x), context.dropout(y, dropout_)));
  }

  static void each_parameter(auto& self, auto&& visit) {
    Branches<AttentionPolicy, T>::each_parameter(self.branches, visit);
    if (self.merge_ == BranchMerge::learned_average) {
      visit("pooling_proj1", self.pooling_proj1);
      visit("pooling_proj2", self.pooling_proj2);
      visit("weight_proj1", self.weight_proj1);
      visit("weight_proj2", self.weight_proj2);
    }
    visit("merge_proj", self.merge_proj);
    visit("norm_final", self.norm_final);
  }

  Branches<AttentionPolicy, T> branches;
  Linear<T> pooling_proj1, pooling_proj2, weight_proj1, weight_proj2;
  Linear<T> merge_proj;
  LayerNorm<T> norm_final;

 private:
  template <class Context, class Tensor>
  Tensor merged(Context& context, Tensor attention, const Tensor& cgmlp, const Pass<Tensor>& pass) const {
    switch (merge_) {
      case BranchMerge::concat:
        return context.concat(attention, cgmlp);
      case BranchMerge::fixed_average:
        return context.add(context.scale(attention, 1 - cgmlp_weight_), cgmlp, cgmlp_weight_);
      default: {
        const Tensor a = gate(context, attention, pooling_proj1, weight_proj1, pass.sequences);
        const Tensor b = gate(context, cgmlp, pooling_proj2, weight_proj2, pass.sequences);
        // Softmax over two is the sigmoid of their difference.
        return context.mix(attention, cgmlp, context.add(a, b, -1), pass.sequences);
      }
    }
  }
  /// One number for each sequence: its rows, averaged by the softmax of their products with `pooling`, into `weight`.
  /// That is attention of one query a sequence; the pooling's bias moves all scores alike.
  template <class Context, class Tensor>
  Tensor gate(Context& context, const Tensor& x, const Linear<T>& pooling, const Linear<T>& weight,
              const Sequences& sequences) const {
    const Index n = sequences.size();
    const Sequences one = sequences.map_lengths(context.arena(), [](Index) { return 1; });
    const Tensor zeros = context.constant(n, x.cols(), [](Index, Index) { return 0; });
    const AttendShape shape{1, 1, 1 / std::sqrt(static_cast<double>(x.cols()))};
    return weight(context, context.attend(context.add_row(zeros, pooling.weight), x, x, shape, one, sequences));
  }

  BranchMerge merge_;
  double cgmlp_weight_, dropout_;
};

/// One block of an E-Branchformer (Kim et al. 2022): half a feed-forward, both branches merged with the help of a
/// depthwise convolution, half a feed-forward, norm. Parameter names are ESPnet's; in the feed-forwards, Hugging
/// Face's.
template <class AttentionPolicy, class T>
class EBranchformerBlock : public Module<EBranchformerBlock<AttentionPolicy, T>> {
 public:
  EBranchformerBlock(const EncoderConfig& c, Seed seed)
      : norm_ff_macaron(c.d_model),
        feed_forward_macaron(c.d_model, c.ffn_expansion * c.d_model, c.hidden_act, c.dropout,
                             seed / "feed_forward_macaron"),
        branches(c, seed),
        depthwise_conv_fusion(2 * c.d_model, c.merge_kernel, c.convolution, seed / "depthwise_conv_fusion", Bias::yes),
        merge_proj(2 * c.d_model, c.d_model, seed / "merge_proj"),
        norm_ff(c.d_model),
        feed_forward(c.d_model, c.ffn_expansion * c.d_model, c.hidden_act, c.dropout, seed / "feed_forward"),
        norm_final(c.d_model),
        dropout_(c.dropout) {}

  auto& attention() { return branches.attn; }
  const auto& attention() const { return branches.attn; }

  template <class Context>
  struct State {
    State(Context& context, const EBranchformerBlock& block, const StateShape& shape)
        : attention(context, block.branches.attn, shape),
          conv(context, block.branches.cgmlp.csgu.conv, shape),
          fusion(context, block.depthwise_conv_fusion, shape) {}
    void clear(Context& context, Index slot) {
      attention.clear(context, slot);
      conv.clear(context, slot);
      fusion.clear(context, slot);
    }
    void fill_zeros(Context& context, Index slot) { attention.fill_zeros(context, slot); }
    Index convolution_bytes() const { return conv.cache_bytes() + fusion.cache_bytes(); }

    typename Branches<AttentionPolicy, T>::AttentionType::template State<Context> attention;
    typename DepthwiseConv<T>::template State<Context> conv, fusion;
  };

  template <class Context, class Tensor, class S>
  Tensor operator()(Context& context, Tensor x, const Pass<Tensor>& pass, S state) const {
    Tensor y = feed_forward_macaron(context, norm_ff_macaron(context, x));
    x = context.add(std::move(x), y, 0.5);
    const auto [attention, cgmlp] = branches(context, x, pass, state);
    Tensor both = context.concat(attention, cgmlp);
    if constexpr (has_state<S>)
      y = depthwise_conv_fusion(context, both, pass, &state->fusion);
    else
      y = depthwise_conv_fusion(context, both, pass);
    y = merge_proj(context, context.add(std::move(both), y));
    x = context.add(std::move(x), context.dropout(std::move(y), dropout_));
    y = feed_forward(context, norm_ff(context, x));
    x = context.add(std::move(x), y, 0.5);
    return norm_final(context, x);
  }

  static void each_parameter(auto& self, auto&& visit) {
    visit("norm_ff_macaron", self.norm_ff_macaron);
    visit("feed_forward_macaron", self.feed_forward_macaron);
    Branches<AttentionPolicy, T>::each_parameter(self.branches, visit);
    visit("depthwise_conv_fusion", self.depthwise_conv_fusion);
    visit("merge_proj", self.merge_proj);
    visit("norm_ff", self.norm_ff);
    visit("feed_forward", self.feed_forward);
    visit("norm_final", self.norm_final);
  }

  LayerNorm<T> norm_ff_macaron;
  FeedForward<T> feed_forward_macaron;
  Branches<AttentionPolicy, T> branches;
  DepthwiseConv<T> depthwise_conv_fusion;
  Linear<T> merge_proj;
  LayerNorm<T> norm_ff;
  FeedForward<T> feed_forward;
  LayerNorm<T> norm_final;

 private:
  double dropout_;
};

struct BranchformerKind : FeatureFront {
  template <class AttentionPolicy, class T>
  using Block = BranchformerBlock<AttentionPolicy, T>;
  static constexpr const char* attention_name = "attn";

  static constexpr Index merge_width(const EncoderConfig& c) {
    return (c.merge == BranchMerge::concat ? 2 : 1) * c.d_model;
  }
  static constexpr Index parameter_count(const EncoderConfig& c) {
    return Branches<Mha<1>, float>::parameter_count(c) + (merge_width(c) + 1) * c.d_model + 2 * c.d_model +
           (c.merge == BranchMerge::learned_average ? 4 * (c.d_model + 1) : 0);
  }
  static constexpr Index flops(const EncoderConfig& c, Index frames) {
    return ConvolutionalGatingMlp<float>::flops(c, frames) + 2 * frames * merge_width(c) * c.d_model;
  }
  static constexpr void require_streamable(const EncoderConfig& c) {
    require(c.convolution != ConvolutionContext::centred,
            "branchformer: a centred convolution cannot be streamed; causal or chunk expected");
    require(c.merge != BranchMerge::learned_average,
            "branchformer: a learned average weighs the branches by the whole utterance, so it cannot be streamed; "
            "concat or fixed-average expected");
  }
};

struct EBranchformerKind : FeatureFront {
  template <class AttentionPolicy, class T>
  using Block = EBranchformerBlock<AttentionPolicy, T>;
  static constexpr const char* attention_name = "attn";

  static constexpr Index parameter_count(const EncoderConfig& c) {
    const Index d = c.d_model, hidden = c.ffn_expansion * d;
    return Branches<Mha<1>, float>::parameter_count(c) + 3 * 2 * d + 2 * (2 * d * hidden + hidden + d) +
           DepthwiseConv<float>::parameter_count(2 * d, c.merge_kernel, Bias::yes) + (2 * d + 1) * d;
  }
  static constexpr Index flops(const EncoderConfig& c, Index frames) {
    const Index d = c.d_model;
    return ConvolutionalGatingMlp<float>::flops(c, frames) +
           2 * frames * (2 * 2 * c.ffn_expansion * d * d + 2 * d * c.merge_kernel + 2 * d * d);
  }
  static constexpr void require_streamable(const EncoderConfig& c) {
    require(c.convolution != ConvolutionContext::centred,
            "e-branchformer: a centred convolution cannot be streamed; causal or chunk expected");
  }
};

/// A Branchformer encoder (Peng et al. 2022) with convolutional subsampling and a CTC head.
template <class AttentionPolicy, class T = float>
using Branchformer = Encoder<BranchformerKind, AttentionPolicy, T>;
/// An E-Branchformer encoder (Kim et al. 2022), likewise.
template <class AttentionPolicy, class T = float>
using EBranchformer = Encoder<EBranchformerKind, AttentionPolicy, T>;

}  // namespace LACONIC_ABI
}  // namespace laconic
