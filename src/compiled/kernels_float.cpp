// laconic: attention for speech models. SPDX-License-Identifier: MIT
#define LACONIC_COMPILED_NUMBER float
#include <laconic/backend/cpu.hpp>
