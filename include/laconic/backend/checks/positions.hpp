// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/shapes.hpp>
#include <laconic/core/index_list.hpp>

// The checks of arguments of tables of positions, which all backends share.

namespace laconic {
inline namespace LACONIC_ABI {
namespace checks {

/// Checks the arguments of `rotary_table`. Throws `Error` for sizes that do not fit and for rates that make no sense.
inline void rotary_table(Index width, Index rate_width, const IndexList& pairs, const RotaryRates& rates) {
  require(width % 2 == 0, "rotary_table: width ", width, " given, an even number expected");
  require(pairs.size() == 0 || 2 * pairs.size() == width, "rotary_table: ", pairs.size(),
          " pairs given, none or half of the width ", width, " expected");
  require(rate_width >= width, "rotary_table: rates of width ", rate_width, " given, at least ", width, " expected");
  rates.checked();
}

}  // namespace checks
}  // namespace LACONIC_ABI
}  // namespace laconic
