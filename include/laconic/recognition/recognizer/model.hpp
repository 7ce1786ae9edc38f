// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/io/json.hpp>
#include <laconic/io/tensors.hpp>
#include <laconic/recognition/device.hpp>
#include <laconic/recognition/recognizer.hpp>

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

// The model behind Recognizer: any encoder behind virtual functions, so that only the sources that compile an encoder
// see it.

namespace laconic {
inline namespace LACONIC_ABI {

namespace detail {

/// Runs streams of one model; see FeatureStreams.
class StreamsOfModel {
 public:
  virtual ~StreamsOfModel() = default;
  virtual Index open() = 0;
  virtual void close(Index stream) = 0;
  virtual FrameLogits push(std::span<const Index> streams, const Matrix<float>& features, const Sequences& blocks) = 0;
  virtual FrameLogits finish(std::span<const Index> streams) = 0;
  virtual const Mask& mask() const = 0;
  virtual Index kept_frames() const = 0;
  virtual Index first_rows() const = 0;
  virtual Index chunk_rows() const = 0;
  virtual Index attention_bytes() const = 0;
  virtual Index convolution_bytes() const = 0;
  virtual Index feature_bytes() const = 0;
};

/// Holds a model of any encoder with any attention; see Recognizer.
class RecognizerModel {
 public:
  virtual ~RecognizerModel() = default;
  virtual std::unique_ptr<RecognizerModel> clone() const = 0;
  virtual const EncoderConfig& config() const = 0;

  /// Fills the model and returns how its weights are rounded in the files. A foreign folder may hold tensors that the
  /// model does not use.
  virtual Storage load(const Tensors& tensors, bool is_foreign) = 0;
  /// Fills the model but its CTC head, which stays as it is. The files need not hold one.
  virtual void load_encoder(const Tensors& tensors, bool is_foreign) = 0;
  virtual void save(const std::filesystem::path& folder, const nlohmann::json& config, const nlohmann::json& vocab,
                    const std::map<std::string, nlohmann::json>& others, Storage weights) const = 0;
  /// Moves the weights to a device, where the model then runs.
  virtual void prepare(Storage weights, const Device& device, int threads) = 0;
  /// Returns the device that the model was prepared for; the processor if it was not.
  virtual const Device& device() const = 0;

  virtual Matrix<float> logits(Workspace::Context& context, const Matrix<float>& features) const = 0;
  virtual Evaluation evaluate(Workspace::Context& context, const Dataset& data, const Vocabulary& vocabulary,
                              Index batch_frames, const MakeLogitsDecoder& make_decoder) const = 0;
  virtual StreamedEvaluation evaluate_streamed(const Dataset& data, const Vocabulary& vocabulary,
                                               const StreamConfig& config, Index block_frames,
                                               const MakeLogitsDecoder& make_decoder) const = 0;
  virtual std::unique_ptr<StreamsOfModel> streams(const StreamConfig& config) const = 0;
  virtual void require_streamable() const = 0;

  virtual Index count_parameters() const = 0;
  virtual Index weight_bytes() const = 0;
  /// Returns the rows of features that one frame sees before the blocks.
  virtual Index window() const = 0;
  virtual std::string fingerprint() const = 0;

  virtual std::pair<std::unique_ptr<RecognizerModel>, ConversionReport> convert(const AttentionChoice& choice,
                                                                                const ConversionChoice& how,
                                                                                const SpeechBatch* speech) const = 0;
  virtual std::vector<std::vector<double>> spectra(const ConversionChoice& how) const = 0;

  /// Trains for all epochs, once, or after each cut to one of the ranks. `teacher` is a model of the same encoder.
  virtual TrainState train(Workspace::Context& context, const Dataset& training, const Dataset& validation,
                           const Vocabulary& vocabulary, const TrainConfig& config, const RecognizerTraining& how,
                           const RecognizerModel* teacher) = 0;
};

/// Makes a model with random weights. Each encoder is compiled in sources of its own.
template <EncoderName Name>
std::unique_ptr<RecognizerModel> make_recognizer_model(const EncoderConfig& config, Seed seed);

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
