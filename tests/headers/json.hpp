// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <nlohmann/json.hpp>

#include <string>
#include <string_view>

// Uses the classes of JSON, so that clang instantiates them once, when they are precompiled: that takes a second or two
// of each source.

namespace laconic_precompiled {

inline std::string use(nlohmann::json& json, nlohmann::ordered_json& ordered) {
  json = nlohmann::json::parse(std::string_view("{}"));
  std::string out = json.dump() + ordered.dump();
  for (const auto& [key, value] : json.items()) out += key + value.get<std::string>();
  json["a"] = {{"b", 1}, {"c", out}};
  return out + json.at("a").get_ref<const std::string&>();
}

}  // namespace laconic_precompiled
