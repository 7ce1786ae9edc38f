// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/attention.hpp>

#include <optional>
#include <type_traits>
#include <utility>
#include <variant>

namespace laconic::inline LACONIC_ABI {

template <class T>
class AnyAttentionLayer;

/// The attention that the configuration names: `dyn`, for policies. One compiled model then serves them all, with relative
/// positions but where an attention has others of its own (rotary for a decoupled latent, none for linear attention).
struct AnyAttention {
  template <class T>
  using Layer = AnyAttentionLayer<T>;

  /// f(std::type_identity<Policy>()) for the policy of this name.
  template <class F>
  static constexpr decltype(auto) with_policy(AttentionName name, F&& f) {
    using enum AttentionName;
    switch (name) {
      case mla: return f(std::type_identity<Mla<dyn, dyn>>());
      case mla_simple: return f(std::type_identity<MlaSimple<dyn, dyn>>());
      case mla_split: return f(std::type_identity<MlaSplit<dyn, dyn, dyn>>());
      case mla_head: return f(std::type_identity<MlaHead<dyn, dyn>>());
      case mla_decoupled: return f(std::type_identity<MlaDecoupled<dyn, dyn, dyn>>());
      case input_latent: return f(std::type_identity<CachedInput<dyn, dyn>>());
      case linear: return f(std::type_identity<LinearAttention<dyn, dyn>>());
      default:
        require(name != by_type, "attention: the type leaves it open, so the configuration must name it");
        return f(std::type_identity<Gqa<dyn, dyn>>());
    }
  }
  template <class T>
  using Variant = std::variant<AttentionLayer<Gqa<dyn, dyn>, T>, AttentionLayer<Mla<dyn, dyn>, T>, AttentionLayer<MlaSimple<dyn, dyn>, T>,
                               AttentionLayer<MlaSplit<dyn, dyn, dyn>, T>, AttentionLayer<MlaHead<dyn, dyn>, T>,
                               AttentionLayer<MlaDecoupled<dyn, dyn, dyn>, T>, AttentionLayer<CachedInput<dyn, dyn>, T>,
                               AttentionLayer<LinearAttention<dyn, dyn>, T>>;

  /// With the key-value heads that the name means; throws where the configuration contradicts it.
  static constexpr AttentionConfig named(AttentionConfig config) {
    using enum AttentionName;
    const Index asked = config.num_kv_heads;
    if (config.attention == mqa || config.attention == mha) {
      config.num_kv_heads = config.attention == mqa ? 1 : config.num_heads;
      require(asked == 0 || asked == config.num_kv_heads, "num_kv_heads: ", asked, " given, but ", config.attention == mqa ? "mqa" : "mha",
              " has ", config.num_kv_heads, " here");
    }
    require(config.attention != gqa || asked > 0, "num_kv_heads: gqa needs a number of key-value heads, a divisor of ", config.num_heads);
    return config;
  }

  static constexpr AttentionDims dims(const AttentionConfig& config) {
    return with_policy(config.attention, [&]<class P>(std::type_identity<P>) { return P::dims(named(config)); });
  }
  static constexpr Index cache_bytes(const AttentionConfig& config, Frames n, CacheStorage storage = CacheStorage::full) {
    return with_policy(config.attention, [&]<class P>(std::type_identity<P>) { return P::cache_bytes(named(config), n, storage); });
  }
  static constexpr Index parameter_count(const AttentionConfig& config) {
    return with_policy(config.attention, [&]<class P>(std::type_identity<P>) { return P::parameter_count(named(config)); });
  }
  static constexpr Index flops(const AttentionConfig& config, Frames n, const Mask& mask = {}) {
    return with_policy(config.attention, [&]<class P>(std::type_identity<P>) { return P::flops(named(config), n, mask); });
  }
};

/// One of the attention layers, behind the face that all have.
template <class T>
class AnyAttentionLayer : public Module<AnyAttentionLayer<T>> {
 public:
  using Variant = AnyAttention::Variant<T>;

  AnyAttentionLayer(const AttentionConfig& config, double dropout, Seed seed)
      : layer(AnyAttention::with_policy(config.attention, [&]<class P>(std::type_identity<P>) {
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
        : state_(std::visit([&]<class L>(const L& l) { return States(std::in_place_type<typename L::template State<Context>>, context, l, shape); },
                            any.layer)) {}
    void clear(Index slot) {
      std::visit([&](auto& s) { s.clear(slot); }, state_);
    }
    void fill_zeros(Index slot) {
      std::visit([&](auto& s) { s.fill_zeros(slot); }, state_);
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

}  // namespace laconic
