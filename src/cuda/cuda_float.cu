// laconic: attention for speech models. SPDX-License-Identifier: MIT
#define LACONIC_CUDA_NUMBER float
#include <laconic/backend/cuda.hpp>
