/* laconic: attention for speech models. SPDX-License-Identifier: MIT
 *
 * The C interface: load a model folder, transcribe recordings, and transcribe speech while it is spoken. It is what
 * other languages call. Link the shared library laconic_c (pkg-config laconic_c, or laconic::c in CMake).
 *
 * Functions that can fail return LACONIC_OK or a code; laconic_last_error() then says what went wrong, as a sentence.
 * Where they fail, `*out` is set to NULL. Texts are UTF-8 and belong to the object that returned them: they live until
 * it is freed or, for a stream, until its next push, finish or utterance. Every free function takes NULL, too.
 *
 * A recogniser may be used by many threads at once. A transcript or a stream may be used by one thread at a time, and
 * may live longer than its recogniser.
 *
 * The interface grows: functions and codes are added, none is changed or removed within LACONIC_ABI_VERSION, which is
 * also the version in the library's file name.
 */
#ifndef LACONIC_LACONIC_H
#define LACONIC_LACONIC_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define LACONIC_API __attribute__((visibility("default")))
#else
#define LACONIC_API
#endif

/** Changes when a program must be compiled again. */
#define LACONIC_ABI_VERSION 1

/** Says how a call ended. */
typedef enum laconic_status {
  LACONIC_OK = 0,               /**< it did what it should */
  LACONIC_INVALID_ARGUMENT = 1, /**< an argument is NULL or out of range */
  LACONIC_FAILED = 2,           /**< a file, a model or samples do not fit; see laconic_last_error() */
  LACONIC_OUT_OF_MEMORY = 3     /**< there is not enough memory */
} laconic_status;

/** Holds a model, its features and its vocabulary. */
typedef struct laconic_recognizer laconic_recognizer;
/** Holds what was said in a recording. */
typedef struct laconic_transcript laconic_transcript;
/** Transcribes speech while it is spoken. */
typedef struct laconic_stream laconic_stream;

/** Holds a word. Times are in seconds from the beginning of the speech, the confidence is from 0 to 1. */
typedef struct laconic_word {
  const char* text;
  double begin, end, confidence;
} laconic_word;

/** Holds the rules by which an utterance in a stream ends, in seconds; 0 stands for the default. */
typedef struct laconic_endpoint_rules {
  double silence_before_words; /**< silence after which an utterance without words ends (2.4) */
  double silence_after_words;  /**< silence after which an utterance with words ends (1.2) */
  double longest;              /**< length at which an utterance ends, whatever is heard (20) */
} laconic_endpoint_rules;

/** Returns the version of the library, "MAJOR.MINOR.PATCH". */
LACONIC_API const char* laconic_version(void);
/** Returns LACONIC_ABI_VERSION as the library was compiled with it. */
LACONIC_API int laconic_abi_version(void);
/** Returns why the last call of this thread that failed did so: a sentence; "" if none has. */
LACONIC_API const char* laconic_last_error(void);

/** Loads a model folder (of laconic, or of Hugging Face's Wav2Vec2ConformerForCTC) and packs its weights. `threads` is
 * the number of threads that transcribe one recording; 0 takes all processors. */
LACONIC_API laconic_status laconic_recognizer_load(const char* folder, int threads, laconic_recognizer** out);
/** Loads a model folder as laconic_recognizer_load does, to compute on `device`: "cpu", "cuda", "cuda:N" or "auto",
 * which is a GPU if there is one. A GPU rounds products if ",bf16" or ",tf32" follows. Fails if there is no such device.
 */
LACONIC_API laconic_status laconic_recognizer_load_on(const char* folder, const char* device, int threads,
                                                      laconic_recognizer** out);
/** Frees a recogniser. Its transcripts and streams stay as they are. */
LACONIC_API void laconic_recognizer_free(laconic_recognizer* recognizer);
/** Returns what the recogniser computes on: "cpu", "cuda:0" or "cuda:0,bf16"; "" for NULL. */
LACONIC_API const char* laconic_recognizer_device(const laconic_recognizer* recognizer);
/** Returns the sample rate of the model in Hz, which streams expect; 0 for NULL. */
LACONIC_API int laconic_recognizer_sample_rate(const laconic_recognizer* recognizer);

