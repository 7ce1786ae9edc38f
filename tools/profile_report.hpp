// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include "common/latency.hpp"

#include <laconic/io/json.hpp>
#include <laconic/recognition/recognizer.hpp>

#include <string>
#include <vector>

/// Holds the measurements of a model by `laconic profile`.
struct Profile {
  std::string name;
  laconic::RecognizerConfig config;
  laconic::Index frames = 0;  ///< encoder frames of the profiled utterance
  std::string machine;        // the processor, or the GPU
  bool on_gpu = false;
  int threads = 1;
  double start_seconds = 0;  ///< time to make or read the model

  /// From its numbers alone.
  struct Storage {
    laconic::Storage storage;
    laconic::Index frame_bytes, bytes;  ///< a frame, and for all; a state of fixed size has no bytes a frame
  };
  laconic::Index parameters = 0, attention_parameters = 0, subsampling_parameters = 0;
  laconic::Storage weights = laconic::Storage::full;
  laconic::Index weight_bytes = 0;  ///< but for scales and what panels are padded with
  laconic::Index flops = 0, attention_flops = 0;
  std::string attention_path;  ///< that the cost rule takes; empty where there is one only
  std::vector<Storage> cache;

  struct Encoding {
    laconic::Index frames;
    Latency latency;
    laconic::Index flops, activation_bytes;  ///< the latter at most at once
  };
  std::vector<Encoding> encoding;

  struct Push {
    laconic::Index before, cache_bytes;  ///< frames that the stream has had, and what it keeps of them
    Latency latency;
    std::string attention_path;
  };
  struct Streaming {
    laconic::Index left_context;                      ///< Mask::unlimited: all
    laconic::Index convolution_bytes, feature_bytes;  ///< bytes of one stream
    std::vector<Push> pushes;
  };
  laconic::Index chunk = 0;
  laconic::Storage storage = laconic::Storage::full;
  std::vector<Streaming> streaming;
  std::string not_streamed;  ///< why, where it cannot be

  laconic::Index resident_bytes = 0;  ///< max resident memory of the process

  bool has_state() const { return config.encoder.attention == laconic::AttentionName::linear; }
  double speech_seconds(laconic::Index n) const { return static_cast<double>(n) / config.frames_per_second(); }
};

/// Returns all that was measured, for --json.
nlohmann::json profile_json(const Profile& profile);
/// Prints tables to standard output.
void print_profile(const Profile& profile);
/// Draws latency of encoding and of streaming by length as a .png or .svg. Throws where gnuplot fails.
void plot_profile(const std::string& path, const Profile& profile);
