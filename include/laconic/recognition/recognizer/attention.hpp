// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/any.hpp>
#include <laconic/backend/autodiff.hpp>
#include <laconic/backend/cpu.hpp>
#include <laconic/backend/recorder.hpp>

#include <cstddef>
#include <variant>

// The attentions that laconic::recognizer compiles once for all encoders: for whole utterances, for streams, for
// training and for conversion, which records what flows into layers. LACONIC_RECOGNIZER_SOURCES is set for its sources
// alone.

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

template <std::size_t I>
using AnyLayer = std::variant_alternative_t<I, AnyAttentionLayer<float>::Variant>;
using Tape = Autodiff<Cpu<float>>;

// Explicit instantiations for the attention of this place in the variant; after `extern`, declarations of them.
#define LACONIC_ATTENTION_OF_WHOLE(I)                                                        \
  template Tensor<float> layer_output(const AnyLayer<I>&, Cpu<float>&, const Tensor<float>&, \
                                      const Pass<Tensor<float>>&, std::nullptr_t)
#define LACONIC_ATTENTION_OF_STREAM(I)                                                       \
  template Tensor<float> layer_output(const AnyLayer<I>&, Cpu<float>&, const Tensor<float>&, \
                                      const Pass<Tensor<float>>&, AnyLayer<I>::State<Cpu<float>>*)
#define LACONIC_ATTENTION_OF_TRAINING(I)                                                                        \
  template Tape::Tensor layer_output(const AnyLayer<I>&, Tape&, const Tape::Tensor&, const Pass<Tape::Tensor>&, \
                                     std::nullptr_t)
#define LACONIC_ATTENTION_OF_CONVERSION(I)                                                             \
  template Tensor<float> layer_output(const AnyLayer<I>&, Recorder<Cpu<float>>&, const Tensor<float>&, \
                                      const Pass<Tensor<float>>&, std::nullptr_t)

#ifdef LACONIC_RECOGNIZER_SOURCES
static_assert(std::variant_size_v<AnyAttentionLayer<float>::Variant> == 12);
#define LACONIC_DECLARE_ATTENTION(I)       \
  extern LACONIC_ATTENTION_OF_WHOLE(I);    \
  extern LACONIC_ATTENTION_OF_STREAM(I);   \
  extern LACONIC_ATTENTION_OF_TRAINING(I); \
  extern LACONIC_ATTENTION_OF_CONVERSION(I)
LACONIC_DECLARE_ATTENTION(0);
LACONIC_DECLARE_ATTENTION(1);
LACONIC_DECLARE_ATTENTION(2);
LACONIC_DECLARE_ATTENTION(3);
LACONIC_DECLARE_ATTENTION(4);
LACONIC_DECLARE_ATTENTION(5);
LACONIC_DECLARE_ATTENTION(6);
LACONIC_DECLARE_ATTENTION(7);
LACONIC_DECLARE_ATTENTION(8);
LACONIC_DECLARE_ATTENTION(9);
LACONIC_DECLARE_ATTENTION(10);
LACONIC_DECLARE_ATTENTION(11);
#undef LACONIC_DECLARE_ATTENTION
#endif

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
