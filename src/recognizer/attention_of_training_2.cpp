// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include <laconic/recognition/recognizer/attention.hpp>

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

LACONIC_ATTENTION_OF_TRAINING(4);
LACONIC_ATTENTION_OF_TRAINING(5);
LACONIC_ATTENTION_OF_TRAINING(6);

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
