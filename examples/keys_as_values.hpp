// The key-value policy of lesson 12. It caches only keys and uses them as values too.
#pragma once

#include <laconic/convert/fit.hpp>
#include <laconic/laconic.hpp>

#include <array>
#include <optional>

namespace lesson {

using namespace laconic;

struct KeysAsValues {
  static constexpr bool is_latent = false, one_input = true;
  static constexpr Index num_parts = 1;
  static constexpr std::optional<Index> rotary_part = std::nullopt;
  static constexpr void set_ranks(const AttentionConfig& config, AttentionDims& dims) {
    FullRank::set_ranks(config, dims);
  }
  static constexpr std::array<CachePart, 1> parts(const AttentionDims& d) { return {{{d.kv_dim()}}}; }
  static constexpr Index parameter_count(const AttentionDims& d) { return d.kv_dim() * (d.d_model + 1); }
  static constexpr Index remember_flops(const AttentionDims& d) { return 2 * d.kv_dim() * d.d_model; }
  static constexpr Index expand_flops(const AttentionDims&) { return 0; }

  template <class T>
  class Layer : public Module<Layer<T>> {
   public:
    Layer(const AttentionDims& d, Seed seed) : linear_k(d.d_model, d.kv_dim(), seed / "linear_k") {}

    template <class Context, class Tensor>
    std::array<Tensor, 1> remember(Context& context, const Tensor& key_input, const Tensor&) const {
      return {linear_k(context, key_input)};
    }
    template <class Context, class Tensor>
    KeysAndValues<Tensor> expand(Context&, const std::array<Tensor, 1>& memory) const {
      return {memory[0], memory[0]};
    }
    const Parameter<T>& value_weight() const { return linear_k.weight; }
    static void each_parameter(auto& self, auto&& visit) { visit("linear_k", self.linear_k); }

    Linear<T> linear_k;
  };
};
static_assert(KeyValuePolicy<KeysAsValues>);

// How `convert` reads this policy and fits it (docs/conversion.md): the best matrix for keys and values is their mean.
template <class Layer>
KeyValueMap key_value_map(KeysAsValues, const Layer& layer) {
  const Matrix<double> keys = weight_and_bias(layer.linear_k);
  return {keys, keys};
}
template <class Layer>
double fit(KeysAsValues, Layer& layer, const KeyValueMap& wanted, const Fitting&) {
  set_weight_and_bias(layer.linear_k, (wanted.k + wanted.v) / 2);
  return (wanted.k_weight() - wanted.v_weight()).squaredNorm() / 2;
}

}  // namespace lesson
