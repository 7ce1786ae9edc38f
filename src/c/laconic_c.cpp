// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// The C interface (laconic/laconic.h) over Recognizer.
#include <laconic/laconic.h>
#include <laconic/core/version.hpp>
#include <laconic/recognition/listener.hpp>
#include <laconic/recognition/recognizer.hpp>
#include <laconic/speech/audio.hpp>

#include <algorithm>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

using namespace laconic;

namespace {

thread_local std::string last_error;

/// Says why a call failed, and returns how it ended.
laconic_status fail(laconic_status status, const char* why) {
  try {
    last_error = why;
  } catch (const std::bad_alloc&) {
    last_error.clear();
  }
  return status;
}
/// Calls `body`. No exception leaves this function, for C knows none.
template <class Body>
laconic_status guarded(Body&& body) noexcept {
  try {
    body();
    return LACONIC_OK;
  } catch (const std::bad_alloc&) {
    return fail(LACONIC_OUT_OF_MEMORY, "out of memory");
  } catch (const std::exception& error) {
    return fail(LACONIC_FAILED, error.what());
  }
}
laconic_status invalid(const char* what) { return fail(LACONIC_INVALID_ARGUMENT, what); }

/// Returns word `index`.
laconic_status word_of(const std::vector<Word>& words, size_t index, laconic_word* out) {
  if (out == nullptr) return invalid("out: NULL given, the place of a word expected");
  if (index >= words.size()) return invalid("index: not below the number of words");
  const Word& one = words[index];
  *out = {one.text.c_str(), one.begin.value_or(0), one.end.value_or(0), one.confidence.value_or(0)};
  return LACONIC_OK;
}

/// Holds a recogniser and the workspaces that its callers have used.
struct Shared {
  Recognizer recognizer;
  int threads;
  std::string device;
  std::mutex mutex{};
  std::vector<Workspace> idle{};

  /// Calls `body` with a workspace of its own.
  template <class Body>
  void with_workspace(Body&& body) {
    std::unique_lock lock(mutex);
    std::optional<Workspace> own;
    if (!idle.empty()) {
      own = std::move(idle.back());
      idle.pop_back();
    }
    lock.unlock();
    if (!own) own.emplace(threads, recognizer.device());
    body(*own);
    lock.lock();
    idle.push_back(std::move(*own));
  }
};

}  // namespace

struct laconic_recognizer {
  std::shared_ptr<Shared> shared;
};
struct laconic_transcript {
  Transcript transcript;
  std::string note;
};
struct laconic_stream {
  std::shared_ptr<Shared> shared;  // outlives the stream
  Listener listener;
  bool is_finished = false;
  std::string utterance{};  // that ended last
};

namespace {

laconic_status open_stream(const laconic_recognizer* recognizer, double max_seconds,
                           const std::optional<VoiceActivityConfig>& gate, laconic_stream** out) {
  if (out == nullptr) return invalid("out: NULL given, the place of a stream expected");
  *out = nullptr;
  if (recognizer == nullptr) return invalid("recognizer: NULL given");
  if (!(max_seconds > 0 && max_seconds <= 1e6)) return invalid("max_seconds: more than 0, at most 1e6 expected");
  return guarded([&] {
    const Recognizer& model = recognizer->shared->recognizer;
    const auto frames = static_cast<Index>(max_seconds * model.config().frames_per_second());
    const StreamConfig config{.max_frames = std::max<Index>(1, frames), .threads = 1};
    *out = new laconic_stream{recognizer->shared, Listener([&model, config] { return model.stream(config); },
                                                           laconic_recognizer_sample_rate(recognizer), gate)};
  });
}

}  // namespace

const char* laconic_version(void) {
  static const std::string version =
      text(LACONIC_VERSION_MAJOR, '.', LACONIC_VERSION_MINOR, '.', LACONIC_VERSION_PATCH);
  return version.c_str();
}
int laconic_abi_version(void) { return LACONIC_ABI_VERSION; }
const char* laconic_last_error(void) { return last_error.c_str(); }

laconic_status laconic_recognizer_load(const char* folder, int threads, laconic_recognizer** out) {
  return laconic_recognizer_load_on(folder, "cpu", threads, out);
}
laconic_status laconic_recognizer_load_on(const char* folder, const char* device, int threads,
                                          laconic_recognizer** out) {
  if (out == nullptr) return invalid("out: NULL given, the place of a recogniser expected");
  *out = nullptr;
  if (folder == nullptr) return invalid("folder: NULL given, a model folder expected");
  if (device == nullptr) return invalid("device: NULL given, cpu, cuda, cuda:N or auto expected");
  if (threads < 0 || threads > 4096) return invalid("threads: 0 to 4096 expected");
  return guarded([&] {
    const Device chosen = Device::named(device);
    auto shared = std::make_shared<Shared>(Recognizer::load(folder), threads, chosen.name());
    shared->recognizer.prepare(threads, chosen);
    *out = new laconic_recognizer{std::move(shared)};
  });
}
void laconic_recognizer_free(laconic_recognizer* recognizer) { delete recognizer; }
const char* laconic_recognizer_device(const laconic_recognizer* recognizer) {
  return recognizer == nullptr ? "" : recognizer->shared->device.c_str();
}
int laconic_recognizer_sample_rate(const laconic_recognizer* recognizer) {
  return recognizer == nullptr ? 0 : recognizer->shared->recognizer.config().features.fbank.sample_rate;
}