/** Transcribes an audio file of any length that libsndfile reads. */
LACONIC_API laconic_status laconic_transcribe_file(const laconic_recognizer* recognizer, const char* path,
                                                   laconic_transcript** out);
/** Transcribes `count` samples in [-1, 1], one channel, at `sample_rate` Hz. */
LACONIC_API laconic_status laconic_transcribe_samples(const laconic_recognizer* recognizer, const float* samples,
                                                      size_t count, int sample_rate, laconic_transcript** out);
/** Frees a transcript. */
LACONIC_API void laconic_transcript_free(laconic_transcript* transcript);
/** Returns the text; "" for NULL. */
LACONIC_API const char* laconic_transcript_text(const laconic_transcript* transcript);
/** Returns the duration of the recording in seconds; 0 for NULL. */
LACONIC_API double laconic_transcript_seconds(const laconic_transcript* transcript);
/** Returns what was converted or not heard, as a sentence; "" if nothing, and for NULL. */
LACONIC_API const char* laconic_transcript_note(const laconic_transcript* transcript);
/** Returns the number of words; 0 for NULL. */
LACONIC_API size_t laconic_transcript_word_count(const laconic_transcript* transcript);
/** Returns word `index`, from 0. */
LACONIC_API laconic_status laconic_transcript_word(const laconic_transcript* transcript, size_t index,
                                                   laconic_word* out);

/** Opens a stream, which computes on the thread that pushes. The model must be one that streams. A model that keeps all
 * frames, or more of them than these, hears at most `max_seconds`. */
LACONIC_API laconic_status laconic_stream_open(const laconic_recognizer* recognizer, double max_seconds,
                                               laconic_stream** out);
/** Opens a stream behind a voice activity gate: the model hears only the stretches of speech, each by itself (for at
 * most `max_seconds`, as above), and silence costs next to nothing. An utterance ends with its stretch, after half a
 * second without sound. */
LACONIC_API laconic_status laconic_stream_open_gated(const laconic_recognizer* recognizer, double max_seconds,
                                                     laconic_stream** out);
/** Takes `count` samples in [-1, 1], one channel, at the model's rate: blocks may have any length. A push that fails
 * ends the stream. */
LACONIC_API laconic_status laconic_stream_push(laconic_stream* stream, const float* samples, size_t count);
/** Ends the stream: what is left becomes final. Later pushes fail. */
LACONIC_API laconic_status laconic_stream_finish(laconic_stream* stream);
/** Frees a stream. */
LACONIC_API void laconic_stream_free(laconic_stream* stream);
/** Returns the text so far, to which later pushes append; "" for NULL. */
LACONIC_API const char* laconic_stream_text(const laconic_stream* stream);
/** Returns the number of words that are final; 0 for NULL. */
LACONIC_API size_t laconic_stream_word_count(const laconic_stream* stream);
/** Returns word `index`, from 0. */
LACONIC_API laconic_status laconic_stream_word(const laconic_stream* stream, size_t index, laconic_word* out);
/** Returns the seconds that the gate took for silence so far; 0 without a gate and for NULL. */
LACONIC_API double laconic_stream_silence(const laconic_stream* stream);
/** Returns 1 if the utterance that began last has ended, else 0; 0 for NULL. `rules` may be NULL for the defaults.
 * Silence is what the model hears as such. */
LACONIC_API int laconic_stream_is_endpoint(const laconic_stream* stream, const laconic_endpoint_rules* rules);
/** Begins another utterance in the same stream, which goes on hearing as before, and sets `*out` to the text of the one
 * that ends here; after laconic_stream_finish, of the last one. The text and the words of the stream keep all. */
LACONIC_API laconic_status laconic_stream_next_utterance(laconic_stream* stream, const char** out);

#ifdef __cplusplus
}
#endif

#endif
