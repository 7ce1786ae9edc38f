// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cpu/parallel.hpp>
#include <laconic/backend/primitives.hpp>
#include <laconic/speech/audio.hpp>
#include <laconic/speech/corpus.hpp>
#include <laconic/speech/features.hpp>
#include <laconic/speech/spec_augment.hpp>
#include <laconic/speech/vocabulary.hpp>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace laconic::inline LACONIC_ABI {

/// One utterance, ready for a model.
struct Example {
  Matrix<float> features;   ///< (frames, num_mels)
  std::vector<int> labels;  ///< empty where no vocabulary was given
  std::string text, name, speaker;
  double seconds = 0;
};

struct Dataset {
  std::vector<Example> examples;
  std::vector<std::string> notes;  ///< what had to be converted to be read, or is not as its manifest says

  Index size() const { return static_cast<Index>(examples.size()); }
  double seconds() const {
    return std::accumulate(examples.begin(), examples.end(), 0.0,
                           [](double sum, const Example& e) { return sum + e.seconds; });
  }
};

/// Reads all audio into memory as features. With a vocabulary the texts become labels; an unknown token throws and
/// names the audio file.
inline Dataset load_dataset(std::span<const Utterance> utterances, const FeatureConfig& config,
                            const Vocabulary* vocabulary, int threads) {
  const FeatureExtractor extract(config);
  Dataset out;
  out.examples.resize(utterances.size());
  std::vector<std::string> notes(utterances.size());
  kernels::parallel_or_throw(threads, static_cast<Index>(utterances.size()), [&](std::size_t i) {
    const Utterance& u = utterances[i];
    const Audio audio = read_audio(u.audio_filepath, config.fbank.sample_rate, &notes[i]);
    Example& e = out.examples[i];
    e.text = u.text;
    e.name = u.audio_filepath.stem().string();
    e.speaker = u.speaker;
    e.seconds = static_cast<double>(audio.samples.size()) / config.fbank.sample_rate;
    if (u.duration > 0 && std::abs(u.duration - e.seconds) > 0.1 + 0.01 * e.seconds)
      notes[i] += text(notes[i].empty() ? u.audio_filepath.string() + ": " : "; ", e.seconds,
                       " s, all of which are used, though its duration is given as ", u.duration, " s");
    try {
      e.features = extract(audio.samples);
      if (vocabulary != nullptr) e.labels = vocabulary->encode(u.text);
    } catch (const Error& error) {
      throw Error(text(u.audio_filepath.string(), ": ", error.what()));
    }
  });
  for (std::string& note : notes)
    if (!note.empty()) out.notes.push_back(std::move(note));
  return out;
}

/// Mean and inverse standard deviation of a corpus, for Normalization::global.
inline void fit_normalization(std::span<const Utterance> utterances, FeatureConfig& config, int threads) {
  const FeatureExtractor extract(config);
  std::vector<FeatureStatistics> each(utterances.size());
  kernels::parallel_or_throw(threads, static_cast<Index>(utterances.size()), [&](std::size_t i) {
    const Matrix<float> features =
        extract.raw(read_audio(utterances[i].audio_filepath, config.fbank.sample_rate).samples);
    each[i].add(view(features));
  });
  FeatureStatistics all;
  for (const FeatureStatistics& one : each) all.merge(one);
  config.statistics = all.normalization();
}

/// A packed batch: features (rows, num_mels), where its sequences lie, and their labels.
struct SpeechBatch {
  Matrix<float> features;
  Sequences sequences;
  Labels labels;
  double seconds = 0;
};

/// Packs examples; with `augment`, each is masked by its own random numbers.
inline SpeechBatch make_batch(const Dataset& data, std::span<const Index> indices, const SpecAugmentConfig* augment,
                              Seed seed) {
  std::vector<Index> lengths, label_lengths;
  SpeechBatch out;
  for (const Index i : indices) {
    const Example& e = data.examples[static_cast<std::size_t>(i)];
    lengths.push_back(e.features.rows());
    label_lengths.push_back(static_cast<Index>(e.labels.size()));
    out.labels.tokens.insert(out.labels.tokens.end(), e.labels.begin(), e.labels.end());
    out.seconds += e.seconds;
  }
  out.sequences = Sequences(lengths);
  out.labels.sequences = Sequences(label_lengths);
  if (indices.empty()) return out;
  out.features.resize(out.sequences.rows(), data.examples[static_cast<std::size_t>(indices[0])].features.cols());
  for (std::size_t n = 0; n < indices.size(); ++n) {
    const Index at = static_cast<Index>(n);
    auto rows = out.features.middleRows(out.sequences.begin(at), out.sequences.length(at));
    rows = data.examples[static_cast<std::size_t>(indices[n])].features;
    if (augment != nullptr)
      spec_augment(matrix_view(rows.data(), rows.rows(), rows.cols()), *augment,
                   Random(seed, static_cast<std::uint64_t>(indices[n])));
  }
  return out;
}

/// Batches of at most `max_frames` feature frames (but at least one utterance), of utterances of like length: shuffled,
/// sorted within pools of about 20 batches, cut, and shuffled again. Without a seed: in order of length.
inline std::vector<std::vector<Index>> length_buckets(const Dataset& data, Index max_frames, std::optional<Seed> seed) {
  const auto frames = [&](Index i) { return data.examples[static_cast<std::size_t>(i)].features.rows(); };
  std::vector<Index> order(static_cast<std::size_t>(data.size()));
  std::iota(order.begin(), order.end(), Index{0});
  if (seed) shuffle(order, Random(*seed, "utterances"));
  std::vector<std::vector<Index>> batches;
  for (std::size_t begin = 0, end; begin < order.size(); begin = end) {
    Index pool = 0;
    for (end = begin; end < order.size() && (!seed || pool / 20 < max_frames); ++end) pool += frames(order[end]);
    std::stable_sort(order.begin() + static_cast<std::ptrdiff_t>(begin),
                     order.begin() + static_cast<std::ptrdiff_t>(end),
                     [&](Index a, Index b) { return frames(a) < frames(b); });
    Index used = max_frames;
    for (std::size_t i = begin; i < end; ++i) {
      if (i == begin || frames(order[i]) > max_frames - used) {
        batches.emplace_back();
        used = 0;
      }
      batches.back().push_back(order[i]);
      used += frames(order[i]);
    }
  }
  if (seed) shuffle(batches, Random(*seed, "batches"));
  return batches;
}

}  // namespace laconic
