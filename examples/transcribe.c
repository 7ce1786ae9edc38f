/* laconic: attention for speech models. SPDX-License-Identifier: MIT
 *
 * The C interface in twenty lines: the words of a recording, with times.
 *   cc transcribe.c $(pkg-config --cflags --libs laconic_c) && ./a.out MODEL speech.wav */
#include <laconic/laconic.h>
#include <stdio.h>

int main(int argc, char** argv) {
  laconic_recognizer* recognizer = NULL;
  laconic_transcript* heard = NULL;
  laconic_word word;
  if (argc != 3) return 2;
  if (laconic_recognizer_load(argv[1], 0, &recognizer) || laconic_transcribe_file(recognizer, argv[2], &heard)) {
    fprintf(stderr, "%s\n", laconic_last_error());
    laconic_recognizer_free(recognizer);
    return 1;
  }
  for (size_t i = 0; laconic_transcript_word(heard, i, &word) == LACONIC_OK; ++i)
    printf("%.2f %.2f %.3f %s\n", word.begin, word.end, word.confidence, word.text);
  laconic_transcript_free(heard);
  laconic_recognizer_free(recognizer);
  return 0;
}
