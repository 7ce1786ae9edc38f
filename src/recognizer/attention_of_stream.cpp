// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include <laconic/recognition/recognizer/attention.hpp>

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

LACONIC_ATTENTION_OF_STREAM(0);
LACONIC_ATTENTION_OF_STREAM(1);
LACONIC_ATTENTION_OF_STREAM(2);
LACONIC_ATTENTION_OF_STREAM(3);
LACONIC_ATTENTION_OF_STREAM(4);
LACONIC_ATTENTION_OF_STREAM(5);
LACONIC_ATTENTION_OF_STREAM(6);
LACONIC_ATTENTION_OF_STREAM(7);
LACONIC_ATTENTION_OF_STREAM(8);
LACONIC_ATTENTION_OF_STREAM(9);

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
