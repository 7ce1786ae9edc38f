// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/attention/any.hpp>
#include <laconic/backend/autodiff.hpp>
#include <laconic/backend/recorder.hpp>
#include <laconic/recognition/recognizer/context.hpp>

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

// Explicit instantiations for the attention of this place in the variant on a context; after `extern`, declarations of
// them.
#define LACONIC_ATTENTION_OF(I, Context, State)                                               \
  template Context::Tensor layer_output(const AnyLayer<I>&, Context&, const Context::Tensor&, \
                                        const Pass<Context::Tensor>&, State)
#define LACONIC_ATTENTION_OF_WHOLE(I, Context) LACONIC_ATTENTION_OF(I, Context, std::nullptr_t)
#define LACONIC_ATTENTION_OF_STREAM(I, Context) LACONIC_ATTENTION_OF(I, Context, AnyLayer<I>::State<Context>*)
#define LACONIC_ATTENTION_OF_TRAINING(I, Context) LACONIC_ATTENTION_OF(I, Autodiff<Context>, std::nullptr_t)
#define LACONIC_ATTENTION_OF_CONVERSION(I, Context) LACONIC_ATTENTION_OF(I, Recorder<Context>, std::nullptr_t)

/// Calls name(I, ...) for every attention, each of which ends with a semicolon.
#define LACONIC_EACH_ATTENTION(name, ...) \
  name(0, __VA_ARGS__);                   \
  name(1, __VA_ARGS__);                   \
  name(2, __VA_ARGS__);                   \
  name(3, __VA_ARGS__);                   \
  name(4, __VA_ARGS__);                   \
  name(5, __VA_ARGS__);                   \
  name(6, __VA_ARGS__);                   \
  name(7, __VA_ARGS__);                   \
  name(8, __VA_ARGS__);                   \
  name(9, __VA_ARGS__);                   \
  name(10, __VA_ARGS__);                  \
  name(11, __VA_ARGS__)

#ifdef LACONIC_RECOGNIZER_SOURCES
static_assert(std::variant_size_v<AnyAttentionLayer<float>::Variant> == 12);
#define LACONIC_DECLARE_ATTENTION(I, Context)     \
  extern LACONIC_ATTENTION_OF_WHOLE(I, Context);  \
  extern LACONIC_ATTENTION_OF_STREAM(I, Context); \
  extern LACONIC_ATTENTION_OF_TRAINING(I, Context)
#define LACONIC_DECLARE_CONVERSION(I, Context) extern LACONIC_ATTENTION_OF_CONVERSION(I, Context)
LACONIC_EACH_ATTENTION(LACONIC_DECLARE_ATTENTION, Cpu<float>);
LACONIC_EACH_ATTENTION(LACONIC_DECLARE_CONVERSION, Cpu<float>);
#if LACONIC_RECOGNIZER_CUDA
LACONIC_EACH_ATTENTION(LACONIC_DECLARE_ATTENTION, Cuda<float>);
#endif
#undef LACONIC_DECLARE_ATTENTION
#undef LACONIC_DECLARE_CONVERSION
#endif

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
