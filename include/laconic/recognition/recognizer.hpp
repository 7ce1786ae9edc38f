// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/convert/allocate.hpp>
#include <laconic/convert/conversion_report.hpp>
#include <laconic/core/matrix.hpp>
#include <laconic/core/sequences.hpp>
#include <laconic/model/encoder_config.hpp>
#include <laconic/model/stream_config.hpp>
#include <laconic/recognition/evaluation.hpp>
#include <laconic/recognition/train_config.hpp>
#include <laconic/speech/features.hpp>
#include <laconic/speech/tokens.hpp>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

// Speech recognition for programs and applications: any model folder behind one class.
//
// This header holds no model. Link laconic::recognizer, in which all encoders with all attentions are compiled once; or
// include <laconic/recognition/recognizer_impl.hpp> in one source of the program.

namespace laconic {
inline namespace LACONIC_ABI {

class Vocabulary;    // <laconic/speech/vocabulary.hpp>
struct Dataset;      // <laconic/recognition/dataset.hpp>
struct SpeechBatch;  // <laconic/recognition/dataset.hpp>
namespace detail {
class RecognizerModel;
class StreamsOfModel;
}  // namespace detail

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

  /// Returns the encoder frames in a second of speech.
  double frames_per_second() const {
    return 1000 / features.fbank.frame_shift_ms / static_cast<double>(encoder.subsampling);
  }
};

/// A word of a transcript. Times and confidence are empty: no decoder measures them yet.
struct Word {
  std::string text;
  std::optional<double> begin, end;  ///< seconds from the beginning of the speech
  std::optional<double> confidence;  ///< the probability that the word was said, 0 to 1
};

/// What a recogniser understood.
struct Transcript {
  std::string text;
  std::vector<Word> words;
  double seconds = 0;  ///< of speech
};

/// An attention by its name and the numbers that it needs; those that are 0 follow from the name and the encoder.
struct AttentionChoice {
  AttentionName attention = AttentionName::mha;
  Index kv_heads = 0, latent_dim = 0, v_latent_dim = 0, rope_dim = 0;
};

/// Returns the encoder's configuration with this attention. Throws where the numbers contradict the attention's name.
EncoderConfig with_attention(EncoderConfig encoder, const AttentionChoice& choice);

/// How a conversion finds its latents. `svd` and `randomized` look at the weights alone, exactly or by random
/// projections. `activation` and `score_aware` are calibrated on speech: errors of keys and values count as they are,
/// or by what they change in scores and output.
enum class ConversionMethod { svd, randomized, activation, score_aware };
constexpr auto enum_names(ConversionMethod) {
  using enum ConversionMethod;
  return std::to_array<EnumName<ConversionMethod>>(
      {{svd, "svd"}, {randomized, "randomized"}, {activation, "activation"}, {score_aware, "score-aware"}});
}

/// The settings of a conversion.
struct ConversionChoice {
  ConversionMethod method = ConversionMethod::svd;
  /// Speech to calibrate on, which the methods that are calibrated need; with labels where layers are weighed by their
  /// Fisher information.
  const SpeechBatch* calibration = nullptr;
  RankAllocation allocation = RankAllocation::uniform;  ///< how the layers of mla and mla-simple share their ranks' sum
  Seed seed{};
  bool hadamard = false;  ///< mix the channels of latents, so that a cache in 8 bits loses less
  int threads = 1;
};

/// Where a recogniser computes: threads, and memory that is taken once and used again from call to call. One thread at
/// a time may use a workspace.
class Workspace {
 public:
  /// `threads` = 0 takes all that the machine offers.
  explicit Workspace(int threads = 0);
  Workspace(Workspace&&) noexcept;
  Workspace& operator=(Workspace&&) noexcept;
  ~Workspace();

  int threads() const;
  /// Returns the most bytes that tensors have taken at once.
  std::size_t peak_bytes() const;

  /// The context that computes, for the implementation.
  struct Context;
  Context& context() { return *context_; }

