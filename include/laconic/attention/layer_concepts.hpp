// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/key_value.hpp>
#include <laconic/attention/position.hpp>
#include <laconic/attention/query.hpp>

#include <array>
#include <concepts>
#include <cstddef>

namespace laconic {
inline namespace LACONIC_ABI {

// The part of each policy's contract that needs a context: what `AttentionLayer` calls. The rest is in the concepts of
// the policies themselves. A class cannot be asked for a member function template, only for a call with given types; so
// these are checked where a model is first run on a context.

/// Requires of the layer of key-value policy P that it computes on context C.
template <class P, class C, class L = typename P::template Layer<typename C::Scalar>>
concept KeyValueLayer = requires(const L& layer, C& context, const typename C::Tensor& x,
                                 const std::array<typename C::Tensor, static_cast<std::size_t>(P::num_parts)>& memory) {
  {
    layer.remember(context, x, x)
    } -> std::same_as<std::array<typename C::Tensor, static_cast<std::size_t>(P::num_parts)>>;
  { layer.expand(context, memory) } -> std::same_as<KeysAndValues<typename C::Tensor>>;
  { layer.value_weight() } -> std::same_as<const Parameter<typename C::Scalar>&>;
};

/// Requires of the layer of a latent P that attention over its latents computes on context C.
template <class P, class C, class L = typename P::template Layer<typename C::Scalar>>
concept AbsorbedLayer = requires(const L& layer, C& context, const typename C::Tensor& x,
                                 const std::array<typename C::Tensor, static_cast<std::size_t>(P::num_parts)>& memory) {
  { layer.absorb(context, x) } -> std::same_as<typename C::Tensor>;
  { layer.latents(context, memory) } -> std::same_as<KeysAndValues<typename C::Tensor>>;
  { layer.release(context, x) } -> std::same_as<typename C::Tensor>;
};

/// Requires of the layer of query policy P that it computes on context C.
template <class P, class C, class L = typename P::template Layer<typename C::Scalar>>
concept QueryLayer = requires(const L& layer, C& context, const typename C::Tensor& x) {
  { layer(context, x) } -> std::same_as<Queries<typename C::Tensor>>;
  { layer.input_weight() } -> std::same_as<const Parameter<typename C::Scalar>&>;
};

/// Requires of position policy P and of its layer that both compute on context C.
template <class P, class C, class L = typename P::template Layer<typename C::Scalar>>
concept PositionLayer = requires(const L& layer, C& context, const typename C::Tensor& x, const AttentionDims& dims,
                                 Index width, const Pass<typename C::Tensor>& pass) {
  { P::enter(context, x, pass) } -> std::same_as<typename C::Tensor>;
  { P::table(context, dims, width, pass) } -> std::same_as<typename C::Tensor>;
  { layer.term(context, dims, pass) } -> std::same_as<RelativeTerm<typename C::Tensor, typename C::Scalar>>;
  { layer.keeps_term(context) } -> std::same_as<bool>;
  { layer.term_of(x) } -> std::same_as<RelativeTerm<typename C::Tensor, typename C::Scalar>>;
};

namespace detail {

/// Ends the compilation with a sentence where a layer lacks what attention calls on context C.
template <class Policy, class C>
constexpr bool computes_on() {
  using KeyValue = typename Policy::KeyValue;
  static_assert(KeyValueLayer<KeyValue, C>,
                "laconic: the layer of this key-value policy lacks remember, expand or value_weight, or they return "
                "other types: see KeyValueLayer in attention/layer_concepts.hpp");
  if constexpr (KeyValue::is_latent)
    static_assert(AbsorbedLayer<KeyValue, C>,
                  "laconic: the layer of this latent lacks absorb, latents or release, or they return other types: see "
                  "AbsorbedLayer in attention/layer_concepts.hpp; AbsorbingLayer provides them");
  static_assert(QueryLayer<typename Policy::Query, C>,
                "laconic: the layer of this query policy lacks operator() or input_weight, or they return other types: "
                "see QueryLayer in attention/layer_concepts.hpp");
  static_assert(PositionLayer<typename Policy::Position, C>,
                "laconic: this position policy lacks enter or table, or its layer lacks term, keeps_term or term_of, "
                "or they return other types: see PositionLayer in attention/layer_concepts.hpp; PlainPosition has all");
  return true;
}

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