laconic_status laconic_transcribe_file(const laconic_recognizer* recognizer, const char* path,
                                       laconic_transcript** out) {
  if (out == nullptr) return invalid("out: NULL given, the place of a transcript expected");
  *out = nullptr;
  if (recognizer == nullptr) return invalid("recognizer: NULL given");
  if (path == nullptr) return invalid("path: NULL given, an audio file expected");
  return guarded([&] {
    AudioReader audio(path, laconic_recognizer_sample_rate(recognizer));
    auto made = std::make_unique<laconic_transcript>();
    recognizer->shared->with_workspace(
        [&](Workspace& workspace) { made->transcript = recognizer->shared->recognizer.transcribe(audio, workspace); });
    made->note = audio.note();
    *out = made.release();
  });
}
laconic_status laconic_transcribe_samples(const laconic_recognizer* recognizer, const float* samples, size_t count,
                                          int sample_rate, laconic_transcript** out) {
  if (out == nullptr) return invalid("out: NULL given, the place of a transcript expected");
  *out = nullptr;
  if (recognizer == nullptr) return invalid("recognizer: NULL given");
  if (samples == nullptr || count == 0) return invalid("samples: none given");
  return guarded([&] {
    auto made = std::make_unique<laconic_transcript>();
    recognizer->shared->with_workspace([&](Workspace& workspace) {
      made->transcript = recognizer->shared->recognizer.transcribe(std::span(samples, count), sample_rate, workspace);
    });
    *out = made.release();
  });
}
void laconic_transcript_free(laconic_transcript* transcript) { delete transcript; }
const char* laconic_transcript_text(const laconic_transcript* transcript) {
  return transcript == nullptr ? "" : transcript->transcript.text.c_str();
}
double laconic_transcript_seconds(const laconic_transcript* transcript) {
  return transcript == nullptr ? 0 : transcript->transcript.seconds;
}
const char* laconic_transcript_note(const laconic_transcript* transcript) {
  return transcript == nullptr ? "" : transcript->note.c_str();
}
size_t laconic_transcript_word_count(const laconic_transcript* transcript) {
  return transcript == nullptr ? 0 : transcript->transcript.words.size();
}
laconic_status laconic_transcript_word(const laconic_transcript* transcript, size_t index, laconic_word* out) {
  if (transcript == nullptr) return invalid("transcript: NULL given");
  return word_of(transcript->transcript.words, index, out);
}

laconic_status laconic_stream_open(const laconic_recognizer* recognizer, double max_seconds, laconic_stream** out) {
  return open_stream(recognizer, max_seconds, {}, out);
}
laconic_status laconic_stream_open_gated(const laconic_recognizer* recognizer, double max_seconds,
                                         laconic_stream** out) {
  return open_stream(recognizer, max_seconds, VoiceActivityConfig(), out);
}
laconic_status laconic_stream_push(laconic_stream* stream, const float* samples, size_t count) {
  if (stream == nullptr) return invalid("stream: NULL given");
  if (samples == nullptr && count > 0) return invalid("samples: NULL given");
  if (stream->is_finished) return invalid("stream: finished before; open another one");
  const laconic_status status = guarded([&] { stream->listener.push(std::span(samples, count)); });
  stream->is_finished = status != LACONIC_OK;
  return status;
}
laconic_status laconic_stream_finish(laconic_stream* stream) {
  if (stream == nullptr) return invalid("stream: NULL given");
  if (stream->is_finished) return invalid("stream: finished before; open another one");
  stream->is_finished = true;
  return guarded([&] { stream->listener.finish(); });
}
void laconic_stream_free(laconic_stream* stream) { delete stream; }
const char* laconic_stream_text(const laconic_stream* stream) {
  return stream == nullptr ? "" : stream->listener.text().c_str();
}
size_t laconic_stream_word_count(const laconic_stream* stream) {
  return stream == nullptr ? 0 : stream->listener.words().size();
}
laconic_status laconic_stream_word(const laconic_stream* stream, size_t index, laconic_word* out) {
  if (stream == nullptr) return invalid("stream: NULL given");
  return word_of(stream->listener.words(), index, out);
}
double laconic_stream_silence(const laconic_stream* stream) {
  return stream == nullptr ? 0 : stream->listener.silence();
}
int laconic_stream_is_endpoint(const laconic_stream* stream, const laconic_endpoint_rules* rules) {
  if (stream == nullptr) return 0;
  EndpointRules own;
  if (rules != nullptr) {
    if (rules->silence_before_words > 0) own.silence_before_words = rules->silence_before_words;
    if (rules->silence_after_words > 0) own.silence_after_words = rules->silence_after_words;
    if (rules->longest > 0) own.longest = rules->longest;
  }
  return stream->listener.is_endpoint(own) ? 1 : 0;
}
laconic_status laconic_stream_next_utterance(laconic_stream* stream, const char** out) {
  if (out == nullptr) return invalid("out: NULL given, the place of a text expected");
  *out = nullptr;
  if (stream == nullptr) return invalid("stream: NULL given");
  return guarded([&] {
    stream->utterance = stream->listener.next_utterance();
    *out = stream->utterance.c_str();
  });
}
