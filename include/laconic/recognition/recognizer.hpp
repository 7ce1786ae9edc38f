// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/convert/allocate.hpp>
#include <laconic/convert/conversion_report.hpp>
#include <laconic/core/matrix.hpp>
#include <laconic/core/sequences.hpp>
#include <laconic/decode/confidence.hpp>
#include <laconic/distributed/communicator.hpp>
#include <laconic/model/encoder_config.hpp>
#include <laconic/model/stream_config.hpp>
#include <laconic/recognition/device.hpp>
#include <laconic/recognition/evaluation.hpp>
#include <laconic/recognition/train_config.hpp>
#include <laconic/speech/features.hpp>
#include <laconic/speech/tokens.hpp>
#include <laconic/speech/word.hpp>

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

class AudioReader;    // <laconic/speech/audio.hpp>
struct BeamDecoding;  // <laconic/recognition/beam_decoding.hpp>
class Recognizer;
class Vocabulary;    // <laconic/speech/vocabulary.hpp>
struct Dataset;      // <laconic/recognition/dataset.hpp>
struct SpeechBatch;  // <laconic/recognition/dataset.hpp>
namespace detail {
class RecognizerModel;
class StreamsOfModel;
}  // namespace detail

/// Holds the config.json of a model folder: all settings that the model and its features are built from.
struct RecognizerConfig {
  EncoderName model = EncoderName::conformer;  ///< kind of the encoder
  EncoderConfig encoder;                       ///< sizes of the encoder
  FeatureConfig features;                      ///< inputs of the encoder, computed from audio
  Tokens tokens = Tokens::words;               ///< kind of the vocabulary's tokens

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

/// Holds one of the texts that a beam search found.
struct Alternative {
  std::string text;     ///< the whole text in UTF-8
  double score = 0;     ///< score by which the texts are ordered: log_prob, language model and hotwords
  double log_prob = 0;  ///< log probability of the text by the model alone
};

/// Holds the result of recognising one utterance.
struct Transcript {
  std::string text;         ///< the whole text in UTF-8
  std::vector<Word> words;  ///< the words of the text, in order, with times and confidence (see `WordDecoder`)
  double seconds = 0;       ///< duration of the speech in seconds
  std::vector<Alternative> alternatives{};  ///< the best texts, best first, if a beam search decodes
};

/// Holds a line of a text that was aligned with a recording.
struct AlignedLine {
  std::string text;               ///< the line, words with one space between them
  Range words;                    ///< its words among those of the text
  std::optional<double> begin{},  ///< start in seconds; empty if no token of the vocabulary is in the line
      end{};                      ///< end in seconds
  std::optional<double> score{};  ///< log probability: the min over 30 frames of their mean (`CtcAlignment::score`)
};

/// Holds a text that was aligned with a recording.
struct AlignedText {
  std::vector<Word> words;  ///< the words as given, with the times of their tokens (CTC's, not corrected by the level)
                            ///< and the mean probability; without times if the vocabulary cannot write the word
  std::vector<AlignedLine> lines;        ///< the lines as given
  std::vector<std::string> not_written;  ///< characters or words that the vocabulary lacks, each time one occurs
  double seconds = 0;                    ///< duration of the recording in seconds
};

/// Says how recordings are transcribed.
struct TranscriptionConfig {
  /// Longer recordings are heard in windows of this length that overlap by an eighth. Between two windows the text is
  /// joined in the middle of the longest pause that both hear. In seconds.
  double window_seconds = 40;
  ConfidenceMeasure confidence = ConfidenceMeasure::max_probability;  ///< meaning of `Word::confidence`
  std::shared_ptr<const BeamDecoding> beam = nullptr;  ///< beam search with its language model; null: greedy
  /// Called with the logits (frames, tokens) when they become final, if it is set.
  std::function<void(MatrixView<const float>)> logits = nullptr;
};

/// Holds an attention's name and sizes. A size of 0 follows from the name and the encoder.
struct AttentionChoice {
  AttentionName attention = AttentionName::mha;  ///< the attention by name
  Index kv_heads = 0,                            ///< key-value heads (`num_kv_heads`)
      latent_dim = 0,                            ///< rank of the latent (`kv_lora_rank`)
      v_latent_dim = 0,                          ///< rank of the values' latent (`v_lora_rank`)
      rope_dim = 0;                              ///< channels of the decoupled rotary key (`qk_rope_head_dim`)
};

/// Returns the encoder's configuration with this attention. Throws `Error` if the sizes contradict the attention's
/// name.
EncoderConfig with_attention(EncoderConfig encoder, const AttentionChoice& choice);

/// Says how a conversion finds its latents.
enum class ConversionMethod {
  svd,         ///< JointSvd: from the weights, exactly
  randomized,  ///< RandomizedSvd: from the weights, by random projections
  activation,  ///< ActivationPca: calibrated on speech, errors of keys and values count alike
  score_aware  ///< ActivationPca: calibrated on speech, errors count by their effect on scores and output
};
constexpr auto enum_names(ConversionMethod) {
  using enum ConversionMethod;
  return std::to_array<EnumName<ConversionMethod>>(
      {{svd, "svd"}, {randomized, "randomized"}, {activation, "activation"}, {score_aware, "score-aware"}});
}

/// Holds the settings of a conversion.
struct ConversionChoice {
  ConversionMethod method = ConversionMethod::svd;  ///< the method that finds latents
  /// Gives speech to calibrate on. Calibrated methods and Fisher information need it, the latter with labels.
  const SpeechBatch* calibration = nullptr;
  RankAllocation allocation = RankAllocation::uniform;  ///< how layers of mla and mla-simple share their sum of ranks
  Seed seed{};                                          ///< seed of random projections
  bool hadamard = false;                                ///< mix channels of latents, so that 8 bits lose less
  int threads = 1;                                      ///< threads that compute Fisher information; 0: all
};

/// Holds the resources that a recogniser computes with: threads, and memory that is taken once and reused from call to
/// call. One thread at a time may use a workspace.
class Workspace {
 public:
  /// Makes a workspace with `threads` threads of the processor; 0 takes all that the machine offers. Models run on
  /// `device`, for which they must have been prepared. Throws `Error` unless 0 <= threads <= 4096, and for a GPU that
  /// is not there.
  explicit Workspace(int threads = 0, const Device& device = {});
  /// Takes over the other's threads and memory.
  Workspace(Workspace&&) noexcept;
  Workspace& operator=(Workspace&&) noexcept;
  ~Workspace();

