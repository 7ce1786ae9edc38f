// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

// The only place where the version is written: CMake reads it from here.
#define LACONIC_VERSION_MAJOR 0
#define LACONIC_VERSION_MINOR 1
#define LACONIC_VERSION_PATCH 0

// Masked scores are -inf and infeasible CTC losses are +inf: a build that assumes there are no infinities breaks both.
#if defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__
#error "laconic needs infinities: build without -ffast-math (or add -fno-finite-math-only)"
#endif