 private:
  std::unique_ptr<Context> context_;
};

/// Logits (rows, tokens) of several sequences, one after the other.
struct FrameLogits {
  Matrix<float> rows;
  Sequences sequences;
};

/// Many streams of one model that are pushed together. Features come in, the logits of frames that became final come
/// out. The recogniser must outlive its streams and stay as it is.
class FeatureStreams {
 public:
  explicit FeatureStreams(std::unique_ptr<detail::StreamsOfModel> streams);
  FeatureStreams(FeatureStreams&&) noexcept;
  FeatureStreams& operator=(FeatureStreams&&) noexcept;
  ~FeatureStreams();

  /// Returns a new stream's number, less than the capacity. Throws where all streams are in use.
  Index open();
  void close(Index stream);
  /// Takes features (rows, num_mels): those of streams[0], then those of streams[1], and so on, as `blocks` says.
  FrameLogits push(std::span<const Index> streams, const Matrix<float>& features, const Sequences& blocks);
  /// Returns the frames that are left of streams to which nothing will be added, and closes these streams.
  FrameLogits finish(std::span<const Index> streams);

  /// Returns what each frame sees.
  const Mask& mask() const;
  /// Returns the most frames that attention keeps of a stream.
  Index kept_frames() const;
  /// Returns the rows of features that the first chunk needs, and those of every later one.
  Index first_rows() const;
  Index chunk_rows() const;
  /// Returns the bytes that all streams hold for keys and values, for convolutions and for features.
  Index attention_bytes() const;
  Index convolution_bytes() const;
  Index feature_bytes() const;

 private:
  std::unique_ptr<detail::StreamsOfModel> streams_;
};

/// One utterance that is transcribed while it is spoken.
///
///     SpeechStream stream = recognizer.stream({.threads = 1});
///     while (read(samples)) if (stream.push(samples) > 0) show(stream.text());
///     stream.finish();
class SpeechStream {
 public:
  SpeechStream(FeatureStreams streams, const FeatureConfig& features, const Vocabulary& vocabulary);
  SpeechStream(SpeechStream&&) noexcept;
  SpeechStream& operator=(SpeechStream&&) noexcept;
  ~SpeechStream();

  /// Takes samples in [-1, 1] at the model's sample rate. Returns the number of encoder frames that became final.
  Index push(std::span<const float> samples);
  /// Ends the utterance. Returns the number of encoder frames that were left.
  Index finish();
  /// Returns the text of all frames that are final. Text that was returned once stays as it is, and more follows it.
  std::string text() const;
  const FeatureStreams& streams() const;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

/// A conversion's model and what it cost.
struct RecognizerConversion;

/// What a training run reports while it goes on, and what it learns from besides the labels.
struct RecognizerTraining;

/// A speech recogniser: a model of any encoder and attention, with its features and its vocabulary.
///
///     const Recognizer recognizer = Recognizer::load("model");
///     for (const Word& word : recognizer.transcribe("speech.flac").words) std::cout << word.text << '\n';
///
/// Const members may be called by several threads at once, each with a workspace of its own.
class Recognizer {
 public:
  /// Makes a new recogniser with random weights. Fills in the numbers that follow from the attention's name, and throws
  /// where the configuration contradicts it.
  static Recognizer create(RecognizerConfig config, const Vocabulary& vocabulary, Seed seed);
  /// Reads a model folder, the folder of a training run (which has a folder "model" in it), or a folder of Hugging
  /// Face's `Wav2Vec2ConformerForCTC`. Throws `Error` naming the file where something does not fit.
  static Recognizer load(const std::filesystem::path& folder);

  Recognizer(const Recognizer&);
  Recognizer(Recognizer&&) noexcept;
  Recognizer& operator=(const Recognizer&);
  Recognizer& operator=(Recognizer&&) noexcept;
  ~Recognizer();

  const RecognizerConfig& config() const;
  const Vocabulary& vocabulary() const;
  /// Returns how the weights lay in the file that was loaded.
  Storage storage() const;

  /// Writes a model folder, its weights rounded as `weights` says. Throws for the folder of a training run, where the
  /// model would lie next to another one.
  void save(const std::filesystem::path& folder, Storage weights = Storage::full) const;
  /// Writes a folder that Hugging Face transformers loads. Throws unless the model is a wav2vec2-conformer with full
  /// attention.
  void export_hugging_face(const std::filesystem::path& folder) const;

