// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/key_value.hpp>
#include <laconic/backend/context.hpp>
#include <laconic/nn/linear.hpp>
#include <laconic/nn/pass.hpp>

#include <concepts>

namespace laconic {
inline namespace LACONIC_ABI {

/// Says how attention knows the order of frames. A position policy has
///   key_bias_cancels       a bias on the keys moves all scores of a query by the same amount, so softmax ignores it
///   is_relative            scores gain a term of the distance between query and key
///   turns_input            the input of queries and keys is rotated before their projections
///   turns_keys             queries and keys are rotated after their projections
///   pairs                  a RotaryPairs, where one of the two is true: the channels that are rotated together
///   parameter_count(dims), flops(dims, frames)   of one layer
///   enter(context, x, pass)              changes the rows once, before the first layer
///   table(context, dims, width, pass)    computes what all layers share; `width` channels are rotated
///   Layer<T>, a Module constructed from (dims, seed), with
///     term(context, dims, pass)          what one layer adds to the scores
///     keeps_term(context)                whether the context keeps that from call to call, so that no table is needed
///     term_of(prepared_table(context, dims, n))    the term in a stream, for up to n frames, where `is_relative`
template <class P>
concept PositionPolicy = LayerOfPolicy<P> && requires(const AttentionDims& dims, Index count) {
  { P::key_bias_cancels } -> std::convertible_to<bool>;
  { P::is_relative } -> std::convertible_to<bool>;
  { P::turns_input } -> std::convertible_to<bool>;
  { P::turns_keys } -> std::convertible_to<bool>;
  { P::parameter_count(dims) } -> std::convertible_to<Index>;
  { P::flops(dims, count) } -> std::convertible_to<Index>;  // a layer, over so many frames
} &&(!(P::turns_input || P::turns_keys) || std::same_as<decltype(P::pairs), const RotaryPairs>);

/// Does nothing: policies derive from it and replace what they do.
struct PlainPosition {
  static constexpr bool key_bias_cancels = true;  ///< softmax ignores a bias on the keys
  static constexpr bool is_relative = false;      ///< scores gain a term of distance
  static constexpr bool turns_input = false;      ///< the input of queries and keys is rotated
  static constexpr bool turns_keys = false;       ///< queries and keys are rotated
  /// Returns 0.
  static constexpr Index parameter_count(const AttentionDims&) { return 0; }
  /// Returns 0.
  static constexpr Index flops(const AttentionDims&, Index) { return 0; }

  /// Returns x.
  template <class Context, class Tensor>
  static Tensor enter(Context&, Tensor x, const Pass<Tensor>&) {
    return x;
  }
  /// Returns an empty tensor.
  template <class Context, class Tensor>
  static Tensor table(Context&, const AttentionDims&, Index, const Pass<Tensor>&) {
    return {};
  }

  /// Adds nothing to the scores.
  template <class T>
  class Layer : public Module<Layer<T>> {
   public:
    /// Makes a layer without parameters.
    Layer(const AttentionDims&, Seed) {}
    /// Returns an empty term.
    template <class Context, class Tensor>
    RelativeTerm<Tensor, T> term(Context&, const AttentionDims&, const Pass<Tensor>&) const {
      return {};
    }
    /// Returns false.
    template <class Context>
    bool keeps_term(const Context&) const {
      return false;
    }
    /// Returns an empty term.
    template <class Tensor>
    RelativeTerm<Tensor, T> term_of(const Tensor&) const {
      return {};
    }
    /// Visits the parameters with their names (see Module).
    static void each_parameter(auto&, auto&&) {}
  };
};

/// Adds no positions: the order of frames is known from convolutions, or not at all.
struct NoPosition : PlainPosition {};

/// Adds absolute sinusoids to the input once (Vaswani et al. 2017, section 3.5).
struct Sinusoidal : PlainPosition {
  /// Returns x plus the sinusoids of its positions in their streams.
  template <class Context, class Tensor>
  static Tensor enter(Context& context, Tensor x, const Pass<Tensor>& pass) {
    const auto positions = context.sinusoids({pass.sequences, pass.firsts}, x.cols());
    return context.add(std::move(x), positions);
  }
};

/// Adds (q + v) . W_pos r(i - j) to the scores, and uses q + u in those of content (Dai et al. 2019, section 3.3; as in
/// ESPnet's "latest" and the Hugging Face Conformer). Keys do not depend on position, so every key-value policy goes
/// with it.
struct RelativePosition : PlainPosition {
  static constexpr bool is_relative = true;  ///< scores gain a term of distance
  /// Returns the trained parameters.
  static constexpr Index parameter_count(const AttentionDims& d) { return d.q_dim() * d.d_model + 2 * d.q_dim(); }
  /// Returns the floating-point operations of the term over `frames` frames.
  static constexpr Index flops(const AttentionDims& d, Index frames) {
    return 2 * (2 * frames - 1) * d.q_dim() * (d.d_model + frames);
  }

  /// Returns the sinusoids of distances n - 1 down to -(n - 1), (2 n - 1, d_model), for sequences of up to n frames.
  template <class Context>
  static auto distances(Context& context, const AttentionDims& d, Index n) {
    const Index first = n - 1;
    const Sequences all = Sequences::make(context.arena(), 1, [&](Index) { return 2 * n - 1; });
    return context.sinusoids({all, {&first, 1}, -1}, d.d_model);
  }
  /// Returns the sinusoids of all distances of the pass, (2 frames - 1, d_model).
  template <class Context, class Tensor>
  static Tensor table(Context& context, const AttentionDims& d, Index, const Pass<Tensor>& pass) {
    return distances(context, d, frames(pass));
  }
  /// Returns the frames of the longest sequence, at least 1.
  template <class Tensor>
  static Index frames(const Pass<Tensor>& pass) {
    return std::max<Index>(1, pass.sequences.max_length());
  }

  /// Projects the sinusoids for one layer.
  template <class T>
  class Layer : public Module<Layer<T>> {
   public:
    /// Makes the layer with its initial parameters. Allocates.
    Layer(const AttentionDims& d, Seed seed)
        : linear_pos(d.d_model, d.q_dim(), seed / "linear_pos", Bias::no),
          pos_bias_u({d.num_heads, d.head_dim}),
          pos_bias_v({d.num_heads, d.head_dim}) {}

    /// Returns the term that the scores of this layer gain.
    template <class Context, class Tensor>
    RelativeTerm<Tensor, T> term(Context& context, const AttentionDims& d, const Pass<Tensor>& pass) const {
      if constexpr (StreamingContext<Context>)
        if (keeps_term(context))
          return term_of(context.kept_for(linear_pos.weight, frames(pass),
                                          [&](Index n) { return prepared_table(context, d, n); }));
      return {linear_pos(context, pass.table), &pos_bias_u, &pos_bias_v};
    }
    /// Returns whether the context keeps the projected table from call to call: a prepared weight never changes.
    template <class Context>
    bool keeps_term([[maybe_unused]] const Context& context) const {
      if constexpr (StreamingContext<Context>) return context.keeps(linear_pos.weight);
      return false;
    }
    /// Returns the table as this layer projects it, prepared for many calls with sequences of up to n frames.
    template <class Context>
    auto prepared_table(Context& context, const AttentionDims& d, Index n) const {
      return context.prepare_table(linear_pos(context, distances(context, d, n)), d.num_heads);
    }
    /// Returns the term of a prepared table.
    template <class Tensor>
    RelativeTerm<Tensor, T> term_of(Tensor prepared) const {
      return {std::move(prepared), &pos_bias_u, &pos_bias_v, {}, true};
    }

    /// Visits the parameters with their names (see Module).
    static void each_parameter(auto& self, auto&& visit) {
      visit("linear_pos", self.linear_pos);
      visit("pos_bias_u", self.pos_bias_u);
      visit("pos_bias_v", self.pos_bias_v);
    }

    Linear<T> linear_pos;     ///< from d_model to num_heads * head_dim
    Parameter<T> pos_bias_u;  ///< added to the queries that meet keys, (num_heads, head_dim)
    Parameter<T> pos_bias_v;  ///< added to the queries that meet distances, (num_heads, head_dim)
  };
};

/// Computes the angles that rotary policies share.
struct RotaryTable : PlainPosition {
  /// Returns the table of rotations (rows, width): cosines of the pairs, then their sines.
  template <class Context, class Tensor>
  static Tensor table(Context& context, const AttentionDims& d, Index width, const Pass<Tensor>& pass) {
    const Index rate_width = d.rope_pairs.size() > 0 ? d.head_dim : width;
    return context.rotary_table({pass.sequences, pass.firsts}, width, rate_width, d.rope_pairs, d.rope);
  }
};

/// Rotates queries and keys by their position after their projections, so that scores depend on the distance (Su et al.
/// 2021). A decoupled latent has parts of its own that are rotated instead.
template <RotaryPairs Pairs = RotaryPairs::interleaved>
struct Rotary : RotaryTable {
  static constexpr bool key_bias_cancels = false;  ///< rotation makes the bias depend on the frame
  static constexpr bool turns_keys = true;         ///< queries and keys are rotated
  static constexpr RotaryPairs pairs = Pairs;      ///< the channels of a pair
};

/// Rotates the input of queries and keys by its position, head by head, before their projections, as the Hugging Face
/// Conformer does. Values see the input itself, and scores depend on both positions, not only on their distance.
template <RotaryPairs Pairs = RotaryPairs::halves>
struct InputRotary : RotaryTable {
  static constexpr bool turns_input = true;    ///< the input of queries and keys is rotated
  static constexpr RotaryPairs pairs = Pairs;  ///< the channels of a pair
};

}  // namespace LACONIC_ABI
}  // namespace laconic
