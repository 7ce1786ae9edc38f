// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <span>
#ifdef __GLIBC__
#include <malloc.h>
#endif

/// Returns the end of the portion that begins with recording `begin`: as many of them as fill `max_seconds`, but at
/// least one. `seconds` holds their durations.
inline std::size_t portion_end(std::span<const double> seconds, std::size_t begin, double max_seconds) {
  std::size_t end = begin;
  for (double sum = 0; end < seconds.size(); ++end)
    if ((sum += seconds[end]) > max_seconds && end > begin) break;
  return end;
}

/// Gives memory that is free back to the system. Results that stay lie among it, and portions differ in shape, so that
/// without this the heap grows with their number.
inline void release_free_memory() {
#ifdef __GLIBC__
  ::malloc_trim(0);
#endif
}
