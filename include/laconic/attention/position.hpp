// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/key_value.hpp>
#include <laconic/backend/context.hpp>
#include <laconic/nn/linear.hpp>
#include <laconic/nn/pass.hpp>

#include <concepts>

namespace laconic {
inline namespace LACONIC_ABI {

/// A position policy says how attention knows the order of frames. It has
///   key_bias_cancels       a bias on the keys moves all scores of a query alike, so softmax ignores it
///   is_relative            scores gain a term of the distance between query and key
///   turns_input            the input of queries and keys is turned before their projections
///   turns_keys             queries and keys are turned after them
///   pairs                  a RotaryPairs, where one of the two is true: which channels turn together
///   enter(context, x, pass)              what happens once, before the first layer, to the rows
///   table(context, dims, width, pass)    what all layers share: `width` is that of what is turned
///   Layer<T>, a Module made from (dims, seed): term(context, dims, pass)   what one layer adds to the scores
///     keeps_term(context)        the context keeps that from call to call, so that no table is asked for
///     term_of(prepared_table(context, dims, n))   that of a stream, with n frames at most, where `is_relative`
template <class P>
concept PositionPolicy = LayerOfPolicy<P> && requires(const AttentionDims& dims, Index count) {
  { P::key_bias_cancels } -> std::convertible_to<bool>;
  { P::is_relative } -> std::convertible_to<bool>;
  { P::turns_input } -> std::convertible_to<bool>;
  { P::turns_keys } -> std::convertible_to<bool>;
  { P::parameter_count(dims) } -> std::convertible_to<Index>;
  { P::flops(dims, count) } -> std::convertible_to<Index>;  // a layer, over so many frames
} &&(!(P::turns_input || P::turns_keys) || std::same_as<decltype(P::pairs), const RotaryPairs>);

/// What policies have in common that change nothing, keep nothing and learn nothing.
struct PlainPosition {
  static constexpr bool key_bias_cancels = true, is_relative = false, turns_input = false, turns_keys = false;
  static constexpr Index parameter_count(const AttentionDims&) { return 0; }
  static constexpr Index flops(const AttentionDims&, Index) { return 0; }

  template <class Context, class Tensor>
  static Tensor enter(Context&, Tensor x, const Pass<Tensor>&) {
    return x;
  }
  template <class Context, class Tensor>
  static Tensor table(Context&, const AttentionDims&, Index, const Pass<Tensor>&) {
    return {};
  }

  template <class T>
  class Layer : public Module<Layer<T>> {
   public:
    Layer(const AttentionDims&, Seed) {}
    template <class Context, class Tensor>
    RelativeTerm<Tensor, T> term(Context&, const AttentionDims&, const Pass<Tensor>&) const {
      return {};
    }
    template <class Context>
    bool keeps_term(const Context&) const {
      return false;
    }
    template <class Tensor>
    RelativeTerm<Tensor, T> term_of(const Tensor&) const {
      return {};
    }
    static void each_parameter(auto&, auto&&) {}
  };
};

/// Order is known from elsewhere (convolutions) or not at all.
struct NoPosition : PlainPosition {};

/// Absolute sinusoids added to the input once (Vaswani et al. 2017, section 3.5).
struct Sinusoidal : PlainPosition {
  template <class Context, class Tensor>
  static Tensor enter(Context& context, Tensor x, const Pass<Tensor>& pass) {
    const auto positions = context.sinusoids({pass.sequences, pass.firsts}, x.cols());
    return context.add(std::move(x), positions);
  }
};

/// Scores gain (q + v) . W_pos r(i - j), and content scores use q + u (Dai et al. 2019, section 3.3; as in ESPnet's
/// "latest" and the Hugging Face Conformer). Keys are untouched by position, so any key-value policy goes with it.
struct RelativePosition : PlainPosition {
  static constexpr bool is_relative = true;
  static constexpr Index parameter_count(const AttentionDims& d) { return d.q_dim() * d.d_model + 2 * d.q_dim(); }
  static constexpr Index flops(const AttentionDims& d, Index frames) {
    return 2 * (2 * frames - 1) * d.q_dim() * (d.d_model + frames);
  }

  /// The sinusoids of distances n - 1 down to -(n - 1), (2 n - 1, d_model), for sequences of up to n frames.
  template <class Context>
  static auto distances(Context& context, const AttentionDims& d, Index n) {
    const Index first = n - 1;
    const Sequences all = Sequences::make(context.arena(), 1, [&](Index) { return 2 * n - 1; });
    return context.sinusoids({all, {&first, 1}, -1}, d.d_model);
  }
  template <class Context, class Tensor>
  static Tensor table(Context& context, const AttentionDims& d, Index, const Pass<Tensor>& pass) {
    return distances(context, d, frames(pass));
  }
  template <class Tensor>
  static Index frames(const Pass<Tensor>& pass) {
    return std::max<Index>(1, pass.sequences.max_length());
  }

  template <class T>
  class Layer : public Module<Layer<T>> {
   public:
    Layer(const AttentionDims& d, Seed seed)
        : linear_pos(d.d_model, d.q_dim(), seed / "linear_pos", Bias::no),
          pos_bias_u({d.num_heads, d.head_dim}),
          pos_bias_v({d.num_heads, d.head_dim}) {}

    template <class Context, class Tensor>
    RelativeTerm<Tensor, T> term(Context& context, const AttentionDims& d, const Pass<Tensor>& pass) const {
      if constexpr (StreamingContext<Context>)
        if (keeps_term(context))
          return term_of(context.kept_for(linear_pos.weight, frames(pass),
                                          [&](Index n) { return prepared_table(context, d, n); }));
      return {linear_pos(context, pass.table), &pos_bias_u, &pos_bias_v};
    }
    /// Says whether the context keeps the projected table from call to call: a weight prepared to run never changes.
    template <class Context>
    bool keeps_term([[maybe_unused]] const Context& context) const {
      if constexpr (StreamingContext<Context>) return context.keeps(linear_pos.weight);
      return false;
    }
    /// The table as this layer projects it, packed: for many calls with sequences of up to n frames.
    template <class Context>
    auto prepared_table(Context& context, const AttentionDims& d, Index n) const {
      return context.prepare_table(linear_pos(context, distances(context, d, n)), d.num_heads);
    }
    template <class Tensor>
    RelativeTerm<Tensor, T> term_of(Tensor prepared) const {
      return {std::move(prepared), &pos_bias_u, &pos_bias_v, {}, true};
    }

    static void each_parameter(auto& self, auto&& visit) {
      visit("linear_pos", self.linear_pos);
      visit("pos_bias_u", self.pos_bias_u);
      visit("pos_bias_v", self.pos_bias_v);
    }

    Linear<T> linear_pos;
    Parameter<T> pos_bias_u, pos_bias_v;
  };
};

/// What rotary policies share: the angles of each row, (rows, width): cosines of the pairs, then their sines.
struct RotaryTable : PlainPosition {
  template <class Context, class Tensor>
  static Tensor table(Context& context, const AttentionDims& d, Index width, const Pass<Tensor>& pass) {
    const Index rate_width = d.rope_pairs.size() > 0 ? d.head_dim : width;
    return context.rotary_table({pass.sequences, pass.firsts}, width, rate_width, d.rope_pairs);
  }
};

/// Queries and keys turned by their position after their projections, so that scores know the distance (Su et al.
/// 2021); of a decoupled latent, only the parts that it sets aside for this.
template <RotaryPairs Pairs = RotaryPairs::interleaved>
struct Rotary : RotaryTable {
  static constexpr bool key_bias_cancels = false, turns_keys = true;
  static constexpr RotaryPairs pairs = Pairs;
};

/// The input of queries and keys turned by position, head by head, before their projections, as the Hugging Face
/// Conformer does it: values see the input as it is, and scores depend on both positions, not on their distance alone.
template <RotaryPairs Pairs = RotaryPairs::halves>
struct InputRotary : RotaryTable {
  static constexpr bool turns_input = true;
  static constexpr RotaryPairs pairs = Pairs;
};

}  // namespace LACONIC_ABI
}  // namespace laconic
