// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/recognition/recognizer.hpp>
#include <laconic/recognition/train_config.hpp>

#include <cstdint>
#include <filesystem>
#include <string>

// What the studies on connected digits share: how much they do, their corpus and their models.

/// How much a study does.
struct Preset {
  std::string name;
  laconic::Index seeds;
  laconic::Index train_utterances, valid_utterances, test_utterances;  ///< sizes of a corpus that the study makes
  laconic::EncoderConfig encoder;
  laconic::TrainConfig baseline, finetune;
};

inline constexpr laconic::Index study_heads = 8;  ///< so that GQA can meet 50, 25 and 12.5%

/// Returns the preset "quick" or "full".
Preset study_preset(const std::string& name);

/// Holds the source of a study's speech.
struct CorpusSource {
  std::string data, holdout_speaker;
  int threads;
  std::int64_t seed;
};

/// Returns the folder of the corpus: `data` itself if it is one; else one made at `made`, from recordings or by
/// espeak-ng.
std::filesystem::path find_corpus(const CorpusSource& source, const std::filesystem::path& made, const Preset& preset);

/// Returns a model for the corpus, randomly initialised. Its features are normalised as the configuration says: with
/// chunks, globally.
laconic::Recognizer new_recognizer(const std::filesystem::path& corpus, laconic::EncoderName encoder,
                                   const laconic::EncoderConfig& config, std::int64_t seed, int threads);
/// Returns a model that can be measured on a device. Training leaves it on the host.
laconic::Recognizer ready(const laconic::Recognizer& model, const laconic::Device& device, int threads);
