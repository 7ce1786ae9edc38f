// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/core/error.hpp>
#include <laconic/io/json.hpp>
#include <laconic/recognition/recognizer.hpp>
#include <laconic/speech/voice_activity.hpp>
#include <laconic/speech/word.hpp>

#include <cstddef>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace laconic {

/// Returns an utterance for JSON.
inline nlohmann::json utterance(const std::string& said, double begin, double end) {
  return {{"text", said}, {"begin", begin}, {"end", end}};
}

/// Appends the words of an utterance that begins at this time, from word `first` on.
inline void append_words(std::vector<Word>& words, const std::vector<Word>& more, double begin, std::size_t first = 0) {
  for (std::size_t i = first; i < more.size(); ++i) {
    words.push_back(more[i]);
    for (std::optional<double>* time : {&words.back().begin, &words.back().end})
      if (*time) **time += begin;
  }
}

/// Hears samples as they come: all of them, or with a gate only the stretches of speech, each in a stream of its own.
class Listener {
 public:
  /// `open` makes a stream; `ended` is called after each stretch of speech.
  Listener(std::function<SpeechStream()> open, int sample_rate, bool vad, std::function<void()> ended)
      : open_(std::move(open)), rate_(sample_rate), ended_(std::move(ended)), stream_(open_()) {
    if (vad) gate_.emplace(sample_rate);
  }

  /// Takes the samples that follow and returns the number of frames that became final.
  Index push(std::span<const float> samples) {
    if (!gate_) return take(samples, false);
    Index frames = 0;
    gate_->push(samples, [&](Index at, std::span<const float> part, bool ends) { frames += hear(at, part, ends); });
    return frames;
  }
  void finish() {
    if (!gate_) {
      take({}, true);
      return;
    }
    gate_->finish([&](Index at, std::span<const float> part, bool ends) { hear(at, part, ends); });
  }

  /// Says whether the utterance that began last has ended, as SpeechStream does.
  bool is_endpoint() const { return stream_.is_endpoint(); }
  /// Ends an utterance and returns its text.
  std::string next_utterance() {
    std::string said = stream_.next_utterance();
    take_text();  // a beam search decides the last words only now
    return said;
  }

  /// Returns the text and the words that are final, of all stretches.
  const std::string& text() const { return text_; }
  const std::vector<Word>& words() const { return words_; }
  /// Returns the text of the stretch, and its begin and end in seconds, while `ended` is called.
  const std::string& stretch() const { return stream_.text(); }
  double begin() const { return begin_; }
  double end() const { return end_; }
  /// Returns the streams that hear the last stretch, for their sizes.
  const FeatureStreams& streams() const { return stream_.streams(); }
  /// Returns the seconds that were not heard.
  double silence() const { return gate_ ? static_cast<double>(gate_->samples() - gate_->speech()) / rate_ : 0.0; }

 private:
  /// Hears a part of a stretch.
  Index hear(Index at, std::span<const float> part, bool ends) {
    const double seconds = static_cast<double>(at) / rate_;
    if (!is_open_) {
      if (is_used_) stream_ = open_();
      shown_ = taken_ = 0;
      begin_ = seconds;
      is_open_ = is_used_ = true;
    }
    const Index frames = take(part, ends);
    if (ends) {
      is_open_ = false;
      end_ = seconds;
      ended_();
    }
    return frames;
  }
  Index take(std::span<const float> samples, bool ends) {
    Index frames = samples.empty() && ends ? 0 : pushed(stream_, samples);
    if (ends) frames += stream_.finish();
    take_text();
    return frames;
  }
  /// Takes what the stream has found since.
  void take_text() {
    const std::string_view said = stream_.text();  // only grows
    if (shown_ == 0 && !text_.empty() && !said.empty()) text_ += ' ';
    text_ += said.substr(shown_);
    shown_ = said.size();
    append_words(words_, stream_.words(), begin_, taken_);
    taken_ = stream_.words().size();
  }
  /// Pushes samples; where the stream is full, the error says which option makes it longer.
  static Index pushed(SpeechStream& stream, std::span<const float> samples) try {
    return stream.push(samples);
  } catch (const Error& error) {
    const std::string what = error.what();
    throw Error(what + (what.find("max_frames") == std::string::npos ? "" : " (--max-seconds)"));
  }

  std::function<SpeechStream()> open_;
  int rate_;
  std::function<void()> ended_;
  SpeechStream stream_;
  std::optional<VoiceActivity> gate_;
  bool is_open_ = false, is_used_ = false;  // a stretch; the stream, by a stretch before
  std::string text_;
  std::vector<Word> words_;
  std::size_t shown_ = 0, taken_ = 0;  // bytes of the stream's text, and its words
  double begin_ = 0, end_ = 0;
};

}  // namespace laconic
