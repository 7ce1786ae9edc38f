// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

// Checks the compiler. The include of a file that does not exist ends the compilation at this sentence; otherwise
// hundreds of errors would follow it.
#if __cplusplus < 202002L
#error "laconic needs C++20 (-std=c++20) and g++ 12 or clang 14, or newer ones"
#include <C++20>
#elif defined(__clang__) ? __clang_major__ < 14 : __GNUC__ < 12
#error "laconic needs g++ 12 or clang 14, or newer ones, with -std=c++20"
#include <compiler>
#endif

// The only place where the version is written: CMake reads it from here.
#define LACONIC_VERSION_MAJOR 0
#define LACONIC_VERSION_MINOR 1
#define LACONIC_VERSION_PATCH 0

// Everything is in the inline namespace LACONIC_ABI. Its name distinguishes all that changes the code compiled from
// these headers: the instruction sets by which xsimd, Eigen and laconic choose, the alignment of Eigen's matrices, and
// OpenMP. Files compiled for different ones do not link; if they did, one file's functions would read the other's
// vectors. A common name is `v0_avx2_fma_openmp`.
#if defined(__AVX512F__)
#define LACONIC_ABI_VECTORS _avx512
#elif defined(__AVX2__)
#define LACONIC_ABI_VECTORS _avx2
#elif defined(__AVX__)
#define LACONIC_ABI_VECTORS _avx
#elif defined(__SSE4_2__)
#define LACONIC_ABI_VECTORS _sse4_2
#elif defined(__SSE4_1__)
#define LACONIC_ABI_VECTORS _sse4_1
#elif defined(__SSSE3__)
#define LACONIC_ABI_VECTORS _ssse3
#elif defined(__SSE3__)
#define LACONIC_ABI_VECTORS _sse3
#elif defined(__SSE2__)
#define LACONIC_ABI_VECTORS _sse2
#elif defined(__ARM_NEON)
#define LACONIC_ABI_VECTORS _neon
#elif defined(__VEC__)
#define LACONIC_ABI_VECTORS _altivec
#else
#define LACONIC_ABI_VECTORS
#endif
#if defined(__ARM_FEATURE_SVE_BITS)
#define LACONIC_VECTOR_BITS __ARM_FEATURE_SVE_BITS
#elif defined(__riscv_v_fixed_vlen)
#define LACONIC_VECTOR_BITS __riscv_v_fixed_vlen
#else
#define LACONIC_VECTOR_BITS 0  // the instruction set determines the width
#endif
#if LACONIC_VECTOR_BITS == 0
#define LACONIC_ABI_WIDTH
#elif LACONIC_VECTOR_BITS == 128
#define LACONIC_ABI_WIDTH _128
#elif LACONIC_VECTOR_BITS == 256
#define LACONIC_ABI_WIDTH _256
#elif LACONIC_VECTOR_BITS == 512
#define LACONIC_ABI_WIDTH _512
#else
#define LACONIC_ABI_WIDTH _wide
#endif
#ifdef __FMA__
#define LACONIC_ABI_FMA _fma
#else
#define LACONIC_ABI_FMA
#endif
#ifdef __FMA4__
#define LACONIC_ABI_FMA4 _fma4
#else
#define LACONIC_ABI_FMA4
#endif
#ifdef __AVXVNNI__
#define LACONIC_ABI_AVXVNNI _avxvnni
#else
#define LACONIC_ABI_AVXVNNI
#endif
#ifdef __AVX512CD__
#define LACONIC_ABI_CD _cd
#else
#define LACONIC_ABI_CD
#endif
#ifdef __AVX512DQ__
#define LACONIC_ABI_DQ _dq
#else
#define LACONIC_ABI_DQ
#endif
#ifdef __AVX512BW__
#define LACONIC_ABI_BW _bw
#else
#define LACONIC_ABI_BW
#endif
#ifdef __AVX512ER__
#define LACONIC_ABI_ER _er
#else
#define LACONIC_ABI_ER
#endif
#ifdef __AVX512PF__
#define LACONIC_ABI_PF _pf
#else
#define LACONIC_ABI_PF
#endif
#ifdef __AVX512IFMA__
#define LACONIC_ABI_IFMA _ifma
#else
#define LACONIC_ABI_IFMA
#endif
#ifdef __AVX512VBMI__
#define LACONIC_ABI_VBMI _vbmi
#else
#define LACONIC_ABI_VBMI
#endif
#ifdef __AVX512VBMI2__
#define LACONIC_ABI_VBMI2 _vbmi2
#else
#define LACONIC_ABI_VBMI2
#endif
#ifdef __AVX512VNNI__
#define LACONIC_ABI_VNNI _vnni
#else
#define LACONIC_ABI_VNNI
#endif
#ifdef __ARM_FEATURE_MATMUL_INT8
#define LACONIC_ABI_I8MM _i8mm
#else
#define LACONIC_ABI_I8MM
#endif
#ifdef _OPENMP
#define LACONIC_ABI_OPENMP _openmp
#else
#define LACONIC_ABI_OPENMP
#endif

