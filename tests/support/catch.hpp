// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

// Includes Catch2 of version 2 or 3.
#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
using Catch::Approx;
#else
#include <catch2/catch.hpp>
namespace Catch::Matchers {
inline auto ContainsSubstring(const std::string& part) { return Contains(part); }  // the name in version 3
}
#endif
