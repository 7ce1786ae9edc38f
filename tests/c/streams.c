/* laconic: attention for speech models. SPDX-License-Identifier: MIT
 *
 * Many live streams by the C interface: THREADS threads push STREAMS streams of the files (16-bit WAV with a header of
 * 44 bytes, at the model's rate) in blocks of 100 ms, again and again for SECONDS, once for 0. Prints the text of each
 * stream of the last round, and the resident memory in kB after the first and the last round.
 *   usage: streams MODEL STREAMS THREADS SECONDS FILE... */
#include <laconic/laconic.h>

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static laconic_recognizer* recognizer;
static int stream_count, thread_count, file_count;
static float** samples;
static size_t* sample_counts;
static char** texts;

static void check(laconic_status status) {
  if (status == LACONIC_OK) return;
  fprintf(stderr, "streams: %s\n", laconic_last_error());
  exit(1);
}

/* Reads a file's samples. */
static void read_file(const char* path, int index) {
  FILE* file = fopen(path, "rb");
  size_t room = 1 << 16, count = 0, got;
  int16_t block[4096];
  char header[44];
  if (file == NULL || fread(header, 1, sizeof header, file) != sizeof header) exit(1);
  samples[index] = malloc(room * sizeof(float));
  while ((got = fread(block, sizeof block[0], 4096, file)) > 0) {
    if (count + got > room) samples[index] = realloc(samples[index], (room *= 2) * sizeof(float));
    for (size_t i = 0; i < got; ++i) samples[index][count++] = (float)block[i] / 32768;
  }
  sample_counts[index] = count;
  fclose(file);
}

/* Runs the streams of one thread, a block of each in turn. */
static void* run(void* argument) {
  const int first = *(const int*)argument;
  const size_t block = (size_t)laconic_recognizer_sample_rate(recognizer) / 10;
  laconic_stream** streams = calloc((size_t)stream_count, sizeof *streams);
  for (int s = first; s < stream_count; s += thread_count) check(laconic_stream_open(recognizer, 3600, &streams[s]));
  for (size_t at = 0, more = 1; more; at += block) {
    more = 0;
    for (int s = first; s < stream_count; s += thread_count) {
      const size_t count = sample_counts[s % file_count];
      if (at >= count) continue;
      check(laconic_stream_push(streams[s], samples[s % file_count] + at, count - at < block ? count - at : block));
      more = 1;
    }
  }
  for (int s = first; s < stream_count; s += thread_count) {
    check(laconic_stream_finish(streams[s]));
    free(texts[s]);
    texts[s] = strdup(laconic_stream_text(streams[s]));
    laconic_stream_free(streams[s]);
  }
  free(streams);
  return NULL;
}

