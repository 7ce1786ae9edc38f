// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/io/folder.hpp>
#include <laconic/model/conformer.hpp>
#include <laconic/speech/evaluate.hpp>
#include <laconic/train/trainer.hpp>

#include <functional>
#include <variant>

namespace laconic::inline LACONIC_ABI {

/// The attentions that a command line can name.
enum class AttentionName { mha, gqa, mqa, mla_simple };
constexpr auto enum_names(AttentionName) {
  return std::to_array<EnumName<AttentionName>>(
      {{AttentionName::mha, "mha"}, {AttentionName::gqa, "gqa"}, {AttentionName::mqa, "mqa"}, {AttentionName::mla_simple, "mla-simple"}});
}

/// config.json of a model folder: all that is needed to build the model and its features again.
struct RecognizerConfig {
  std::string model = "conformer";
  AttentionName attention = AttentionName::mha;
  ConformerConfig encoder;
  FeatureConfig features;
  Tokens tokens = Tokens::words;

  static constexpr void fields(auto& self, auto&& visit) {
    visit("model", self.model);
    visit("attention", self.attention);
    visit("encoder", self.encoder);
    visit("features", self.features);
    visit("tokens", self.tokens);
  }

  double frames_per_second() const { return 1000 / features.fbank.frame_shift_ms / static_cast<double>(encoder.subsampling); }
};

/// The models behind one face: specialised by policy, with the numbers known at run time. MHA and MQA are GQA with as
/// many key-value heads as query heads, and with one.
using AnyModel = std::variant<Conformer<Gqa<dyn, dyn>>, Conformer<Attention<Heads<dyn, dyn>, SharedLatent<dyn>>>>;

/// The tokens that a corpus was made for, if a corpus.json in its folder says so; else characters.
Tokens corpus_tokens(const std::filesystem::path& folder);

/// A model with its features and its vocabulary.
struct Recognizer {
  RecognizerConfig config;
  Vocabulary vocabulary;
  AnyModel model;

  /// A new one, randomly initialised. Fills in the numbers that follow from the attention's name, and throws where they
  /// contradict it.
  static Recognizer create(RecognizerConfig config, Vocabulary vocabulary, Seed seed);
  /// From a model folder, or from a run's folder, which has one called "model" in it.
  static Recognizer load(const std::filesystem::path& folder);
  /// Not into a run's folder: there the model would lie beside another one.
  void save(const std::filesystem::path& folder) const;

  /// The same speech model with another attention: `report` says what it cost, measured on `speech` if given.
  Recognizer convert(AttentionName attention, Index kv_heads, Index latent_dim, const SpeechBatch* speech, nlohmann::json& report) const;

  Evaluation evaluate(Cpu<float>& cpu, const Dataset& data) const;
  Index count_parameters() const;
  double cache_bytes_per_second() const;

  struct Training {
    std::function<void(const TrainProgress&)> progress;
    std::function<void()> better = [] {};
    std::filesystem::path folder;
    std::int64_t checkpoint_steps = 0;
  };
  /// Trains in place (see Trainer) and gives where it ended.
  TrainState train(Cpu<float>& cpu, const Dataset& training, const Dataset& validation, const TrainConfig& config, const Training& how);
};

}  // namespace laconic
