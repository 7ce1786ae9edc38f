// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/any.hpp>
#include <laconic/model/branchformer.hpp>
#include <laconic/model/conformer.hpp>
#include <laconic/model/e_branchformer.hpp>
#include <laconic/model/wav2vec2_conformer.hpp>
#include <laconic/recognition/encoder_costs.hpp>
#include <laconic/recognition/recognizer/inline.hpp>

#include <algorithm>
#include <type_traits>

// The members of EncoderCosts.

namespace laconic {
inline namespace LACONIC_ABI {

namespace detail {

/// Calls f(std::type_identity<Model>()) for the encoder of this name.
template <class F>
decltype(auto) with_encoder(EncoderName name, F&& f) {
  using enum EncoderName;
  switch (name) {
    case branchformer:
      return f(std::type_identity<Branchformer<AnyAttention>>());
    case e_branchformer:
      return f(std::type_identity<EBranchformer<AnyAttention>>());
    case wav2vec2_conformer:
      return f(std::type_identity<Wav2Vec2Conformer<AnyAttention>>());
    default:
      return f(std::type_identity<Conformer<AnyAttention>>());
  }
}

}  // namespace detail

LACONIC_RECOGNIZER_INLINE Index EncoderCosts::parameters() const {
  return detail::with_encoder(encoder, [&]<class M>(std::type_identity<M>) { return M::parameter_count(config); });
}
LACONIC_RECOGNIZER_INLINE Index EncoderCosts::attention_parameters() const {
  return config.over_layers([](const AttentionConfig& a) { return AnyAttention::parameter_count(a); });
}
LACONIC_RECOGNIZER_INLINE Index EncoderCosts::subsampling_parameters() const {
  return detail::with_encoder(encoder,
                              [&]<class M>(std::type_identity<M>) { return M::front_parameter_count(config); });
}
LACONIC_RECOGNIZER_INLINE Index EncoderCosts::flops(Index n) const {
  return detail::with_encoder(encoder, [&]<class M>(std::type_identity<M>) { return M::flops(config, frames(n)); });
}
LACONIC_RECOGNIZER_INLINE Index EncoderCosts::attention_flops(Index n) const {
  return config.over_layers([&](const AttentionConfig& a) { return AnyAttention::flops(a, frames(n), config.mask()); });
}
LACONIC_RECOGNIZER_INLINE Index EncoderCosts::cache_bytes(Index n, Storage storage) const {
  return detail::with_encoder(
      encoder, [&]<class M>(std::type_identity<M>) { return M::cache_bytes(config, frames(n), storage); });
}
LACONIC_RECOGNIZER_INLINE Index EncoderCosts::frames_of(Index rows) const {
  return detail::with_encoder(encoder, [&]<class M>(std::type_identity<M>) { return M::out_length(config, rows); });
}
LACONIC_RECOGNIZER_INLINE Index EncoderCosts::rows_of(Index n) const {
  // The first of the two convolutions has a stride of 2, so the first frame sees 2 * 2 + 3 rows.
  const bool has_samples = !config.waveform.empty();
  const Index window = has_samples ? config.waveform.window() : (Conv2dShape::kernel - 1) * 2 + Conv2dShape::kernel,
              step = has_samples ? config.waveform.stride() : config.subsampling;
  return window + (n - 1) * step;
}

LACONIC_RECOGNIZER_INLINE Index EncoderCosts::working_bytes(Index n) const {
  const EncoderConfig& c = config;
  const WaveformConfig& w = c.waveform;
  const Index half = w.empty() ? c.subsampling / 2 * n * Conv2dShape{1, c.channels(), c.num_mels, 2}.out_cols()
                               : 2 * n * c.subsampling / w.conv_stride[0] * w.conv_dim[0];
  const Index quarter =
      w.empty() ? n * Conv2dSubsampling<float>::out_length(c.num_mels, c.subsampling) * c.channels() : 0;
  const Index block = n * (10 * c.d_model + 2 * std::max(c.feed_forward_width(), c.cgmlp_expansion * c.d_model));
  const Index kept = c.over_layers(
      [&](const AttentionConfig& a) { return AnyAttention::cache_bytes(a, frames(n)) / 4 + 2 * n * c.d_model; });
  return 6 * std::max({half + quarter, block, kept});  // blocks of the arena are up to a quarter larger
}

LACONIC_RECOGNIZER_INLINE std::string EncoderCosts::attention_path(const Mask& mask,
                                                                   std::optional<Index> kept_frames) const {
  const AttentionConfig attention = AnyAttention::named(config.attention_config());
  return AnyAttention::with_policy(attention, [&]<class P>(std::type_identity<P>) -> std::string {
    if (!P::KeyValue::is_latent) return "";
    const auto work = kept_frames ? P::stream_work(mask.chunk, *kept_frames) : P::whole_work(mask);
    return P::absorbing_is_cheaper(P::dims(attention), work) ? "absorbed" : "expanded";
  });
}

}  // namespace LACONIC_ABI
}  // namespace laconic
