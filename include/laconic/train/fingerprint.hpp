// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/io/json.hpp>
#include <laconic/speech/dataset.hpp>

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace laconic::inline LACONIC_ABI {

/// A number that tells what a run began with from other things: a dataset with its texts, a model's parameters, or
/// texts alone. Not for security.
class Fingerprint {
 public:
  static std::string of(const Dataset& data) {
    Fingerprint out;
    for (const Example& e : data.examples) {
      out.add(e.text.data(), e.text.size());
      out.add(e.labels.data(), e.labels.size() * sizeof(int));
      out.add(e.features.data(), static_cast<std::size_t>(e.features.size()) * sizeof(float));
    }
    return text(out.value_);
  }
  template <class Model>
  static std::string of_parameters(const Model& model) {
    require_unpacked(model, "fingerprint");
    Fingerprint out;
    model.parameters([&]<class T>(std::string_view, const Parameter<T>& p) {
      out.add(p.value.data(), static_cast<std::size_t>(p.size()) * sizeof(T));
    });
    return text(out.value_);
  }
  static std::string of_texts(std::span<const std::string> texts) {
    Fingerprint out;
    for (const std::string& one : texts) out.add(one.data(), one.size());
    return text(out.value_);
  }

 private:
  void add(const void* data, std::size_t bytes) {
    mix(bytes);
    for (std::size_t i = 0; i < bytes; i += sizeof(std::uint64_t)) {
      std::uint64_t word = 0;
      std::memcpy(&word, static_cast<const char*>(data) + i, std::min(bytes - i, sizeof word));
      mix(word);
    }
  }
  void mix(std::uint64_t word) {
    value_ = (value_ ^ word) * 0x9E3779B97F4A7C15;
    value_ ^= value_ >> 29;
  }

  std::uint64_t value_ = 0xcbf29ce484222325;
};

/// Throws unless the run that left `path` had the same settings and data as this one, and says in one line which
/// differ. `other` is what to choose another of.
inline void require_same_run(const nlohmann::json& before, const nlohmann::json& now, const std::string& path,
                             std::string_view other) {
  if (before == now) return;
  const nlohmann::json there = before.flatten(), here = now.flatten();
  nlohmann::json names = there;
  names.update(here);
  std::string differences;
  for (const auto& [name, unused] : names.items())
    if (there.value(name, nlohmann::json()) != here.value(name, nlohmann::json()))
      differences += text(differences.empty() ? "" : ", ", name.substr(std::min<std::size_t>(1, name.size())), ": ",
                          there.value(name, nlohmann::json()).dump(), " there and ",
                          here.value(name, nlohmann::json()).dump(), " here");
  throw Error(text(path, ": belongs to a run with other settings or data (", differences, "); choose another ", other,
                   ", or delete it to start anew"));
}

}  // namespace laconic
