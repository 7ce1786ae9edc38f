// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include "common/cli.hpp"

#include <algorithm>
#include <cmath>
#include <optional>

/// How a model is streamed.
struct StreamOptions {
  bool streaming = false;
  std::optional<laconic::Index> chunk, left_context;  // empty: as the model says; a left context of -1 is all
  std::string cache = "float";
  double block_ms = 100;

  void add_to(CLI::App& command, const std::string& what) {
    CLI::Option* flag = command.add_flag("--streaming", streaming, what);
    for (CLI::Option* option :
         {command.add_option("--chunk", chunk, "encoder frames that become final together; default: as the model says"),
          command.add_option("--left-context", left_context,
                             "encoder frames kept; -1: all; default: as the model says"),
          command.add_option("--cache", cache, "how keys and values are stored")
              ->capture_default_str()
              ->check(CLI::IsMember({"float", "bf16", "int8"})),
          command.add_option("--block-ms", block_ms, "milliseconds of speech that come with each push")
              ->capture_default_str()
              ->check(between(1.0, 1e6))})
      option->needs(flag);
  }

  /// Returns the feature frames of a block.
  laconic::Index block_frames(const laconic::RecognizerConfig& c) const {
    return std::max<laconic::Index>(1, std::lround(block_ms / c.features.fbank.frame_shift_ms));
  }
  /// `max_frames` is only used where all frames are kept.
  laconic::StreamConfig config(laconic::Index capacity, laconic::Index max_frames, int threads) const {
    return {.capacity = capacity,
            .chunk = chunk,
            .left_context = left_context,
            .max_frames = max_frames,
            .storage = laconic::from_name<laconic::Storage>(cache).value(),
            .threads = threads};
  }
};