/* Returns the resident memory in kB, 0 where it is not known. */
static long resident(void) {
  long pages = 0, all = 0;
  FILE* file = fopen("/proc/self/statm", "r");
  if (file == NULL) return 0;
  if (fscanf(file, "%ld %ld", &all, &pages) != 2) pages = 0;
  fclose(file);
  return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

/* Says whether an utterance that is longer than allowed ends, gives its text once, and another one begins. */
static int ends_utterances(void) {
  const laconic_endpoint_rules rules = {1e9, 1e9, 0.1}, defaults = {0, 0, 0};
  laconic_stream* stream;
  const char *said, *rest;
  int right;
  check(laconic_stream_open(recognizer, 3600, &stream));
  right = !laconic_stream_is_endpoint(stream, &rules);
  check(laconic_stream_push(stream, samples[0], sample_counts[0]));
  right = right && laconic_stream_is_endpoint(stream, &rules) && !laconic_stream_is_endpoint(NULL, &rules);
  check(laconic_stream_next_utterance(stream, &said));
  right = right && said[0] != '\0' && strcmp(said, laconic_stream_text(stream)) == 0;
  right = right && !laconic_stream_is_endpoint(stream, &rules) && !laconic_stream_is_endpoint(stream, &defaults) &&
          !laconic_stream_is_endpoint(stream, NULL);
  check(laconic_stream_next_utterance(stream, &rest));
  right = right && rest[0] == '\0' && laconic_stream_next_utterance(NULL, &rest) == LACONIC_INVALID_ARGUMENT;
  laconic_stream_free(stream);
  return right;
}

/* Says whether a gate keeps three seconds of silence from the model, and an utterance ends after the speech. */
static int hears_through_a_gate(void) {
  const int rate = laconic_recognizer_sample_rate(recognizer);
  float* silence = calloc((size_t)rate, sizeof *silence);
  laconic_stream* stream;
  const char* said;
  int right;
  check(laconic_stream_open_gated(recognizer, 3600, &stream));
  for (int i = 0; i < 3; ++i) check(laconic_stream_push(stream, silence, (size_t)rate));
  right = laconic_stream_silence(stream) == 3 && laconic_stream_text(stream)[0] == '\0' &&
          !laconic_stream_is_endpoint(stream, NULL) && laconic_stream_silence(NULL) == 0;
  check(laconic_stream_push(stream, samples[0], sample_counts[0]));
  check(laconic_stream_push(stream, silence, (size_t)rate));
  right = right && laconic_stream_is_endpoint(stream, NULL);
  check(laconic_stream_next_utterance(stream, &said));
  right = right && said[0] != '\0' && !laconic_stream_is_endpoint(stream, NULL);
  check(laconic_stream_finish(stream));
  right = right && laconic_stream_silence(stream) > 3 && laconic_stream_word_count(stream) > 0;
  laconic_stream_free(stream);
  free(silence);
  return right;
}

int main(int argc, char** argv) {
  if (argc < 6) return 2;
  stream_count = atoi(argv[2]);
  thread_count = atoi(argv[3]);
  file_count = argc - 5;
  samples = calloc((size_t)file_count, sizeof *samples);
  sample_counts = calloc((size_t)file_count, sizeof *sample_counts);
  texts = calloc((size_t)stream_count, sizeof *texts);
  for (int i = 0; i < file_count; ++i) read_file(argv[5 + i], i);

  /* What must fail says so, and crashes nothing. */
  if (laconic_recognizer_load("/nowhere", 1, &recognizer) != LACONIC_FAILED || recognizer != NULL ||
      strstr(laconic_last_error(), "/nowhere") == NULL ||
      laconic_stream_push(NULL, NULL, 0) != LACONIC_INVALID_ARGUMENT)
    return 3;
  if (laconic_recognizer_load_on(argv[1], NULL, 1, &recognizer) != LACONIC_INVALID_ARGUMENT ||
      laconic_recognizer_load_on(argv[1], "cpu,bf16", 1, &recognizer) != LACONIC_FAILED || recognizer != NULL ||
      strstr(laconic_last_error(), "cpu,bf16") == NULL || laconic_recognizer_device(NULL)[0] != '\0')
    return 7;
  check(laconic_recognizer_load_on(argv[1], "cpu", 1, &recognizer));
  if (strcmp(laconic_recognizer_device(recognizer), "cpu") != 0) return 7;
  if (!ends_utterances()) return 5;
  if (!hears_through_a_gate()) return 6;

  const time_t end = time(NULL) + atol(argv[4]);
  long after_first = 0;
  do {
    pthread_t* threads = calloc((size_t)thread_count, sizeof *threads);
    int* numbers = calloc((size_t)thread_count, sizeof *numbers);
    for (int t = 0; t < thread_count; ++t) {
      numbers[t] = t;
      if (pthread_create(&threads[t], NULL, run, &numbers[t]) != 0) return 4;
    }
    for (int t = 0; t < thread_count; ++t) pthread_join(threads[t], NULL);
    free(threads);
    free(numbers);
    if (after_first == 0) after_first = resident();
  } while (time(NULL) < end);
  fprintf(stderr, "resident: %ld kB after the first round, %ld kB after the last\n", after_first, resident());
  for (int s = 0; s < stream_count; ++s) printf("%s\n", texts[s]);
  laconic_recognizer_free(recognizer);
  return 0;
}