  /// Returns the number of threads.
  int threads() const;
  /// Returns the max bytes that tensors have taken at once.
  std::size_t peak_bytes() const;

  struct Context;
  /// Returns the context that computes. For the implementation only.
  Context& context() { return *context_; }

 private:
  std::unique_ptr<Context> context_;
};

/// Holds the logits of several sequences, one after the other.
struct FrameLogits {
  Matrix<float> rows;   ///< packed logits, (encoder frames, tokens)
  Sequences sequences;  ///< the sequences of the rows
};

/// Runs many streams of one model together. Each takes features, and returns the logits of the frames that became
/// final. The recogniser must outlive its streams and must not change meanwhile. `Recognizer::feature_streams` makes
/// them.
class FeatureStreams {
 public:
  /// Takes over the streams of a model. For the implementation only.
  explicit FeatureStreams(std::unique_ptr<detail::StreamsOfModel> streams);
  /// Takes over the other's streams.
  FeatureStreams(FeatureStreams&&) noexcept;
  FeatureStreams& operator=(FeatureStreams&&) noexcept;
  ~FeatureStreams();

  /// Opens a stream and returns its number, 0 to capacity - 1. Throws `Error` if all are in use.
  Index open();
  /// Closes a stream and drops what it has not returned yet. Throws `Error` if it is not open.
  void close(Index stream);
  /// Takes features (rows, num_mels): those of streams[0], then those of streams[1], and so on, as `blocks` says.
  /// Returns the logits of the frames that became final, in the same order. Throws `Error` if the sizes do not fit, or
  /// a stream is not open or is named twice.
  FrameLogits push(std::span<const Index> streams, const Matrix<float>& features, const Sequences& blocks);
  /// Returns the logits of the frames that are left, and closes the streams. Throws `Error` if one is not open.
  FrameLogits finish(std::span<const Index> streams);

