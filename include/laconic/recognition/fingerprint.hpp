// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/hash.hpp>
#include <laconic/io/json.hpp>
#include <laconic/recognition/dataset.hpp>

#include <string>
#include <string_view>

namespace laconic {
inline namespace LACONIC_ABI {

/// Computes a number that tells the inputs of a run apart: a dataset with its texts, a model's parameters, or texts
/// only. It is not cryptographic.
class Fingerprint {
 public:
  /// Returns the fingerprint of a dataset: texts, labels and features.
  static std::string of(const Dataset& data) {
    Hash out;
    for (const Example& e : data.examples)
      out.add(e.text.data(), e.text.size()).add(e.labels.data(), e.labels.size() * sizeof(int)).add(e.features_hash());
    return text(out.value());
  }
  /// Returns the fingerprint of a model's parameters. Throws `Error` if they are not on the host.
  template <class Model>
  static std::string of_parameters(const Model& model) {
    require_on_host(model, "fingerprint");
    Hash out;
    model.parameters([&]<class T>(std::string_view, const Parameter<T>& p) {
      out.add(p.host().data(), static_cast<std::size_t>(p.size()) * sizeof(T));
    });
    return text(out.value());
  }
  /// Returns the fingerprint of a list of texts.
  static std::string of_texts(std::span<const std::string> texts) {
    Hash out;
    for (const std::string& one : texts) out.add(one.data(), one.size());
    return text(out.value());
  }
};

/// Throws `Error` unless the run that left `path` had the same settings and data as this one, and says in one line
/// which differ. `other` names what the user may change instead ("folder").
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
                          json_text(there.value(name, nlohmann::json())), " there and ",
                          json_text(here.value(name, nlohmann::json())), " here");
  throw Error(text(path, ": belongs to a run with other settings or data (", differences, "); choose another ", other,
                   ", or delete it to start anew"));
}

}  // namespace LACONIC_ABI
}  // namespace laconic
