// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/model/branches.hpp>
#include <laconic/model/encoder.hpp>

namespace laconic {
inline namespace LACONIC_ABI {

/// Computes one Branchformer block (Peng et al. 2022, section 3), (rows, d_model) to (rows, d_model): attention and
/// cgMLP in parallel, their merge, and a norm. Parameter names are ESPnet's.
template <class AttentionPolicy, class T>
class BranchformerBlock : public Module<BranchformerBlock<AttentionPolicy, T>> {
 public:
  /// Makes the layer with its initial parameters. Allocates.
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

  /// Returns the self-attention.
  auto& attention() { return branches.attn; }
  /// Returns the self-attention.
  const auto& attention() const { return branches.attn; }

  /// Holds what streams keep of earlier frames.
  template <class Context>
  struct State {
    /// Makes the state of `shape.slots` streams. Allocates.
    State(Context& context, const BranchformerBlock& block, const StateShape& shape)
        : attention(context, block.branches.attn, shape), conv(context, block.branches.cgmlp.csgu.conv, shape) {}
    /// Empties a slot for a new stream.
    void clear(Context& context, Index slot) {
      attention.clear(context, slot);
      conv.clear(context, slot);
    }
    /// Fills a slot as if frames of zeros had come before, as many as are kept.
    void fill_zeros(Context& context, Index slot) { attention.fill_zeros(context, slot); }
    /// Returns the bytes that the convolutions hold, all slots.
    Index convolution_bytes() const { return conv.cache_bytes(); }

    typename Branches<AttentionPolicy, T>::AttentionType::template State<Context> attention;  ///< the past of attention
    typename DepthwiseConv<T>::template State<Context> conv;  ///< the past of the convolution
  };

  /// Returns the output of the block. `state` is a pointer to a State, or `nullptr` for whole sequences.
  template <class Context, class Tensor, class S>
  Tensor operator()(Context& context, Tensor x, const Pass<Tensor>& pass, S state) const {
    auto [attention, cgmlp] = branches(context, x, pass, state);
    const Tensor y = merge_proj(context, merged(context, std::move(attention), cgmlp, pass));
    return norm_final(context, context.add(std::move(x), context.dropout(y, dropout_)));
  }

  /// Visits the parameters with their names (see Module).
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

  Branches<AttentionPolicy, T> branches;  ///< attention and cgMLP
  Linear<T> pooling_proj1;                ///< pooling of attention for a learned average, else empty
  Linear<T> pooling_proj2;                ///< pooling of the cgMLP for a learned average, else empty
  Linear<T> weight_proj1;                 ///< weight of attention in a learned average, else empty
  Linear<T> weight_proj2;                 ///< weight of the cgMLP in a learned average, else empty
  Linear<T> merge_proj;                   ///< from the merged branches to d_model
  LayerNorm<T> norm_final;                ///< the last norm

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
  /// Returns one value for each sequence, (sequences, 1): `weight` of its rows, averaged by the softmax of their
  /// products with `pooling`. This is attention of one query a sequence; the pooling's bias moves all its scores by the
  /// same amount.
  template <class Context, class Tensor>
  Tensor gate(Context& context, const Tensor& x, const Linear<T>& pooling, const Linear<T>& weight,
              const Sequences& sequences) const {
    const Index n = sequences.size();
    const Sequences one = sequences.map_lengths(context.arena(), [](Index) { return 1; });
    const Tensor zeros = context.fill(n, x.cols(), 0);
    const AttendShape shape{1, 1, 1 / std::sqrt(static_cast<double>(x.cols()))};
    return weight(context, context.attend(context.add_row(zeros, pooling.weight), x, x, shape, one, sequences));
  }

  BranchMerge merge_;
  double cgmlp_weight_, dropout_;
};

/// Describes Branchformer blocks after convolutional subsampling, for `Encoder`.
struct BranchformerKind : FeatureFront {
  /// The block of an attention policy in numbers of type T.
  template <class AttentionPolicy, class T>
  using Block = BranchformerBlock<AttentionPolicy, T>;
  static constexpr const char* attention_name = "attn";  ///< prefix of the attention's parameters in a block

  /// Returns the input channels of the linear layer after the merge.
  static constexpr Index merge_width(const EncoderConfig& c) {
    return (c.merge == BranchMerge::concat ? 2 : 1) * c.d_model;
  }
  /// Returns the trained parameters of a block without its attention.
  static constexpr Index parameter_count(const EncoderConfig& c) {
    return Branches<Mha<1>, float>::parameter_count(c) + (merge_width(c) + 1) * c.d_model + 2 * c.d_model +
           (c.merge == BranchMerge::learned_average ? 4 * (c.d_model + 1) : 0);
  }
  /// Returns the floating-point operations of a block without its attention.
  static constexpr Index flops(const EncoderConfig& c, Index frames) {
    return ConvolutionalGatingMlp<float>::flops(c, frames) + 2 * frames * merge_width(c) * c.d_model;
  }
  /// Throws Error for centred convolutions and for a learned average.
  static constexpr void require_streamable(const EncoderConfig& c) {
    require(c.convolution != ConvolutionContext::centred,
            "branchformer: a centred convolution cannot be streamed; causal or chunk expected");
    require(c.merge != BranchMerge::learned_average,
            "branchformer: a learned average weighs the branches by the whole utterance, so it cannot be streamed; "
            "concat or fixed-average expected");
  }
};

/// Encodes log-mel features by a Branchformer (Peng et al. 2022) with convolutional subsampling and a CTC head.
template <class AttentionPolicy, class T = float>
using Branchformer = Encoder<BranchformerKind, AttentionPolicy, T>;

}  // namespace LACONIC_ABI
}  // namespace laconic
