// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/model/encoder_config.hpp>

#include <optional>
#include <string>

namespace laconic {
inline namespace LACONIC_ABI {

/// Computes the costs of an encoder with any attention from its configuration only: no model is made. Like
/// <recognizer.hpp>, it needs laconic::recognizer or the implementation's header.
struct EncoderCosts {
  EncoderName encoder;   ///< kind of the encoder
  EncoderConfig config;  ///< sizes of the encoder

  /// Returns the number of parameters.
  Index parameters() const;
  /// Returns the number of parameters of all attention layers.
  Index attention_parameters() const;
  /// Returns the number of parameters before the first block.
  Index subsampling_parameters() const;
  /// Returns the floating-point operations for an utterance of so many encoder frames.
  Index flops(Index frames) const;
  /// Returns the floating-point operations of all attention layers for an utterance of so many encoder frames.
  Index attention_flops(Index frames) const;
  /// Returns the bytes of keys and values, or latents, of so many encoder frames.
  Index cache_bytes(Index frames, Storage storage = Storage::full) const;
  /// Returns the encoder frames of so many rows of features.
  Index frames_of(Index rows) const;
  /// Returns the feature rows of so many encoder frames.
  Index rows_of(Index frames) const;
  /// Returns a rough estimate of the bytes that encoding so many frames takes in addition to the weights: the max of
  /// subsampling, blocks, and a stream that keeps all frames.
  Index working_bytes(Index frames) const;
  /// Returns the evaluation order that the cost rule of a latent takes, "absorbed" or "expanded", over whole utterances
  /// or for a chunk with so many frames kept; empty where the attention has one order only.
  std::string attention_path(const Mask& mask, std::optional<Index> kept_frames = {}) const;
};

}  // namespace LACONIC_ABI
}  // namespace laconic
