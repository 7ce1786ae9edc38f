// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

// The implementation of <laconic/recognition/recognizer.hpp>, for programs that do not link laconic::recognizer:
// include this in one source. It takes minutes and gigabytes to compile, because it holds every encoder with every
// attention.

#include <laconic/recognition/recognizer/convert.hpp>
#include <laconic/recognition/recognizer/costs.hpp>
#include <laconic/recognition/recognizer/face.hpp>
#include <laconic/recognition/recognizer/run.hpp>
#include <laconic/recognition/recognizer/speech_stream.hpp>
#include <laconic/recognition/recognizer/train.hpp>
