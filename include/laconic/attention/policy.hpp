// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/cost.hpp>
#include <laconic/attention/heads.hpp>
#include <laconic/attention/key_value.hpp>
#include <laconic/attention/position.hpp>
#include <laconic/attention/query.hpp>
#include <laconic/attention/score.hpp>

namespace laconic {
inline namespace LACONIC_ABI {

template <class Policy, class T>
class AttentionLayer;

/// Combines independent policies into one attention, whose costs are known at compile time (`AttentionCost`) and whose
/// layer is `Layer<T>`. Sizes that the type leaves open (`dyn`) come from the configuration. Combinations that have no
/// meaning do not compile.
template <class Heads_, class KeyValue_, class Position_ = RelativePosition, class Query_ = FullQuery,
          class Score_ = Softmax>
struct Attention : AttentionCost<Attention<Heads_, KeyValue_, Position_, Query_, Score_>> {
  // Asserted, not demanded of the arguments: a sentence then is the first message, and the compiler adds what is
  // missing.
  static_assert(HeadsPolicy<Heads_>,
                "laconic: the first policy of an attention lacks what the concept HeadsPolicy says: see "
                "attention/heads.hpp");
  static_assert(
      KeyValuePolicy<KeyValue_>,
      "laconic: the key-value policy lacks what the concept KeyValuePolicy says: see attention/key_value.hpp");
  static_assert(PositionPolicy<Position_>,
                "laconic: the position policy lacks what the concept PositionPolicy says: see attention/position.hpp");
  static_assert(QueryPolicy<Query_>,
                "laconic: the query policy lacks what the concept QueryPolicy says: see attention/query.hpp");
  static_assert(ScorePolicy<Score_>,
                "laconic: the score policy lacks what the concept ScorePolicy says: see attention/score.hpp");

  using Heads = Heads_;        ///< query heads over key-value heads
  using KeyValue = KeyValue_;  ///< the cache, and how keys and values come from it
  using Position = Position_;  ///< how the order of frames is known
  using Query = Query_;        ///< how queries are projected
  using Score = Score_;        ///< `Softmax` or `LinearKernel`
  template <class T>
  using Layer = AttentionLayer<Attention, T>;  ///< the layer that computes it in numbers of type T

  static_assert(!(KeyValue::one_input && Position::turns_input),
                "laconic: one latent for keys and values does not go with InputRotary, which projects them from "
                "different inputs; a split one does");
  static_assert(!Position::turns_keys || KeyValue::rotary_part.has_value(),
                "laconic: a rotary key differs from frame to frame and is no function of this latent; a decoupled "
                "latent has a key for it");
  static_assert(Position::turns_keys || KeyValue::rotary_part != 1,
                "laconic: a decoupled latent has a rotary key, so its position is Rotary");
  static_assert(
      !(Score::is_linear && KeyValue::is_latent),
      "laconic: linear attention caches a state, neither keys nor values, so a latent has no meaning with it");
  static_assert(
      !(Score::is_linear && (Position::is_relative || Position::turns_keys)),
      "laconic: linear attention never compares one query with one key, so their distance has no place in it");

  /// Returns all sizes from type and configuration. Throws Error where they contradict each other or do not fit.
  static constexpr AttentionDims dims(const AttentionConfig& config) {
    const Index heads = resolve<Heads::num_heads>(config.num_heads, "num_heads");
    const Index kv_heads = resolve<Heads::num_kv_heads>(
        Heads::num_kv_heads == dyn && config.num_kv_heads == 0 ? heads : config.num_kv_heads, "num_kv_heads");
    require(config.d_model > 0 && (config.head_dim > 0 || config.d_model % heads == 0), "num_heads: ", heads,
            " heads given, a divisor of d_model = ", config.d_model, " expected");
    require(heads % kv_heads == 0, "num_kv_heads: ", kv_heads,
            " key-value heads given, a divisor of num_heads = ", heads, " expected");
    AttentionDims d{config.d_model, heads, kv_heads, config.head_dim > 0 ? config.head_dim : config.d_model / heads,
                    config.attention_bias};
    d.rope = config.rope.checked();
    KeyValue::set_ranks(config, d);
    Query::set_ranks(config, d);
    require(d.rope_pairs == config.rope_pairs, "rope_pairs: ", config.rope_pairs.size(),
            " configured for an attention without a rotary key of its own");
    if (Position::turns_input)
      require(d.q_dim() == d.d_model && d.head_dim % 2 == 0, "head_dim: ", d.head_dim, " given, an even one that ",
              heads, " heads fill d_model = ", d.d_model, " with expected");
    if (Position::turns_keys)
      require(rotary_width(d) % 2 == 0, "head_dim: ", d.head_dim, " given, an even one expected to turn pairs");
    return d;
  }

  /// Returns the width that a rotary position rotates: a head, or the part that is set aside for it.
  static constexpr Index rotary_width(const AttentionDims& d) {
    return d.qk_rope_head_dim > 0 ? d.qk_rope_head_dim : d.head_dim;
  }
};

}  // namespace LACONIC_ABI
}  // namespace laconic
