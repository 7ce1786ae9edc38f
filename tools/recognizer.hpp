// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/any.hpp>
#include <laconic/convert/allocate.hpp>
#include <laconic/io/folder.hpp>
#include <laconic/model/branchformer.hpp>
#include <laconic/model/conformer.hpp>
#include <laconic/model/e_branchformer.hpp>
#include <laconic/model/wav2vec2_conformer.hpp>
#include <laconic/recognition/evaluate_streamed.hpp>
#include <laconic/recognition/trainer.hpp>

#include <functional>
#include <variant>

namespace laconic {
inline namespace LACONIC_ABI {

/// config.json of a model folder: all that is needed to build the model and its features again.
struct RecognizerConfig {
  EncoderName model = EncoderName::conformer;
  EncoderConfig encoder;
  FeatureConfig features;
  Tokens tokens = Tokens::words;

  static constexpr void fields(auto& self, auto&& visit) {
    visit("model", self.model);
    visit("encoder", self.encoder);
    visit("features", self.features);
    visit("tokens", self.tokens);
  }

  double frames_per_second() const {
    return 1000 / features.fbank.frame_shift_ms / static_cast<double>(encoder.subsampling);
  }
};

/// The models behind one face: what attention they have is known at run time.
using AnyModel = std::variant<Conformer<AnyAttention>, Branchformer<AnyAttention>, EBranchformer<AnyAttention>,
                              Wav2Vec2Conformer<AnyAttention>>;

/// f(std::type_identity<Model>()) for the encoder of this name.
template <class F>
decltype(auto) with_model(EncoderName name, F&& f) {
  switch (name) {
    case EncoderName::branchformer:
      return f(std::type_identity<Branchformer<AnyAttention>>());
    case EncoderName::e_branchformer:
      return f(std::type_identity<EBranchformer<AnyAttention>>());
    case EncoderName::wav2vec2_conformer:
      return f(std::type_identity<Wav2Vec2Conformer<AnyAttention>>());
    default:
      return f(std::type_identity<Conformer<AnyAttention>>());
  }
}
/// A new model, randomly initialised.
AnyModel make_model(EncoderName name, const EncoderConfig& config, Seed seed);

/// What a command line says of an attention: a name, and numbers that are 0 where nothing was said.
struct AttentionChoice {
  AttentionName attention = AttentionName::mha;
  Index kv_heads = 0, latent_dim = 0, v_latent_dim = 0, rope_dim = 0;
};
/// How a conversion finds its latents: from the weights alone (exactly, or by random projections), or for speech to
/// calibrate on, where errors count as they are, or by what comes of them in scores and output.
enum class ConversionMethod { svd, randomized, activation, score_aware };
constexpr auto enum_names(ConversionMethod) {
  using enum ConversionMethod;
  return std::to_array<EnumName<ConversionMethod>>(
      {{svd, "svd"}, {randomized, "randomized"}, {activation, "activation"}, {score_aware, "score-aware"}});
}
struct ConversionChoice {
  ConversionMethod method = ConversionMethod::svd;
  const SpeechBatch* calibration = nullptr;  ///< with labels, where layers are weighed by their Fisher information
  RankAllocation allocation = RankAllocation::uniform;  ///< of mla and mla-simple: how layers share their ranks' sum
  Seed seed{};
  bool hadamard = false;  ///< latents with their channels mixed
  int threads = 1;
};
/// The encoder with this attention; throws where its numbers contradict it.
EncoderConfig with_attention(EncoderConfig encoder, const AttentionChoice& choice);

/// The tokens that a corpus was made for, if a corpus.json in its folder says so; else characters.
Tokens corpus_tokens(const std::filesystem::path& folder);

/// A model with its features and its vocabulary.
struct Recognizer {
  RecognizerConfig config;
  Vocabulary vocabulary;
  AnyModel model;
  Storage storage = Storage::full;  ///< of the weights, as the file had them

  /// A new one, randomly initialised. Fills in the numbers that follow from the attention's name, and throws where they
  /// contradict it.
  static Recognizer create(RecognizerConfig config, Vocabulary vocabulary, Seed seed);
  /// From a model folder, from a run's folder, which has one called "model" in it, or from a folder of Hugging Face's
  /// `Wav2Vec2ConformerForCTC`.
  static Recognizer load(const std::filesystem::path& folder);
  /// Not into a run's folder: there the model would lie beside another one.
  void save(const std::filesystem::path& folder, Storage rounded = Storage::full) const;
  /// From now on it can only be run, but faster: see pack_weights.
  void pack(int threads);

  /// As a folder that transformers loads: a wav2vec2-conformer with full attention.
  void export_hugging_face(const std::filesystem::path& folder) const;

  /// The same speech model with another attention: `report` says what it cost, measured on `speech` if given.
  Recognizer convert(const AttentionChoice& choice, const SpeechBatch* speech, nlohmann::json& report,
                     const ConversionChoice& how = {}) const;

  /// The singular values of keys and values of each layer, as the method has them.
  std::vector<std::vector<double>> spectra(const ConversionChoice& how) const;

  Evaluation evaluate(Cpu<float>& cpu, const Dataset& data) const;
  /// The same as speech that comes block by block to many streams at once.
  StreamedEvaluation evaluate_streamed(const Dataset& data, const StreamConfig& config, Index block_frames) const;
  Index count_parameters() const;
  /// Of the parameters' values.
  std::string fingerprint() const;
  double cache_bytes_per_second() const;

  struct Training {
    std::function<void(const TrainProgress&)> progress;
    std::function<void()> better = [] {};
    std::filesystem::path folder;
    std::int64_t checkpoint_steps = 0;
    const Recognizer* teacher = nullptr;  ///< of a model of the same kind
    std::vector<Index>
        ranks{};  ///< falling: latents are cut to each in turn, and trained for all epochs after each cut
    const SpeechBatch* calibration = nullptr;  ///< what the cuts are best for; null: for all inputs alike
    std::function<void(Index rank, double error)> cut = [](Index, double) {};
  };
  /// Throws where latents cannot be cut to these ranks, or this one cannot be a model's teacher; before corpora are
  /// read.
  void check_ranks(const std::vector<Index>& ranks) const;
  void check_teacher(const Recognizer& teacher, bool chunks) const;
  /// Trains in place (see Trainer, truncate) and gives where it ended; with ranks where the last of them ended, in
  /// seconds of all. Each step has a folder of its own in that of the run, and goes on from the best epoch of the one
  /// before.
  TrainState train(Cpu<float>& cpu, const Dataset& training, const Dataset& validation, const TrainConfig& config,
                   const Training& how);
};

}  // namespace LACONIC_ABI
}  // namespace laconic
