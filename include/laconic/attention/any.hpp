// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/attention.hpp>
#include <laconic/core/enum.hpp>

#include <cstddef>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>

namespace laconic {
inline namespace LACONIC_ABI {

template <class Any, class T>
class AnyLayer;

namespace detail {

/// Returns what an attention layer gives. A function of its own, neither a member nor inline, so that a program can
/// compile each attention once (`extern template`) and not again for every encoder.
template <class Layer, class Context, class Tensor, class S>
Tensor layer_output(const Layer& layer, Context& context, const Tensor& x, const Pass<Tensor>& pass, S state) {
  if constexpr (has_state<S>)
    return layer(context, x, pass, state);
  else
    return layer(context, x, pass);
}

/// Pairs a policy with the names that mean it. A rotary position has to be named, too; a decoupled latent has its own.
template <class Policy_, AttentionName... Names>
struct NamedPolicy {
  using Policy = Policy_;  ///< the policy
  /// Says whether the configuration has to name a rotary position.
  static constexpr bool rotates =
      Policy::Position::turns_input || (Policy::Position::turns_keys && !Policy::KeyValue::is_latent);
  /// Returns whether the configuration names it.
  static constexpr bool is(const AttentionConfig& c) { return goes_with(c) && ((c.attention == Names) || ...); }
  /// Returns whether the policy has the positions that the configuration names.
  static constexpr bool goes_with(const AttentionConfig& c) {
    return (c.position_embeddings_type == PositionEmbeddings::rotary) == rotates &&
           !(c.position_embeddings_type == PositionEmbeddings::none && Policy::Position::is_relative);
  }
};

/// Lists named policies, of which `visit` calls back with the first that the configuration names.
template <class First, class... Rest>
struct NamedPolicies {
  template <class T>
  using Variant = std::variant<AttentionLayer<typename First::Policy, T>, AttentionLayer<typename Rest::Policy, T>...>;

  template <class F>
  static constexpr decltype(auto) visit(const AttentionConfig& config, F&& f) {
    if (!(First::is(config) || ... || Rest::is(config))) refuse(config);
    if constexpr (sizeof...(Rest) > 0) {
      if (!First::is(config)) return NamedPolicies<Rest...>::visit(config, std::forward<F>(f));
    }
    return f(std::type_identity<typename First::Policy>());
  }

 private:
  /// Throws Error with the names that go with the positions of the configuration.
  [[noreturn]] static void refuse(const AttentionConfig& config) {
    std::string names;
    AttentionConfig named = config;
    for (const EnumName<AttentionName>& entry : enum_names(AttentionName{})) {
      named.attention = entry.value;
      if ((First::is(named) || ... || Rest::is(named))) names += text(names.empty() ? "" : ", ", entry.name);
    }
    const bool none = config.position_embeddings_type == PositionEmbeddings::none;
    throw Error(text("attention: ", to_name(config.attention), " with ",
                     none ? "no" : to_name(config.position_embeddings_type), " positions given, one of ", names,
                     " expected with these positions"));
  }
};

/// Says whether a configuration names the policy, as with AnyAttention.
template <class Policy>
inline constexpr bool names_its_policy = requires {
  typename Policy::Policies;
};
/// Calls f(std::type_identity<Policy>()) with the policy that the configuration names for an open type, or with the
/// type's own.
template <class Policy, class F>
constexpr decltype(auto) with_policy(const AttentionConfig& config, F&& f) {
  if constexpr (names_its_policy<Policy>)
    return Policy::with_policy(config, std::forward<F>(f));
  else
    return f(std::type_identity<Policy>());
}

}  // namespace detail

/// Takes the attention of a list that the configuration names, as `dyn` takes sizes: one compiled model then serves
/// them all. `AnyAttention` and `AnyCausalAttention` derive from it.
template <class Self, class Policies_>
struct AnyAttentionOf {
  using Policies = Policies_;  ///< the policies that a configuration can name
  /// The layer that computes it in numbers of type T.
  template <class T>
  using Layer = AnyLayer<Self, T>;

  /// Returns f(std::type_identity<Policy>()) for the policy that is named. Throws Error where none is.
  template <class F>
  static constexpr decltype(auto) with_policy(const AttentionConfig& config, F&& f) {
    return Policies::visit(config, std::forward<F>(f));
  }

  /// Returns the configuration with the key-value heads that the name means. Throws Error where the configuration
  /// contradicts the name, or lacks a size.
  static constexpr AttentionConfig named(AttentionConfig config) {
    using enum AttentionName;
    const Index given = config.num_kv_heads;
    const auto name = to_name(config.attention);
    const bool has_groups = config.attention == gqa || config.attention == linear || config.attention == input_latent;
    if (!has_groups) {
      config.num_kv_heads = config.attention == mqa ? 1 : config.num_heads;
      require(given == 0 || given == config.num_kv_heads, "num_kv_heads: ", given, " given, but ", name, " has ",
              config.num_kv_heads, " here");
    }
    require(config.attention != gqa || given > 0, "num_kv_heads: gqa needs a number of key-value heads, a divisor of ",
            config.num_heads);
    const bool has_latent = config.attention == mla || config.attention == mla_simple ||
                            config.attention == mla_split || config.attention == mla_head ||
                            config.attention == mla_decoupled;
    require(!has_latent || config.kv_lora_rank > 0, "kv_lora_rank: ", config.kv_lora_rank, " given, but ", name,
            " needs a latent rank");
    return config;
  }

  /// Returns all sizes. Throws Error where they do not fit.
  static constexpr AttentionDims dims(const AttentionConfig& config) {
    return with_policy(config, [&]<class P>(std::type_identity<P>) { return P::dims(named(config)); });
  }
  /// Returns the bytes that one layer caches for `n` frames: see AttentionCost.
  static constexpr Index cache_bytes(const AttentionConfig& config, Frames n, Storage storage = Storage::full) {
    return with_policy(config,
                       [&]<class P>(std::type_identity<P>) { return P::cache_bytes(named(config), n, storage); });
  }
  /// Returns the trained parameters of one layer.
  static constexpr Index parameter_count(const AttentionConfig& config) {
    return with_policy(config, [&]<class P>(std::type_identity<P>) { return P::parameter_count(named(config)); });
  }
  /// Returns the floating-point operations of one layer over a sequence of `n` frames: see AttentionCost.
  static constexpr Index flops(const AttentionConfig& config, Frames n, const Mask& mask = {}) {
    return with_policy(config, [&]<class P>(std::type_identity<P>) { return P::flops(named(config), n, mask); });
  }
};

/// Names the attention of an encoder. Positions are relative, except where an attention has its own (rotary for a
/// decoupled latent, none for linear attention), where the configuration says rotary, with which full, grouped and
/// split attention go, and where it says none, with which full and grouped attention and a shared latent go.
struct AnyAttention
    : AnyAttentionOf<AnyAttention,
                     detail::NamedPolicies<
                         detail::NamedPolicy<Gqa<dyn, dyn>, AttentionName::mha, AttentionName::gqa, AttentionName::mqa>,
                         detail::NamedPolicy<Mla<dyn, dyn>, AttentionName::mla>,
                         detail::NamedPolicy<MlaSimple<dyn, dyn>, AttentionName::mla_simple>,
                         detail::NamedPolicy<MlaSplit<dyn, dyn, dyn>, AttentionName::mla_split>,
                         detail::NamedPolicy<MlaHead<dyn, dyn, dyn>, AttentionName::mla_head>,
                         detail::NamedPolicy<MlaDecoupled<dyn, dyn, dyn>, AttentionName::mla_decoupled>,
                         detail::NamedPolicy<CachedInput<dyn, dyn>, AttentionName::input_latent>,
                         detail::NamedPolicy<LinearAttention<dyn, dyn>, AttentionName::linear>,
                         detail::NamedPolicy<Gqa<dyn, dyn, InputRotary<>>, AttentionName::mha, AttentionName::gqa,
                                             AttentionName::mqa>,
                         detail::NamedPolicy<MlaSplit<dyn, dyn, dyn, InputRotary<>>, AttentionName::mla_split>,
                         detail::NamedPolicy<Gqa<dyn, dyn, NoPosition>, AttentionName::mha, AttentionName::gqa,
                                             AttentionName::mqa>,
                         detail::NamedPolicy<MlaSimple<dyn, dyn, NoPosition>, AttentionName::mla_simple>>> {};

/// Names the attention of a decoder. It adds no positions by itself, except where it has its own (rotary for a
/// decoupled latent) and where the configuration says rotary, with which full and grouped attention go.
struct AnyCausalAttention
    : AnyAttentionOf<
          AnyCausalAttention,
          detail::NamedPolicies<detail::NamedPolicy<Gqa<dyn, dyn, NoPosition>, AttentionName::mha, AttentionName::gqa,
                                                    AttentionName::mqa>,
                                detail::NamedPolicy<MlaSimple<dyn, dyn, NoPosition>, AttentionName::mla_simple>,
                                detail::NamedPolicy<MlaSplit<dyn, dyn, dyn, NoPosition>, AttentionName::mla_split>,
                                detail::NamedPolicy<MlaHead<dyn, dyn, dyn, NoPosition>, AttentionName::mla_head>,
                                detail::NamedPolicy<MlaDecoupled<dyn, dyn, dyn>, AttentionName::mla_decoupled>,
                                detail::NamedPolicy<Gqa<dyn, dyn, Rotary<RotaryPairs::halves>>, AttentionName::mha,
                                                    AttentionName::gqa, AttentionName::mqa>>> {};

/// Holds the attention layer of the policy that the configuration names among those of Any, and forwards to it.
template <class Any, class T>
class AnyLayer : public Module<AnyLayer<Any, T>> {
 public:
  using Scalar = T;  ///< the type of its parameters
  /// One of the layers.
  using Variant = typename Any::Policies::template Variant<T>;

  /// Makes the layer that the configuration names. Allocates. Throws Error where the sizes do not fit.
  AnyLayer(const AttentionConfig& config, double dropout, Seed seed)
      : layer(Any::with_policy(config, [&]<class P>(std::type_identity<P>) {
          return Variant(std::in_place_type<AttentionLayer<P, T>>, Any::named(config), dropout, seed);
        })) {}

  /// Returns all sizes.
  const AttentionDims& dims() const {
    return std::visit([](const auto& l) -> const AttentionDims& { return l.dims(); }, layer);
  }
  /// Returns whether a stream's state grows with the frames that it keeps.
  bool keeps_frames() const {
    return std::visit([](const auto& l) { return l.keeps_frames(); }, layer);
  }

  /// Holds what streams keep of earlier frames. Takes memory at construction only.
  template <class Context>
  class State {
    template <class>
    struct StatesOf;
    template <class... Layers>
    struct StatesOf<std::variant<Layers...>> {
      using type = std::variant<typename Layers::template State<Context>...>;
    };

   public:
    /// Makes the state of `shape.slots` streams. Allocates.
    State(Context& context, const AnyLayer& any, const StateShape& shape)
        : state_(std::visit(
              [&]<class L>(const L& l) {
                return States(std::in_place_type<typename L::template State<Context>>, context, l, shape);
              },
              any.layer)) {}
    /// Empties a slot for a new stream.
    void clear(Context& context, Index slot) {
      std::visit([&](auto& s) { s.clear(context, slot); }, state_);
    }
    /// Fills a slot as if frames of zeros had come before, as many as are kept.
    void fill_zeros(Context& context, Index slot) {
      std::visit([&](auto& s) { s.fill_zeros(context, slot); }, state_);
    }
    /// Makes slot `to` hold what slot `from` holds.
    void fork(Context& context, Index from, Index to) {
      std::visit([&](auto& s) { s.fork(context, from, to); }, state_);
    }
    /// Returns the bytes that the caches hold, all slots.
    Index cache_bytes() const {
      return std::visit([](const auto& s) { return s.cache_bytes(); }, state_);
    }
    /// Returns the state of a layer of type L.
    template <class L>
    auto* of(const L&) {
      return &std::get<typename L::template State<Context>>(state_);
    }

   private:
    using States = typename StatesOf<Variant>::type;
    States state_;
  };

  /// Returns the rows as the position policy changes them once, before the first layer.
  template <class Context, class Tensor>
  Tensor enter(Context& context, Tensor x, const Pass<Tensor>& pass) const {
    return std::visit([&](const auto& l) { return l.enter(context, std::move(x), pass); }, layer);
  }
  /// Returns the table of positions that all layers share, or an empty tensor.
  template <class Context, class Tensor>
  Tensor table(Context& context, const Pass<Tensor>& pass) const {
    return std::visit([&](const auto& l) { return l.table(context, pass); }, layer);
  }
  /// Returns the self-attention of x (rows, d_model): see AttentionLayer.
  template <class Context, class Tensor, class S = std::nullptr_t>
  Tensor operator()(Context& context, const Tensor& x, const Pass<Tensor>& pass, S state = nullptr) const {
    return std::visit(
        [&](const auto& l) {
          if constexpr (has_state<S>)
            return detail::layer_output(l, context, x, pass, state->of(l));
          else
            return detail::layer_output(l, context, x, pass, nullptr);
        },
        layer);
  }
  /// Returns the first weight that the layer's unchanged input is multiplied by.
  const Parameter<T>& input_weight() const {
    return std::visit([](const auto& l) -> const Parameter<T>& { return l.input_weight(); }, layer);
  }

  /// Visits the parameters with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    std::visit([&](auto& l) { std::remove_cvref_t<decltype(l)>::each_parameter(l, visit); }, self.layer);
  }

  Variant layer;  ///< the layer
};

/// The layer of an encoder whose attention the configuration names.
template <class T>
using AnyAttentionLayer = AnyLayer<AnyAttention, T>;

}  // namespace LACONIC_ABI
}  // namespace laconic
