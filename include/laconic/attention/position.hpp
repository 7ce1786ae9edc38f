// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/heads.hpp>
#include <laconic/backend/primitives.hpp>
#include <laconic/nn/linear.hpp>

namespace laconic::inline LACONIC_ABI {

// A position policy says how attention knows the order of frames. It has
//   key_bias_cancels                       a bias on the keys moves all scores of a query alike, so softmax ignores it
//   parameter_count(dims), flops(dims, frames)   constexpr, a layer
//   enter(context, x, sequences)           what happens once, before the first layer: new rows and a table for all layers
//   Layer<T>, a Module with a constructor (dims, seed): term(context, table)   what one layer adds to the scores

/// The sinusoid of Vaswani et al. 2017: sin in even, cos in odd columns, wavelengths 2 pi to 20000 pi.
inline double sinusoid(double position, Index column, Index d_model) {
  const double rate = std::pow(10000.0, -static_cast<double>(column / 2 * 2) / static_cast<double>(d_model));
  return column % 2 == 0 ? std::sin(position * rate) : std::cos(position * rate);
}

/// Rows as they enter the first layer, and the table that all layers share (empty where there is none).
template <class Tensor>
struct Positioned {
  Tensor x, table;
};

/// For policies without parameters.
struct NoPositionLayer {
  template <class T>
  class Layer : public Module<Layer<T>> {
   public:
    Layer(const AttentionDims&, Seed) {}
    template <class Context, class Tensor>
    RelativeTerm<Tensor, T> term(Context&, const Tensor&) const {
      return {};
    }
    static void each_parameter(auto&, auto&&) {}
  };
  static constexpr Index parameter_count(const AttentionDims&) { return 0; }
  static constexpr Index flops(const AttentionDims&, Index) { return 0; }
};

/// Order is known from elsewhere (convolutions) or not at all.
struct NoPosition : NoPositionLayer {
  static constexpr bool key_bias_cancels = true;
  template <class Context, class Tensor>
  static Positioned<Tensor> enter(Context&, const Tensor& x, const Sequences&) {
    return {x, {}};
  }
};

/// Absolute sinusoids added to the input once (Vaswani et al. 2017, section 3.5).
struct Sinusoidal : NoPositionLayer {
  static constexpr bool key_bias_cancels = true;
  template <class Context, class Tensor>
  static Positioned<Tensor> enter(Context& context, const Tensor& x, const Sequences& sequences) {
    const auto positions = context.constant(x.rows(), x.cols(), [&](Index row, Index column) {
      return sinusoid(static_cast<double>(row - sequences.begin(sequences.sequence_of(row))), column, x.cols());
    });
    return {context.add(x, positions), {}};
  }
};

/// Scores gain (q + v) . W_pos r(i - j), and content scores use q + u (Dai et al. 2019, section 3.3; as in ESPnet's
/// "latest" and the Hugging Face Conformer). Keys are untouched by position, so any key-value policy goes with it.
struct RelativePosition {
  static constexpr bool key_bias_cancels = true;
  static constexpr Index parameter_count(const AttentionDims& d) { return d.d_model * d.d_model + 2 * d.d_model; }
  static constexpr Index flops(const AttentionDims& d, Index frames) {
    return 2 * (2 * frames - 1) * d.d_model * (d.d_model + frames);
  }

  /// The table (2 * longest - 1, d_model): row `longest` - 1 - r is the sinusoid of distance r = i - j.
  template <class Context, class Tensor>
  static Positioned<Tensor> enter(Context& context, const Tensor& x, const Sequences& sequences) {
    const Index longest = std::max<Index>(1, sequences.max_length()), d_model = x.cols();
    return {x, context.constant(2 * longest - 1, d_model, [&](Index row, Index column) {
              return sinusoid(static_cast<double>(longest - 1 - row), column, d_model);
            })};
  }

  template <class T>
  class Layer : public Module<Layer<T>> {
   public:
    Layer(const AttentionDims& d, Seed seed)
        : linear_pos(d.d_model, d.d_model, seed / "linear_pos", Bias::no),
          pos_bias_u({d.num_heads, d.head_dim()}), pos_bias_v({d.num_heads, d.head_dim()}) {}

    template <class Context, class Tensor>
    RelativeTerm<Tensor, T> term(Context& context, const Tensor& table) const {
      return {linear_pos(context, table), &pos_bias_u, &pos_bias_v};
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

}  // namespace laconic
