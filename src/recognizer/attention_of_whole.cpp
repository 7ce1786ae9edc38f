// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include <laconic/recognition/recognizer/attention.hpp>

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

LACONIC_ATTENTION_OF_WHOLE(0);
LACONIC_ATTENTION_OF_WHOLE(1);
LACONIC_ATTENTION_OF_WHOLE(2);
LACONIC_ATTENTION_OF_WHOLE(3);
LACONIC_ATTENTION_OF_WHOLE(4);
LACONIC_ATTENTION_OF_WHOLE(5);
LACONIC_ATTENTION_OF_WHOLE(6);
LACONIC_ATTENTION_OF_WHOLE(7);
LACONIC_ATTENTION_OF_WHOLE(8);
LACONIC_ATTENTION_OF_WHOLE(9);

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