  /// Returns the mask of the streams: the frames that each frame sees.
  const Mask& mask() const;
  /// Returns the max number of encoder frames that attention keeps of a stream.
  Index kept_frames() const;
  /// Returns the rows of features that the first chunk needs.
  Index first_rows() const;
  /// Returns the rows of features that every later chunk needs.
  Index chunk_rows() const;
  /// Returns the bytes that keys and values, or latents, take, all streams.
  Index attention_bytes() const;
  /// Returns the bytes that convolutions keep, all streams.
  Index convolution_bytes() const;
  /// Returns the bytes of the features that wait for their chunk, all streams.
  Index feature_bytes() const;

 private:
  std::unique_ptr<detail::StreamsOfModel> streams_;
};

/// Says when somebody who speaks into a stream has ended an utterance: the rules of Kaldi and sherpa-onnx, and their
/// defaults. In seconds.
struct EndpointRules {
  double silence_before_words = 2.4,  ///< silence after which an utterance without words ends
      silence_after_words = 1.2,      ///< silence after which an utterance with words ends
      longest = 20;                   ///< length at which an utterance ends at any rate
};

/// Transcribes one utterance while it is spoken.
///
///     SpeechStream stream = recognizer.stream({.threads = 1});
///     while (read(samples)) if (stream.push(samples) > 0) show(stream.text());
///     stream.finish();
class SpeechStream {
 public:
  /// Opens one of the streams. Throws `Error` for features that need the whole utterance, and if no stream is free.
  SpeechStream(FeatureStreams streams, const Recognizer& recognizer, const TranscriptionConfig& how);
  /// Takes over the other's utterance.
  SpeechStream(SpeechStream&&) noexcept;
  SpeechStream& operator=(SpeechStream&&) noexcept;
  ~SpeechStream();

  /// Takes samples in [-1, 1] at the model's sample rate and returns the number of encoder frames that became final.
  /// Allocates, for features and text. A stream whose `push` or `finish` threw is over.
  Index push(std::span<const float> samples);
  /// Ends the utterance. Returns the number of encoder frames that were left.
  Index finish();
  /// Returns the text of all final frames; of a beam search the words on which all beams agree, and those of utterances
  /// that have ended. Later texts begin with the earlier ones. Each push decodes what it adds.
  const std::string& text() const;
  /// Returns the words of the text that are final, with times and confidence. The last word is final when another has
  /// begun, or the utterance has ended.
  const std::vector<Word>& words() const;
  /// Says whether the utterance that began last has ended. Silence is what the model hears as such: frames whose
  /// likeliest class is the blank. The words of a beam search are those of its best text so far.
  bool is_endpoint(const EndpointRules& rules = {}) const;
  /// Begins another utterance in the same stream, which goes on hearing as before, and returns the text of the one that
  /// ends here. A beam search decides the words of that one, and begins anew with the same language model and hotwords.
  /// Allocates.
  std::string next_utterance();
  /// Returns the streams that compute the utterance, for their sizes.
  const FeatureStreams& streams() const;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

struct RecognizerConversion;
struct RecognizerTraining;

/// Recognises speech: a model of any encoder and attention, with its features and its vocabulary.
///
///     const Recognizer recognizer = Recognizer::load("model");
///     for (const Word& word : recognizer.transcribe("speech.flac").words) std::cout << word.text << '\n';
///
/// Const members may be called by several threads at once, each with a workspace of its own.
class Recognizer {
 public:
  /// Makes a new recogniser with random weights. Fills in the sizes that follow from the attention's name, and throws
  /// `Error` if the configuration contradicts it.
  static Recognizer create(RecognizerConfig config, const Vocabulary& vocabulary, Seed seed);
  /// Reads a model folder, the folder of a training run (which has a folder "model" in it), or a folder of Hugging
  /// Face's `Wav2Vec2ConformerForCTC`. Throws `Error` naming the file where something does not fit.
  static Recognizer load(const std::filesystem::path& folder);
  /// Reads the encoder of such a folder, or of Hugging Face's `Wav2Vec2ConformerForPreTraining`, and gives it a new CTC
  /// head for this vocabulary, with random weights. The folder needs neither a vocabulary nor a head. Throws `Error`
  /// naming the file where something does not fit.
  static Recognizer load_encoder(const std::filesystem::path& folder, const Vocabulary& vocabulary, Seed seed);

