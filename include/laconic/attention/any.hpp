// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/attention.hpp>

#include <optional>
#include <type_traits>
#include <utility>
#include <variant>

namespace laconic {
inline namespace LACONIC_ABI {

template <class T>
class AnyAttentionLayer;

namespace detail {

/// A policy and the names that mean it, where keys are to be turned by rotary positions before their projection or not.
template <class Policy_, AttentionName... Names>
struct NamedPolicy {
  using Policy = Policy_;
  static constexpr bool is(const AttentionConfig& c) {
    return (c.position_embeddings_type == PositionEmbeddings::rotary) == Policy::Position::turns_input &&
           ((c.attention == Names) || ...);
  }
};

template <class First, class... Rest>
struct NamedPolicies {
  template <class T>
  using Variant = std::variant<AttentionLayer<typename First::Policy, T>, AttentionLayer<typename Rest::Policy, T>...>;

  template <class F>
  static constexpr decltype(auto) visit(const AttentionConfig& config, F&& f) {
    if constexpr (sizeof...(Rest) > 0) {
      if (!First::is(config)) return NamedPolicies<Rest...>::visit(config, std::forward<F>(f));
    }
    require(First::is(config), "attention: ", to_name(config.attention), " with ",
            to_name(config.position_embeddings_type),
            " positions given; the type leaves it open, so the configuration must name one that it knows");
    return f(std::type_identity<typename First::Policy>());
  }
};

}  // namespace detail

/// The attention that the configuration names: `dyn`, for policies. One compiled model then serves them all, with
/// relative positions but where an attention has others of its own (rotary for a decoupled latent, none for linear
/// attention), or where the configuration says rotary: full, grouped and split then.
struct AnyAttention {
  template <class T>
  using Layer = AnyAttentionLayer<T>;

  using Policies = detail::NamedPolicies<
      detail::NamedPolicy<Gqa<dyn, dyn>, AttentionName::mha, AttentionName::gqa, AttentionName::mqa>,
      detail::NamedPolicy<Mla<dyn, dyn>, AttentionName::mla>,
      detail::NamedPolicy<MlaSimple<dyn, dyn>, AttentionName::mla_simple>,
      detail::NamedPolicy<MlaSplit<dyn, dyn, dyn>, AttentionName::mla_split>,
      detail::NamedPolicy<MlaHead<dyn, dyn>, AttentionName::mla_head>,
      detail::NamedPolicy<MlaDecoupled<dyn, dyn, dyn>, AttentionName::mla_decoupled>,
      detail::NamedPolicy<CachedInput<dyn, dyn>, AttentionName::input_latent>,
      detail::NamedPolicy<LinearAttention<dyn, dyn>, AttentionName::linear>,
      detail::NamedPolicy<Gqa<dyn, dyn, InputRotary<>>, AttentionName::mha, AttentionName::gqa, AttentionName::mqa>,
      detail::NamedPolicy<MlaSplit<dyn, dyn, dyn, InputRotary<>>, AttentionName::mla_split>>;

  /// f(std::type_identity<Policy>()) for the policy that is named.
  template <class F>
  static constexpr decltype(auto) with_policy(const AttentionConfig& config, F&& f) {
    return Policies::visit(config, std::forward<F>(f));
  }

  /// With the key-value heads that the name means; throws where the configuration contradicts it, or says too little.
  static constexpr AttentionConfig named(AttentionConfig config) {
    using enum AttentionName;
    const Index asked = config.num_kv_heads;
    const auto name = to_name(config.attention);
    const bool has_groups = config.attention == gqa || config.attention == linear || config.attention == input_latent;
    if (!has_groups) {
      config.num_kv_heads = config.attention == mqa ? 1 : config.num_heads;
      require(asked == 0 || asked == config.num_kv_heads, "num_kv_heads: ", asked, " given, but ", name, " has ",
              config.num_kv_heads, " here");
    }
    require(config.attention != gqa || asked > 0, "num_kv_heads: gqa needs a number of key-value heads, a divisor of ",
            config.num_heads);
    const bool has_latent = config.attention == mla || config.attention == mla_simple ||
                            config.attention == mla_split || config.attention == mla_head ||
                            config.attention == mla_decoupled;
    require(!has_latent || config.kv_lora_rank > 0, "kv_lora_rank: ", config.kv_lora_rank, " given, but ", name,
            " needs a latent rank");
    return config;
  }

  static constexpr AttentionDims dims(const AttentionConfig& config) {
    return with_policy(config, [&]<class P>(std::type_identity<P>) { return P::dims(named(config)); });
  }
  static constexpr Index cache_bytes(const AttentionConfig& config, Frames n, Storage storage = Storage::full) {
    return with_policy(config,
                       [&]<class P>(std::type_identity<P>) { return P::cache_bytes(named(config), n, storage); });
  }
  static constexpr Index parameter_count(const AttentionConfig& config) {
    return with_policy(config, [&]<class P>(std::type_identity<P>) { return P::parameter_count(named(config)); });
  }
  static constexpr Index flops(const AttentionConfig& config, Frames n, const Mask& mask = {}) {
    return with_policy(config, [&]<class P>(std::type_identity<P>) { return P::flops(named(config), n, mask); });
  }
};

/// One of the attention layers, behind the face that all have.
template <class T>
class AnyAttentionLayer : public Module<AnyAttentionLayer<T>> {
 public:
  using Variant = typename AnyAttention::Policies::template Variant<T>;

  AnyAttentionLayer(const AttentionConfig& config, double dropout, Seed seed)
      : layer(AnyAttention::with_policy(config, [&]<class P>(std::type_identity<P>) {
          return Variant(std::in_place_type<AttentionLayer<P, T>>, AnyAttention::named(config), dropout, seed);
        })) {}

  const AttentionDims& dims() const {
    return std::visit([](const auto& l) -> const AttentionDims& { return l.dims(); }, layer);
  }
  bool keeps_frames() const {
    return std::visit([](const auto& l) { return l.keeps_frames(); }, layer);
  }

  template <class Context>
  class State {
    template <class>
    struct StatesOf;
    template <class... Layers>
    struct StatesOf<std::variant<Layers...>> {
      using type = std::variant<typename Layers::template State<Context>...>;
    };

   public:
    State(Context& context, const AnyAttentionLayer& any, const StateShape& shape)
        : state_(std::visit(
              [&]<class L>(const L& l) {
                return States(std::in_place_type<typename L::template State<Context>>, context, l, shape);
              },
              any.layer)) {}
    void clear(Context& context, Index slot) {
      std::visit([&](auto& s) { s.clear(context, slot); }, state_);
    }
    void fill_zeros(Context& context, Index slot) {
      std::visit([&](auto& s) { s.fill_zeros(context, slot); }, state_);
    }
    void fork(Context& context, Index from, Index to) {
      std::visit([&](auto& s) { s.fork(context, from, to); }, state_);
    }
    Index cache_bytes() const {
      return std::visit([](const auto& s) { return s.cache_bytes(); }, state_);
    }
    template <class L>
    auto* of(const L&) {
      return &std::get<typename L::template State<Context>>(state_);
    }

   private:
    using States = typename StatesOf<Variant>::type;
    States state_;
  };

  template <class Context, class Tensor>
  Tensor enter(Context& context, Tensor x, const Pass<Tensor>& pass) const {
    return std::visit([&](const auto& l) { return l.enter(context, std::move(x), pass); }, layer);
  }
  template <class Context, class Tensor>
  Tensor table(Context& context, const Pass<Tensor>& pass) const {
    return std::visit([&](const auto& l) { return l.table(context, pass); }, layer);
  }
  template <class Context, class Tensor, class S = std::nullptr_t>
  Tensor operator()(Context& context, const Tensor& x, const Pass<Tensor>& pass, S state = nullptr) const {
    return std::visit(
        [&](const auto& l) {
          if constexpr (has_state<S>)
            return l(context, x, pass, state->of(l));
          else
            return l(context, x, pass);
        },
        layer);
  }
  const Parameter<T>& input_weight() const {
    return std::visit([](const auto& l) -> const Parameter<T>& { return l.input_weight(); }, layer);
  }

  static void each_parameter(auto& self, auto&& visit) {
    std::visit([&](auto& l) { std::remove_cvref_t<decltype(l)>::each_parameter(l, visit); }, self.layer);
  }

  Variant layer;
};

}  // namespace LACONIC_ABI
}  // namespace laconic
