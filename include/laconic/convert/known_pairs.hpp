// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/any.hpp>
#include <laconic/convert/fit.hpp>
#include <laconic/model/encoder.hpp>

#include <concepts>
#include <type_traits>
#include <utility>

// Which attentions can be converted into which.

namespace laconic {
inline namespace LACONIC_ABI {

template <class Kind, class AttentionPolicy, class T>
class LanguageModel;

namespace detail {

template <class Target, class Source>
inline constexpr bool same_model = false;
template <class Kind, class To, class From, class T>
inline constexpr bool same_model<Encoder<Kind, To, T>, Encoder<Kind, From, T>> = true;
template <class Kind, class To, class From, class T>
inline constexpr bool same_model<LanguageModel<Kind, To, T>, LanguageModel<Kind, From, T>> = true;

/// Says whether keys and values are linear functions of the layer's input: `key_value_map` reads them off, and `fit`
/// sets them. Those of other policies are found in the policy's namespace.
template <class KeyValue>
inline constexpr bool is_linear_map = requires(typename KeyValue::template Layer<float>& layer,
                                               const KeyValueMap& wanted, const Fitting& how) {
  { key_value_map(KeyValue{}, std::as_const(layer)) } -> std::same_as<KeyValueMap>;
  { fit(KeyValue{}, layer, wanted, how) } -> std::same_as<double>;
};

/// Says whether keys and values come out of a latent by linear maps.
template <class KeyValue>
inline constexpr bool has_linear_latent =
    is_linear_map<KeyValue>&& KeyValue::is_latent && !std::is_same_v<KeyValue, InputLatent>;
/// Says whether the channels of the latent can be mixed by a Hadamard matrix.
template <class KeyValue>
inline constexpr bool can_mix = has_linear_latent<KeyValue>;
template <Index RK, Index RV>
inline constexpr bool can_mix<HeadLatent<RK, RV>> = false;

/// Says whether two policies have equal scores and positions, and keys and values that can be carried over.
template <class From, class To>
inline constexpr bool conversion_known =
    is_linear_map<typename From::KeyValue>&& is_linear_map<typename To::KeyValue>&& std::is_same_v<
        typename From::Position, typename To::Position>&& std::is_same_v<typename From::Score, typename To::Score>;

/// Says whether two policies are one template with different numbers.
template <class, class>
inline constexpr bool same_kind = false;
template <template <Index...> class KeyValue, Index... A, Index... B>
inline constexpr bool same_kind<KeyValue<A...>, KeyValue<B...>> = true;

/// Says whether the types leave room for fewer key-value heads than the source has.
template <class To, class From>
inline constexpr bool can_merge = true;
template <class To, class From>
requires requires { To::Heads::num_kv_heads + From::Heads::num_kv_heads; }
inline constexpr bool can_merge<To, From> = To::Heads::num_kv_heads == dyn || From::Heads::num_kv_heads == dyn ||
                                            From::Heads::num_kv_heads > To::Heads::num_kv_heads;

/// Throws `Error` unless a conversion is known between these attentions, which the types may leave open.
template <class To, class From>
void require_known(const AttentionConfig& to, const AttentionConfig& from) {
  const bool known = with_policy<To>(to, [&]<class A>(std::type_identity<A>) {
    return with_policy<From>(from, []<class B>(std::type_identity<B>) { return conversion_known<B, A>; });
  });
  require(known, "convert: no conversion is known between these two attentions (", to_name(from.attention), " to ",
          to_name(to.attention), ")");
}

template <class Target, class Source>
constexpr bool types_fit() {
  static_assert(same_model<Target, Source>,
                "laconic: convert changes a model's attention, neither its kind nor its number type");
  using From = typename Source::Policy;
  using To = typename Target::Policy;
  if constexpr (!names_its_policy<From> && !names_its_policy<To>) {
    constexpr Index before = From::Heads::num_heads, after = To::Heads::num_heads;
    static_assert(before == after || before == dyn || after == dyn, "laconic: convert keeps the number of query heads");
    static_assert(std::is_same_v<typename From::Position, typename To::Position>,
                  "laconic: convert keeps the position policy");
    static_assert(conversion_known<From, To>, "laconic: no conversion is known between these two attentions");
    static_assert(To::Position::key_bias_cancels || std::is_same_v<typename To::KeyValue, FullRank>,
                  "laconic: a latent drops the bias of the keys, which matters under this position policy");
  }
  return true;
}

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
