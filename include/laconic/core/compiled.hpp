// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

// What laconic::compiled holds: kernels, the slices of `Cpu` and solvers, compiled once for float and double. Who links
// it has LACONIC_COMPILED defined and compiles none of them again. Its sources in src/compiled define
// LACONIC_COMPILED_NUMBER, the type that they compile for. With neither, these macros do nothing.

/// LACONIC_COMPILE(name, ...), after a function template, says that laconic::compiled holds name<float, ...> and
/// name<double, ...>. LACONIC_COMPILE_CLASS says it of the members of a class template, and LACONIC_COMPILE_DOUBLE of
/// name<double> alone.
#define LACONIC_COMPILE_FOR(number, name, ...) \
  template decltype(name<number __VA_OPT__(, ) __VA_ARGS__>) name<number __VA_OPT__(, ) __VA_ARGS__>
#if defined(LACONIC_COMPILED_NUMBER)
#define LACONIC_COMPILE(...) LACONIC_COMPILE_FOR(LACONIC_COMPILED_NUMBER, __VA_ARGS__)
#define LACONIC_COMPILE_DOUBLE(name) LACONIC_COMPILE_FOR(double, name)
#define LACONIC_COMPILE_CLASS(name) template class name<LACONIC_COMPILED_NUMBER>
#elif defined(LACONIC_COMPILED)
#define LACONIC_COMPILE(...)                      \
  extern LACONIC_COMPILE_FOR(float, __VA_ARGS__); \
  extern LACONIC_COMPILE_FOR(double, __VA_ARGS__)
#define LACONIC_COMPILE_DOUBLE(name) extern LACONIC_COMPILE_FOR(double, name)
#define LACONIC_COMPILE_CLASS(name)  \
  extern template class name<float>; \
  extern template class name<double>
#else
#define LACONIC_COMPILE(...) static_assert(true)
#define LACONIC_COMPILE_DOUBLE(name) static_assert(true)
#define LACONIC_COMPILE_CLASS(name) static_assert(true)
#endif
