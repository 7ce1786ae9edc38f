// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/decode/word_decoder.hpp>
#include <laconic/recognition/feature_stream.hpp>
#include <laconic/recognition/recognizer.hpp>
#include <laconic/recognition/recognizer/beam.hpp>
#include <laconic/recognition/recognizer/inline.hpp>
#include <laconic/recognition/recognizer/model.hpp>
#include <laconic/speech/vocabulary.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

// The members of FeatureStreams and SpeechStream. Nothing here sees a model.

namespace laconic {
inline namespace LACONIC_ABI {

LACONIC_RECOGNIZER_INLINE FeatureStreams::FeatureStreams(std::unique_ptr<detail::StreamsOfModel> streams)
    : streams_(std::move(streams)) {}
LACONIC_RECOGNIZER_INLINE FeatureStreams::FeatureStreams(FeatureStreams&&) noexcept = default;
LACONIC_RECOGNIZER_INLINE FeatureStreams& FeatureStreams::operator=(FeatureStreams&&) noexcept = default;
LACONIC_RECOGNIZER_INLINE FeatureStreams::~FeatureStreams() = default;
LACONIC_RECOGNIZER_INLINE Index FeatureStreams::open() { return streams_->open(); }
LACONIC_RECOGNIZER_INLINE void FeatureStreams::close(Index stream) { streams_->close(stream); }
LACONIC_RECOGNIZER_INLINE FrameLogits FeatureStreams::push(std::span<const Index> streams,
                                                           const Matrix<float>& features, const Sequences& blocks) {
  return streams_->push(streams, features, blocks);
}
LACONIC_RECOGNIZER_INLINE FrameLogits FeatureStreams::finish(std::span<const Index> streams) {
  return streams_->finish(streams);
}
LACONIC_RECOGNIZER_INLINE const Mask& FeatureStreams::mask() const { return streams_->mask(); }
LACONIC_RECOGNIZER_INLINE Index FeatureStreams::kept_frames() const { return streams_->kept_frames(); }
LACONIC_RECOGNIZER_INLINE Index FeatureStreams::first_rows() const { return streams_->first_rows(); }
LACONIC_RECOGNIZER_INLINE Index FeatureStreams::chunk_rows() const { return streams_->chunk_rows(); }
LACONIC_RECOGNIZER_INLINE Index FeatureStreams::attention_bytes() const { return streams_->attention_bytes(); }
LACONIC_RECOGNIZER_INLINE Index FeatureStreams::convolution_bytes() const { return streams_->convolution_bytes(); }
LACONIC_RECOGNIZER_INLINE Index FeatureStreams::feature_bytes() const { return streams_->feature_bytes(); }

/// Holds the members of a SpeechStream, out of the sight of its header.
struct SpeechStream::Parts {
  FeatureStreams streams;                     ///< streams of the model
  FeatureStream features;                     ///< samples to features
  Vocabulary vocabulary;                      ///< tokens to text
  std::array<Index, 1> stream;                ///< the one open stream
  WordDecoder decoder;                        ///< logits to words
  std::optional<detail::BeamDecoder> beam{};  ///< decides the words in place of the decoder, if it is set
  DecodedText text{};                         ///< the text of all final frames
  std::vector<int> tokens{};                  ///< tokens that have begun in the frames that became final last
  std::vector<Word> words{};                  ///< words that are final
  std::size_t begin = 0;                      ///< position in the text at which the utterance begins
  Index begin_frame = 0;                      ///< frame in which it begins
  double frame_seconds;                       ///< seconds of a frame

  /// Begins a stream's utterance.
  Parts(FeatureStreams s, const Recognizer& recognizer, const TranscriptionConfig& how)
      : streams(std::move(s)),
        features(recognizer.config().features),
        vocabulary(recognizer.vocabulary()),
        stream{streams.open()},
        decoder(vocabulary, recognizer.frame_times(), recognizer.config().features.fbank.sample_rate, how.confidence),
        frame_seconds(recognizer.frame_times().shift) {
    if (how.beam != nullptr)
      beam.emplace(vocabulary, recognizer.frame_times(), recognizer.config().features.fbank.sample_rate, *how.beam);
  }

  /// Takes the samples that follow.
  void hear(std::span<const float> samples) { beam ? beam->hear(samples) : decoder.hear(samples); }
  /// Decodes logits that became final, the last ones at the end. Returns their number.
  Index take(const FrameLogits& logits, bool ends) {
    if (beam) {
      (*beam)(view(logits.rows));
      const std::size_t before = words.size();
      ends ? static_cast<void>(beam->finish(words)) : beam->take_stable(words);
      add_text(before);
      return logits.rows.rows();
    }
    tokens.clear();
    decoder(view(logits.rows), words, &tokens);
    vocabulary.decode(tokens, text);
    if (ends) decoder.finish(words);
    return logits.rows.rows();
  }
  /// Has a beam search decide the words of the utterance that ends here, of which more frames may come.
  void end_utterance() {
    if (!beam) return;
    const std::size_t before = words.size();
    beam->next_utterance(words);
    add_text(before);
  }

 private:
  /// Adds the words from this one on to the text.
  void add_text(std::size_t from) {
    for (std::size_t i = from; i < words.size(); ++i) text.text += (text.text.empty() ? "" : " ") + words[i].text;
  }
};
LACONIC_RECOGNIZER_INLINE SpeechStream::SpeechStream(FeatureStreams streams, const Recognizer& recognizer,
                                                     const TranscriptionConfig& how)
    : parts_(new Parts(std::move(streams), recognizer, how)) {}
LACONIC_RECOGNIZER_INLINE SpeechStream::SpeechStream(SpeechStream&&) noexcept = default;
LACONIC_RECOGNIZER_INLINE SpeechStream& SpeechStream::operator=(SpeechStream&&) noexcept = default;
LACONIC_RECOGNIZER_INLINE SpeechStream::~SpeechStream() = default;
LACONIC_RECOGNIZER_INLINE Index SpeechStream::push(std::span<const float> samples) {
  parts_->hear(samples);
  const Matrix<float> rows = parts_->features.push(samples);
  return parts_->take(parts_->streams.push(parts_->stream, rows, Sequences{rows.rows()}), false);
}
LACONIC_RECOGNIZER_INLINE Index SpeechStream::finish() {
  return parts_->take(parts_->streams.finish(parts_->stream), true);
}
LACONIC_RECOGNIZER_INLINE const std::string& SpeechStream::text() const { return parts_->text.text; }
LACONIC_RECOGNIZER_INLINE const std::vector<Word>& SpeechStream::words() const { return parts_->words; }
LACONIC_RECOGNIZER_INLINE bool SpeechStream::is_endpoint(const EndpointRules& rules) const {
  const auto& beam = parts_->beam;
  const CtcTokens& greedy = parts_->decoder.tokens();
  const Index frames = beam ? beam->frames() : greedy.frames() - parts_->begin_frame,
              silent = std::min(frames, beam ? beam->silent_frames() : greedy.silent_frames());
  const bool has_words = beam ? beam->has_words() : parts_->text.text.size() > parts_->begin;
  return static_cast<double>(silent) * parts_->frame_seconds >=
             (has_words ? rules.silence_after_words : rules.silence_before_words) ||
         static_cast<double>(frames) * parts_->frame_seconds >= rules.longest;
}
LACONIC_RECOGNIZER_INLINE std::string SpeechStream::next_utterance() {
  parts_->end_utterance();
  const std::string& all = parts_->text.text;
  std::string out = all.substr(parts_->begin +
                               (parts_->begin > 0 && parts_->begin < all.size() && all[parts_->begin] == ' ' ? 1 : 0));
  parts_->begin = all.size();
  parts_->begin_frame = parts_->decoder.tokens().frames();
  return out;
}
LACONIC_RECOGNIZER_INLINE const FeatureStreams& SpeechStream::streams() const { return parts_->streams; }

}  // namespace LACONIC_ABI
}  // namespace laconic