  /// Lays out the weights as products read them, stored as in the file, or as `weights` says. From then on the model is
  /// faster and can only be run. `threads` = 0 takes all that the machine offers.
  void prepare(int threads = 0);
  void prepare(Storage weights, int threads);

  /// Transcribes an audio file that libsndfile reads (WAV, FLAC, Ogg and others). Channels are averaged and samples are
  /// resampled to the model's rate.
  Transcript transcribe(const std::filesystem::path& audio) const;
  Transcript transcribe(const std::filesystem::path& audio, Workspace& workspace) const;
  /// Transcribes samples in [-1, 1] at this rate in Hz.
  Transcript transcribe(std::span<const float> samples, int sample_rate) const;
  Transcript transcribe(std::span<const float> samples, int sample_rate, Workspace& workspace) const;

  /// Returns the logits (frames, tokens) of one utterance's features (rows, num_mels).
  Matrix<float> logits(const Matrix<float>& features, Workspace& workspace) const;

  /// Begins an utterance that comes piece by piece. Throws where model or features need the whole utterance.
  SpeechStream stream(const StreamConfig& config = {}) const;
  /// Makes streams that take features and give logits, for those who decode themselves.
  FeatureStreams feature_streams(const StreamConfig& config = {}) const;
  /// Throws where the model needs the whole utterance.
  void require_streamable() const;

  /// Transcribes a dataset in batches and counts word errors.
  Evaluation evaluate(const Dataset& data, Workspace& workspace) const;
  /// Transcribes a dataset that comes to many streams at once, `block_frames` feature frames with every push.
  StreamedEvaluation evaluate_streamed(const Dataset& data, const StreamConfig& config, Index block_frames) const;

  Index count_parameters() const;
  /// Returns the bytes of the weights as they are stored, without scales and padding.
  Index weight_bytes() const;
  /// Returns the bytes of keys and values, or latents, for each second of speech, in single precision.
  double cache_bytes_per_second() const;
  /// Returns a text that tells the values of all parameters from others.
  std::string fingerprint() const;

  /// Returns the same recogniser with another attention. The report compares both models on `speech`, or on white noise
  /// where that is null.
  RecognizerConversion convert(const AttentionChoice& choice, const ConversionChoice& how = {},
                               const SpeechBatch* speech = nullptr) const;
  /// Returns the singular values of keys and values of each layer, as the conversion method has them.
  std::vector<std::vector<double>> spectra(const ConversionChoice& how = {}) const;

  /// Throws where latents cannot be cut to these ranks.
  void check_ranks(const std::vector<Index>& ranks) const;
  /// Throws where `teacher` cannot be this model's teacher, in training with chunks or without.
  void check_teacher(const Recognizer& teacher, bool chunks) const;
  /// Trains in place and returns where training ended (see `Trainer`, `truncate`). With ranks, training goes through
  /// them in turn: the state is that of the last one, in seconds of all, and each has a folder of its own in that of
  /// the run and starts from the best epoch of the one before.
  TrainState train(const Dataset& training, const Dataset& validation, const TrainConfig& config,
                   const RecognizerTraining& how, Workspace& workspace);

 private:
  struct Parts;
  explicit Recognizer(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

struct RecognizerConversion {
  Recognizer recognizer;
  ConversionReport report;
};

struct RecognizerTraining {
  std::function<void(const TrainProgress&)> progress = [](const TrainProgress&) {};
  std::function<void()> better = [] {};  ///< called when the model, as it then is, is the best so far
  std::filesystem::path folder{};        ///< of losses and checkpoints; empty: none are written
  std::int64_t checkpoint_steps = 0;     ///< updates between checkpoints within an epoch; 0: at its end only
  const Recognizer* teacher = nullptr;   ///< a model of the same kind
  std::vector<Index> ranks{};  ///< falling: latents are cut to each in turn, and trained for all epochs after each cut
  const SpeechBatch* calibration = nullptr;  ///< speech that the cuts are best for; null: all inputs count alike
  std::function<void(Index rank, double error)> cut = [](Index, double) {};  ///< called after each cut
};

/// Returns the tokens that a corpus was made for, if a corpus.json in its folder says so; else characters.
Tokens corpus_tokens(const std::filesystem::path& folder);

}  // namespace LACONIC_ABI
}  // namespace laconic
