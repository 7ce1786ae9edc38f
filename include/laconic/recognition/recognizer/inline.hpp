// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

/// How the functions of Recognizer are defined: `inline` in a program that includes the implementation, and once, in
/// src/, for laconic::recognizer.
#ifndef LACONIC_RECOGNIZER_INLINE
#define LACONIC_RECOGNIZER_INLINE inline
#endif
