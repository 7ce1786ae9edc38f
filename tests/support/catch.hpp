// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

// Catch2 of either major version.
#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
using Catch::Approx;
#else
#include <catch2/catch.hpp>
namespace Catch::Matchers {
inline auto ContainsSubstring(const std::string& part) { return Contains(part); }  // its name from version 3 on
}
#endif