  /// Copies the recogniser and its model. Weights that can only be run are shared. Allocates.
  Recognizer(const Recognizer&);
  /// Takes over the other's model.
  Recognizer(Recognizer&&) noexcept;
  Recognizer& operator=(const Recognizer&);
  Recognizer& operator=(Recognizer&&) noexcept;
  ~Recognizer();

  /// Returns the settings, as in config.json of the model's folder.
  const RecognizerConfig& config() const;
  /// Returns the vocabulary that the logits refer to.
  const Vocabulary& vocabulary() const;
  /// Returns how the weights are rounded in the file that was loaded; `full` for a new recogniser.
  Storage storage() const;

  /// Writes a model folder, its weights rounded as `weights` says. Throws `Error` for the folder of a training run,
  /// where the model would lie next to another one.
  void save(const std::filesystem::path& folder, Storage weights = Storage::full) const;
  /// Writes a folder that Hugging Face transformers loads. Throws `Error` unless the model is a wav2vec2-conformer with
  /// full attention.
  void export_hugging_face(const std::filesystem::path& folder) const;

  /// Packs the weights as products read them, rounded as in the file, on the device where the model then runs. From
  /// then on it is faster and can only be run. `threads` = 0 takes all that the machine offers. Allocates.
  void prepare(int threads = 0, const Device& device = {});
  /// Packs the weights on a device, rounded as `weights` says, with so many threads. Allocates.
  void prepare(Storage weights, int threads, const Device& device = {});
  /// Returns the device that the weights were prepared for; the processor if they were not.
  const Device& device() const;

  /// Transcribes an audio file of any length that libsndfile reads (WAV, FLAC, Ogg and others), in memory that does not
  /// grow with it but for the text. Channels are averaged and samples are resampled to the model's rate. Computes in a
  /// workspace of its own, with all threads. Throws `Error` if the file cannot be read.
  Transcript transcribe(const std::filesystem::path& audio, const TranscriptionConfig& config = {}) const;
  /// Transcribes an audio file in this workspace.
  Transcript transcribe(const std::filesystem::path& audio, Workspace& workspace,
                        const TranscriptionConfig& config = {}) const;
  /// Transcribes the rest of an audio file, which must be read at the model's sample rate, in this workspace.
  Transcript transcribe(AudioReader& audio, Workspace& workspace, const TranscriptionConfig& config = {}) const;
  /// Transcribes samples in [-1, 1] at this rate in Hz, in a workspace of its own with all threads.
  Transcript transcribe(std::span<const float> samples, int sample_rate, const TranscriptionConfig& config = {}) const;
  /// Transcribes samples in [-1, 1] at this rate in Hz in this workspace.
  Transcript transcribe(std::span<const float> samples, int sample_rate, Workspace& workspace,
                        const TranscriptionConfig& config = {}) const;

  /// Returns the logits (frames, tokens) of one utterance's features (rows, num_mels).
  Matrix<float> logits(const Matrix<float>& features, Workspace& workspace) const;

  /// Aligns a known text with a recording of any length (forced alignment, see `CtcAligner`). What the vocabulary lacks
  /// is left out. Throws `Error` for a text without a token of the vocabulary and a recording that is too short for it.
  AlignedText align(AudioReader& audio, std::span<const std::string> lines, Workspace& workspace,
                    const TranscriptionConfig& config = {}) const;

