// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/io/folder.hpp>
#include <laconic/io/hugging_face.hpp>
#include <laconic/model/branchformer.hpp>
#include <laconic/model/conformer.hpp>
#include <laconic/model/e_branchformer.hpp>
#include <laconic/model/stream.hpp>
#include <laconic/model/wav2vec2_conformer.hpp>
#include <laconic/recognition/evaluate_streamed.hpp>
#include <laconic/recognition/fingerprint.hpp>
#include <laconic/recognition/recognizer/attention.hpp>
#include <laconic/recognition/recognizer/context.hpp>
#include <laconic/recognition/recognizer/model.hpp>

// Models behind Recognizer, and all that runs them. Conversion and training are declared here and defined in
// convert.hpp and train.hpp, so that each can be compiled in a source of its own.

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

/// Maps a name to the type of its encoder. The attention is chosen at run time.
template <EncoderName Name>
struct NamedEncoder;
template <>
struct NamedEncoder<EncoderName::conformer> {
  using type = Conformer<AnyAttention>;
};
template <>
struct NamedEncoder<EncoderName::branchformer> {
  using type = Branchformer<AnyAttention>;
};
template <>
struct NamedEncoder<EncoderName::e_branchformer> {
  using type = EBranchformer<AnyAttention>;
};
template <>
struct NamedEncoder<EncoderName::wav2vec2_conformer> {
  using type = Wav2Vec2Conformer<AnyAttention>;
};

/// Holds a converted model and the report on its conversion.
template <class Model>
struct ConvertedModel {
  Model model;
  ConversionReport report;
};
template <class Model>
ConvertedModel<Model> convert_model(const Model& source, const AttentionChoice& choice, const ConversionChoice& how,
                                    const SpeechBatch* speech);
template <class Model>
std::vector<std::vector<double>> model_spectra(const Model& model, const ConversionChoice& how);
/// Returns how much the loss of the calibration speech depends on errors in each layer.
template <class Model>
std::vector<double> layer_information(const Model& model, const SpeechBatch& speech, int threads);
template <class Model>
TrainState train_model(Model& model, Workspace::Context& context, const Dataset& training, const Dataset& validation,
                       const Vocabulary& vocabulary, const TrainConfig& config, const RecognizerTraining& how,
                       const Model* teacher);

template <class Model, class Context>
class StreamsOf final : public StreamsOfModel {
 public:
  StreamsOf(const Model& model, const StreamConfig& config, const std::optional<SettingsOf<Context>>& settings = {})
      : streams_(model, config, settings) {}

  Index open() override { return streams_.open(); }
  void close(Index stream) override { streams_.close(stream); }
  FrameLogits push(std::span<const Index> streams, const Matrix<float>& features, const Sequences& blocks) override {
    return on_host(streams_.push(streams, features, blocks));
  }
  FrameLogits finish(std::span<const Index> streams) override { return on_host(streams_.finish(streams)); }
  const Mask& mask() const override { return streams_.mask(); }
  Index kept_frames() const override { return streams_.kept_frames(); }
  Index first_rows() const override { return streams_.first_rows(); }
  Index chunk_rows() const override { return streams_.chunk_rows(); }
  Index attention_bytes() const override { return streams_.attention_bytes(); }
  Index convolution_bytes() const override { return streams_.convolution_bytes(); }
  Index feature_bytes() const override { return streams_.feature_bytes(); }

 private:
  FrameLogits on_host(const auto& logits) { return {streams_.context().output(logits.rows), logits.sequences}; }

  Streams<Model, Context> streams_;
};

template <class Model>
class ModelOf final : public RecognizerModel {
 public:
  explicit ModelOf(Model model, const Device& device = {}) : model_(std::move(model)), device_(device) {}

  std::unique_ptr<RecognizerModel> clone() const override { return std::make_unique<ModelOf>(model_, device_); }
  const EncoderConfig& config() const override { return model_.config(); }

  Storage load(const Tensors& tensors, bool is_foreign) override {
    if (!is_foreign) {
      load_parameters(model_, tensors);
      return stored_weights(model_, tensors);
    }
    const std::string prefix = hugging_face_prefix(tensors);
    load_parameters(model_, tensors, prefix, is_unused_hugging_face_tensor, may_lack_hugging_face_tensor);
    return stored_weights(model_, tensors, prefix);
  }
  void load_encoder(const Tensors& tensors, bool is_foreign) override {
    const auto is_of_head = [](std::string_view name) { return name.starts_with("lm_head."); };
    load_parameters(
        model_, tensors, is_foreign ? hugging_face_prefix(tensors) : "",
        [&](std::string_view name) {
          return is_of_head(name) ||
                 (is_foreign && (is_unused_hugging_face_tensor(name) || is_pretraining_hugging_face_tensor(name)));
        },
        [&](std::string_view name) { return is_of_head(name) || (is_foreign && may_lack_hugging_face_tensor(name)); });
  }
  void save(const std::filesystem::path& folder, const nlohmann::json& config, const nlohmann::json& vocab,
            const std::map<std::string, nlohmann::json>& others, Storage weights) const override {
    save_model_folder(folder, model_, config, vocab, others, weights);
  }
  void prepare(Storage weights, const Device& device, int threads) override {
    Workspace::Context(device, threads).visit([&](auto& context) { context.prepare(model_, weights); });
    device_ = device;
  }
  const Device& device() const override { return device_; }

