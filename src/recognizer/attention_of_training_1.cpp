// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include <laconic/recognition/recognizer/attention.hpp>

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

LACONIC_ATTENTION_OF_TRAINING(0);
LACONIC_ATTENTION_OF_TRAINING(1);
LACONIC_ATTENTION_OF_TRAINING(2);
LACONIC_ATTENTION_OF_TRAINING(3);

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
