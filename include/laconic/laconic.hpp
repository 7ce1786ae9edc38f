// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// The core in one include: no conversion, no file formats, no audio, no training loops (those are
// <laconic/convert/convert.hpp>, <laconic/io/...>, <laconic/speech/...> and <laconic/train/...>).
#pragma once

#include <laconic/attention/any.hpp>
#include <laconic/backend/autodiff.hpp>
#include <laconic/backend/cpu.hpp>
#include <laconic/core/hash.hpp>
#include <laconic/core/sweep.hpp>
#include <laconic/decode/beam_search.hpp>
#include <laconic/decode/ctc_prefix.hpp>
#include <laconic/decode/generate.hpp>
#include <laconic/decode/source_decoder.hpp>
#include <laconic/model/branchformer.hpp>
#include <laconic/model/conformer.hpp>
#include <laconic/model/e_branchformer.hpp>
#include <laconic/model/encoder_decoder.hpp>
#include <laconic/model/gpt.hpp>
#include <laconic/model/llama.hpp>
#include <laconic/model/patch_encoder.hpp>
#include <laconic/model/published.hpp>
#include <laconic/model/stream.hpp>
#include <laconic/model/wav2vec2_conformer.hpp>
#include <laconic/train/adamw.hpp>
#include <laconic/train/cross_entropy_loss.hpp>
#include <laconic/train/ctc_loss.hpp>
#include <laconic/train/schedule.hpp>