  Matrix<float> logits(Workspace::Context& context, const Matrix<float>& features) const override {
    require_on(context);
    return context.visit(
        [&](auto& on) { return on.output(model_(on, on.input(features), Sequences{features.rows()}).rows); });
  }
  Evaluation evaluate(Workspace::Context& context, const Dataset& data, const Vocabulary& vocabulary,
                      Index batch_frames, const MakeLogitsDecoder& make_decoder) const override {
    require_on(context);
    return context.visit(
        [&](auto& on) { return laconic::evaluate(model_, on, data, vocabulary, batch_frames, {}, make_decoder); });
  }
  StreamedEvaluation evaluate_streamed(const Dataset& data, const Vocabulary& vocabulary, const StreamConfig& config,
                                       Index block_frames, const MakeLogitsDecoder& make_decoder) const override {
#if LACONIC_RECOGNIZER_CUDA
    if (device_.gpu) {
      const cuda::Current current(*device_.gpu);
      return laconic::evaluate_streamed<Model, Cuda<float>>(model_, data, vocabulary, config, block_frames,
                                                            make_decoder, Workspace::Context::gpu_of(device_));
    }
#endif
    return laconic::evaluate_streamed(model_, data, vocabulary, config, block_frames, make_decoder);
  }
  std::unique_ptr<StreamsOfModel> streams(const StreamConfig& config) const override {
#if LACONIC_RECOGNIZER_CUDA
    if (device_.gpu) {
      const cuda::Current current(*device_.gpu);
      return std::make_unique<StreamsOf<Model, Cuda<float>>>(model_, config, Workspace::Context::gpu_of(device_));
    }
#endif
    return std::make_unique<StreamsOf<Model, Cpu<float>>>(model_, config);
  }
  void require_streamable() const override { model_.require_streamable(); }

  Index count_parameters() const override { return model_.count_parameters(); }
  Index weight_bytes() const override {
    Index sum = 0;
    model_.parameters([&](std::string_view, const auto& one) {
      if (one.role() != Role::weight) return;
      const Storage storage = one.is_resident() ? one.resident()->storage() : Storage::full;
      sum += cache_row_bytes(storage, one.size()) - (storage == Storage::int8 ? 4 : 0);
    });
    return sum;
  }
  Index window() const override { return model_.subsampling.window(); }
  std::string fingerprint() const override { return Fingerprint::of_parameters(model_); }

  std::pair<std::unique_ptr<RecognizerModel>, ConversionReport> convert(const AttentionChoice& choice,
                                                                        const ConversionChoice& how,
                                                                        const SpeechBatch* speech) const override {
    ConvertedModel<Model> out = convert_model(model_, choice, how, speech);
    return {std::make_unique<ModelOf>(std::move(out.model)), std::move(out.report)};
  }
  std::vector<std::vector<double>> spectra(const ConversionChoice& how) const override {
    return model_spectra(model_, how);
  }

  TrainState train(Workspace::Context& context, const Dataset& training, const Dataset& validation,
                   const Vocabulary& vocabulary, const TrainConfig& config, const RecognizerTraining& how,
                   const RecognizerModel* teacher) override {
    return train_model(model_, context, training, validation, vocabulary, config, how,
                       teacher != nullptr ? &static_cast<const ModelOf*>(teacher)->model_ : nullptr);
  }

 private:
  /// Throws `Error` unless the context is on the device of the model.
  void require_on(const Workspace::Context& context) const {
    require(context.device == device_, "recognizer: a workspace on ", context.device.name(), " given for a model on ",
            device_.name(), ": prepare the model for the device of the workspace");
  }

  Model model_;
  Device device_;
};

template <EncoderName Name>
std::unique_ptr<RecognizerModel> make_recognizer_model(const EncoderConfig& config, Seed seed) {
  using Model = typename NamedEncoder<Name>::type;
  return std::make_unique<ModelOf<Model>>(Model(config, seed));
}

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