// The alignment of Eigen's matrices in bytes: Eigen's own default, unless the program sets another.
#if defined(__AVX512F__)
#define LACONIC_EIGEN_DEFAULT 64
#elif defined(__AVX__)
#define LACONIC_EIGEN_DEFAULT 32
#else
#define LACONIC_EIGEN_DEFAULT 16
#endif
#if defined(EIGEN_MAX_ALIGN_BYTES) ? EIGEN_MAX_ALIGN_BYTES == 0 \
                                   : defined(EIGEN_DONT_ALIGN) || defined(EIGEN_DONT_VECTORIZE)
#define LACONIC_ALIGNMENT 0
#define LACONIC_ABI_ALIGNMENT _align0
#elif !defined(EIGEN_MAX_ALIGN_BYTES) || EIGEN_MAX_ALIGN_BYTES == LACONIC_EIGEN_DEFAULT
#define LACONIC_ALIGNMENT LACONIC_EIGEN_DEFAULT
#define LACONIC_ABI_ALIGNMENT
#elif EIGEN_MAX_ALIGN_BYTES == 16
#define LACONIC_ALIGNMENT 16
#define LACONIC_ABI_ALIGNMENT _align16
#elif EIGEN_MAX_ALIGN_BYTES == 32
#define LACONIC_ALIGNMENT 32
#define LACONIC_ABI_ALIGNMENT _align32
#elif EIGEN_MAX_ALIGN_BYTES == 64
#define LACONIC_ALIGNMENT 64
#define LACONIC_ABI_ALIGNMENT _align64
#elif EIGEN_MAX_ALIGN_BYTES == 128
#define LACONIC_ALIGNMENT 128
#define LACONIC_ABI_ALIGNMENT _align128
#else
#error "laconic: EIGEN_MAX_ALIGN_BYTES is 0, 16, 32, 64 or 128"
#endif

#define LACONIC_PASTE(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q) \
  v0##a##b##c##d##e##f##g##h##i##j##k##l##m##n##o##p##q
#define LACONIC_PASTE_EXPANDED(...) LACONIC_PASTE(__VA_ARGS__)
#define LACONIC_ABI                                                                                               \
  LACONIC_PASTE_EXPANDED(LACONIC_ABI_VECTORS, LACONIC_ABI_WIDTH, LACONIC_ABI_FMA, LACONIC_ABI_FMA4,               \
                         LACONIC_ABI_AVXVNNI, LACONIC_ABI_CD, LACONIC_ABI_DQ, LACONIC_ABI_BW, LACONIC_ABI_ER,     \
                         LACONIC_ABI_PF, LACONIC_ABI_IFMA, LACONIC_ABI_VBMI, LACONIC_ABI_VBMI2, LACONIC_ABI_VNNI, \
                         LACONIC_ABI_I8MM, LACONIC_ABI_OPENMP, LACONIC_ABI_ALIGNMENT)

#define LACONIC_QUOTE(...) #__VA_ARGS__
#define LACONIC_QUOTE_EXPANDED(...) LACONIC_QUOTE(__VA_ARGS__)
#define LACONIC_ABI_NAME LACONIC_QUOTE_EXPANDED(LACONIC_ABI)  // LACONIC_ABI as a text

#if defined(__AVX512F__) ? defined(__AVX512VNNI__) : defined(__AVXVNNI__)
#define LACONIC_VNNI 1  // the processor has dot products of bytes (AVX-512 VNNI, or AVX-VNNI)
#else
#define LACONIC_VNNI 0
#endif
#if LACONIC_VNNI || (defined(__AVX512F__) ? defined(__AVX512BW__) : defined(__AVX2__))
#define LACONIC_WHOLE_PRODUCTS 1  // rounded activations meet weights of bytes in whole numbers, faster than in floats
#else
#define LACONIC_WHOLE_PRODUCTS 0
#endif

// Infeasible CTC losses are infinite, and NaN must propagate. A build that assumes that neither exists breaks both.
#if defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__
#error "laconic needs infinities: build without -ffast-math (or add -fno-finite-math-only)"
#endif
