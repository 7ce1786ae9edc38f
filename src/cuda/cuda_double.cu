// laconic: attention for speech models. SPDX-License-Identifier: MIT
#define LACONIC_CUDA_NUMBER double
#include <laconic/backend/cuda.hpp>
