// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include <laconic/recognition/recognizer/attention.hpp>

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

#define LACONIC_COMPILE_ATTENTION(I, Context) \
  LACONIC_ATTENTION_OF_WHOLE(I, Context);     \
  LACONIC_ATTENTION_OF_STREAM(I, Context);    \
  LACONIC_ATTENTION_OF_TRAINING(I, Context)
LACONIC_EACH_ATTENTION(LACONIC_COMPILE_ATTENTION, Cuda<float>);

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
