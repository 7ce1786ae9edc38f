// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/speech/dataset.hpp>

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace laconic::inline LACONIC_ABI {

/// A number that tells what a training run began with from other things: a dataset with its texts, or a model's
/// parameters. Not for security.
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
    Fingerprint out;
    model.parameters([&]<class T>(std::string_view, const Parameter<T>& p) {
      out.add(p.value.data(), static_cast<std::size_t>(p.size()) * sizeof(T));
    });
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

}  // namespace laconic
