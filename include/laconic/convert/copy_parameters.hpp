// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/any.hpp>
#include <laconic/core/parameter.hpp>

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

/// Calls f(layer) with the layer that an AnyAttentionLayer holds, or with the layer itself.
template <class Layer, class F>
decltype(auto) with_layer(Layer& layer, F&& f) {
  if constexpr (requires { layer.layer; })
    return std::visit(std::forward<F>(f), layer.layer);
  else
    return f(layer);
}

/// Returns the configuration with the ranks of these numbers.
template <class Config, class Numbers>
Config with_ranks(Config config, const Numbers& numbers) {
  config.kv_lora_rank = numbers.kv_lora_rank;
  config.v_lora_rank = numbers.v_lora_rank;
  if constexpr (requires { config.kv_lora_ranks; }) {
    config.kv_lora_ranks = numbers.kv_lora_ranks;
    config.v_lora_ranks = numbers.v_lora_ranks;
  } else {
    require(numbers.kv_lora_ranks.size() == 0 && numbers.v_lora_ranks.size() == 0,
            "convert: ranks of each layer given for a model whose layers have equal ranks");
  }
  return config;
}

/// Copies parameters by name. Only keys and values, and a rotary part of queries, may be missing in the source or have
/// another shape there; throws `Error` for any other.
template <class Target, class Source>
void copy_parameters(Target& target, const Source& source) {
  require_on_host(source, "convert");
  using P = Parameter<typename Source::Scalar>;
  std::vector<std::pair<std::string, const P*>> from;
  source.parameters([&](std::string_view name, const P& p) { from.emplace_back(name, &p); });
  std::sort(from.begin(), from.end());
  std::vector<const P*> converted;
  Target::each_attention(target, [&](std::string_view, const auto& any) {
    with_layer(any, [&](const auto& layer) {
      layer.key_value.parameters([&](std::string_view, const P& p) { converted.push_back(&p); });
      if constexpr (requires { layer.query.linear_q_rope; })
        layer.query.linear_q_rope.parameters([&](std::string_view, const P& p) { converted.push_back(&p); });
    });
  });
  target.parameters([&](std::string_view name, P& p) {
    const auto found = std::lower_bound(from.begin(), from.end(), name,
                                        [](const auto& one, std::string_view wanted) { return one.first < wanted; });
    if (found != from.end() && found->first == name && found->second->shape() == p.shape())
      p.host() = found->second->host();
    else
      require(std::find(converted.begin(), converted.end(), &p) != converted.end(),
              "convert: the source has no parameter ", name, " of the target's shape");
  });
}

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
