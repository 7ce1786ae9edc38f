// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

// The only place where the version is written: CMake reads it from here.
#define LACONIC_VERSION_MAJOR 0
#define LACONIC_VERSION_MINOR 1
#define LACONIC_VERSION_PATCH 0

// The inline namespace of everything. What the instruction set changes, the width of vectors, the alignment of matrices
// and how bytes are multiplied, is part of each name: files compiled for different ones do not link, where they would
// crash.
#if defined(__AVX512F__) && defined(__AVX512VNNI__)
#define LACONIC_ABI v0_avx512_vnni
#define LACONIC_VNNI 1
#elif defined(__AVX512F__)
#define LACONIC_ABI v0_avx512
#elif defined(__AVX2__)
#define LACONIC_ABI v0_avx2
#elif defined(__AVX__)
#define LACONIC_ABI v0_avx
#else
#define LACONIC_ABI v0
#endif
#ifndef LACONIC_VNNI
#define LACONIC_VNNI 0  // the processor multiplies bytes
#endif

// Infeasible CTC losses are infinite, and what is not a number must show: a build that assumes neither exists breaks
// both.
#if defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__
#error "laconic needs infinities: build without -ffast-math (or add -fno-finite-math-only)"
#endif
