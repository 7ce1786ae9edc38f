// laconic: attention for speech models. SPDX-License-Identifier: MIT
#define LACONIC_COMPILED_NUMBER double
#include <laconic/backend/cpu.hpp>