  /// Returns when the encoder's frames are, in seconds.
  FrameTimes frame_times() const;

  /// Begins an utterance that comes piece by piece. Throws `Error` if model or features need the whole utterance. Of
  /// the second argument, windows and logits have no meaning here.
  SpeechStream stream(const StreamConfig& config = {}, const TranscriptionConfig& how = {}) const;
  /// Makes streams that take features and return logits, for a decoder outside the library. Throws `Error` if the model
  /// needs the whole utterance.
  FeatureStreams feature_streams(const StreamConfig& config = {}) const;
  /// Throws `Error` if the model needs the whole utterance.
  void require_streamable() const;

  /// Transcribes a dataset in batches and counts word errors, greedily or by the beam search of `how`.
  Evaluation evaluate(const Dataset& data, Workspace& workspace, const TranscriptionConfig& how = {}) const;
  /// Transcribes a dataset in many streams at once, `block_frames` feature frames with every push, greedily or by the
  /// beam search of `how`.
  StreamedEvaluation evaluate_streamed(const Dataset& data, const StreamConfig& config, Index block_frames,
                                       const TranscriptionConfig& how = {}) const;

  /// Returns the number of parameters.
  Index count_parameters() const;
  /// Returns the bytes of the weights as they are stored, without scales and padding.
  Index weight_bytes() const;
  /// Returns the bytes of keys and values, or latents, for each second of speech, stored as float.
  double cache_bytes_per_second() const;
  /// Returns a hash of the values of all parameters, as text.
  std::string fingerprint() const;

  /// Returns the recogniser with another attention. The report compares both models on `speech`, or on white noise if
  /// that is null. Throws `Error` if the sizes do not fit, or a calibrated method has no calibration speech.
  RecognizerConversion convert(const AttentionChoice& choice, const ConversionChoice& how = {},
                               const SpeechBatch* speech = nullptr) const;
  /// Returns the singular values of keys and values of each layer by the conversion method (`key_value_spectra`).
  std::vector<std::vector<double>> spectra(const ConversionChoice& how = {}) const;

  /// Throws `Error` unless the ranks are falling and all latents can be cut to them.
  void check_ranks(const std::vector<Index>& ranks) const;
  /// Throws `Error` if `teacher` cannot be this model's teacher, in training with chunks or without.
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

/// Holds a converted recogniser and the report on its conversion.
struct RecognizerConversion {
  Recognizer recognizer;    ///< the recogniser with the new attention
  ConversionReport report;  ///< predicted and measured errors
};

/// Holds the callbacks of a training run, the folder that it writes, its sources of learning besides the labels, and
/// the processes that share the work (see `Trainer`).
struct RecognizerTraining {
  std::function<void(const TrainProgress&)> progress = [](const TrainProgress&) {};  ///< called as training goes on
  std::function<void()> better = [] {};  ///< called when the model, as it then is, is the best so far
  std::filesystem::path folder{};        ///< folder for losses and checkpoints; empty: none are written
  std::int64_t checkpoint_steps = 0;     ///< updates between checkpoints within an epoch; 0: at its end only
  const Recognizer* teacher = nullptr;   ///< a model of the same kind
  std::vector<Index> ranks{};  ///< falling: latents are cut to each in turn, and trained for all epochs after each cut
  const SpeechBatch* calibration = nullptr;  ///< speech that the cuts are best for; null: all inputs count alike
  std::function<void(Index rank, double error)> cut = [](Index, double) {};  ///< called after each cut
  AnyCommunicator communicator{};  ///< the processes; process 0 calls the callbacks and writes the folder
};

/// Returns the tokens that a corpus was made for, if a corpus.json in its folder says so; else characters. Throws
/// `Error` if that file cannot be read.
Tokens corpus_tokens(const std::filesystem::path& folder);

}  // namespace LACONIC_ABI
}  // namespace laconic
