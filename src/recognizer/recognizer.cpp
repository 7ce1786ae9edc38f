// laconic: attention for speech models. SPDX-License-Identifier: MIT
#define LACONIC_RECOGNIZER_INLINE
#include <laconic/recognition/recognizer/face.hpp>
#include <laconic/recognition/recognizer/speech_stream.hpp>
