// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include <laconic/recognition/recognizer/convert.hpp>

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

LACONIC_CONVERSIONS_OF_ATTENTION();

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic
