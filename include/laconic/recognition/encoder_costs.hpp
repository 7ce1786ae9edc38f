// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/model/encoder_config.hpp>

#include <optional>
#include <string>

namespace laconic {
inline namespace LACONIC_ABI {

/// The costs of an encoder with any attention, from its configuration alone: no model is made. As <recognizer.hpp>,
/// this needs laconic::recognizer or the implementation's header.
struct EncoderCosts {
  EncoderName encoder;
  EncoderConfig config;

  Index parameters() const;
  Index attention_parameters() const;
  Index subsampling_parameters() const;
  /// Returns the floating-point operations for an utterance of so many encoder frames.
  Index flops(Index frames) const;
  Index attention_flops(Index frames) const;
  /// Returns the bytes of keys and values, or latents, of so many encoder frames.
  Index cache_bytes(Index frames, Storage storage = Storage::full) const;
  /// Returns the encoder frames of so many rows of features.
  Index frames_of(Index rows) const;
  /// Returns the feature rows of so many encoder frames.
  Index rows_of(Index frames) const;
  /// Returns roughly what encoding so many frames takes besides the weights: the widest of subsampling and blocks, or
  /// what a stream holds that keeps all frames.
  Index working_bytes(Index frames) const;
  /// Returns the evaluation order that the cost rule of a latent takes, "absorbed" or "expanded", over whole utterances
  /// or for a chunk with so many frames kept; empty where the attention has one order only.
  std::string attention_path(const Mask& mask, std::optional<Index> kept_frames = {}) const;
};

}  // namespace LACONIC_ABI
}  // namespace laconic
