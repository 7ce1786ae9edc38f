// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/shapes.hpp>
#include <laconic/core/hash.hpp>
#include <laconic/core/parallel.hpp>
#include <laconic/speech/audio.hpp>
#include <laconic/speech/corpus.hpp>
#include <laconic/speech/features.hpp>
#include <laconic/speech/spec_augment.hpp>
#include <laconic/speech/vocabulary.hpp>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace laconic {
inline namespace LACONIC_ABI {

/// Holds one utterance, ready for a model.
struct Example {
  Matrix<float> features;   ///< (frames, num_mels); empty if they are made from the file each time they are needed
  std::vector<int> labels;  ///< token indices; empty without a vocabulary
  std::string text,         ///< transcript
      name,                 ///< file name without extension
      speaker;              ///< empty if not known
  double seconds = 0;       ///< duration
  bool is_whole = true;     ///< false if a part of its file could not be heard, or may have been cut off

  /// Describes features that are not kept in memory.
  struct InFile {
    std::filesystem::path audio_filepath;  ///< the file they are made from
    AudioPart part;                        ///< the part of it
    Index frames;                          ///< number of their rows
    std::uint64_t hash;                    ///< hash of their values
  };
  std::optional<InFile> in_file;  ///< set if the features are not kept

  /// Returns the number of feature frames.
  Index frames() const { return in_file ? in_file->frames : features.rows(); }
  /// Returns a hash of the features, kept or not.
  std::uint64_t features_hash() const { return in_file ? in_file->hash : hash_of(features); }
  /// Returns a hash of a matrix.
  static std::uint64_t hash_of(const Matrix<float>& m) {
    return Hash().add(m.data(), static_cast<std::size_t>(m.size()) * sizeof(float)).value();
  }
};

/// Holds examples and what is needed to make their features.
struct Dataset {
  std::vector<Example> examples;   ///< the utterances, in the order of the corpus
  std::vector<std::string> notes;  ///< lines on files that had to be converted or differ from their manifest
  std::shared_ptr<const FeatureExtractor> extract;  ///< makes the features that are not kept
  int blank = 0;                                    ///< the class of the CTC blank, which no label is

  /// Returns the number of examples.
  Index size() const { return static_cast<Index>(examples.size()); }
  /// Returns the duration of all examples.
  double seconds() const {
    return std::accumulate(examples.begin(), examples.end(), 0.0,
                           [](double sum, const Example& e) { return sum + e.seconds; });
  }
  /// Returns the features of one example, kept or made from its file. Calls may come from several threads. Throws
  /// `Error` if the file has changed since the dataset was loaded. Allocates.
  Matrix<float> features(Index i) const {
    const Example& e = examples[static_cast<std::size_t>(i)];
    if (!e.in_file) return e.features;
    const std::string path = e.in_file->audio_filepath.string();
    require(extract != nullptr, path, ": its features are not kept, and nothing to make them with is given");
    const Audio audio =
        read_audio(e.in_file->audio_filepath, extract->config().fbank.sample_rate, nullptr, e.in_file->part);
    Matrix<float> out = (*extract)(audio.samples);
    require(out.rows() == e.in_file->frames && Example::hash_of(out) == e.in_file->hash, path,
            ": is not what it was when the dataset was loaded");
    return out;
  }
};

/// Reads all audio as features, keeps at most `feature_bytes` of them in memory, and makes the others again whenever
/// they are needed. With a vocabulary the texts become labels; an unknown token throws `Error` and names the audio
/// file. Allocates.
inline Dataset load_dataset(std::span<const Utterance> utterances, const FeatureConfig& config,
                            const Vocabulary* vocabulary, int threads,
                            std::size_t feature_bytes = std::numeric_limits<std::size_t>::max()) {
  Dataset out;
  out.extract = std::make_shared<FeatureExtractor>(config);
  out.examples.resize(utterances.size());
  if (vocabulary != nullptr) out.blank = vocabulary->blank();
  std::vector<std::string> notes(utterances.size());
  std::atomic<std::size_t> bytes = 0;
  kernels::parallel_or_throw(threads, static_cast<Index>(utterances.size()), [&](std::size_t i) {
    const Utterance& u = utterances[i];
    const Audio audio = read_audio(u.audio_filepath, config.fbank.sample_rate, &notes[i], u.part());
    Example& e = out.examples[i];
    e.text = u.text;
    e.name = u.audio_filepath.stem().string();
    e.speaker = u.speaker;
    e.is_whole = audio.is_whole;
    e.seconds = static_cast<double>(audio.samples.size()) / config.fbank.sample_rate;
    if (u.duration > 0 && std::abs(u.duration - e.seconds) > 0.1 + 0.01 * e.seconds)
      notes[i] += text(notes[i].empty() ? u.audio_filepath.string() + ": " : "; ", e.seconds,
                       " s, all of which are used, though its duration is given as ", u.duration, " s");
    try {
      e.features = (*out.extract)(audio.samples);
      if (vocabulary != nullptr) e.labels = vocabulary->encode(u.text);
    } catch (const Error& error) {
      throw Error(text(u.audio_filepath.string(), ": ", error.what()));
    }
    // Which examples stay in memory depends on thread timing; their values do not.
    const auto these = static_cast<std::size_t>(e.features.size()) * sizeof(float);
    if (bytes.fetch_add(these) + these <= feature_bytes) return;
    bytes -= these;
    e.in_file = {u.audio_filepath, u.part(), e.features.rows(), Example::hash_of(e.features)};
    e.features.resize(0, 0);
  });
  for (std::string& note : notes)
    if (!note.empty()) out.notes.push_back(std::move(note));
  return out;
}

/// Sets the mean and inverse standard deviation of each channel of a corpus, for Normalization::global.
inline void fit_normalization(std::span<const Utterance> utterances, FeatureConfig& config, int threads) {
  const FeatureExtractor extract(config);
  std::vector<FeatureStatistics> each(utterances.size());
  kernels::parallel_or_throw(threads, static_cast<Index>(utterances.size()), [&](std::size_t i) {
    const Matrix<float> features = extract.raw(
        read_audio(utterances[i].audio_filepath, config.fbank.sample_rate, nullptr, utterances[i].part()).samples);
    each[i].add(view(features));
  });
  FeatureStatistics all;
  for (const FeatureStatistics& one : each) all.merge(one);
  config.statistics = all.normalization();
}

/// Holds a packed batch.
struct SpeechBatch {
  Matrix<float> features;  ///< (rows, num_mels)
  Sequences sequences;     ///< rows of each utterance
  Labels labels;           ///< labels of each utterance
  double seconds = 0;      ///< duration of all utterances
  int blank = 0;           ///< the class of the CTC blank
};

/// Packs examples into a batch; with `augment`, masks each by its own random numbers. Allocates.
inline SpeechBatch make_batch(const Dataset& data, std::span<const Index> indices, const SpecAugmentConfig* augment,
                              Seed seed) {
  std::vector<Index> lengths, label_lengths;
  SpeechBatch out;
  out.blank = data.blank;
  for (const Index i : indices) {
    const Example& e = data.examples[static_cast<std::size_t>(i)];
    lengths.push_back(e.frames());
    label_lengths.push_back(static_cast<Index>(e.labels.size()));
    out.labels.tokens.insert(out.labels.tokens.end(), e.labels.begin(), e.labels.end());
    out.seconds += e.seconds;
  }
  out.sequences = Sequences(lengths);
  out.labels.sequences = Sequences(label_lengths);
  if (indices.empty()) return out;
  for (std::size_t n = 0; n < indices.size(); ++n) {
    const Index at = static_cast<Index>(n);
    const Example& e = data.examples[static_cast<std::size_t>(indices[n])];
    const Matrix<float> read = e.in_file ? data.features(indices[n]) : Matrix<float>();
    const Matrix<float>& features = e.in_file ? read : e.features;
    if (n == 0) out.features.resize(out.sequences.rows(), features.cols());
    auto rows = out.features.middleRows(out.sequences.begin(at), out.sequences.length(at));
    rows = features;
    if (augment != nullptr)
      spec_augment(matrix_view(rows.data(), rows.rows(), rows.cols()), *augment,
                   Random(seed, static_cast<std::uint64_t>(indices[n])));
  }
  return out;
}

/// Splits a dataset into batches of at most `max_frames` feature frames (but at least one utterance) whose utterances
/// have similar lengths. With a seed, examples are shuffled, sorted within pools of about 20 batches and cut, and the
/// batches are shuffled. Without one, examples are sorted by length.
inline std::vector<std::vector<Index>> length_buckets(const Dataset& data, Index max_frames, std::optional<Seed> seed) {
  const auto frames = [&](Index i) { return data.examples[static_cast<std::size_t>(i)].frames(); };
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

}  // namespace LACONIC_ABI
}  // namespace laconic
