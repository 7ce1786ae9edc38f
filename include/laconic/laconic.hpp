// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// Attention, models, streams, the CPU and the tape of training, in one include. Not in it: conversion
// (<laconic/convert/convert.hpp>), losses and optimisers (<laconic/train/...>), decoding (<laconic/decode/...>),
// published sizes (<laconic/model/published.hpp>), files (<laconic/io/...>) and audio (<laconic/speech/...>).
#pragma once

#include <laconic/attention/any.hpp>
#include <laconic/backend/autodiff.hpp>
#include <laconic/backend/cpu.hpp>
#include <laconic/core/hash.hpp>
#include <laconic/core/sweep.hpp>
#include <laconic/model/branchformer.hpp>
#include <laconic/model/conformer.hpp>
#include <laconic/model/e_branchformer.hpp>
#include <laconic/model/encoder_decoder.hpp>
#include <laconic/model/gpt.hpp>
#include <laconic/model/llama.hpp>
#include <laconic/model/patch_encoder.hpp>
#include <laconic/model/stream.hpp>
#include <laconic/model/wav2vec2_conformer.hpp>
